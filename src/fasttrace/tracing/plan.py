"""Which cells a sweep has, in which waves they are computed, and where their rows are.

A cell replaces a module's outputs at some tokens, over the layers [start, stop) of a window, by those of another pass.
The outputs are the whole of what a module gives, or the slice of it that is some attention heads'.
In a causal model that changes nothing below `start` and nothing before the token. So the cell's rows (its tail: the
tokens from there on, in every noise sample) enter the pack after layer `start`, and the cell computes no others
(docs/algorithms.md, section 9).
"""

import functools
from collections.abc import Collection, Sequence
from dataclasses import dataclass, replace
from operator import itemgetter
from typing import NamedTuple, get_args

import numpy as np

from fasttrace.errors import UserError
from fasttrace.facts.tokens import EncodedFact
from fasttrace.memory import pack_by_budget
from fasttrace.models.adapter import Decoder
from fasttrace.models.corrupt import Passes, counterfactual_passes, noised_passes
from fasttrace.ops.prefix_attention import Column, sequence_table
from fasttrace.settings.trace import Module, Tokens
from fasttrace.windows import window_interval

MODULES = tuple(module for module in get_args(Module) if module != "expert")  # those that every model has
METHODS = ("denoise", "noise", "zero")
TOKENS = get_args(Tokens)
OWN, ZERO = -1, -2  # marks of a row that keeps its own module output, or has none


@dataclass(frozen=True)
class Intervention:
    """What a cell does: which module's output it replaces, in which pass, and by what.

    module: "mlp" or "attn" (what the module adds to the residual), "block" (the residual after it), or "head" (the
        output of some attention heads, before the output projection), or "expert" (what some experts add to the MLP's
        output).
    method: "denoise" puts the clean pass's outputs into the corrupted passes. "noise" puts the corrupted passes'
        outputs into the clean pass. "zero" puts zeros into the clean pass.
    """

    module: str = "mlp"
    method: str = "denoise"


class Heads(NamedTuple):
    """`size` attention heads, or experts, from `first` on; a size of 0 stands for a module's whole output."""

    first: int = 0
    size: int = 0


WHOLE = Heads()


class Cell(NamedTuple):
    """Intervene at `tokens` tokens from `token` on, over layers [start, stop), on the heads."""

    token: int
    start: int
    stop: int
    tokens: int = 1
    heads: Heads = WHOLE


class Spot(NamedTuple):
    """Where an intervention takes place: `tokens` tokens from `token` on."""

    token: int
    tokens: int


class Tail(NamedTuple):
    """Rows of a fact that advance together: its tokens from `token` on, in each of `passes` passes.

    They enter the pack after layer `entered`, which is −1 for rows that are in the pack from the start. In the layers
    below `stop`, the module's output (that of `heads` heads from `head` on) is replaced at their first `replaced`
    tokens. `stop` is 0 if it is never replaced.
    """

    token: int
    passes: int
    entered: int = -1
    stop: int = 0
    replaced: int = 0
    head: int = 0
    heads: int = 0


class Contrast(NamedTuple):
    """The first scored token in which o_true and o_false differ. at: its number. true, false: their tokens there."""

    at: int
    true: int
    false: int


def contrast_of(encoded: EncodedFact, scored: int) -> Contrast | None:
    """Where o_true and o_false (or the counterfactual answer) differ in their first `scored` tokens. None without an
    o_false, where they do not differ, and where the whole of one begins the other."""
    pairs = zip(encoded.target_true_ids[:scored], encoded.contrast_ids or (), strict=False)
    return next((Contrast(at, true, false) for at, (true, false) in enumerate(pairs) if true != false), None)


@dataclass(frozen=True)
class TraceItem:
    """A fact ready to be traced.

    passes: the passes that cells start from, over the prompt and all but the last scored token. targets: the scored
    tokens. Each value of the grid is their joint probability after the prompt. contrast: where the logit difference is
    read. cells: the distinct cells of the grids that are not plainly equal to the pass that they change.
    """

    encoded: EncodedFact
    passes: Passes
    targets: tuple[int, ...]
    contrast: Contrast | None
    cells: tuple[Cell, ...]

    @property
    def length(self) -> int:
        """T, the number of prompt tokens."""
        return len(self.encoded.ids)

    @property
    def rows(self) -> int:
        """Rows of a whole pass: the prompt and all but the last scored token."""
        return len(self.passes.clean)

    @property
    def corrupted(self) -> int:
        """How many corrupted passes the fact has, none with method "zero"."""
        return len(self.passes.corrupted)

    @property
    def runs(self) -> int:
        """How many passes a cell has: one per corrupted pass, or one without them."""
        return self.corrupted or 1

    @property
    def compared_at(self) -> int:
        """Number of the scored token whose distribution is compared: the contrast's, or the first."""
        return self.contrast.at if self.contrast else 0

    def base_tails(self) -> tuple[Tail, Tail]:
        """The clean pass and the corrupted passes, from which cells start. Before `passes.begin` they are equal."""
        return Tail(0, passes=1), Tail(self.passes.begin, passes=self.corrupted)

    def cell_tail(self, cell: Cell) -> Tail:
        """The rows that a cell can change: none before its token and none below its window."""
        return Tail(cell.token, self.runs, cell.start, cell.stop, cell.tokens, *cell.heads)

    def base_rows(self) -> int:
        """How many rows `base_tails` have."""
        return sum(map(self._rows, self.base_tails()))

    def cell_rows(self, cell: Cell) -> int:
        """How many rows a cell adds to the pack."""
        return self.runs * (self.rows - cell.token)

    def _rows(self, tail: Tail) -> int:
        return tail.passes * (self.rows - tail.token)

    def cell(self, spot: Spot, interval: tuple[int, int], heads: Heads, method: str) -> Cell | None:
        """The cell that intervenes at a spot, or None where the spot is before every corrupted token."""
        return _cell(spot, interval, heads, 0 if method == "zero" else self.passes.begin)

    def sees(self, model: Decoder, cell: Cell, intervention: Intervention) -> bool:
        """Whether a scored token can see what the cell changes. If not, p is the base pass's and is not computed."""
        seen = model.reach(cell.start, cell.token + cell.tokens - 1) >= self.length - 1
        return seen and (intervention.method == "zero" or self.sees_corruption(model))

    def sees_corruption(self, model: Decoder) -> bool:
        """Whether a scored token can see a corrupted token. If not, the corrupted passes have the clean p."""
        return model.reach(-1, self.passes.end - 1) >= self.length - 1


def traced_spots(encoded: EncodedFact, tokens: str) -> list[Spot]:
    """The spots that are reported. Raises UserError for an unknown choice."""
    begin, end = encoded.subject_begin, encoded.subject_end
    if tokens == "all":
        return [Spot(t, 1) for t in range(len(encoded.ids))]
    if tokens == "subject":
        return [Spot(t, 1) for t in range(begin, end)]
    if tokens == "last-subject":
        return [Spot(end - 1, 1)]
    if tokens == "whole-subject":
        return [Spot(begin, end - begin)]
    raise UserError(f"tokens: expected one of {', '.join(TOKENS)}, got '{tokens}'")


def traced_heads(model: Decoder, heads: str | Sequence[int] | None) -> list[Heads]:
    """The heads of each cell of a layer: every head by itself ("all"), some of them, all in one cell ("at-once"), or a
    module's whole output (None). Raises UserError for a head that the model does not have."""
    if heads is None:
        return [WHOLE]
    count = model.n_heads
    if heads == "at-once":
        return [Heads(0, count)]
    chosen = range(count) if heads == "all" else sorted({int(head) for head in heads})
    if chosen[-1] >= count:
        raise UserError(f"trace: heads: expected numbers from 0 to {count - 1} for '{model.name}', got {chosen[-1]}")
    return [Heads(head, 1) for head in chosen]


def traced_experts(model: Decoder, experts: str | Sequence[int]) -> list[Heads]:
    """The expert of each cell of a layer. Raises UserError for a model without experts, or without one of these."""
    count = model.n_experts
    if not count:
        raise UserError(f"trace: module expert: expected a mixture of experts, got '{model.name}', which has none")
    if experts == "shared":
        if all(block.shared is None for block in model.blocks):
            raise UserError(f"trace: experts: expected a model with a shared expert, got '{model.name}'")
        return [Heads(count - 1, 1)]
    chosen = range(count) if experts == "all" else sorted({int(expert) for expert in experts})
    if chosen[-1] >= count:
        raise UserError(f"trace: experts: expected numbers from 0 to {count - 1} for '{model.name}', got {chosen[-1]}")
    return [Heads(expert, 1) for expert in chosen]


def make_item(
    encoded: EncodedFact,
    windows: Sequence[int],
    n_layers: int,
    tokens: str,
    method: str = "denoise",
    targets: Sequence[int] | None = None,
    *,
    corruption: str = "noise",
    samples: int = 10,
    heads: Sequence[Heads] = (WHOLE,),
) -> TraceItem:
    """The fact with the distinct cells of its grids: an interval that several windows share occurs once.

    targets: the scored tokens, None for all of o_true. samples: n corrupted passes with corruption "noise". A
    counterfactual fact has one for each counterfactual. With method "zero" there are none.
    """
    scored = tuple(encoded.target_true_ids if targets is None else targets)
    if method == "zero" or corruption == "noise":
        passes = noised_passes(encoded, scored[:-1], 0 if method == "zero" else samples)
    else:
        passes = counterfactual_passes(encoded, scored[:-1])
    item = TraceItem(encoded, passes, scored, contrast_of(encoded, len(scored)), ())
    begin = 0 if method == "zero" else passes.begin
    cells = _cells(tuple(traced_spots(encoded, tokens)), tuple(windows), n_layers, tuple(heads), begin)
    return replace(item, cells=cells)


# Facts of the same length and place of the subject have the same cells, of which a large sweep has millions.
@functools.lru_cache(maxsize=1024)
def _cells(
    spots: tuple[Spot, ...], windows: tuple[int, ...], n_layers: int, heads: tuple[Heads, ...], begin: int
) -> tuple[Cell, ...]:
    """The distinct cells of the grids. begin: the first token at which cells intervene."""
    intervals = sorted({window_interval(layer, w, n_layers) for w in windows for layer in range(n_layers)})
    made = (_cell(spot, run, some, begin) for run in intervals for some in heads for spot in spots)
    return tuple(cell for cell in made if cell is not None)


def _cell(spot: Spot, interval: tuple[int, int], heads: Heads, begin: int) -> Cell | None:
    first = max(spot.token, begin)
    tokens = spot.token + spot.tokens - first
    return Cell(first, *interval, tokens, heads) if tokens > 0 else None


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


def split_waves(items: Sequence[TraceItem], max_rows: int, done: Collection[int] = ()) -> list[TraceWave]:
    """Pack cells into waves of at most max_rows rows, facts in order. Only a fact that is too large is split.

    done: numbers of items that are left out of the waves. The others stay in the wave that they are in without `done`,
    so that a sweep that continues computes the same products as one that was never interrupted.
    Raises UserError where a fact's base passes and its largest cell need more than max_rows rows.
    """
    pieces: list[_Piece] = []
    for number, item in enumerate(items):
        base, sizes = item.base_rows(), [item.cell_rows(cell) for cell in item.cells]
        largest = max(sizes, default=0)
        if base + largest > max_rows:
            raise UserError(
                f"memory: expected a budget of at least {base + largest} rows for fact '{item.encoded.fact_id}', "
                f"got {max_rows}; use a larger --memory or fewer samples"
            )
        sized = zip(item.cells, sizes, strict=True)
        for some in pack_by_budget(sized, itemgetter(1), max_rows - base) if item.cells else [[]]:
            pieces.append(_Piece(number, [cell for cell, _ in some], base + sum(size for _, size in some)))
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


def ranges(begin: np.ndarray, length: np.ndarray) -> np.ndarray:
    """begin, length: (n,) int64 → the concatenation of all [begin_i, begin_i + length_i)."""
    ends = np.cumsum(length)
    return np.repeat(begin - (ends - length), length) + np.arange(int(ends[-1]) if len(ends) else 0)


@dataclass(frozen=True, eq=False)
class _Sequences:
    """The sequences of a wave: every pass of every tail, base passes first. All fields are (S,) int64.

    fact: number of the fact in the wave. token, entered, stop, replaced, head, heads: as in `Tail`. apart: first token
    at which the fact's corrupted passes differ from the clean one. rows: number of rows. begin: first row. clean,
    corrupted: first row of the fact's clean pass, and of the corrupted pass of the sequence's sample.
    """

    fact: np.ndarray
    token: np.ndarray
    entered: np.ndarray
    stop: np.ndarray
    replaced: np.ndarray
    head: np.ndarray
    heads: np.ndarray
    apart: np.ndarray
    rows: np.ndarray
    begin: np.ndarray
    clean: np.ndarray
    corrupted: np.ndarray

    @classmethod
    def of(cls, items: Sequence[TraceItem], cells: Sequence[tuple[int, Cell]]) -> "_Sequences":
        """The sequences of a wave of these items with cells (fact, cell)."""
        length = np.array([item.rows for item in items])
        apart = np.array([item.passes.begin for item in items])
        base_rows = np.array([item.base_rows() for item in items])
        clean_begin = np.cumsum(base_rows) - base_rows

        tails = [(f, tail) for f, item in enumerate(items) for tail in item.base_tails()]
        tails += [(f, items[f].cell_tail(cell)) for f, cell in cells]
        fact = np.array([f for f, _ in tails])
        passes = np.array([tail.passes for _, tail in tails])
        # −1 stands for the clean pass, which is every other of the base tails.
        first = np.where(np.arange(len(tails)) < 2 * len(items), -1 + np.arange(len(tails)) % 2, 0)
        sample = ranges(first, passes)
        fact, token, entered, stop, replaced, head, heads = (
            column.repeat(passes)
            for column in (fact, *np.array([(t, *rest) for _, (t, _, *rest) in tails], dtype=np.int64).T)
        )
        rows = length[fact] - token
        clean = clean_begin[fact]
        return cls(
            fact=fact,
            token=token,
            entered=entered,
            stop=stop,
            replaced=replaced,
            head=head,
            heads=heads,
            apart=apart[fact],
            rows=rows,
            begin=np.cumsum(rows) - rows,
            clean=clean,
            corrupted=clean + length[fact] + sample * (length - apart)[fact],
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
        return self.corrupted + self.token - self.apart


class Layout:
    """Row numbers of one wave: which rows enter after which layer, which rows they copy, and which are scored.

    Base rows come first: for each fact its clean pass, then each corrupted pass from the first corrupted token on
    (earlier tokens are those of the clean pass). Cells follow in the order of the layer they enter after, each with
    a sequence of rows per run of its fact. A row never moves.

    items: the facts of the wave. cells: (fact, cell) of the cells that are computed, in order. unseen: (fact, cell) of
    the cells that no scored token can see. sequences: (S, 8), the table of ops.prefix_attention. n_base: how many of
    these are base passes. fact: (S,) the fact of each sequence. rows_at, sequences_at: (L + 1,) how many rows and
    sequences are in the pack at each layer.

    For every row of the pack, base rows included: base (N,) the row it starts from; patch (N,) the base row whose
    module output it takes inside its window, or OWN, or ZERO; stop (N,) the first layer after that window, or 0 without
    a window; head, heads (N,) which heads' outputs it takes, `heads` being 0 for the whole output; position (N,) its
    token; scored (N,) bool, whether it predicts a target token.
    """

    def __init__(self, model: Decoder, items: Sequence[TraceItem], wave: TraceWave, intervention: Intervention) -> None:
        self.items = [items[number] for number, _ in wave.items]
        self.intervention = intervention
        self._sort_cells(model, wave)
        sequences = _Sequences.of(self.items, self.cells)
        self.fact = sequences.fact
        self.n_base = int(np.sum(~sequences.is_cell))
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

        In a corrupted pass these are clean up to the first corrupted token and corrupted from there on.
        """
        denoise = self.intervention.method == "denoise"
        shared = np.minimum(sequences.token, sequences.apart)
        first_len = np.where(sequences.is_cell & (not denoise), sequences.token, shared)
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
        """Set `base`, `patch`, `stop`, `head`, `heads`, `position` and `scored`."""
        method = self.intervention.method
        changed_pass = sequences.in_corrupted if method == "denoise" else sequences.in_clean
        base_begin = np.where(sequences.is_cell, changed_pass, sequences.begin)
        # For each row, the number of rows before it in its sequence.
        within = ranges(np.zeros_like(sequences.rows), sequences.rows)
        replaced = within < np.repeat(sequences.replaced, sequences.rows)
        if method == "zero":
            patch = np.full_like(within, ZERO)
        else:
            patch_begin = sequences.in_clean if method == "denoise" else sequences.in_corrupted
            patch = np.repeat(patch_begin, sequences.rows) + within
        self.base = ranges(base_begin, sequences.rows)
        self.patch = np.where(replaced, patch, OWN)
        self.stop = np.where(replaced, np.repeat(sequences.stop, sequences.rows), 0)
        self.head, self.heads = (np.repeat(one, sequences.rows) for one in (sequences.head, sequences.heads))
        self.position = np.repeat(sequences.token, sequences.rows) + within
        first_scored = np.array([item.rows - len(item.targets) for item in self.items])
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
