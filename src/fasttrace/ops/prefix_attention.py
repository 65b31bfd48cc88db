"""Causal attention of packed tails against kept prefixes, which are read in place and never copied per row.

A sequence is up to three runs of consecutive rows of k and v, in the order of their tokens: a first prefix
(shared by every sequence of a fact: the clean tokens before the subject), a second prefix (shared by the
cells of one noise sample: its corrupted tokens before the restored one) and the tail, the sequence's own.
Its queries are the last rows of its tail.

    out[i] = Σ_j softmax_j(scale · q_i·k_j) v_j     over every key j at or before query i in its sequence
"""

from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from fasttrace.errors import UserError

COLUMNS = ("q_begin", "q_len", "first_begin", "first_len", "second_begin", "second_len", "k_begin", "k_len")


@dataclass(frozen=True, eq=False)
class Sequences:
    """table: (S, 8) int64 on the CPU, a row a sequence, columns as named in COLUMNS.

    Query rows are [q_begin, q_begin + q_len) of q and are the last q_len of the k_len tail rows
    [k_begin, k_begin + k_len) of k and v; query ranges follow one another and cover q.
    """

    table: np.ndarray

    @classmethod
    def whole(cls, lengths: list[int]) -> "Sequences":
        """Sequences without prefixes, one after another."""
        length = np.asarray(lengths, dtype=np.int64)
        begin = np.cumsum(length) - length
        zero = np.zeros_like(length)
        return cls(np.stack((begin, length, zero, zero, zero, zero, begin, length), axis=1))

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def n_queries(self) -> int:
        """Rows of q."""
        return int(self.table[:, 1].sum())

    @cached_property
    def groups(self) -> list[tuple[Tensor, Tensor, int]]:
        """Sequences of one shape together: (query rows (G, q_len), key rows (G, keys), q_len) of each group."""
        shapes, which = np.unique(self.table[:, [1, 3, 5, 7]], axis=0, return_inverse=True)
        result = []
        for number, (q_len, first, second, k_len) in enumerate(shapes):
            t = self.table[which.reshape(-1) == number]
            q_rows = t[:, 0:1] + np.arange(q_len)
            k_rows = np.concatenate(
                (t[:, 2:3] + np.arange(first), t[:, 4:5] + np.arange(second), t[:, 6:7] + np.arange(k_len)), axis=1
            )
            result.append((torch.from_numpy(q_rows), torch.from_numpy(k_rows), int(q_len)))
        return result

    @cached_property
    def multiply_adds(self) -> int:
        """Query-key pairs computed: each costs 2·head_dim multiply-adds a head."""
        t = self.table
        return int((t[:, 1] * (t[:, 3] + t[:, 5] + t[:, 7])).sum())


def prefix_attention(
    q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, scale: float, *, sliding_window: int | None = None
) -> Tensor:
    """Attention of every sequence's queries over its prefixes and tail (ALGORITHMS section 8, step 2).

    q: (Nq, H, head_dim) float32, bfloat16 or float64. k, v: (N, Hkv, head_dim), same dtype; H a multiple of
    Hkv (query head h reads key head h // (H / Hkv)). sequences: which rows belong together. scale: of the
    scores. sliding_window: tokens a query sees, itself included. Returns (Nq, H·head_dim). Differentiable.

    Raises UserError where shapes do not fit.
    """
    if q.ndim != 3 or k.shape != v.shape or k.shape[2] != q.shape[2] or q.shape[1] % k.shape[1]:
        raise UserError(
            f"prefix_attention: q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)} do not fit, "
            "(Nq, H, hd) and twice (N, Hkv, hd) with H a multiple of Hkv were wanted"
        )
    if sequences.n_queries != q.shape[0]:
        raise UserError(f"prefix_attention: sequences name {sequences.n_queries} query rows, q has {q.shape[0]}")
    return prefix_attention_reference(q, k, v, sequences, scale, sliding_window=sliding_window)


def prefix_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, sequences: Sequences, scale: float, *, sliding_window: int | None = None
) -> Tensor:
    """Sequences of equal shape stacked, then torch's scaled_dot_product_attention with an explicit mask."""
    parts, order = [], []
    grouped = q.shape[1] != k.shape[1]
    for q_rows, k_rows, q_len in sequences.groups:
        keys = k_rows.shape[1]
        position = torch.arange(keys - q_len, keys)[:, None] - torch.arange(keys)[None, :]
        seen = position >= 0
        if sliding_window is not None:
            seen &= position < sliding_window
        mask = None if bool(seen.all()) else seen.to(q.device)
        index = k_rows.reshape(-1).to(q.device)
        heads = lambda x, rows, shape: x.index_select(0, rows).view(*shape, *x.shape[1:]).transpose(1, 2)  # noqa: E731
        mixed = torch.nn.functional.scaled_dot_product_attention(
            heads(q, q_rows.reshape(-1).to(q.device), q_rows.shape),
            heads(k, index, k_rows.shape),
            heads(v, index, k_rows.shape),
            attn_mask=mask,
            scale=scale,
            enable_gqa=grouped,
        )
        parts.append(mixed.transpose(1, 2).reshape(-1, q.shape[1] * q.shape[2]))
        order.append(q_rows.reshape(-1))
    if len(parts) == 1:
        return parts[0]
    place = torch.empty(sequences.n_queries, dtype=torch.int64)
    place[torch.cat(order)] = torch.arange(sequences.n_queries)
    return torch.cat(parts).index_select(0, place.to(q.device))
