"""Which cells a sweep has, in which waves they are computed, and where their rows lie.

A cell takes a module's outputs at some tokens over the layers [start, stop) of a window from elsewhere. In a
causal model that changes nothing below `start` and nothing before the token, so the cell's rows (its tail: the
tokens from there on, in every noise sample) enter the pack after layer `start` and are all the cell ever
computes (docs/algorithms.md, section 9).
"""

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple, get_args

import numpy as np

from fasttrace.errors import UserError
from fasttrace.facts.tokens import EncodedFact
from fasttrace.memory import pack_by_budget
from fasttrace.models.adapter import Decoder
from fasttrace.ops.prefix_attention import Column, sequence_table
from fasttrace.settings.trace import Module, Tokens
from fasttrace.windows import window_interval

MODULES = get_args(Module)
METHODS = ("denoise", "noise", "zero")
TOKENS = get_args(Tokens)
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


class Spot(NamedTuple):
    """Where an intervention is made: `tokens` tokens from `token` on."""

    token: int
    tokens: int


class Tail(NamedTuple):
    """Rows of a fact that advance together: its tokens from `token` on, in each of `passes` passes.

    They enter the pack after layer `entered`, −1 for the rows that are there from the start. At their first `replaced`
    tokens the module's output is taken from elsewhere in the layers below `stop`, 0 where it never is.
    """

    token: int
    passes: int
    entered: int = -1
    stop: int = 0
    replaced: int = 0


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

    def base_tails(self, corrupted: int) -> tuple[Tail, Tail]:
        """The clean pass and the corrupted passes, which the cells start from. Before the subject they are the same."""
        return Tail(0, passes=1), Tail(self.encoded.subject_begin, passes=corrupted)

    def cell_tail(self, cell: Cell, runs: int) -> Tail:
        """What a cell can change: nothing before its token and nothing below its window."""
        return Tail(cell.token, runs, cell.start, cell.stop, cell.tokens)

    def base_rows(self, corrupted: int) -> int:
        """Rows of `base_tails`."""
        return sum(map(self._rows, self.base_tails(corrupted)))

    def cell_rows(self, cell: Cell, runs: int) -> int:
        """Rows a cell adds to the pack."""
        return self._rows(self.cell_tail(cell, runs))

    def _rows(self, tail: Tail) -> int:
        return tail.passes * (len(self.ids) - tail.token)

    def sees(self, model: Decoder, cell: Cell, intervention: Intervention) -> bool:
        """Whether a scored token can see what the cell changes. Its p is else the base pass's, and is not computed."""
        seen = model.reach(cell.start, cell.token + cell.tokens - 1) >= self.length - 1
        return seen and (intervention.method == "zero" or self.sees_noise(model))

    def sees_noise(self, model: Decoder) -> bool:
        """Whether a scored token can see the corrupted subject. The corrupted passes' p is else the clean one's."""
        return model.reach(-1, self.encoded.subject_end - 1) >= self.length - 1


def traced_spots(encoded: EncodedFact, tokens: str, method: str) -> list[Spot]:
    """Where every intervention that is computed is made.

    Noise cannot reach a token before the subject, so there only zeros change anything.
    Raises UserError for an unknown choice.
    """
    begin, end = encoded.subject_begin, encoded.subject_end
    if tokens == "all":
        return [Spot(t, 1) for t in range(0 if method == "zero" else begin, len(encoded.ids))]
    if tokens == "subject":
        return [Spot(t, 1) for t in range(begin, end)]
    if tokens == "last-subject":
        return [Spot(end - 1, 1)]
    if tokens == "whole-subject":
        return [Spot(begin, end - begin)]
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
    cells = tuple(Cell(spot.token, a, c, spot.tokens) for a, c in intervals for spot in spots)
    scored = tuple(encoded.target_true_ids if targets is None else targets)
    return TraceItem(encoded, (*encoded.ids, *scored[:-1]), scored, cells)


@dataclass(frozen=True)
class Wave:
    """Cells of one or more facts that advance together; a fact larger than memory is spread over waves.

    items: (number of the item, its cells). rows: of the base passes and the cells.
    """

    items: list[tuple[int, list[Cell]]]
    rows: int


class _Piece(NamedTuple):
    """Cells of one fact that fit into a wave with the fact's base passes. rows: of both."""

    number: int
    cells: list[Cell]
    rows: int


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
    runs = intervention.runs
    pieces: list[_Piece] = []
    for number, item in enumerate(items):
        base = item.base_rows(intervention.corrupted)
        rows_of = functools.partial(item.cell_rows, runs=runs)
        largest = max(map(rows_of, item.cells), default=0)
        if base + largest > max_rows:
            raise UserError(
                f"memory: fact '{item.encoded.fact_id}' needs {base + largest} rows at once and the budget "
                f"holds {max_rows}; a larger --memory or fewer --samples were wanted"
            )
        for cells in pack_by_budget(item.cells, rows_of, max_rows - base) if item.cells else [[]]:
            pieces.append(_Piece(number, cells, base + sum(map(rows_of, cells))))
    last = {piece.number: piece for piece in pieces}
    # The first pieces of a fact that is split get waves of their own; what is left after its last is shared.
    size_of = lambda piece: piece.rows if piece is last[piece.number] else max_rows  # noqa: E731
    return [
        Wave([(piece.number, piece.cells) for piece in wave], sum(piece.rows for piece in wave))
        for wave in pack_by_budget(pieces, size_of, max_rows)
    ]


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
    one; position (N,) its token; scored (N,) bool, whether a target token is predicted there. sequences: (S, 8), the
    table of ops.prefix_attention; fact: (S,) the sequence's fact in this wave. rows_at, sequences_at: (L + 1,) how
    many rows and sequences are in the pack at each layer.
    """

    def __init__(self, model: Decoder, items: Sequence[TraceItem], wave: Wave, intervention: Intervention) -> None:
        n_layers = model.n_layers
        self.items = [items[number] for number, _ in wave.items]
        self.intervention = intervention
        length = np.array([len(item.ids) for item in self.items])
        subject = np.array([item.encoded.subject_begin for item in self.items])
        k = np.array([len(item.targets) for item in self.items])
        base_rows = np.array([item.base_rows(intervention.corrupted) for item in self.items])
        clean_begin = np.cumsum(base_rows) - base_rows
        corrupted_begin = clean_begin + length
        self.n_base = int(base_rows.sum())

        cells = [(fact, cell) for fact, (_, mine) in enumerate(wave.items) for cell in mine]
        seen = [self.items[fact].sees(model, cell, intervention) for fact, cell in cells]
        self.unseen = [x for x, can in zip(cells, seen, strict=True) if not can]
        self.cells = sorted((x for x, can in zip(cells, seen, strict=True) if can), key=lambda x: x[1].start)

        # One row a sequence, base sequences first.
        base = [(f, tail) for f, item in enumerate(self.items) for tail in item.base_tails(intervention.corrupted)]
        changed = [(f, self.items[f].cell_tail(cell, intervention.runs)) for f, cell in self.cells]
        fact = np.array([f for f, _ in base + changed])
        token, passes, entering, stops, leading = np.array([tail for _, tail in base + changed]).T
        fact, token, entering, stops, leading = (
            column.repeat(passes) for column in (fact, token, entering, stops, leading)
        )
        of_base = np.tile(np.arange(-1, intervention.corrupted), len(self.items))  # −1: the clean pass
        sample = np.concatenate((of_base, np.tile(np.arange(intervention.runs), len(self.cells))))
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
        self.sequences = sequence_table(
            q_begin=begin,
            q_len=tail,
            first_begin=np.where(first_len > 0, clean_begin[fact], 0),
            first_len=first_len,
            second_begin=np.where(second > 0, of_sample, 0),
            second_len=second,
            k_begin=begin,
            k_len=tail,
        )
        within = _ranges(np.zeros_like(tail), tail)
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
        counts = np.add.reduceat(wanted.astype(np.int64), table[:, Column.K_BEGIN])
        table[:, Column.Q_BEGIN], table[:, Column.Q_LEN] = np.cumsum(counts) - counts, counts
        return table
