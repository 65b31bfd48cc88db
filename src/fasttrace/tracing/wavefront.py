"""The exact sweep at the least work: every pass of every fact in flight advances together, layer by layer.

At each layer the pack holds the clean rows, the corrupted rows and the tails of every cell that has entered.
One set of matrix products serves them all; attention reads the prefixes of the clean and corrupted rows in
place; an output that a window replaces is not computed but taken from where it comes from; and the cells whose
window starts here enter. Nothing is kept from one layer to the next but the residual.
"""

import ctypes
import functools
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fasttrace.models.adapter import Block, Decoder, Rotary
from fasttrace.models.corrupt import embed_base
from fasttrace.models.packed import attend, bring, mlp, rotary_rows, row_logprob
from fasttrace.ops.dispatch import download, upload
from fasttrace.ops.prefix_attention import Sequences
from fasttrace.ops.window_restore import window_restore
from fasttrace.tracing.plan import OWN, Cell, Intervention, Layout, TraceItem, Wave

TIDY_LAYERS = 4  # after every layer it would take 10 % of the time (bench/LOG.md)


@functools.cache
def _malloc_trim() -> Callable[[int], int] | None:
    """glibc's, where that is the allocator."""
    try:
        trim: Callable[[int], int] = ctypes.CDLL(None).malloc_trim
    except (OSError, AttributeError, TypeError):
        return None
    return trim


def give_back() -> None:
    """Freed CPU memory goes back: the pack grows from layer to layer, so freed pieces never fit the next."""
    trim = _malloc_trim()
    if trim is not None:
        trim(0)


@dataclass(frozen=True, eq=False)
class WaveResult:
    """Probabilities of the scored tokens, by fact number in the sweep.

    clean: fact → p. noised: fact → (n,) p of each corrupted pass. cells: (fact, cell) → (runs,) p.
    """

    clean: dict[int, float]
    noised: dict[int, np.ndarray]
    cells: dict[tuple[int, Cell], np.ndarray]


@torch.no_grad()
def start_wave(
    model: Decoder, items: list[TraceItem], wave: Wave, intervention: Intervention, sigma: float, noise: str, seed: int,
    *, tidy: bool = False,
) -> Callable[[], WaveResult]:  # fmt: skip
    """Compute one wave exactly; returns what waits for its result. A GPU is still computing when this returns, so that
    the host can prepare the next wave meanwhile.

    sigma, noise, seed: see `embed_base`. tidy: give freed memory back on the way, as a sweep of several waves must to
    stay near its budget.
    """
    layout = Layout(model, items, wave, intervention)
    encoded, ids = [item.encoded for item in layout.items], [item.ids for item in layout.items]
    with model.entry():
        x, positions = embed_base(model, encoded, ids, intervention.corrupted, sigma, noise, seed)
        h = model.enter(x, positions)
    rotary = model.rotary(_tensor(layout.position, h))
    for layer, block in model.layers():
        h, rotary = h.to(block.device), bring(rotary, block.device)
        h = _Layer(layout, layer).advance(block, h, rotary_rows(rotary, slice(h.shape[0])))
        if tidy and h.device.type == "cpu" and layer % TIDY_LAYERS == 0:
            give_back()
    return _scores(model, layout, wave, h)


class _Layer:
    """Which rows one layer computes, and where the rest come from.

    Past the last layer only the scored rows are read, so only they are kept there. kept: rows of the pack, entering:
    rows that enter after this layer, queries: rows whose attention output is computed, middle: rows whose residual
    after attention is; output_from: (n,) the row whose module output each row takes, or ZERO.
    """

    def __init__(self, layout: Layout, layer: int) -> None:
        self.layout, self.module = layout, layout.intervention.module
        self.n, entered = int(layout.rows_at[layer]), int(layout.rows_at[layer + 1])
        last = layer + 1 == len(layout.rows_at) - 1
        keep = layout.scored[:entered] if last else np.ones(entered, dtype=bool)
        self.kept, self.entering = np.flatnonzero(keep[: self.n]), self.n + np.flatnonzero(keep[self.n :])
        replaced = layout.stop[: self.n] > layer
        self.output_from = np.where(replaced, layout.patch[: self.n], np.arange(self.n))
        self.computed = keep[: self.n] & ~replaced
        own = np.flatnonzero(self.computed)
        self.queries = self.kept if self.module == "mlp" else own
        self.middle = own if self.module == "block" else self.kept
        wanted = np.zeros(self.n, dtype=bool)
        wanted[self.queries] = True
        self.sequences = Sequences(layout.queried(wanted, int(layout.sequences_at[layer])))
        # Rows of the pack → rows of what is computed; a row that is not computed is never looked up.
        self.query_of, self.middle_of = (np.full(self.n, OWN) for _ in range(2))
        self.query_of[self.queries] = np.arange(len(self.queries))
        self.middle_of[self.middle] = np.arange(len(self.middle))

    def advance(self, block: Block, h: Tensor, rotary: Rotary) -> Tensor:
        """h: (rows in the pack, d) → (rows in the pack after this layer, d)."""
        whole = len(self.queries) == self.n
        rows = None if whole else _tensor(self.queries, h)
        added = attend(block, h, rotary, self.sequences, rows)
        patch, base = self.layout.patch[self.entering], self.layout.base[self.entering]
        lead, n_middle = patch != OWN, len(self.middle)
        extra = 0
        if self.module == "attn":
            # A cell's own tokens enter between attention and MLP, behind the rows of the pack.
            before = _tensor(np.concatenate((self.middle, base[lead])), h)
            taken = np.concatenate((self.output_from[self.middle], patch[lead]))
            middle = window_restore(h, added, before, _tensor(_through(self.query_of, taken), h))
            extra = int(lead.sum())
        else:
            middle = added.add_(h if rows is None else h.index_select(0, rows))
        residual = middle
        if block.parallel:
            # The MLP reads the block's input, which a replaced attention output does not change.
            residual = h if n_middle == self.n else h.index_select(0, _tensor(self.middle, h))
        computed = np.arange(residual.shape[0])
        if self.module == "mlp":
            computed = np.flatnonzero(self.computed[self.middle])
        out = mlp(block, residual, None if len(computed) == residual.shape[0] else _tensor(computed, h))
        out_of = np.full(n_middle + extra, OWN)
        out_of[computed] = np.arange(len(computed))
        if extra and block.parallel:
            out_of[n_middle:] = out_of[self.middle_of[base[lead]]]

        # Of every kept and every entering row: whose residual after attention, and whose MLP output, it takes.
        own = np.concatenate((self.kept, base))
        taken = np.concatenate((self.output_from[self.kept], np.where(lead, patch, base)))
        if self.module == "mlp":
            residual_of, output_of = self.middle_of[own], _through(out_of[self.middle_of], taken)
        elif self.module == "attn":
            residual_of = self.middle_of[own]
            residual_of[len(self.kept) :][lead] = n_middle + np.arange(extra)
            output_of = out_of[residual_of]
        else:
            residual_of, output_of = _through(self.middle_of, taken), _through(out_of[self.middle_of], taken)
        return window_restore(middle, out, _tensor(residual_of, h), _tensor(output_of, h))


def _through(places: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """places[rows], and −1 (nothing) where a row is ZERO."""
    return np.where(rows < 0, -1, places[np.maximum(rows, 0)])


def _tensor(array: np.ndarray, like: Tensor) -> Tensor:
    return upload(array, like.device)


def _scores(model: Decoder, layout: Layout, wave: Wave, h: Tensor) -> Callable[[], WaveResult]:
    """Read p off the scored rows h, in the order of the pack: each sequence's K rows together."""
    targets = [np.asarray(item.targets) for item in layout.items]
    wanted = np.concatenate([targets[fact] for fact in layout.fact])
    count = np.array([len(t) for t in targets])[layout.fact]
    logp = download(row_logprob(model, h, _tensor(wanted, h)))
    return lambda: _result(model, layout, wave, logp().astype(np.float64), count)


def _result(model: Decoder, layout: Layout, wave: Wave, logp: np.ndarray, count: np.ndarray) -> WaveResult:
    """logp: (rows,) log p of every scored row; count: (sequences,) how many of them are a sequence's."""
    p = np.exp(np.minimum(np.add.reduceat(logp, np.cumsum(count) - count), 0.0))
    passes, runs = 1 + layout.intervention.corrupted, layout.intervention.runs
    numbers = [number for number, _ in wave.items]
    base = p[: len(numbers) * passes].reshape(len(numbers), passes)
    clean = dict(zip(numbers, base[:, 0].tolist(), strict=True))
    # Two rows of one value may round apart, so what cannot differ is taken and not compared.
    hurt = [item.sees_noise(model) for item in layout.items]
    noised = {n: p[1:] if seen else np.full_like(p[1:], p[0]) for n, p, seen in zip(numbers, base, hurt, strict=True)}
    rest = p[len(numbers) * passes :].reshape(-1, runs)
    cells = {(numbers[fact], cell): x for (fact, cell), x in zip(layout.cells, rest, strict=True)}
    for fact, cell in layout.unseen:
        number = numbers[fact]
        cells[number, cell] = (
            noised[number] if layout.intervention.method == "denoise" else np.full(runs, clean[number])
        )
    return WaveResult(clean, noised, cells)
