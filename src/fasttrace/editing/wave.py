"""The passes that optimising and scoring edits share: a clean pass, and many jobs' rows that run together above it.

A job is one (fact, layer) to be optimised or scored. An edit at layer ℓ leaves everything below ℓ constant. So the rows
of a job are taken from the clean pass at ℓ and run only through the layers above, together with the rows of all other
jobs (docs/algorithms.md, section 17).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.models.keys import Keys
from fasttrace.models.packed import Batch, bring, mix, recomputed, rotary_rows
from fasttrace.ops.prefix_attention import Column, Sequences, sequence_table

# Where δ is added: to the MLP's output (ROME), the block's (MEMIT), or both the MLP's and the attention's (PMET).
At = Literal["mlp", "block", "modules"]


@dataclass(frozen=True, eq=False)
class Visited:
    """One layer of a clean pass, all rows.

    resid_pre, resid_mid, resid_post: (N, d), the residual before the layer, after its attention and after its MLP.
    k, v: (N, Hkv, hd). attn: (N, d), the attention module's output. keys: what the down-projections read, to be asked
    for during the visit. value: (N, d), the MLP module's output.
    """

    layer: int
    resid_pre: Tensor
    k: Tensor
    v: Tensor
    attn: Tensor
    resid_mid: Tensor
    keys: Keys
    value: Tensor
    resid_post: Tensor

    def output(self, at: "At") -> Tensor:
        """(N, d), the output to which δ is added: the block's, or the MLP's."""
        return self.resid_post if at == "block" else self.value


@torch.no_grad()
def walk(model: Decoder, batch: Batch, h: Tensor, visit: Callable[[Visited], None]) -> Tensor:
    """h: (N, d) input of block 0 → (N, d) residual after the last block. Calls `visit` for every layer.

    What is visited is on the block's device.
    """
    rotary = model.rotary(batch.positions)
    for layer, block in model.layers():
        h, rotary = h.to(block.device), bring(rotary, block.device)
        x = block.attn_norm(h)
        k, v = block.key_value(x, rotary)
        attn = block.attn_value(mix(block, block.query(x, rotary), k, v, batch.sequences))
        resid_mid = h + block.attn_add(attn)
        keys, value = block.keys_and_value(block.mlp_norm(h if block.parallel else resid_mid))
        resid_post = resid_mid + block.mlp_add(value)
        visit(Visited(layer, h, k, v, attn, resid_mid, keys, value, resid_post))
        h = resid_post
    return h


class Job(NamedTuple):
    """An edit to compute. fact: index of the fact. layer: the layer it is requested for. window: layers it changes."""

    fact: int
    layer: int
    window: tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """One sequence of one job in a wave.

    job: index of the job. source: first row in the clean pass. length: number of consecutive rows. position: token
    position of the first row. prefix_begin, prefix_len: the rows of the stored keys and values that precede it. read:
    number of its last rows that are read after the last layer.
    """

    job: int
    source: int
    length: int
    position: int
    prefix_begin: int
    prefix_len: int
    read: int


# change(layer, keys of n rows, value (n, d), begin (P' + 1,)) → (n, d), the MLP's output as the edits change it. Job p
# has rows begin[p] … begin[p + 1] − 1. The layer is brought.
Change = Callable[[int, Keys, Tensor, np.ndarray], Tensor]
# enter(layer, rows (n,) of the clean pass, first job, begin) → (n, d), the residual after the layer. The layer is
# brought, and the rows and what is returned are on its device.
Enter = Callable[[int, Tensor, int, np.ndarray], Tensor]


class EditWave:
    """The rows of many jobs that run together, in the order of the jobs, whose entry layers ascend.

    spans: the sequences of all jobs, job by job. layers: entry layer of each job. first_rows: (S,) first row of each
    sequence. owner: (S,) its job. read_owner: (R,) the job of every row that is read.
    """

    def __init__(self, model: Decoder, layers: Sequence[int], spans: Sequence[Span]) -> None:
        self.model, self.layers = model, list(layers)
        device = model.device
        as_array = lambda name: np.array([getattr(s, name) for s in spans], dtype=np.int64)  # noqa: E731
        length, self.read_len, job = as_array("length"), as_array("read"), as_array("job")
        begin = np.cumsum(length) - length
        self.table = sequence_table(
            q_begin=begin,
            q_len=length,
            k_begin=begin,
            k_len=length,
            first_begin=as_array("prefix_begin"),
            first_len=as_array("prefix_len"),
        )
        offset = np.arange(length.sum()) - np.repeat(begin, length)
        to = lambda x: torch.from_numpy(np.ascontiguousarray(x)).to(device)  # noqa: E731
        self.source = to(np.repeat(as_array("source"), length) + offset)
        self.positions = to(np.repeat(as_array("position"), length) + offset)
        read_first = np.cumsum(self.read_len) - self.read_len
        inside = np.arange(self.read_len.sum()) - np.repeat(read_first, self.read_len)
        self.read = to(np.repeat(begin + length - self.read_len, self.read_len) + inside)
        self.first_rows, self.owner = to(begin), to(job)
        self.read_owner = to(np.repeat(job, self.read_len))
        number = np.arange(len(self.layers) + 1)
        self.row_begin = np.append(begin, length.sum())[np.searchsorted(job, number)]
        self.read_begin = np.append(read_first, self.read_len.sum())[np.searchsorted(job, number)]
        self.rotary = model.rotary(self.positions)
        self._rotary: dict[torch.device, Rotary] = {}
        self._shared: dict[tuple[int, bool, bool], Sequences] = {}

    def run(
        self, enter: Enter, change: Change | None = None, kept: dict[int, tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """(R, d) residual before the final norm at every row that is read, in order, on the last block's device.

        kept: layer → keys and values of the prefixes, on the block's device, if spans have any. The result is
        differentiable if `enter` and `change` are. Of frozen layers only the residual is kept for that, and each is
        brought again in the backward pass.
        """
        h, n_entered = None, 0
        for layer in range(self.layers[0], self.model.n_layers):
            past = n_entered
            while past < len(self.layers) and self.layers[past] == layer:
                past += 1
            frozen = self.model.blocks[layer].frozen
            h = recomputed(frozen, self._layer, layer, h, n_entered, past, enter, change, kept)
            n_entered = past
        assert h is not None
        return h

    def _layer(
        self,
        layer: int,
        h: Tensor | None,
        n_entered: int,
        past: int,
        enter: Enter,
        change: Change | None,
        kept: dict[int, tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        """Run one block over the rows h of the first n_entered jobs, and let those of the jobs up to `past` enter."""
        with self.model.brought(layer) as block:
            if h is not None:
                h = self._step(block, layer, h.to(block.device), n_entered, change, kept)
            if past == n_entered:
                assert h is not None
                return h
            rows: Tensor | slice
            if layer == self.model.n_layers - 1:
                rows = self.read[int(self.read_begin[n_entered]) : int(self.read_begin[past])]
                begin = self.read_begin
            else:
                rows = slice(int(self.row_begin[n_entered]), int(self.row_begin[past]))
                begin = self.row_begin
            part = begin[n_entered : past + 1] - begin[n_entered]
            entering = enter(layer, self.source[rows].to(block.device), n_entered, part)
            return entering if h is None else torch.cat((h, entering))

    def _step(
        self,
        block: Block,
        layer: int,
        h: Tensor,
        n_jobs: int,
        change: Change | None,
        kept: dict[int, tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        """Run one block over the rows h (n, d) of the first n_jobs jobs. The last block keeps only rows to be read."""
        n = h.shape[0]
        rotary = rotary_rows(self._rotary_on(block.device), slice(n))
        x = block.attn_norm(h)
        k, v = block.key_value(x, rotary)
        last = layer == self.model.n_layers - 1
        begin = (self.read_begin if last else self.row_begin)[: n_jobs + 1]
        if last:
            read = self.read[: int(begin[-1])].to(block.device)
            h, x, rotary = h[read], x[read], rotary_rows(rotary, read)
        q = block.query(x, rotary)
        if kept is not None:
            k, v = torch.cat((k, kept[layer][0])), torch.cat((v, kept[layer][1]))
        resid_mid = h + block.attn_out(mix(block, q, k, v, self._sequences(n, last, kept is not None)))
        keys, value = block.keys_and_value(block.mlp_norm(h if block.parallel else resid_mid))
        if change is not None:
            value = change(layer, keys, value, begin)
        return resid_mid + block.mlp_add(value)

    def _rotary_on(self, device: torch.device) -> Rotary:
        """The position tables on a device, copied once."""
        if device not in self._rotary:
            self._rotary[device] = bring(self.rotary, device)
        return self._rotary[device]

    def _sequences(self, n: int, last: bool, prefixed: bool) -> Sequences:
        """The sequences of the first n rows. Layers and steps with the same rows share them, and so what attention
        derives from them.

        last: whether only the rows that are read are queries. prefixed: whether stored prefixes follow the n rows.
        """
        if (n, last, prefixed) not in self._shared:
            table = self.table[: int(np.searchsorted(self.table[:, Column.Q_BEGIN], n))].copy()
            if last:
                length = self.read_len[: len(table)]
                table[:, Column.Q_BEGIN], table[:, Column.Q_LEN] = np.cumsum(length) - length, length
            if prefixed:
                table[:, Column.FIRST_BEGIN] += n
            self._shared[n, last, prefixed] = Sequences(table)
        return self._shared[n, last, prefixed]
