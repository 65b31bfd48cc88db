"""pyvene, used as in its tutorial on causal tracing (Causal_Tracing.ipynb).

As its tutorial: an IntervenableModel per cell, with noise on the input of block 0 and the clean prompt as the source of
every restored layer. Each cell thus runs one forward per layer of its window and one more.
Cached sources: clean outputs are collected once and passed as `source_representations`.
All tokens in one batch: also with cached sources; each subject token's cell has its own unit locations.
"""

from functools import partial

import numpy as np
import pyvene
import torch
from peers.task import Noised

WAYS = ("as its tutorial", "cached sources", "cached sources, all tokens in one batch")


class Noise(pyvene.ConstantSourceIntervention, pyvene.LocalistRepresentationIntervention):
    """Adds the task's noise to the gathered subject tokens (k·n, e - b, d)."""

    def __init__(self, noise: torch.Tensor, **given):
        super().__init__(**given)
        self.noise = noise

    def forward(self, base, source=None, subspaces=None):
        base.unflatten(0, (-1, len(self.noise)))[:] += self.noise
        return base


def wrap(task: Noised):
    return task.load()[0]


def intervenable(hf, task: Noised, layers) -> pyvene.IntervenableModel:
    """A model with noise on the embeddings and a replaced MLP output in each of `layers`."""
    restored = [pyvene.RepresentationConfig(i, "mlp_output") for i in layers]
    config = pyvene.IntervenableConfig(
        representations=[pyvene.RepresentationConfig(0, "block_input"), *restored],
        intervention_types=[partial(Noise, task.noise), *[pyvene.VanillaIntervention] * len(restored)],
    )
    return pyvene.IntervenableModel(config, hf)


def collect(hf, task: Noised) -> list[torch.Tensor]:
    """Clean MLP outputs (1, T, d), layer by layer."""
    layers = range(hf.config.num_hidden_layers)
    config = pyvene.IntervenableConfig(
        [pyvene.RepresentationConfig(i, "mlp_output", intervention=pyvene.CollectIntervention()) for i in layers]
    )
    every = [list(range(task.ids.shape[1]))]
    (_, found), _ = pyvene.IntervenableModel(config, hf)(
        {"input_ids": task.ids}, unit_locations={"base": [every] * len(layers)}
    )
    return found


@torch.no_grad()
def sweep(hf, task: Noised, way: str) -> np.ndarray:
    """(tokens, L) grid."""
    n, tokens = task.samples, list(task.tokens)
    intervals = task.intervals(hf.config.num_hidden_layers)

    def forward(layers, restored, sources=None, clean=None):
        """restored: the token that each cell of the batch restores."""
        model, rows = intervenable(hf, task, layers), len(restored) * n
        base = {"input_ids": task.ids.repeat(rows, 1)}
        at = [[[t] for t in restored for _ in range(n)]] * len(layers)
        given = (
            {}
            if clean is None
            else {
                key: clean[i][0, restored].repeat_interleave(n, 0)[:, None]
                for key, i in zip(model.sorted_keys[1:], layers, strict=True)
            }
        )
        _, out = model(
            base,
            [None, *[base] * len(layers)] if clean is None else None,
            {"sources->base": ([None, *at], [[tokens] * rows, *at])},
            source_representations=given or None,
        )
        return task.score(out.logits)

    if way == WAYS[0]:
        return np.array([[forward(layers, [t])[0] for layers in intervals] for t in tokens])
    clean = collect(hf, task)
    if way == WAYS[1]:
        return np.array([[forward(layers, [t], clean=clean)[0] for layers in intervals] for t in tokens])
    return np.array([forward(layers, tokens, clean=clean) for layers in intervals]).T


SWEEPS = {Noised: (WAYS, sweep)}
