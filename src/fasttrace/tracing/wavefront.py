"""The exact sweep at the least work: every pass of every fact in flight advances together, layer by layer.

At each layer the pack holds the clean rows, the corrupted rows and the tails of every cell that has entered.
One set of matrix products serves them all; attention reads the prefixes of the clean and corrupted rows in
place; a restored row's MLP is not computed but taken from the clean row; and the cells whose window starts
here enter from the corrupted residual. Nothing is kept from one layer to the next but the residual.
"""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.packed import attend, bring, mlp, row_logprob
from fasttrace.ops.prefix_attention import Sequences
from fasttrace.ops.window_restore import window_restore
from fasttrace.tracing.corrupt import embed_base
from fasttrace.tracing.plan import Cell, Layout, TraceItem, Wave


@dataclass(frozen=True, eq=False)
class WaveResult:
    """Probabilities of o_true, by fact number in the sweep.

    clean: fact → p. noised: fact → (n,) p of each corrupted row. restored: (fact, cell) → (n,) p.
    """

    clean: dict[int, float]
    noised: dict[int, np.ndarray]
    restored: dict[tuple[int, Cell], np.ndarray]


@torch.no_grad()
def run_wave(
    model: Decoder, items: list[TraceItem], wave: Wave, samples: int, sigma: float, noise: str, seed: int
) -> WaveResult:
    """Compute one wave exactly. samples: n corrupted rows a fact. sigma, noise, seed: see `embed_base`."""
    layout = Layout(items, wave, samples, model.n_layers)
    with model.entry():
        x, base_position = embed_base(
            model, [i.encoded for i in layout.items], [i.ids for i in layout.items], samples, sigma, noise, seed
        )
        h = model.enter(x, base_position)
    position = torch.cat((base_position, *(_tensor(c.position, model.device) for c in layout.cohorts)))
    rotary_all = model.rotary(position)
    table = layout.base_sequences
    clean = np.full(layout.n_base, -1, dtype=np.int64)
    stop = np.zeros(layout.n_base, dtype=np.int64)
    for layer, block in model.layers():
        device = block.device
        h, rotary_all = h.to(device), bring(rotary_all, device)
        n, cohort = h.shape[0], layout.cohorts[layer]
        rotary = None if rotary_all is None else (rotary_all[0][:n], rotary_all[1][:n])
        if layer + 1 < model.n_layers:
            rows, base, restored_from, restored_stop = None, cohort.base, clean, stop
            added = attend(block, h, rotary, Sequences(table))
        else:
            # Past the last layer only the scored rows are read, so only they are queries there.
            scored, k = layout.scored(table)
            rows = _tensor(scored, device)
            place = np.full(n, -1, dtype=np.int64)
            place[scored] = np.arange(len(scored))
            narrowed = table.copy()
            narrowed[:, 0], narrowed[:, 1] = np.cumsum(k) - k, k
            added = attend(block, h, rotary, Sequences(narrowed), rows)
            h = h[rows]
            base, restored_stop = place[cohort.base], stop[scored]
            restored_from = np.where(clean[scored] >= 0, place[clean[scored]], -1)
            cohort_clean = np.where(cohort.clean >= 0, place[cohort.clean], -1)
        middle = added.add_(h)
        residual = h if block.parallel else middle
        here = restored_stop > layer
        out = mlp(block, residual, _tensor(np.flatnonzero(~here), device) if here.any() else None)
        # Base rows come first and are never restored, so their module outputs keep their row numbers.
        own = np.cumsum(~here) - 1
        source = np.where(here, restored_from, own)
        entering = cohort.clean if rows is None else cohort_clean
        entering = np.where(entering >= 0, own[np.maximum(entering, 0)], own[base])
        h = window_restore(
            middle,
            out,
            _tensor(np.concatenate((np.arange(len(source)), base)), device),
            _tensor(np.concatenate((source, entering)), device),
        )
        table = np.concatenate((table, cohort.sequences))
        clean = np.concatenate((clean, cohort.clean))
        stop = np.concatenate((stop, cohort.stop))
    return _scores(model, layout, wave, h)


def _tensor(array: np.ndarray, device: torch.device) -> Tensor:
    return torch.from_numpy(np.ascontiguousarray(array)).to(device)


def _scores(model: Decoder, layout: Layout, wave: Wave, h: Tensor) -> WaveResult:
    """Read p(o_true) off the scored rows h, in the order of the pack: each sequence's K rows together."""
    owners = layout.owners()
    targets = np.concatenate([np.asarray(layout.items[fact].targets) for fact in owners])
    count = np.array([len(layout.items[fact].targets) for fact in owners])
    logp = row_logprob(model, h, _tensor(targets, h.device)).double().cpu().numpy()
    p = np.exp(np.minimum(np.add.reduceat(logp, np.cumsum(count) - count), 0.0))
    numbers = [number for number, _ in wave.items]
    clean, noised, restored = {}, {}, {}
    at, n = 0, layout.samples
    for number in numbers:
        clean[number], noised[number] = float(p[at]), p[at + 1 : at + 1 + n]
        at += 1 + n
    for fact, cell in layout.order:
        restored[numbers[fact], cell] = p[at : at + n]
        at += n
    for fact, cell in layout.unseen:
        restored[numbers[fact], cell] = noised[numbers[fact]]
    return WaveResult(clean, noised, restored)
