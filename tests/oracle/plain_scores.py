"""Neighborhood score of an edit the obvious way: changes written into the weights, one forward for each prompt.

Source: paper, sections 3.4 and 5.1; docs/algorithms.md, section 18.
"""

import contextlib

import numpy as np
import torch
from hooked_rome import down_projection
from hooked_trace import mlp_modules


@contextlib.contextmanager
def written(hf, changes):
    """Add the changes, layer → ΔW (d, m), to the weights while the body runs."""
    modules = {layer: down_projection(mlp_modules(hf)[layer]) for layer in changes}
    saved = {layer: module.weight.detach().clone() for layer, module in modules.items()}
    with torch.no_grad():
        for layer, change in changes.items():
            weight = modules[layer].weight
            weight += (change.T if type(modules[layer]).__name__ == "Conv1D" else change).to(weight.dtype)
        yield
        for layer, module in modules.items():
            module.weight.copy_(saved[layer])


@torch.no_grad()
def p_of(hf, ids, target):
    """p(target) after ids, both lists of token ids."""
    logp = hf(torch.tensor([[*ids, *target]])).logits[0].double().log_softmax(-1)
    return float(np.exp(sum(float(logp[len(ids) - 1 + k, t]) for k, t in enumerate(target))))


def plain_neighborhood(hf, changes, prompts, target):
    """Mean over the prompts (lists of token ids) of 1 − |p* − p| / (.5 + |p − .5|).

    p and p* are the target's probabilities before and after the edit.
    """
    before = np.array([p_of(hf, ids, target) for ids in prompts])
    with written(hf, changes):
        after = np.array([p_of(hf, ids, target) for ids in prompts])
    return float(np.mean(1 - np.abs(after - before) / (0.5 + np.abs(before - 0.5))))
