"""Which cells a sweep has, in which waves they are computed, and what they cost.

A cell restores the module's outputs at one token over the layers [start, stop) of a window. In a causal
model that changes nothing below `start` and nothing before the token, so the cell's rows (its tail: the
tokens from the restored one on, in every noise sample) enter the pack after layer `start` and are all the
cell ever computes (ALGORITHMS, section 8).
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np

from fasttrace.errors import UserError
from fasttrace.facts.tokens import EncodedFact
from fasttrace.models.adapter import Decoder

TOKENS = ("all", "subject", "last-subject")


class Cell(NamedTuple):
    """Restore at `token` over layers [start, stop)."""

    token: int
    start: int
    stop: int


def window_interval(layer: int, window: int, n_layers: int) -> tuple[int, int]:
    """Layers [start, stop) of the window of size w at `layer`: max(0, ℓ - w//2) to min(L, ℓ - (-w//2)).

    Source: the released code's rule (ALGORITHMS, section 1): w = 5 is ℓ±2, w = 10 is ℓ-5 … ℓ+4, clipped.
    """
    return max(0, layer - window // 2), min(n_layers, layer - (-window // 2))


@dataclass(frozen=True)
class TraceItem:
    """A fact ready to be traced: its row tokens (prompt and all but the last target token) and its cells."""

    encoded: EncodedFact
    ids: tuple[int, ...]
    targets: tuple[int, ...]
    cells: tuple[Cell, ...]

    @property
    def length(self) -> int:
        """Prompt tokens T."""
        return len(self.encoded.ids)

    def base_rows(self, samples: int) -> int:
        """Rows of the clean pass and the corrupted passes, which the cells start from."""
        return len(self.ids) + samples * (len(self.ids) - self.encoded.subject_begin)

    def cell_rows(self, cell: Cell, samples: int) -> int:
        """Rows a cell adds to the pack."""
        return samples * (len(self.ids) - cell.token)


def traced_tokens(encoded: EncodedFact, tokens: str) -> range:
    """Prompt tokens whose restoration is computed: never one before the subject, which corruption can't reach.

    Raises UserError for an unknown choice.
    """
    if tokens == "all":
        return range(encoded.subject_begin, len(encoded.ids))
    if tokens == "subject":
        return range(encoded.subject_begin, encoded.subject_end)
    if tokens == "last-subject":
        return range(encoded.subject_end - 1, encoded.subject_end)
    raise UserError(f"tokens '{tokens}' is not one of {', '.join(TOKENS)}")


def make_item(encoded: EncodedFact, windows: Sequence[int], n_layers: int, tokens: str) -> TraceItem:
    """The distinct cells of a fact's grids: intervals that several windows share are listed once."""
    intervals = sorted({window_interval(layer, w, n_layers) for w in windows for layer in range(n_layers)})
    cells = tuple(Cell(t, a, c) for a, c in intervals for t in traced_tokens(encoded, tokens))
    targets = tuple(encoded.target_true_ids)
    return TraceItem(encoded, (*encoded.ids, *targets[:-1]), targets, cells)


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


def split_waves(items: Sequence[TraceItem], samples: int, max_rows: int) -> list[Wave]:
    """Pack cells into waves of at most max_rows rows, facts in order, a fact's cells split only where one
    wave cannot hold them.

    Raises UserError where max_rows cannot hold one fact's base passes and its largest cell.
    """
    waves: list[Wave] = []
    wave = Wave()
    for number, item in enumerate(items):
        base = item.base_rows(samples)
        largest = max((item.cell_rows(cell, samples) for cell in item.cells), default=0)
        if base + largest > max_rows:
            raise UserError(
                f"memory: fact '{item.encoded.fact.fact_id}' needs {base + largest} rows at once and the budget "
                f"holds {max_rows}; a larger --memory or fewer --samples were wanted"
            )
        whole = base + sum(item.cell_rows(cell, samples) for cell in item.cells)
        if wave.items and wave.rows + min(whole, max_rows) > max_rows:
            waves.append(wave)
            wave = Wave()
        wave.items.append((number, []))
        wave.rows += base
        for cell in item.cells:
            rows = item.cell_rows(cell, samples)
            if wave.rows + rows > max_rows:
                waves.append(wave)
                wave = Wave(items=[(number, [])], rows=base)
            wave.items[-1][1].append(cell)
            wave.rows += rows
    if wave.items:
        waves.append(wave)
    return waves


@dataclass(frozen=True, eq=False)
class Cohort:
    """Rows that enter the pack after one layer.

    base: (P,) the row each starts from. clean: (P,) the clean row whose module output is restored, or -1.
    stop: (P,) first layer past the window where the row is restored, else 0. position: (P,).
    sequences: (S, 8) as ops.prefix_attention.
    """

    base: np.ndarray
    clean: np.ndarray
    stop: np.ndarray
    position: np.ndarray
    sequences: np.ndarray


def _ranges(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """Concatenation of [begin_i, begin_i + length_i)."""
    ends = np.cumsum(length)
    return np.repeat(begin - (ends - length), length) + np.arange(int(ends[-1]) if len(ends) else 0)


class Layout:
    """Row numbers of one wave: who enters when, from which row, and which rows are scored.

    Base rows come first: for each fact its clean pass, then each sample's corrupted tokens from the subject
    on (earlier tokens are the clean pass's). A cohort follows for every layer. A row never moves.
    """

    def __init__(self, items: Sequence[TraceItem], wave: Wave, samples: int, n_layers: int) -> None:
        self.samples = samples
        self.n_layers = n_layers
        self.items = [items[number] for number, _ in wave.items]
        self.clean_begin: list[int] = []
        sequences, row = [], 0
        for item in self.items:
            t, b = len(item.ids), item.encoded.subject_begin
            self.clean_begin.append(row)
            sequences.append((row, t, 0, 0, 0, 0, row, t))
            first = row + t + np.arange(samples) * (t - b)
            sequences += [(r, t - b, row, b, 0, 0, r, t - b) for r in first.tolist()]
            row += item.base_rows(samples)
        self.n_base = row
        self.base_sequences = np.asarray(sequences, dtype=np.int64).reshape(-1, 8)
        self.cohorts: list[Cohort] = []
        # (fact in wave, cell) of every run of `samples` sequences in a cohort, in order of entry
        self.order: list[tuple[int, Cell]] = []
        # cells that restore only the last layer before the last prompt token: nothing scored can see them
        self.unseen: list[tuple[int, Cell]] = []
        for layer in range(n_layers):
            self.cohorts.append(self._cohort(wave, layer))

    def corrupted_begin(self, fact: int) -> int:
        """First corrupted row of a fact in this wave."""
        return self.clean_begin[fact] + len(self.items[fact].ids)

    def _cohort(self, wave: Wave, layer: int) -> Cohort:
        row = self.n_base + sum(len(c.base) for c in self.cohorts)
        base, clean, stop, position, sequences = [], [], [], [], []
        for fact, (_, cells) in enumerate(wave.items):
            item, b = self.items[fact], self.items[fact].encoded.subject_begin
            t_all = len(item.ids)
            begin = self.clean_begin[fact]
            corrupted = self.corrupted_begin(fact) + np.arange(self.samples) * (t_all - b)
            for cell in cells:
                if cell.start != layer:
                    continue
                if layer == self.n_layers - 1 and cell.token < item.length - 1:
                    self.unseen.append((fact, cell))
                    continue
                self.order.append((fact, cell))
                tail = t_all - cell.token
                tokens = np.tile(np.arange(cell.token, t_all), self.samples)
                base.append(np.repeat(corrupted - b, tail) + tokens)
                restored = tokens == cell.token
                clean.append(np.where(restored, begin + cell.token, -1))
                stop.append(np.where(restored, cell.stop, 0))
                position.append(tokens)
                q = row + np.arange(self.samples) * tail
                s = np.zeros((self.samples, 8), dtype=np.int64)
                s[:, 0], s[:, 1], s[:, 6], s[:, 7] = q, tail, q, tail
                s[:, 2], s[:, 3] = begin, b
                s[:, 4], s[:, 5] = corrupted, cell.token - b
                sequences.append(s)
                row += self.samples * tail
        if not base:
            empty = np.zeros(0, dtype=np.int64)
            return Cohort(empty, empty, empty, empty, np.zeros((0, 8), dtype=np.int64))
        return Cohort(*(np.concatenate(x) for x in (base, clean, stop, position, sequences)))

    def scored(self, sequences: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """(rows, rows a sequence) at which each sequence's target tokens are predicted: its last K rows."""
        k = np.concatenate([np.full(count, len(self.items[fact].targets)) for fact, count in self._owners()])
        k = k[: len(sequences)]
        return _ranges(sequences[:, 6] + sequences[:, 7] - k, k), k

    def _owners(self) -> list[tuple[int, int]]:
        """(fact, how many sequences) in the order of the pack."""
        facts = [(fact, 1 + self.samples) for fact in range(len(self.items))]
        return facts + [(fact, self.samples) for fact, _ in self.order]

    def owners(self) -> np.ndarray:
        """Fact (in this wave) of every sequence of the pack."""
        return np.concatenate([np.full(count, fact) for fact, count in self._owners()])
