"""Text from the model itself: many texts at once, each new token one step of the model's blocks.

transformers' `generate` gives the same tokens; driving the blocks here uses the package's faster matrix
products and keeps keys and values in place instead of copying them at every step.
"""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from fasttrace.models.adapter import Decoder, Rotary
from fasttrace.models.packed import mlp
from fasttrace.ops.linear import linear

DOCUMENT = "<|endoftext|>"


def start_token(model: Decoder) -> int:
    """The token a sampled text starts after: "<|endoftext|>" where the vocabulary has it (it stands between
    documents, where a chat model's BOS opens a conversation), else BOS, else EOS, else token 0."""
    tokenizer = model.tokenizer
    known = tokenizer.get_vocab().get(DOCUMENT)
    for token in (known, tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None and token < model.vocab_size:
            return int(token)
    return 0


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
    """Draw `rows` texts of `length` tokens: (rows, length) int64 on the CPU, the start token not included.

    Temperature 1. top_k: draw among the k likeliest tokens, None for all. allowed: (V,) bool, tokens that
    may be drawn, None for all; a drawn end-of-text token does not end a text. seed: of the draws, made on
    the CPU; several numbers, each at least 0, are one seed together.
    """
    # numpy takes every bit of every number; torch's CPU generator drops all but 32 bits of its seed.
    generator = np.random.default_rng(seed)
    device = model.device
    kept = [
        torch.empty((2, rows, block.n_kv_heads, length, block.head_dim), dtype=model.dtype, device=device)
        for block in model.blocks
    ]
    ids = torch.empty((rows, length), dtype=torch.int64)
    last = torch.full((rows,), start_token(model), dtype=torch.int64)
    for step in range(length):
        scores = _next_scores(model, last.to(device), step, kept).float()
        if allowed is not None:
            scores.masked_fill_(~allowed.to(device), float("-inf"))
        last = _draw(scores, top_k, generator)
        ids[:, step] = last
    return ids


def _draw(scores: Tensor, top_k: int | None, generator: np.random.Generator) -> Tensor:
    """scores: (rows, V) float32 → (rows,) int64 on the CPU, by inverting the cumulative distribution."""
    names = None
    if top_k is not None:
        scores, names = scores.topk(min(top_k, scores.shape[1]), dim=1)
    cumulative = scores.softmax(1).cumsum(1, dtype=torch.float64)
    # The total is rounded, so the draw is scaled by it and never lands past the last possible token.
    point = torch.from_numpy(generator.random((len(scores), 1))).to(scores.device)
    chosen = torch.searchsorted(cumulative, point * cumulative[:, -1:], right=True)
    chosen.clamp_(max=scores.shape[1] - 1)
    return (chosen if names is None else names.gather(1, chosen)).squeeze(1).cpu()


def _next_scores(model: Decoder, ids: Tensor, step: int, kept: list[Tensor]) -> Tensor:
    """ids: (rows,) tokens at position `step`; kept: keys and values before it, extended here → (rows, V)."""
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
    return linear(model.final_norm(h), model.unembed_weight, model.unembed_bias)
