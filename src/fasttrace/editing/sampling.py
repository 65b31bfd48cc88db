"""Text from the model itself: many texts at once, each new token one step of the model's blocks.

transformers' `generate` gives the same tokens; driving the blocks here uses the package's faster matrix
products and keeps keys and values in place instead of copying them at every step.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fasttrace.models.adapter import Decoder, Rotary
from fasttrace.models.packed import mlp
from fasttrace.ops.linear import linear

BLOCK = 256  # tokens whose probabilities are added up together when one is drawn


def prefix_ids(tokenizer: Any) -> list[int]:
    """What the tokenizer puts before any text by itself: [BOS] or nothing."""
    plain = tokenizer("a", add_special_tokens=False).input_ids
    full = tokenizer("a").input_ids
    at = next((i for i in range(len(full)) if full[i : i + len(plain)] == plain), 0)
    return list(full[:at])


def start_ids(model: Decoder) -> list[int]:
    """What a sampled text follows, as texts stood in training: BOS where the tokenizer adds it, or where BOS
    and EOS are one token between documents (GPT-2, GPT-J); else the end of a text and a line break; token 0
    where the tokenizer has no such tokens.

    A lone special token will not do for every model: the first position of SmolLM2 predicts the same few
    symbols ("-" with p = 0.4) whatever token stands there.
    """
    tokenizer = model.tokenizer
    if added := prefix_ids(tokenizer):
        return added
    bos, eos = tokenizer.bos_token_id, tokenizer.eos_token_id
    if eos is None or bos == eos:
        return [0 if bos is None else int(bos)]
    return [int(eos), *tokenizer("\n", add_special_tokens=False).input_ids]


@torch.no_grad()
def sample_tokens(
    model: Decoder,
    rows: int,
    length: int,
    *,
    seed: int | Sequence[int],
    top_k: int | None = None,
    allowed: Tensor | None = None,
) -> Tensor:
    """Draw `rows` texts of `length` tokens: (rows, length) int64 on the CPU, `start_ids` not included.

    Temperature 1. top_k: draw among the k likeliest tokens, None for all. allowed: (V,) bool, tokens that
    may be drawn, None for all; a drawn end-of-text token does not end a text. seed: of the draws, made on
    the CPU; several numbers, each at least 0, are one seed together.
    """
    # numpy takes every bit of every number; torch's CPU generator drops all but 32 bits of its seed.
    generator = np.random.default_rng(seed)
    device = model.device
    start = start_ids(model)
    steps = len(start) - 1 + length
    kept = [
        torch.empty((2, rows, block.n_kv_heads, steps, block.head_dim), dtype=model.dtype, device=device)
        for block in model.blocks
    ]
    ids = torch.empty((rows, length), dtype=torch.int64)
    for step, token in enumerate(start):
        last = torch.full((rows,), token, dtype=torch.int64, device=device)
        h = _step(model, last, step, kept)
    for step in range(length):
        scores = linear(model.final_norm(h), model.unembed_weight, model.unembed_bias).float()
        if allowed is not None:
            scores.masked_fill_(~allowed.to(device), float("-inf"))
        last = _draw(scores, top_k, generator)
        ids[:, step] = last
        if step + 1 < length:
            h = _step(model, last.to(device), len(start) + step, kept)
    return ids


def _draw(scores: Tensor, top_k: int | None, generator: np.random.Generator) -> Tensor:
    """scores: (rows, V) float32 → (rows,) int64 on the CPU, by inverting the cumulative distribution.

    First the block of tokens, then the token in it: a running sum over V numbers a row took 20 % of a step.
    """
    names = None
    if top_k is not None:
        scores, names = scores.topk(min(top_k, scores.shape[1]), dim=1)
    weights = (scores - scores.amax(1, keepdim=True)).exp_()
    weights = functional.pad(weights, (0, -weights.shape[1] % BLOCK)).unflatten(1, (-1, BLOCK))
    sums = weights.sum(2, dtype=torch.float64)
    point = torch.from_numpy(generator.random((len(scores), 1))).to(scores.device)
    block, point = _invert(sums, point)
    inside = weights.gather(1, block[:, :, None].expand(-1, -1, BLOCK)).squeeze(1).double()
    chosen = block * BLOCK + _invert(inside, point)[0]
    return (chosen if names is None else names.gather(1, chosen)).squeeze(1).cpu()


def _invert(weights: Tensor, point: Tensor) -> tuple[Tensor, Tensor]:
    """weights: (rows, n) float64, point: (rows, 1) in [0, 1) → the index it falls on and how far into it,
    again in [0, 1): both (rows, 1). An index of weight 0 is never chosen."""
    upto = weights.cumsum(1)
    at = torch.minimum(point * upto[:, -1:], upto[:, -1:] * (1 - 1e-15))
    index = torch.searchsorted(upto, at, right=True)
    own = weights.gather(1, index)
    return index, ((at - upto.gather(1, index) + own) / own).clamp(0.0, 1 - 1e-15)


def _step(model: Decoder, ids: Tensor, step: int, kept: list[Tensor]) -> Tensor:
    """ids: (rows,) tokens at position `step`; kept: keys and values before it, extended here → (rows, d)."""
    positions = torch.full_like(ids, step)
    h = model.enter(model.embed_weight[ids], positions)
    rotary: Rotary | None = model.rotary(positions)
    for block, (keys, values) in zip(model.blocks, kept, strict=True):
        x = block.attn_norm(h)
        keys[:, :, step], values[:, :, step] = block.key_value(x, rotary)
        first = 0 if block.sliding_window is None else max(0, step + 1 - block.sliding_window)
        # Query heads of one key head stand as its queries: grouped attention without repeating keys.
        q = block.query(x, rotary).unflatten(1, (block.n_kv_heads, -1))
        seen = slice(first, step + 1)
        k, v = keys[:, :, seen], values[:, :, seen]
        mixed = functional.scaled_dot_product_attention(q, k, v, scale=block.scale)
        middle = h + block.attn_out(mixed.reshape(len(ids), -1))
        h = middle + mlp(block, h if block.parallel else middle)
    return h
