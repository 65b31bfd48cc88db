"""TransformerLens, used as on its hook system's page: `run_with_cache` once, then `run_with_hooks` to patch outputs.

Prompts with counterfactuals are patched by `transformer_lens.patching`, whose functions run the corrupted prompts once
for every cell, as in its demos, or in batches of all layers and heads.

The bridge uses the loaded model (`hf_model=`) with its own weights, and forces eager attention, the bridge's default.
"""

from functools import partial

import numpy as np
import torch
from peers.task import Noised, Paired, Task
from transformer_lens import patching
from transformer_lens.model_bridge import TransformerBridge

WAYS = ("run_with_hooks a cell", "run_with_hooks, all layers in one batch")
PAIRED_WAYS = (
    "transformer_lens.patching",
    "run_with_hooks, a batch a token, from the first difference on",
)
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
def sweep(model: TransformerBridge, task: Noised, way: str) -> np.ndarray:
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


@torch.no_grad()
def paired(model: TransformerBridge, task: Paired, way: str) -> np.ndarray:
    """(n, T, L, H) grid."""
    n, length, layers, heads = task.expected.shape
    name = "attn.hook_z" if task.by_head else "hook_resid_post"
    _, cache = model.run_with_cache(task.clean, names_filter=lambda found: found.endswith(name))
    if way == PAIRED_WAYS[0]:
        # There is a function of this kind for the residual before a block, but none for that after it.
        patch_blocks = partial(
            patching.generic_activation_patch,
            patch_setter=patching.layer_pos_patch_setter,
            activation_name="resid_post",
            index_axis_names=("layer", "pos"),
        )
        patch = patching.get_act_patch_attn_head_out_by_pos if task.by_head else patch_blocks
        found = patch(model, task.corrupted, cache, task.score, reduce="none").values
        return found.view(layers, length, heads, n).permute(3, 1, 0, 2).numpy()
    clean = [cache[f"blocks.{i}.{name}"] for i in range(layers)]

    def batch(token):
        put = lambda out, hook, i: task.restore(out, clean[i], i, token)  # noqa: E731
        hooks = [(f"blocks.{i}.{name}", partial(put, i=i)) for i in range(layers)]
        return task.score(model.run_with_hooks(task.corrupted.repeat(layers * heads, 1), fwd_hooks=hooks))

    return task.grid(task.score(model(task.corrupted)), [batch(token) for token in range(task.begin, length)])


SWEEPS = {Noised: (WAYS, sweep), Paired: (PAIRED_WAYS, paired)}
