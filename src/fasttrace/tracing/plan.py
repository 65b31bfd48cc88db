"""Which cells a sweep has, in which waves they are computed, and where their rows are.

A cell replaces a module's outputs at some tokens, over the layers [start, stop) of a window, by those of another pass.
In a causal model that changes nothing below `start` and nothing before the token. So the cell's rows (its tail: the
tokens from there on, in every noise sample) enter the pack after layer `start`, and the cell computes no others
(docs/algorithms.md, section 9).
"""

import functools
from collections.abc import Collection, Sequence
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
OWN, ZERO = -1, -2  # marks of a row that keeps its own module output, or has none


@dataclass(frozen=True)
class Intervention:
    """What a cell does: which module's output it replaces, in which pass, and by what.

    module: "mlp" or "attn" (what the module adds to the residual), or "block" (the residual after it).
    method: "denoise" puts the clean pass's outputs into the corrupted passes. "noise" puts the corrupted passes'
        outputs into the clean pass. "zero" puts zeros into the clean pass.
    samples: n corrupted passes (none for "zero").
    """

    module: str = "mlp"
    method: str = "denoise"
    samples: int = 10

    @property
    def corrupted(self) -> int:
        """How many corrupted passes a fact has."""
        return 0 if self.method == "zero" else self.samples

    @property
    def runs(self) -> int:
        """How many passes a cell has: one per noise sample, or one without noise."""
        return self.corrupted or 1


class Cell(NamedTuple):
    """Intervene at `tokens` tokens from `token` on, over layers [start, stop)."""

    token: int
    start: int
    stop: int
    tokens: int = 1


class Spot(NamedTuple):
    """Where an intervention takes place: `tokens` tokens from `token` on."""

    token: int
    tokens: int


class Tail(NamedTuple):
    """Rows of a fact that advance together: its tokens from `token` on, in each of `passes` passes.

    They enter the pack after layer `entered`, which is −1 for rows that are in the pack from the start. In the layers
    below `stop`, the module's output is replaced at their first `replaced` tokens. `stop` is 0 if it is never replaced.
    """

    token: int
    passes: int
    entered: int = -1
    stop: int = 0
    replaced: int = 0


@dataclass(frozen=True)
class TraceItem:
    """A fact ready to be traced.

    ids: the tokens of a pass, which are the prompt and all but the last scored token. targets: the scored tokens. Each
    value of the grid is their joint probability after the prompt. cells: the distinct cells of the grids.
    """

    encoded: EncodedFact
    ids: tuple[int, ...]
    targets: tuple[int, ...]
    cells: tuple[Cell, ...]

    @property
    def length(self) -> int:
        """T, the number of prompt tokens."""
        return len(self.encoded.ids)

    def base_tails(self, corrupted: int) -> tuple[Tail, Tail]:
        """The clean pass and the corrupted passes, from which cells start. Before the subject they are equal."""
        return Tail(0, passes=1), Tail(self.encoded.subject_begin, passes=corrupted)

    def cell_tail(self, cell: Cell, runs: int) -> Tail:
        """The rows that a cell can change: none before its token and none below its window."""
        return Tail(cell.token, runs, cell.start, cell.stop, cell.tokens)

    def base_rows(self, corrupted: int) -> int:
        """How many rows `base_tails` have."""
        return sum(map(self._rows, self.base_tails(corrupted)))

    def cell_rows(self, cell: Cell, runs: int) -> int:
        """How many rows a cell adds to the pack."""
        return self._rows(self.cell_tail(cell, runs))

    def _rows(self, tail: Tail) -> int:
        return tail.passes * (len(self.ids) - tail.token)

    def sees(self, model: Decoder, cell: Cell, intervention: Intervention) -> bool:
        """Whether a scored token can see what the cell changes. If not, p is the base pass's and is not computed."""
        seen = model.reach(cell.start, cell.token + cell.tokens - 1) >= self.length - 1
        return seen and (intervention.method == "zero" or self.sees_noise(model))

    def sees_noise(self, model: Decoder) -> bool:
        """Whether a scored token can see the corrupted subject. If not, the corrupted passes have the clean p."""
        return model.reach(-1, self.encoded.subject_end - 1) >= self.length - 1


def traced_spots(encoded: EncodedFact, tokens: str, method: str) -> list[Spot]:
    """The spots of all interventions that are computed.

    Noise cannot reach a token before the subject, so only zeroing changes anything there.
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
    raise UserError(f"tokens: expected one of {', '.join(TOKENS)}, got '{tokens}'")


def make_item(
    encoded: EncodedFact,
    windows: Sequence[int],
    n_layers: int,
    tokens: str,
    method: str = "denoise",
    targets: Sequence[int] | None = None,
) -> TraceItem:
    """The fact with the distinct cells of its grids: an interval that several windows share occurs once.

    targets: the scored tokens, None for all of o_true.
    """
    intervals = sorted({window_interval(layer, w, n_layers) for w in windows for layer in range(n_layers)})
    spots = traced_spots(encoded, tokens, method)
    cells = tuple(Cell(spot.token, a, c, spot.tokens) for a, c in intervals for spot in spots)
    scored = tuple(encoded.target_true_ids if targets is None else targets)
    return TraceItem(encoded, (*encoded.ids, *scored[:-1]), scored, cells)


@dataclass(frozen=True)
class TraceWave:
    """Cells of one or more facts that advance together. A fact that is too large for memory is spread over waves.

    items: (number of the item, its cells). rows: the number of rows of base passes and cells.
    """

    items: list[tuple[int, list[Cell]]]
    rows: int


class _Piece(NamedTuple):
    """Cells of one fact that fit into a wave with the fact's base passes. rows: the number of rows of both."""

    number: int
    cells: list[Cell]
    rows: int


def bytes_per_row(model: Decoder) -> int:
    """Peak bytes of a packed row: residual, norm, queries, keys, values, attention, MLP output, next residual."""
    block = model.blocks[0]
    heads = block.head_dim * (3 * block.n_heads + 3 * block.n_kv_heads)
    # Twice the live bytes: the allocator keeps about as many again in pieces too small for the next layer.
    return 2 * (6 * model.width + heads) * model.embed_weight.element_size()


def split_waves(
    items: Sequence[TraceItem], intervention: Intervention, max_rows: int, done: Collection[int] = ()
) -> list[TraceWave]:
    """Pack cells into waves of at most max_rows rows, facts in order. Only a fact that is too large is split.

    done: numbers of items that are left out of the waves. The others stay in the wave that they are in without `done`,
    so that a sweep that continues computes the same products as one that was never interrupted.
    Raises UserError where a fact's base passes and its largest cell need more than max_rows rows.
    """
    runs = intervention.runs
    pieces: list[_Piece] = []
    for number, item in enumerate(items):
        base = item.base_rows(intervention.corrupted)
        rows_of = functools.partial(item.cell_rows, runs=runs)
        largest = max(map(rows_of, item.cells), default=0)
        if base + largest > max_rows:
            raise UserError(
                f"memory: expected a budget of at least {base + largest} rows for fact '{item.encoded.fact_id}', "
                f"got {max_rows}; use a larger --memory or fewer --samples"
            )
        for cells in pack_by_budget(item.cells, rows_of, max_rows - base) if item.cells else [[]]:
            pieces.append(_Piece(number, cells, base + sum(map(rows_of, cells))))
    last = {piece.number: piece for piece in pieces}
    # Each piece of a split fact gets its own wave, except the last piece, which shares a wave.
    size_of = lambda piece: piece.rows if piece is last[piece.number] else max_rows  # noqa: E731
    packed = pack_by_budget(pieces, size_of, max_rows)
    left = [[piece for piece in wave if piece.number not in done] for wave in packed]
    return [
        TraceWave([(piece.number, piece.cells) for piece in wave], sum(piece.rows for piece in wave))
        for wave in left
        if wave
    ]


def _ranges(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """begin, length: (n,) int64 → the concatenation of all [begin_i, begin_i + length_i)."""
    ends = np.cumsum(length)
    return np.repeat(begin - (ends - length), length) + np.arange(int(ends[-1]) if len(ends) else 0)


@dataclass(frozen=True, eq=False)
class _Sequences:
    """The sequences of a wave: every pass of every tail, base passes first. All fields are (S,) int64.

    fact: number of the fact in the wave. token, entered, stop, replaced: as in `Tail`. subject: first token of the
    fact's subject. rows: number of rows. begin: first row. clean, corrupted: first row of the fact's clean pass, and of
    the corrupted pass of the sequence's noise sample.
    """

    fact: np.ndarray
    token: np.ndarray
    entered: np.ndarray
    stop: np.ndarray
    replaced: np.ndarray
    subject: np.ndarray
    rows: np.ndarray
    begin: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray

    @classmethod
    def of(
        cls, items: Sequence[TraceItem], cells: Sequence[tuple[int, Cell]], intervention: Intervention
    ) -> "_Sequences":
        """The sequences of a wave of these items with cells (fact, cell)."""
        length = np.array([len(item.ids) for item in items])
        subject = np.array([item.encoded.subject_begin for item in items])
        base_rows = np.array([item.base_rows(intervention.corrupted) for item in items])
        clean_begin = np.cumsum(base_rows) - base_rows

        tails = [(f, tail) for f, item in enumerate(items) for tail in item.base_tails(intervention.corrupted)]
        tails += [(f, items[f].cell_tail(cell, intervention.runs)) for f, cell in cells]
        fact = np.array([f for f, _ in tails])
        token, passes, entered, stop, replaced = np.array([tail for _, tail in tails]).T
        fact, token, entered, stop, replaced = (
            column.repeat(passes) for column in (fact, token, entered, stop, replaced)
        )
        of_base = np.tile(np.arange(-1, intervention.corrupted), len(items))  # −1: the clean pass
        sample = np.concatenate((of_base, np.tile(np.arange(intervention.runs), len(cells))))
        rows = length[fact] - token
        clean = clean_begin[fact]
        return cls(
            fact=fact,
            token=token,
            entered=entered,
            stop=stop,
            replaced=replaced,
            subject=subject[fact],
            rows=rows,
            begin=np.cumsum(rows) - rows,
            clean=clean,
            corrupted=clean + length[fact] + sample * (length - subject)[fact],
        )

    @property
    def is_cell(self) -> np.ndarray:
        """(S,) bool, whether the sequence belongs to a cell rather than a base pass."""
        return self.entered >= 0

    @property
    def in_clean(self) -> np.ndarray:
        """Row of the sequence's first token in the clean pass."""
        return self.clean + self.token

    @property
    def in_corrupted(self) -> np.ndarray:
        """Row of the sequence's first token in its corrupted pass."""
        return self.corrupted + self.token - self.subject


class Layout:
    """Row numbers of one wave: which rows enter after which layer, which rows they copy, and which are scored.

    Base rows come first: for each fact its clean pass, then the tokens from the subject on of each corrupted pass
    (earlier tokens are those of the clean pass). Cells follow in the order of the layer they enter after, each with
    `runs` sequences of rows. A row never moves.

    items: the facts of the wave. cells: (fact, cell) of the cells that are computed, in order. unseen: (fact, cell) of
    the cells that no scored token can see. sequences: (S, 8), the table of ops.prefix_attention. fact: (S,) the fact of
    each sequence. rows_at, sequences_at: (L + 1,) how many rows and sequences are in the pack at each layer.

    For every row of the pack, base rows included: base (N,) the row it starts from; patch (N,) the base row whose
    module output it takes inside its window, or OWN, or ZERO; stop (N,) the first layer after that window, or 0 without
    a window; position (N,) its token; scored (N,) bool, whether it predicts a target token.
    """

    def __init__(self, model: Decoder, items: Sequence[TraceItem], wave: TraceWave, intervention: Intervention) -> None:
        self.items = [items[number] for number, _ in wave.items]
        self.intervention = intervention
        self._sort_cells(model, wave)
        sequences = _Sequences.of(self.items, self.cells, intervention)
        self.fact = sequences.fact
        self.sequences = self._table(sequences)
        self._number_rows(sequences)
        self._count_entered(sequences, model.n_layers)

    def _sort_cells(self, model: Decoder, wave: TraceWave) -> None:
        """Set `cells`, in the order they enter, and `unseen`."""
        self.cells: list[tuple[int, Cell]] = []
        self.unseen: list[tuple[int, Cell]] = []
        for fact, (_, cells) in enumerate(wave.items):
            for cell in cells:
                seen = self.items[fact].sees(model, cell, self.intervention)
                (self.cells if seen else self.unseen).append((fact, cell))
        self.cells.sort(key=lambda fact_and_cell: fact_and_cell[1].start)

    def _table(self, sequences: _Sequences) -> np.ndarray:
        """(S, 8), the sequence table. A cell's prefixes are the tokens before it in the pass that it changes.

        In a corrupted pass these are clean up to the subject and corrupted from there on.
        """
        denoise = self.intervention.method == "denoise"
        before_subject = np.minimum(sequences.token, sequences.subject)
        first_len = np.where(sequences.is_cell & (not denoise), sequences.token, before_subject)
        second_len = np.where(sequences.is_cell & denoise, sequences.token - first_len, 0)
        return sequence_table(
            q_begin=sequences.begin,
            q_len=sequences.rows,
            first_begin=np.where(first_len > 0, sequences.clean, 0),
            first_len=first_len,
            second_begin=np.where(second_len > 0, sequences.corrupted, 0),
            second_len=second_len,
            k_begin=sequences.begin,
            k_len=sequences.rows,
        )

    def _number_rows(self, sequences: _Sequences) -> None:
        """Set `base`, `patch`, `stop`, `position` and `scored`."""
        method = self.intervention.method
        changed_pass = sequences.in_corrupted if method == "denoise" else sequences.in_clean
        base_begin = np.where(sequences.is_cell, changed_pass, sequences.begin)
        # For each row, the number of rows before it in its sequence.
        within = _ranges(np.zeros_like(sequences.rows), sequences.rows)
        replaced = within < np.repeat(sequences.replaced, sequences.rows)
        if method == "zero":
            patch = np.full_like(within, ZERO)
        else:
            patch_begin = sequences.in_clean if method == "denoise" else sequences.in_corrupted
            patch = np.repeat(patch_begin, sequences.rows) + within
        self.base = _ranges(base_begin, sequences.rows)
        self.patch = np.where(replaced, patch, OWN)
        self.stop = np.where(replaced, np.repeat(sequences.stop, sequences.rows), 0)
        self.position = np.repeat(sequences.token, sequences.rows) + within
        first_scored = np.array([len(item.ids) - len(item.targets) for item in self.items])
        self.scored = self.position >= np.repeat(first_scored[sequences.fact], sequences.rows)

    def _count_entered(self, sequences: _Sequences, n_layers: int) -> None:
        """Set `sequences_at` and `rows_at`."""
        self.sequences_at = np.searchsorted(sequences.entered, np.arange(n_layers + 1), side="left")
        ends = np.append(sequences.begin, sequences.begin[-1] + sequences.rows[-1])
        self.rows_at = ends[self.sequences_at]

    def queried(self, is_query: np.ndarray, n_sequences: int) -> np.ndarray:
        """is_query: (rows,) bool, a suffix of each sequence → (n_sequences, 8), the table with these as queries."""
        table = self.sequences[:n_sequences].copy()
        counts = np.add.reduceat(is_query.astype(np.int64), table[:, Column.K_BEGIN])
        table[:, Column.Q_BEGIN], table[:, Column.Q_LEN] = np.cumsum(counts) - counts, counts
        return table
