"""The exact sweep at the least work: all passes of all facts in a wave advance together, layer by layer.

At each layer the pack contains the clean rows, the corrupted rows and the tails of every cell that has entered. One set
of matrix products serves them all, and attention reads the clean and corrupted prefixes in place. An output that a
window replaces is not computed but taken from the pass that provides it. Then the cells whose window starts at this
layer enter. Only the residual is kept from one layer to the next.
"""

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.models.corrupt import embed_base
from fasttrace.models.packed import bring, head_outputs, mlp, rotary_rows, row_logprob
from fasttrace.models.readout import divergence, token_logits
from fasttrace.ops.dispatch import download, upload
from fasttrace.ops.prefix_attention import Sequences
from fasttrace.ops.window_restore import window_restore
from fasttrace.tracing.measures import measures
from fasttrace.tracing.plan import OWN, Cell, Intervention, Layout, TraceItem, TraceWave, ranges

TIDY_LAYERS = 4  # layers between two returns of memory; one after each layer took 10 % of the time (bench/LOG.md)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's malloc_trim, or None where another allocator is in use."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return trim


def give_back() -> None:
    """Return freed CPU memory to the system: the pack grows from layer to layer, so freed pieces never fit again."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@dataclass(frozen=True, eq=False)
class WaveResult:
    """What was measured, by fact number in the sweep. M is the number of MEASURES.

    clean: fact → (M, 1). noised: fact → (M, n), each corrupted pass. cells: (fact, cell) → (M, runs).
    """

    clean: dict[int, np.ndarray]
    noised: dict[int, np.ndarray]
    cells: dict[tuple[int, Cell], np.ndarray]


@torch.no_grad()
def start_wave(
    model: Decoder,
    items: list[TraceItem],
    wave: TraceWave,
    intervention: Intervention,
    sigma: float,
    noise: str,
    seed: int,
    *,
    compare: bool = False,
    tidy: bool = False,
) -> Callable[[], WaveResult]:
    """Start computing one wave exactly. Return a function that waits for the result.

    A GPU is still computing when this returns, so that the host can prepare the next wave meanwhile.

    sigma, noise, seed: see `embed_base`. compare: also measure KL divergences, for which the unembedding is read once
    more. tidy: return freed memory to the system between layers, which a sweep of
    several waves needs to stay near its budget.
    """
    layout = Layout(model, items, wave, intervention)
    with model.entry():
        x, positions = embed_base(model, [item.passes for item in layout.items], sigma, noise, seed)
        h = model.enter(x, positions)
    rotary = model.rotary(_tensor(layout.position, h))
    for layer, block in model.layers():
        h, rotary = h.to(block.device), bring(rotary, block.device)
        h = _Layer(layout, layer).advance(block, h, rotary_rows(rotary, slice(h.shape[0])))
        if tidy and h.device.type == "cpu" and layer % TIDY_LAYERS == 0:
            give_back()
    return _scores(model, layout, wave, h, compare)


class _Layer:
    """Which rows one layer computes, and where the others come from.

    After the last layer only the scored rows are read, so only they are kept there.

    n: number of rows in the pack. kept: rows that stay in the pack after this layer. queries: rows whose attention
    output is computed. mid: rows whose residual after attention is computed. computed: (n,) bool, whether a row's own
    module output is computed. output_from: (n,) the row whose module output each row takes, or ZERO. query_of, mid_of:
    (n,) the place of each row among queries and mid, never read for other rows.

    For the rows that enter after this layer: base, patch as in `Layout`; replaced, whether this layer's output is
    replaced. head, heads: (entered,) as in `Layout`. inside: rows of the pack whose heads are replaced in this layer.
    """

    def __init__(self, layout: Layout, layer: int) -> None:
        self.module = layout.intervention.module
        self.n, entered = int(layout.rows_at[layer]), int(layout.rows_at[layer + 1])
        last = layer + 1 == len(layout.rows_at) - 1
        keep = layout.scored[:entered] if last else np.ones(entered, dtype=bool)
        self.kept, entering = np.flatnonzero(keep[: self.n]), self.n + np.flatnonzero(keep[self.n :])
        replaced = layout.stop[: self.n] > layer
        self.output_from = np.where(replaced, layout.patch[: self.n], np.arange(self.n))
        self.computed = keep[: self.n] & ~replaced
        computed = np.flatnonzero(self.computed)
        self.queries = self.kept if self.module in ("mlp", "head", "expert") else computed
        self.mid = computed if self.module == "block" else self.kept
        is_query = np.zeros(self.n, dtype=bool)
        is_query[self.queries] = True
        self.sequences = Sequences(layout.queried(is_query, int(layout.sequences_at[layer])))
        self.query_of, self.mid_of = _places(self.queries, self.n), _places(self.mid, self.n)
        self.base, self.patch = layout.base[entering], layout.patch[entering]
        self.replaced = self.patch != OWN
        self.head, self.heads = layout.head, layout.heads
        self.patches = layout.patch
        self.inside = np.flatnonzero(replaced & keep[: self.n])
        self.entering = entering[self.replaced]

    @property
    def n_between(self) -> int:
        """Rows that enter between attention and MLP, after `mid`: a cell's tokens whose attention is replaced."""
        return int(self.replaced.sum()) if self.module in ("attn", "head") else 0

    def advance(self, block: Block, h: Tensor, rotary: Rotary) -> Tensor:
        """h: (rows in the pack, d) → (rows in the pack after this layer, d)."""
        resid_mid = self._resid_mid(block, h, rotary)
        out, out_of = (self._experts if self.module == "expert" else self._mlp)(block, h, resid_mid)
        residual_from, output_from = self._sources(out_of)
        return window_restore(resid_mid, out, _tensor(residual_from, h), _tensor(output_from, h))

    def _resid_mid(self, block: Block, h: Tensor, rotary: Rotary) -> Tensor:
        """h: (n, d) → (len(mid) + n_between, d), the residual after attention."""
        rows = None if len(self.queries) == self.n else _tensor(self.queries, h)
        mixed = head_outputs(block, h, rotary, self.sequences, rows)
        if self.module == "head":
            return self._with_heads(block, h, mixed)
        added = block.attn_out(mixed)
        if self.module != "attn":
            return added.add_(h if rows is None else h.index_select(0, rows))
        before = np.concatenate((self.mid, self.base[self.replaced]))
        source = np.concatenate((self.output_from[self.mid], self.patch[self.replaced]))
        return window_restore(h, added, _tensor(before, h), _tensor(_through(self.query_of, source), h))

    def _with_heads(self, block: Block, h: Tensor, mixed: Tensor) -> Tensor:
        """mixed: (len(queries), H·hd), the heads' outputs before any is replaced → as `_resid_mid`."""
        base, rows = self.base[self.replaced], np.concatenate((self.inside, self.entering))
        z = torch.cat((mixed, mixed.index_select(0, _tensor(self.query_of[base], h)))).view(
            -1, block.n_heads, block.head_dim
        )
        # The rows that enter follow the queries, and take their heads from rows that no window replaces.
        given = np.concatenate((self.query_of[self.inside], len(mixed) + np.arange(len(base))))
        count = self.heads[rows]
        place, head = given.repeat(count), ranges(self.head[rows], count)
        source = self.patches[rows].repeat(count)
        taken = 0.0 if (source < 0).all() else z[_tensor(self.query_of[source], h), _tensor(head, h)]
        z[_tensor(place, h), _tensor(head, h)] = taken
        before = h.index_select(0, _tensor(np.concatenate((self.queries, base)), h))
        return before.add_(block.attn_out(z.view(len(z), -1)))

    def _mlp(self, block: Block, h: Tensor, resid_mid: Tensor) -> tuple[Tensor, np.ndarray]:
        """(the MLP outputs that are computed, (len(mid) + n_between,) the place of each row's output among them)."""
        n_mid = len(self.mid)
        source = resid_mid
        if block.parallel:
            # The MLP reads the block's input, which does not depend on a replaced attention output.
            source = h if n_mid == self.n else h.index_select(0, _tensor(self.mid, h))
        computed = np.arange(source.shape[0])
        if self.module == "mlp":
            computed = np.flatnonzero(self.computed[self.mid])
        out = mlp(block, source, None if len(computed) == source.shape[0] else _tensor(computed, h))
        out_of = _places(computed, n_mid + self.n_between)
        if self.n_between and block.parallel:
            out_of[n_mid:] = out_of[self.mid_of[self.base[self.replaced]]]
        return out, out_of

    def _experts(self, block: Block, h: Tensor, resid_mid: Tensor) -> tuple[Tensor, np.ndarray]:
        """As `_mlp`, with the contributions of experts replaced. The outputs of the rows that enter are the last."""
        read = h if block.parallel else resid_mid
        if block.parallel and len(self.mid) < self.n:
            read = h.index_select(0, _tensor(self.mid, h))
        out = mlp(block, read, added=False)
        base = self.base[self.replaced]
        changed = torch.cat((out, out.index_select(0, _tensor(self.mid_of[base], h))))
        own, rows = np.concatenate((self.inside, base)), np.concatenate((self.inside, self.entering))
        given = np.concatenate((self.mid_of[self.inside], len(out) + np.arange(len(base))))
        source, expert = self.patches[rows], _tensor(self.head[rows], h)
        changed.index_add_(0, _tensor(given, h), self._contributions(block, read, own, expert), alpha=-1)
        if (source >= 0).all():
            changed.index_add_(0, _tensor(given, h), self._contributions(block, read, source, expert))
        return block.mlp_add(changed), np.arange(len(changed))

    def _contributions(self, block: Block, read: Tensor, rows: np.ndarray, experts: Tensor) -> Tensor:
        """What an expert each adds in these rows of the pack. read: (len(mid), d), what the MLP reads."""
        return block.expert_output(block.mlp_norm_rows(read, _tensor(self.mid_of[rows], read)), experts)

    def _sources(self, out_of: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """For every kept and every entering row: the place of its residual after attention and of its MLP output."""
        rows = np.concatenate((self.kept, self.base))
        source = np.concatenate((self.output_from[self.kept], np.where(self.replaced, self.patch, self.base)))
        if self.module == "mlp":
            return self.mid_of[rows], _through(out_of[self.mid_of], source)
        if self.module == "expert":
            mine = out_of[self.mid_of[rows]]
            mine[len(self.kept) :][self.replaced] = len(self.mid) + np.arange(int(self.replaced.sum()))
            return self.mid_of[rows], mine
        if self.module in ("attn", "head"):
            mid_of = self.mid_of[rows]
            mid_of[len(self.kept) :][self.replaced] = len(self.mid) + np.arange(self.n_between)
            return mid_of, out_of[mid_of]
        return _through(self.mid_of, source), _through(out_of[self.mid_of], source)


def _places(rows: np.ndarray, n: int) -> np.ndarray:
    """rows: (m,) int64 below n → (n,) int64, the place of each row among them, OWN for the others."""
    places = np.full(n, OWN)
    places[rows] = np.arange(len(rows))
    return places


def _through(places: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """places, rows: int64 → places[rows], and −1 (no row) where rows is ZERO."""
    return np.where(rows < 0, -1, places[np.maximum(rows, 0)])


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    return upload(array, like.device)


def _scores(model: Decoder, layout: Layout, wave: TraceWave, h: Tensor, compare: bool) -> Callable[[], WaveResult]:
    """h: (rows, d), the scored rows in the order of the pack, each sequence's K together → what the wave measured."""
    items = layout.items
    targets = [np.asarray(item.targets) for item in items]
    count = np.array([len(t) for t in targets])[layout.fact]
    first = np.cumsum(count) - count
    logp = download(row_logprob(model, h, _tensor(np.concatenate([targets[fact] for fact in layout.fact]), h)))
    # The row of each sequence whose distribution is compared.
    at = np.array([item.compared_at for item in items])
    rows = first + at[layout.fact]
    contrasted = np.array([item.contrast is not None for item in items])[layout.fact]
    logits = kl = None
    if contrasted.any():
        # Of the scored token, o_true's and o_false's.
        three = np.array(
            [(t[i], *(item.contrast or (0, 0, 0))[1:]) for t, i, item in zip(targets, at, items, strict=True)]
        )
        chosen = np.flatnonzero(contrasted)
        logits = download(token_logits(model, _rows(h, rows[chosen]), _tensor(three[layout.fact[chosen]], h)))
    if compare:
        # A fact's first sequence is its clean pass.
        clean = np.searchsorted(layout.fact[: layout.n_base], np.arange(len(items)))
        kl = download(divergence(model, _rows(h, rows), _tensor(clean[layout.fact], h)))

    def result() -> WaveResult:
        found = measures(logp().astype(np.float64), first, rows, contrasted, logits and logits(), kl and kl())
        return _result(model, layout, wave, found)

    return result


def _rows(h: Tensor, rows: np.ndarray) -> Tensor:
    return h.index_select(0, _tensor(rows, h))


def _result(model: Decoder, layout: Layout, wave: TraceWave, found: np.ndarray) -> WaveResult:
    """found: (M, S), what was measured of every sequence."""
    numbers = [number for number, _ in wave.items]
    runs = np.array([item.runs for item in layout.items])
    passes = np.array([1 + item.corrupted for item in layout.items])
    base = np.split(found[:, : layout.n_base], np.cumsum(passes)[:-1], axis=1)
    clean = {n: part[:, :1] for n, part in zip(numbers, base, strict=True)}
    # Equal rows may round differently, so what the corruption cannot change is copied from the clean pass.
    seen = [item.sees_corruption(model) for item in layout.items]
    noised = {
        n: np.ascontiguousarray(part[:, 1:]) if sees else part[:, :1].repeat(part.shape[1] - 1, 1)
        for n, part, sees in zip(numbers, base, seen, strict=True)
    }
    each = runs[[fact for fact, _ in layout.cells]] if layout.cells else np.zeros(0, dtype=np.int64)
    ends = layout.n_base + np.cumsum(each)
    cells = {
        (numbers[fact], cell): np.ascontiguousarray(found[:, end - n : end])
        for (fact, cell), end, n in zip(layout.cells, ends, each, strict=True)
    }
    for fact, cell in layout.unseen:
        number = numbers[fact]
        denoise = layout.intervention.method == "denoise"
        cells[number, cell] = noised[number] if denoise else clean[number].repeat(runs[fact], 1)
    return WaveResult(clean, noised, cells)
