"""The released way (google/belief-localization, kmeng01/rome): one full forward of 1 + n rows for every cell.

Written anew after their `trace_with_patch`: row 0 is clean. Hooks, chosen by module name, add noise to the other rows'
embeddings and copy row 0's state over theirs. Logits are computed at every position.
"""

import numpy as np
import torch
from peers.task import Noised, paths

WAYS = ("one forward a cell",)


class TraceDict(dict):
    """Inside the `with` block, pass every named module's output through edit(output, name) and keep the result."""

    def __init__(self, model, names, edit):
        super().__init__()
        self.hooks = [model.get_submodule(name).register_forward_hook(self.keep(name, edit)) for name in names]

    def keep(self, name, edit):
        def hook(module, args, output):
            self[name] = edit(output, name)
            return self[name]

        return hook

    def __enter__(self):
        return self

    def __exit__(self, *error):
        for hook in self.hooks:
            hook.remove()


def wrap(task: Noised):
    return task.load()[0]


def trace_with_patch(hf, task: Noised, restored: list[str], token: int) -> float:
    """Mean probability of the target over the corrupted rows, with `token` restored in the named modules."""
    embedding = paths(hf).embedding

    def patch(output, name):
        if name == embedding:
            output[1:, task.begin : task.end] += task.noise
        else:
            output[1:, token] = output[0, token]
        return output

    with torch.no_grad(), TraceDict(hf, [embedding, *restored], patch):
        logits = hf(task.ids.repeat(1 + task.samples, 1)).logits
    [p] = task.score(logits[1:])
    return p


def sweep(hf, task: Noised, way: str) -> np.ndarray:
    """(tokens, L) grid."""
    mlp = paths(hf).mlp
    intervals = task.intervals(hf.config.num_hidden_layers)
    return np.array(
        [[trace_with_patch(hf, task, [mlp.format(i) for i in layers], t) for layers in intervals] for t in task.tokens]
    )


SWEEPS = {Noised: (WAYS, sweep)}
