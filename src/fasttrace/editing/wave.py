"""What optimising and scoring edits share: one clean pass, and rows of many problems that enter above it together.

An edit at layer ℓ leaves everything below ℓ constant, so a problem's rows are taken from the clean pass at ℓ and run
only through the layers above, with the rows of every other problem (docs/algorithms.md, section 17).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fasttrace.models.adapter import Block, Decoder
from fasttrace.models.packed import Batch, mix, rotary_rows
from fasttrace.ops.prefix_attention import Column, Sequences, sequence_table


@dataclass(frozen=True, eq=False)
class Visited:
    """One layer of a clean pass, all rows: h its input, k and v (N, Hkv, hd), middle (N, d) the residual its MLP adds
    to, key (N, m), value (N, d) the MLP module's output, out (N, d) its output."""

    layer: int
    h: Tensor
    k: Tensor
    v: Tensor
    middle: Tensor
    key: Tensor
    value: Tensor
    out: Tensor


@torch.no_grad()
def walk(model: Decoder, batch: Batch, h: Tensor, visit: Callable[[Visited], None]) -> Tensor:
    """Every block over whole sequences, each shown to `visit`: (N, d) input of block 0 → residual after the last."""
    rotary = model.rotary(batch.positions)
    for layer, block in enumerate(model.blocks):
        x = block.attn_norm(h)
        k, v = block.key_value(x, rotary)
        middle = h + block.attn_out(mix(block, block.query(x, rotary), k, v, batch.sequences))
        key = block.mlp_key(block.mlp_norm(h if block.parallel else middle))
        value = block.mlp_value(key)
        out = middle + block.mlp_add(value)
        visit(Visited(layer, h, k, v, middle, key, value, out))
        h = out
    return h


class Job(NamedTuple):
    """An edit to compute: the number of its fact, the layer it is sent to, and the layers that it changes."""

    fact: int
    layer: int
    window: tuple[int, ...]


@dataclass(frozen=True)
class Span:
    """One sequence of one problem, as it runs in a wave.

    problem: its number. source: its first row in the clean pass. length: its rows, consecutive there. position: of its
    first row. prefix_begin, prefix_len: rows of the kept keys and values that stand before it. read: how many of its
    last rows are read off at the top.
    """

    problem: int
    source: int
    length: int
    position: int
    prefix_begin: int
    prefix_len: int
    read: int


# change(layer, key (n, m), value (n, d), begin (P' + 1,)) → value: what an edit makes of the MLP's output; problem p
# has rows begin[p] … begin[p+1].
Change = Callable[[int, Tensor, Tensor, np.ndarray], Tensor]
# enter(layer, rows (n,) of the clean pass, first problem, begin): (n, d) residual after the layer.
Enter = Callable[[int, Tensor, int, np.ndarray], Tensor]


class Wave:
    """The rows of problems in flight: in order of their problems, whose entry layers ascend.

    spans: every problem's sequences, by problem. layers: entry layer of each problem. first_rows: (S,) each sequence's
    first row; owner: (S,) its problem. read_owner: (R,) problem of every read row.
    """

    def __init__(self, model: Decoder, layers: Sequence[int], spans: Sequence[Span]) -> None:
        self.model, self.layers = model, list(layers)
        device = model.device
        as_array = lambda name: np.array([getattr(s, name) for s in spans], dtype=np.int64)  # noqa: E731
        length, self.read_len, problem = as_array("length"), as_array("read"), as_array("problem")
        begin = np.cumsum(length) - length
        self.table = sequence_table(
            q_begin=begin, q_len=length, k_begin=begin, k_len=length,
            first_begin=as_array("prefix_begin"), first_len=as_array("prefix_len"),
        )  # fmt: skip
        offset = np.arange(length.sum()) - np.repeat(begin, length)
        to = lambda x: torch.from_numpy(np.ascontiguousarray(x)).to(device)  # noqa: E731
        self.source = to(np.repeat(as_array("source"), length) + offset)
        self.positions = to(np.repeat(as_array("position"), length) + offset)
        read_first = np.cumsum(self.read_len) - self.read_len
        inside = np.arange(self.read_len.sum()) - np.repeat(read_first, self.read_len)
        self.read = to(np.repeat(begin + length - self.read_len, self.read_len) + inside)
        self.first_rows, self.owner = to(begin), to(problem)
        self.read_owner = to(np.repeat(problem, self.read_len))
        number = np.arange(len(self.layers) + 1)
        self.row_begin = np.append(begin, length.sum())[np.searchsorted(problem, number)]
        self.read_begin = np.append(read_first, self.read_len.sum())[np.searchsorted(problem, number)]
        self.rotary = model.rotary(self.positions)

    def run(
        self, enter: Enter, change: Change | None = None, kept: dict[int, tuple[Tensor, Tensor]] | None = None
    ) -> Tensor:
        """(R, d) residual before the final norm at every read row, in their order.

        kept: layer → keys and values of the prefixes, where spans have any. Differentiable where its parts are.
        """
        model, h, present = self.model, None, 0
        top = model.n_layers - 1
        for layer in range(self.layers[0], model.n_layers):
            block = model.blocks[layer]
            if h is not None:
                h = self._step(block, layer, h, present, change, kept)
            arrived = present
            while arrived < len(self.layers) and self.layers[arrived] == layer:
                arrived += 1
            if arrived > present:
                rows: Tensor | slice
                if layer == top:
                    rows = self.read[int(self.read_begin[present]) : int(self.read_begin[arrived])]
                    begin = self.read_begin
                else:
                    rows = slice(int(self.row_begin[present]), int(self.row_begin[arrived]))
                    begin = self.row_begin
                part = begin[present : arrived + 1] - begin[present]
                entered = enter(layer, self.source[rows], present, part)
                h = entered if h is None else torch.cat((h, entered))
                present = arrived
        assert h is not None
        return h

    def _step(
        self,
        block: Block,
        layer: int,
        h: Tensor,
        present: int,
        change: Change | None,
        kept: dict[int, tuple[Tensor, Tensor]] | None,
    ) -> Tensor:
        """One block over the rows of the first `present` problems; past the last only the read rows are wanted."""
        n = h.shape[0]
        rotary = rotary_rows(self.rotary, slice(n))
        x = block.attn_norm(h)
        k, v = block.key_value(x, rotary)
        table = self.table[: int(np.searchsorted(self.table[:, Column.Q_BEGIN], n))].copy()
        begin = self.row_begin[: present + 1]
        if layer == self.model.n_layers - 1:
            begin = self.read_begin[: present + 1]
            read, length = self.read[: int(begin[-1])], self.read_len[: len(table)]
            table[:, Column.Q_BEGIN], table[:, Column.Q_LEN] = np.cumsum(length) - length, length
            h, x, rotary = h[read], x[read], rotary_rows(rotary, read)
        q = block.query(x, rotary)
        if kept is not None:
            table[:, Column.FIRST_BEGIN] += n  # kept prefixes stand behind the rows in flight
            k, v = torch.cat((k, kept[layer][0])), torch.cat((v, kept[layer][1]))
        middle = h + block.attn_out(mix(block, q, k, v, Sequences(table)))
        key = block.mlp_key(block.mlp_norm(h if block.parallel else middle))
        value = block.mlp_value(key)
        if change is not None:
            value = change(layer, key, value, begin)
        return middle + block.mlp_add(value)
