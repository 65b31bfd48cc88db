"""prefix_attention on the cells of facts: tails of every length over stored prefixes, which are read in place.

The load is one layer of a sweep: prompts of `length` tokens whose subject begins at token 1, and for each token from
there on `cells` cells with `samples` noise samples. The yardstick is scaled_dot_product_attention with separate keys
and values for every sequence, which is the cost without stored prefixes.
"""

import numpy as np
from torch import Tensor
from torch.nn import functional

from fasttrace.benchmarks.load import Draw, Load, Way
from fasttrace.ops.prefix_attention import Column, Sequences, prefix_attention, prefix_attention_reference

SHAPES = [{"facts": 1}, {"facts": 8}]
BEGIN = 1


def load(
    draw: Draw,
    facts: int = 8,
    length: int = 10,
    cells: int = 5,
    samples: int = 10,
    heads: int = 9,
    kv_heads: int = 3,
    head_dim: int = 64,
) -> Load:
    """q (queries, heads, head_dim); k, v (rows, kv_heads, head_dim)."""
    sequences, rows = layer(facts, length, cells, samples)
    assert sequences.groups  # cached here, because a sweep makes them once and torch.compile must not trace them
    q = draw.normal(sequences.n_queries, heads, head_dim)
    k, v = draw.normal(rows, kv_heads, head_dim), draw.normal(rows, kv_heads, head_dim)
    tail = sequences.table[:, Column.Q_LEN]
    pairs = int((tail * length - tail * (tail - 1) // 2).sum())
    size = q.element_size()
    return Load(
        prefix_attention,
        (q, k, v, sequences, head_dim**-0.5),
        prefix_attention_reference,
        yardsticks={"copied": _copied(length)},
        gigaflop=4e-9 * pairs * heads * head_dim,
        gigabyte=2e-9 * size * (q.numel() + k.numel()),
    )


def layer(facts: int, length: int, cells: int, samples: int) -> tuple[Sequences, int]:
    """The sequences of every cell, and how many rows of keys there are.

    A fact's rows are its clean prompt, then its samples from the subject on. After all facts come the cells' tails.
    """
    kept = length + samples * (length - BEGIN)
    table, queries, rows = [], 0, facts * kept
    for fact in range(facts):
        for token in range(BEGIN, length):
            tail = length - token
            for sample in [*range(samples)] * cells:
                second = fact * kept + length + sample * (length - BEGIN)
                table.append((queries, tail, fact * kept, BEGIN, second, token - BEGIN, rows, tail))
                queries, rows = queries + tail, rows + tail
    return Sequences(np.array(table, dtype=np.int64)), rows  # columns in the order of Column


def _copied(length: int) -> Way:
    def whole_prompts(q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, scale: float) -> Tensor:
        n = len(sequences)
        q, k, v = (x[:1].expand(n, length, -1, -1).transpose(1, 2).contiguous() for x in (q, k, v))
        return functional.scaled_dot_product_attention(q, k, v, is_causal=True, scale=scale, enable_gqa=True)

    return whole_prompts
