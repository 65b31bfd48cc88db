"""Causal attention of packed tails over stored prefixes, which are read in place and never copied per row.

A sequence is up to three runs of consecutive rows of k and v, in token order: a first prefix (the clean tokens before
the subject, shared by every sequence of a fact), a second prefix (the corrupted tokens before the restored one, shared
by the cells of one noise sample) and a tail, which belongs to this sequence alone. Its queries are the last rows of
its tail.

    out[i] = Σ_j softmax_j(s_ij) v_j     over every key j at or before query i in its sequence
    s_ij = cap(scale · q_i·k_j) − slope · (i − j),   cap(x) = softcap · tanh(x / softcap) where one is given

With sinks, the softmax has one score more, the head's sink, which has no value.
"""

import math
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose, triton_launcher, upload


class Column(IntEnum):
    """The columns of `Sequences.table`, in the order in which the compiled kernels read them."""

    Q_BEGIN = 0
    Q_LEN = 1
    FIRST_BEGIN = 2
    FIRST_LEN = 3
    SECOND_BEGIN = 4
    SECOND_LEN = 5
    K_BEGIN = 6
    K_LEN = 7


def sequence_table(
    *,
    q_begin: ArrayLike,
    q_len: ArrayLike,
    k_begin: ArrayLike,
    k_len: ArrayLike,
    first_begin: ArrayLike = 0,
    first_len: ArrayLike = 0,
    second_begin: ArrayLike = 0,
    second_len: ArrayLike = 0,
) -> np.ndarray:
    """`Sequences.table` from its columns: each (S,) integers, or one integer for all sequences."""
    columns = {
        Column.Q_BEGIN: q_begin,
        Column.Q_LEN: q_len,
        Column.FIRST_BEGIN: first_begin,
        Column.FIRST_LEN: first_len,
        Column.SECOND_BEGIN: second_begin,
        Column.SECOND_LEN: second_len,
        Column.K_BEGIN: k_begin,
        Column.K_LEN: k_len,
    }
    return np.stack(np.broadcast_arrays(*(columns[one] for one in Column)), axis=1).astype(np.int64)


@dataclass(frozen=True, eq=False)
class Sequences:
    """table: (S, 8) int64 on the CPU, one row per sequence, columns as named by `Column` (see `sequence_table`).

    The tail is rows [k_begin, k_begin + k_len) of k and v. The queries are rows [q_begin, q_begin + q_len) of q, and
    belong to the last q_len tokens of the tail. The query ranges follow one another and cover q.
    """

    table: np.ndarray
    _tables: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)
    _orders: dict[torch.device, Tensor] = field(default_factory=dict, init=False, repr=False)

    @classmethod
    def whole(cls, lengths: list[int]) -> "Sequences":
        """Sequences without prefixes, one after another."""
        length = np.asarray(lengths, dtype=np.int64)
        begin = np.cumsum(length) - length
        return cls(sequence_table(q_begin=begin, q_len=length, k_begin=begin, k_len=length))

    def __len__(self) -> int:
        return len(self.table)

    @cached_property
    def n_queries(self) -> int:
        """Rows of q."""
        return int(self.table[:, Column.Q_LEN].sum())

    @cached_property
    def longest(self) -> tuple[int, int]:
        """The largest number of queries and the largest number of keys in one sequence."""
        keys = self.table[:, [Column.FIRST_LEN, Column.SECOND_LEN, Column.K_LEN]].sum(1)
        return int(self.table[:, Column.Q_LEN].max(initial=0)), int(keys.max(initial=0))

    def on(self, device: torch.device) -> Tensor:
        """The table on a device, copied once."""
        if device not in self._tables:
            self._tables[device] = upload(self.table, device)
        return self._tables[device]

    def order_on(self, device: torch.device) -> Tensor:
        """(Nq,) int64 on a device, copied once: the place of each query among the queries of all groups."""
        if device not in self._orders:
            place = np.empty(self.n_queries, dtype=np.int64)
            place[np.concatenate([group.query_rows.reshape(-1) for group in self.groups])] = np.arange(self.n_queries)
            self._orders[device] = upload(place, device)
        return self._orders[device]

    @cached_property
    def groups(self) -> list["Group"]:
        """The sequences, grouped by the lengths of their queries and tails."""
        shapes, which = np.unique(self.table[:, [Column.Q_LEN, Column.K_LEN]], axis=0, return_inverse=True)
        return [
            _group(self.table[which.reshape(-1) == number], int(q_len), int(k_len))
            for number, (q_len, k_len) in enumerate(shapes)
        ]


@dataclass(frozen=True, eq=False)
class Group:
    """Sequences to be stacked.

    query_rows: (G, q_len) int64. key_rows: (G, keys) int64, prefixes padded to the longest. distance: (G or 1, q_len,
    keys) int64, how many tokens a key lies before a query; negative where the query may not attend to it.
    """

    query_rows: Tensor
    key_rows: Tensor
    distance: Tensor
    _copies: dict[tuple[torch.device, int | None], "Stacked"] = field(default_factory=dict, init=False, repr=False)

    def on(self, device: torch.device, sliding_window: int | None) -> "Stacked":
        """The group on a device, copied once, so that the layers and steps that share it wait for no copy."""
        if (device, sliding_window) not in self._copies:
            seen = self.distance >= 0
            if sliding_window is not None:
                seen &= self.distance < sliding_window
            rows, keys, distance = (x.to(device) for x in (self.query_rows, self.key_rows, self.distance))
            self._copies[device, sliding_window] = Stacked(rows, keys, distance, seen.to(device), bool(seen.all()))
        return self._copies[device, sliding_window]


@dataclass(frozen=True, eq=False)
class Stacked:
    """A group's tensors on one device. seen: as distance, bool, whether the query attends to the key. all_seen: whether
    every query attends to every key."""

    query_rows: Tensor
    key_rows: Tensor
    distance: Tensor
    seen: Tensor
    all_seen: bool


def _spare_keys(q_len: int, keys: int) -> int:
    """How many more keys give every thread of torch's CPU kernel a buffer that begins at a multiple of 16 bytes.

    A product of few rows by MKL rounds differently where its result begins elsewhere. The kernel gives each thread
    queries x (keys + 2 + head_dim) numbers, backward 2 x queries x keys, one buffer after another. So a head's bits
    would depend on the thread that computes it. This holds for up to 510 keys, because the kernel takes 512 at a time.
    """
    return -(keys + 2) % (4 // math.gcd(q_len, 4))


def _group(table: np.ndarray, q_len: int, k_len: int) -> Group:
    first = table[:, Column.FIRST_LEN]
    prefix = first + table[:, Column.SECOND_LEN]
    # (S, 1) each.
    q_begin, first_begin, second_begin, k_begin = (
        table[:, [column]] for column in (Column.Q_BEGIN, Column.FIRST_BEGIN, Column.SECOND_BEGIN, Column.K_BEGIN)
    )
    longest = int(prefix.max())
    longest += _spare_keys(q_len, longest + k_len)
    # Prefixes are padded on the left, so that the column of a key determines its distance from every query.
    column = np.arange(longest)[None, :] - (longest - prefix)[:, None]
    rows = np.where(column < first[:, None], first_begin + column, second_begin + column - first[:, None])
    rows = np.where(column >= 0, rows, k_begin)
    key_rows = np.concatenate((rows, k_begin + np.arange(k_len)), axis=1)
    keys = longest + k_len
    distance = np.arange(keys - q_len, keys)[:, None] - np.arange(keys)[None, :]
    if (prefix == longest).all():
        distance = distance[None]
    else:
        padded = np.concatenate((column < 0, np.zeros((len(table), k_len), dtype=bool)), axis=1)
        distance = np.where(padded[:, None, :], -1, distance[None])
    return Group(*(torch.from_numpy(x) for x in (q_begin + np.arange(q_len), key_rows, distance)))


def prefix_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sequences: Sequences,
    scale: float,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    alibi: Tensor | None = None,
    sinks: Tensor | None = None,
    impl: str = "auto",
) -> Tensor:
    """Attention of every sequence's queries over its prefixes and tail (docs/algorithms.md, section 9).

    q: (Nq, H, head_dim) float32, bfloat16 or float64.
    k, v: (N, Hkv, head_dim), same dtype; H a multiple of Hkv (query head h reads key head h // (H / Hkv)).
    sequences: which rows belong together.
    scale: factor of the scores.
    sliding_window: how many tokens a query sees, itself included; None for all.
    softcap: bound of the absolute scores, None for no bound (Gemma 2).
    alibi: (H,) float32 slopes, or None. A score falls by its head's slope per token between key and query (BLOOM).
    sinks: (H,) float32 or the dtype of q, or None. Each is one more score of its head's softmax (GPT-OSS).
    impl: "reference" is torch and differentiable w.r.t. q, k and v. "native" is the compiled CPU kernel and "triton"
        the GPU's: softmax in float32, no float64, no gradient. "auto" takes the one for the device where it applies.
    Returns (Nq, H·head_dim), the dtype of q.

    Raises UserError for shapes and dtypes that differ from these, and for an impl that cannot run here.
    """
    if q.ndim != 3 or k.shape != v.shape or k.shape[2] != q.shape[2] or q.shape[1] % k.shape[1]:
        raise UserError(
            "prefix_attention: expected q (Nq, H, hd), k and v (N, Hkv, hd), with H a multiple of Hkv, "
            f"got q {tuple(q.shape)}, k {tuple(k.shape)}, v {tuple(v.shape)}"
        )
    if not q.dtype == k.dtype == v.dtype or not q.dtype.is_floating_point:
        found = f"q {q.dtype}, k {k.dtype} and v {v.dtype}"
        raise UserError(f"prefix_attention: expected q, k and v of one floating point dtype, got {found}")
    if sequences.n_queries != q.shape[0]:
        rows = f"the {sequences.n_queries} rows of sequences"
        raise UserError(f"prefix_attention: expected q with {rows}, got {q.shape[0]}")
    if softcap is not None and softcap <= 0:
        raise UserError(f"prefix_attention: expected softcap to be a positive number or None, got {softcap}")
    if alibi is not None and (alibi.shape != q.shape[1:2] or alibi.dtype != torch.float32):
        found = f"{tuple(alibi.shape)} {alibi.dtype}"
        raise UserError(f"prefix_attention: expected alibi to be ({q.shape[1]},) torch.float32, got {found}")
    if sinks is not None and (sinks.shape != q.shape[1:2] or sinks.dtype not in (torch.float32, q.dtype)):
        found = f"{tuple(sinks.shape)} {sinks.dtype}"
        raise UserError(
            f"prefix_attention: expected sinks to be ({q.shape[1]},) torch.float32 or {q.dtype}, got {found}"
        )
    impl = choose("prefix_attention", impl, _available(q, k, v), q, k, v, alibi, sinks)
    if impl == "reference":
        return prefix_attention_reference(
            q, k, v, sequences, scale, sliding_window=sliding_window, softcap=softcap, alibi=alibi, sinks=sinks
        )
    sinks = None if sinks is None else sinks.float().contiguous()
    if impl == "triton":
        table, launch = sequences.on(q.device), triton_launcher("prefix_attention")
        mixed: Tensor = launch(q, k, v, table, sequences.longest, scale, sliding_window or 0, softcap, alibi, sinks)
        return mixed
    out = q.new_empty((q.shape[0], q.shape[1] * q.shape[2]))
    torch.ops.fasttrace.prefix_attention_(
        q.contiguous(),
        k.contiguous(),
        v.contiguous(),
        sequences.on(q.device),
        scale,
        sliding_window or 0,
        softcap or 0.0,
        None if alibi is None else alibi.contiguous(),
        sinks,
        out,
    )
    return out


def _available(q: Tensor, k: Tensor, v: Tensor) -> dict[str, str | None]:
    either = None
    if q.dtype == torch.float64:
        either = "the compiled kernels have no float64"
    elif torch.is_grad_enabled() and any(x.requires_grad for x in (q, k, v)):
        either = "the compiled kernels have no gradient, and one is required"
    on_cpu = q.device.type == "cpu"
    reason = native.unavailable_reason() if on_cpu else f"the compiled kernel is for the CPU, q is on {q.device}"
    if reason is None and q.dtype not in (torch.float32, torch.bfloat16):
        reason = f"the compiled kernel takes float32 and bfloat16, q is {q.dtype}"
    interpreted = None
    if q.dtype == torch.bfloat16 and q.device.type == "cpu":
        interpreted = "Triton's CPU interpreter multiplies bfloat16 bit patterns as integers"
    return {"reference": None, "native": either or reason, "triton": either or interpreted}


def prefix_attention_reference(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    sequences: Sequences,
    scale: float,
    *,
    sliding_window: int | None = None,
    softcap: float | None = None,
    alibi: Tensor | None = None,
    sinks: Tensor | None = None,
) -> Tensor:
    """The definition: sequences of equal shape are stacked and go through torch's scaled_dot_product_attention."""
    parts = []
    for group in sequences.groups:
        rows = group.on(q.device, sliding_window)
        stacked = _stack(q, rows.query_rows), _stack(k, rows.key_rows), _stack(v, rows.key_rows)
        if softcap is None and alibi is None and sinks is None:
            mask = None if rows.all_seen else rows.seen[:, None]
            mixed = torch.nn.functional.scaled_dot_product_attention(
                *stacked, attn_mask=mask, scale=scale, enable_gqa=q.shape[1] != k.shape[1]
            )
        else:
            mixed = _explicit(*stacked, rows.distance, rows.seen, scale, softcap, alibi, sinks)
        parts.append(mixed.transpose(1, 2).reshape(-1, q.shape[1] * q.shape[2]))
    if len(parts) == 1:
        return parts[0]
    return torch.cat(parts).index_select(0, sequences.order_on(q.device))


def _explicit(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    distance: Tensor,
    seen: Tensor,
    scale: float,
    softcap: float | None,
    alibi: Tensor | None,
    sinks: Tensor | None,
) -> Tensor:
    """Attention with a cap, slopes or sinks, which torch's op lacks: scores and softmax in float32 or wider.

    q: (G, H, q_len, hd). k, v: (G, Hkv, keys, hd). distance: (G or 1, q_len, keys) int64. seen: the same, bool.
    Returns (G, H, q_len, hd), the dtype of q.
    """
    wide = torch.promote_types(q.dtype, torch.float32)
    heads = (k.shape[1], q.shape[1] // k.shape[1])
    scores = scale * (q.to(wide).unflatten(1, heads) @ k.to(wide)[:, :, None].transpose(-1, -2))
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    if alibi is not None:
        scores = scores - alibi.to(wide).view(*heads, 1, 1) * distance[:, None, None].to(wide)
    scores = scores.masked_fill(~seen[:, None, None], float("-inf"))
    if sinks is not None:
        sink = sinks.to(wide).view(*heads, 1, 1).expand(*scores.shape[:-1], 1)
        weights = _softmax(torch.cat((scores, sink), dim=-1))[..., :-1]
    else:
        weights = _softmax(scores)
    return (weights @ v.to(wide)[:, :, None]).flatten(1, 2).to(q.dtype)


def _softmax(scores: Tensor) -> Tensor:
    """Softmax over the last dimension. In float32, the gradient of torch's own has other bits with other numbers of
    threads, and that of log_softmax has not."""
    return scores.log_softmax(-1).exp()


def _stack(x: Tensor, rows: Tensor) -> Tensor:
    """x: (N, heads, hd). rows: (G, n) int64. Returns (G, heads, n, hd)."""
    return x.index_select(0, rows.reshape(-1)).view(*rows.shape, *x.shape[1:]).transpose(1, 2)
