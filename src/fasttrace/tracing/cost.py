"""What a sweep costs: FLOPs of the plan, layer by layer, as the wavefront computes it."""

import numpy as np

from fasttrace.models.adapter import Block, Decoder
from fasttrace.tracing.plan import TraceItem
from fasttrace.tracing.sweep import TracePlan


def linear_flops(model: Decoder, block: Block) -> tuple[int, int, int]:
    """FLOPs a row of (key and value products, query and attention-output products, MLP products)."""
    d, m = model.width, model.key_width
    key_value = 2 * d * 2 * block.n_kv_heads * block.head_dim
    query_out = 2 * 2 * d * block.n_heads * block.head_dim
    return key_value, query_out, 2 * d * m * (block.mlp_products + 1)


def item_flops(model: Decoder, item: TraceItem, samples: int) -> int:
    """FLOPs of one fact: clean and corrupted passes and every cell, attention and log-sum-exp included."""
    n_layers, b, k = model.n_layers, item.encoded.subject_begin, len(item.targets)
    length = len(item.ids)
    # Tails as (first token, layer entered after, first layer past the window); -1: from the embedding.
    passes = [(0, 1, -1, 0), (b, samples, -1, 0)]
    passes += [
        (c.token, samples, c.start, c.stop)
        for c in item.cells
        if c.start < n_layers - 1 or c.token == item.length - 1
    ]
    first, rows, start, stop = (np.array(x, dtype=np.int64) for x in zip(*passes, strict=True))
    tail = length - first
    total = 0
    for layer, block in enumerate(model.blocks):
        active = start < layer
        key_value, query_out, mlp = linear_flops(model, block)
        last = layer == n_layers - 1
        queries = np.minimum(tail, k) if last else tail
        # A restored row's MLP is not computed where it would be.
        restored = (start >= 0) & (stop > layer) & (~np.array(last) | (first == item.length - 1))
        pairs = queries * length - queries * (queries - 1) // 2
        cost = tail * key_value + queries * query_out + (queries - restored) * mlp
        cost = cost + pairs * 4 * block.n_heads * block.head_dim
        total += int((rows * active * cost).sum())
    unembed = 2 * model.width * model.vocab_size * int((rows * k).sum())
    return total + unembed


def sweep_flops(plan: TracePlan) -> int:
    """FLOPs of a whole sweep in one wave a fact (multiply and add count one each)."""
    return sum(item_flops(plan.model, item, plan.samples) for item in plan.items())
