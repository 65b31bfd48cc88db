"""TransformerLens, used as on its hook system's page: `run_with_cache` once, then `run_with_hooks` to patch outputs.

The bridge uses the loaded model (`hf_model=`) with its own weights, and forces eager attention, the bridge's default.
"""

import numpy as np
import torch
from peers.task import Task
from transformer_lens.model_bridge import TransformerBridge

WAYS = ("run_with_hooks a cell", "run_with_hooks, all layers in one batch")
MLP = "blocks.{}.mlp.hook_out"


def wrap(task: Task) -> TransformerBridge:
    hf, tokenizer = task.load()
    return TransformerBridge.boot_transformers(
        str(task.folder), hf_model=hf, tokenizer=tokenizer, dtype=task.dtype, device="cpu"
    )


def restore(clean: torch.Tensor, token: int, rows: slice):
    """A hook that puts `clean` (T, d) over `token` of `rows`."""

    def patch(out, hook):
        out[rows, token] = clean[token]
        return out

    return patch


@torch.no_grad()
def sweep(model: TransformerBridge, task: Task, way: str) -> np.ndarray:
    """(tokens, L) grid."""
    n_layers, n = model.cfg.n_layers, task.samples
    _, cache = model.run_with_cache(task.ids, names_filter=lambda name: name.endswith("mlp.hook_out"))
    clean = [cache[MLP.format(i)][0] for i in range(n_layers)]
    noise = ("embed.hook_out", lambda out, hook: task.corrupt(out))

    def forward(rows, hooks):
        return task.score(model.run_with_hooks(task.ids.repeat(rows, 1), fwd_hooks=[noise, *hooks]))

    def cell(token, layers):
        return forward(n, [(MLP.format(i), restore(clean[i], token, slice(None))) for i in layers])[0]

    def batch(token):
        cells = [task.cells_of(i, n_layers) for i in range(n_layers)]
        rows = [slice(c.start * n, c.stop * n) for c in cells]
        return forward(n_layers * n, [(MLP.format(i), restore(clean[i], token, r)) for i, r in enumerate(rows)])

    if way == WAYS[0]:
        return np.array([[cell(t, layers) for layers in task.intervals(n_layers)] for t in task.tokens])
    return np.array([batch(t) for t in task.tokens])
