"""Which cells a sweep has, in which waves they are computed, and where their rows lie.

A cell takes a module's outputs at some tokens over the layers [start, stop) of a window from elsewhere. In a
causal model that changes nothing below `start` and nothing before the token, so the cell's rows (its tail: the
tokens from there on, in every noise sample) enter the pack after layer `start` and are all the cell ever
computes (docs/algorithms.md, section 9).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fasttrace.errors import UserError
from fasttrace.facts.tokens import EncodedFact
from fasttrace.models.adapter import Decoder

MODULES = ("mlp", "attn", "block")
METHODS = ("denoise", "noise", "zero")
TOKENS = ("all", "subject", "last-subject", "whole-subject")
OWN, ZERO = -1, -2  # a row whose module output is its own, or nothing


@dataclass(frozen=True)
class Intervention:
    """What a cell does: which module's output it replaces, in which pass, by what.

    module: "mlp", "attn" (what each adds to the residual) or "block" (the residual after it).
    method: "denoise" puts the clean pass's outputs into the corrupted passes, "noise" the corrupted passes' into
    the clean one, "zero" puts zeros into the clean one. samples: n corrupted passes (none for "zero").
    """

    module: str = "mlp"
    method: str = "denoise"
    samples: int = 10

    @property
    def corrupted(self) -> int:
        """Corrupted passes of a fact."""
        return 0 if self.method == "zero" else self.samples

    @property
    def runs(self) -> int:
        """Passes of a cell: one a noise sample, or the one without noise."""
        return self.corrupted or 1


class Cell(NamedTuple):
    """Intervene at `tokens` tokens from `token` on, over layers [start, stop)."""

    token: int
    start: int
    stop: int
    tokens: int = 1


def window_interval(layer: int, window: int, n_layers: int) -> tuple[int, int]:
    """Layers [start, stop) of the window of size w at `layer`: max(0, ℓ - w//2) to min(L, ℓ - (-w//2)).

    Source: the released code's rule (docs/algorithms.md, section 5): w = 5 is ℓ±2, w = 10 is ℓ-5 … ℓ+4, clipped.
    """
    return max(0, layer - window // 2), min(n_layers, layer - (-window // 2))


@dataclass(frozen=True)
class TraceItem:
    """A fact ready to be traced: its row tokens (prompt and all but the last scored token) and its cells.

    targets: the scored tokens, whose joint probability after the prompt is every number of the grid.
    """

    encoded: EncodedFact
    ids: tuple[int, ...]
    targets: tuple[int, ...]
    cells: tuple[Cell, ...]

    @property
    def length(self) -> int:
        """Prompt tokens T."""
        return len(self.encoded.ids)

    def base_rows(self, corrupted: int) -> int:
        """Rows of the clean pass and the corrupted passes, which the cells start from."""
        return len(self.ids) + corrupted * (len(self.ids) - self.encoded.subject_begin)

    def cell_rows(self, cell: Cell, runs: int) -> int:
        """Rows a cell adds to the pack."""
        return runs * (len(self.ids) - cell.token)

    def sees(self, model: Decoder, cell: Cell, intervention: Intervention) -> bool:
        """Whether a scored token can see what the cell changes. Its p is else the base pass's, and is not computed."""
        seen = model.reach(cell.start, cell.token + cell.tokens - 1) >= self.length - 1
        return seen and (intervention.method == "zero" or self.sees_noise(model))

    def sees_noise(self, model: Decoder) -> bool:
        """Whether a scored token can see the corrupted subject. The corrupted passes' p is else the clean one's."""
        return model.reach(-1, self.encoded.subject_end - 1) >= self.length - 1


def traced_spots(encoded: EncodedFact, tokens: str, method: str) -> list[tuple[int, int]]:
    """(first token, how many) of every intervention that is computed.

    Noise cannot reach a token before the subject, so there only zeros change anything.
    Raises UserError for an unknown choice.
    """
    begin, end = encoded.subject_begin, encoded.subject_end
    if tokens == "all":
        return [(t, 1) for t in range(0 if method == "zero" else begin, len(encoded.ids))]
    if tokens == "subject":
        return [(t, 1) for t in range(begin, end)]
    if tokens == "last-subject":
        return [(end - 1, 1)]
    if tokens == "whole-subject":
        return [(begin, end - begin)]
    raise UserError(f"tokens '{tokens}' is not one of {', '.join(TOKENS)}")


def make_item(
    encoded: EncodedFact,
    windows: Sequence[int],
    n_layers: int,
    tokens: str,
    method: str = "denoise",
    targets: Sequence[int] | None = None,
) -> TraceItem:
    """The distinct cells of a fact's grids: intervals that several windows share are listed once.

    targets: the scored tokens; None: all of o_true.
    """
    intervals = sorted({window_interval(layer, w, n_layers) for w in windows for layer in range(n_layers)})
    spots = traced_spots(encoded, tokens, method)
    cells = tuple(Cell(t, a, c, count) for a, c in intervals for t, count in spots)
    scored = tuple(encoded.target_true_ids if targets is None else targets)
    return TraceItem(encoded, (*encoded.ids, *scored[:-1]), scored, cells)


@dataclass
class Wave:
    """Cells of one or more facts that advance together; a fact larger than memory is spread over waves."""

    items: list[tuple[int, list[Cell]]] = field(default_factory=list)
    rows: int = 0


def bytes_per_row(model: Decoder) -> int:
    """Peak bytes a packed row needs: residual, norm, queries, keys, values, attention, MLP output, next residual."""
    block = model.blocks[0]
    heads = block.head_dim * (3 * block.n_heads + 3 * block.n_kv_heads)
    # Twice what is alive at once: the allocator keeps about as much again in pieces too small for the next layer.
    return 2 * (6 * model.width + heads) * model.embed_weight.element_size()


def split_waves(items: Sequence[TraceItem], intervention: Intervention, max_rows: int) -> list[Wave]:
    """Pack cells into waves of at most max_rows rows, facts in order, a fact's cells split only where one
    wave cannot hold them.

    Raises UserError where max_rows cannot hold one fact's base passes and its largest cell.
    """
    corrupted, runs = intervention.corrupted, intervention.runs
    waves: list[Wave] = []
    wave = Wave()
    for number, item in enumerate(items):
        base = item.base_rows(corrupted)
        largest = max((item.cell_rows(cell, runs) for cell in item.cells), default=0)
        if base + largest > max_rows:
            raise UserError(
                f"memory: fact '{item.encoded.fact.fact_id}' needs {base + largest} rows at once and the budget "
                f"holds {max_rows}; a larger --memory or fewer --samples were wanted"
            )
        whole = base + sum(item.cell_rows(cell, runs) for cell in item.cells)
        if wave.items and wave.rows + min(whole, max_rows) > max_rows:
            waves.append(wave)
            wave = Wave()
        wave.items.append((number, []))
        wave.rows += base
        for cell in item.cells:
            rows = item.cell_rows(cell, runs)
            if wave.rows + rows > max_rows:
                waves.append(wave)
                wave = Wave(items=[(number, [])], rows=base)
            wave.items[-1][1].append(cell)
            wave.rows += rows
    if wave.items:
        waves.append(wave)
    return waves


def _ranges(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Concatenation of [begin_i, begin_i + length_i)."""
    ends = np.cumsum(length)
    return np.repeat(begin - (ends - length), length) + np.arange(int(ends[-1]) if len(ends) else 0)


class Layout:
    """Row numbers of one wave: who enters when, from which row, and which rows are scored.

    Base rows come first: for each fact its clean pass, then each corrupted pass's tokens from the subject on
    (earlier tokens are the clean pass's). Cells follow in order of the layer they enter after, each `runs`
    sequences of rows. A row never moves.

    Of every row of the pack, base rows included: base (N,) the row it starts from; patch (N,) the base row whose
    module output it takes inside its window, or OWN, or ZERO; stop (N,) first layer past that window, 0 without
    one; position (N,) its token; scored (N,) bool, whether a target token is predicted there. sequences: (S, 8) as
    ops.prefix_attention; fact: (S,) the sequence's fact in this wave. rows_at, sequences_at: (L + 1,) how many rows
    and sequences are in the pack at each layer.
    """

    def __init__(self, model: Decoder, items: Sequence[TraceItem], wave: Wave, intervention: Intervention) -> None:
        n_layers = model.n_layers
        self.items = [items[number] for number, _ in wave.items]
        self.intervention = intervention
        length = np.array([len(item.ids) for item in self.items])
        subject = np.array([item.encoded.subject_begin for item in self.items])
        k = np.array([len(item.targets) for item in self.items])
        base_rows = length + intervention.corrupted * (length - subject)
        clean_begin = np.cumsum(base_rows) - base_rows
        corrupted_begin = clean_begin + length
        self.n_base = int(base_rows.sum())

        cells = [(fact, cell) for fact, (_, mine) in enumerate(wave.items) for cell in mine]
        seen = [self.items[fact].sees(model, cell, intervention) for fact, cell in cells]
        self.unseen = [x for x, can in zip(cells, seen, strict=True) if not can]
        self.cells = sorted((x for x, can in zip(cells, seen, strict=True) if can), key=lambda x: x[1].start)

        # One row a sequence, base sequences first.
        passes = 1 + intervention.corrupted
        n_facts = len(self.items)
        fact = np.repeat(np.arange(n_facts), passes)
        sample = np.tile(np.arange(-1, intervention.corrupted), n_facts)
        token = np.where(sample < 0, 0, subject[fact])
        entering, stops, leading = (np.full(len(fact), x) for x in (-1, 0, 0))
        if self.cells:
            runs = intervention.runs
            named = np.array([(f, *cell) for f, cell in self.cells]).repeat(runs, axis=0)
            drawn = np.tile(np.arange(runs), len(self.cells))
            columns = (fact, token, entering, stops, leading)
            fact, token, entering, stops, leading = (
                np.concatenate((base, column)) for base, column in zip(columns, named.T, strict=True)
            )
            sample = np.concatenate((sample, drawn))
        tail = length[fact] - token
        begin = np.cumsum(tail) - tail
        of_sample = corrupted_begin[fact] + sample * (length - subject)[fact]
        in_clean, in_corrupted = clean_begin[fact] + token, of_sample + token - subject[fact]
        denoise = intervention.method == "denoise"
        base_begin = in_corrupted if denoise else in_clean
        patch_begin = {"denoise": in_clean, "noise": in_corrupted, "zero": np.full_like(begin, ZERO)}[
            intervention.method
        ]
        is_cell = entering >= 0
        base_begin = np.where(is_cell, base_begin, begin)

        self.fact, self.token_begin = fact, token
        first_len = np.where(is_cell & ~np.array(denoise), token, np.minimum(token, subject[fact]))
        second = np.where(is_cell & denoise, token - first_len, 0)
        zero = np.zeros_like(begin)
        self.sequences = np.stack(
            (begin, tail, np.where(first_len > 0, clean_begin[fact], 0), first_len,
             np.where(second > 0, of_sample, 0), second, begin, tail), axis=1,
        )  # fmt: skip
        within = _ranges(zero, tail)
        lead = within < np.repeat(leading, tail)
        patch = np.repeat(patch_begin, tail)
        self.base = _ranges(base_begin, tail)
        self.patch = np.where(lead, patch + (within if intervention.method != "zero" else 0), OWN)
        self.stop = np.where(lead, np.repeat(stops, tail), 0)
        self.position = np.repeat(token, tail) + within
        self.scored = self.position >= np.repeat(length[fact] - k[fact], tail)
        in_pack = np.searchsorted(entering, np.arange(n_layers + 1), side="left")
        self.sequences_at = in_pack
        self.rows_at = np.concatenate((begin, [begin[-1] + tail[-1]]))[in_pack]

    def queried(self, wanted: np.ndarray, n_sequences: int) -> np.ndarray:
        """The first n_sequences with only the rows wanted (a suffix of each) as queries, one after another."""
        table = self.sequences[:n_sequences].copy()
        counts = np.add.reduceat(wanted.astype(np.int64), table[:, 6])
        table[:, 0], table[:, 1] = np.cumsum(counts) - counts, counts
        return table
