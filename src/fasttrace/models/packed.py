"""Drives a decoder's blocks over packed rows, in the steps that every pass of fasttrace consists of.

The rows of many sequences follow one another in one (N, d) residual. Matrix products treat each row alone. `Sequences`
defines for attention which rows form a sequence.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from fasttrace.memory import pack_by_budget
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.models.hooked import HookedDecoder, hooked_logprob
from fasttrace.models.keys import Keys
from fasttrace.ops.linear import linear
from fasttrace.ops.prefix_attention import Sequences, prefix_attention
from fasttrace.ops.target_logprob import target_logprob

# Rows of one MLP product. On a CPU, MLP_ROWS are few enough that the keys stay in cache. Elsewhere the keys may fill
# KEY_BYTES, with at least MLP_ROWS rows.
MLP_ROWS = 2048
KEY_BYTES = 512 * 2**20


@dataclass(frozen=True, eq=False)
class Batch:
    """Whole sequences, packed.

    ids, positions: (N,) int64 on the model's device. sequences: the rows of each sequence. lengths: number of
    tokens of each sequence.
    """

    ids: Tensor
    positions: Tensor
    sequences: Sequences
    lengths: list[int]

    @property
    def last_rows(self) -> Tensor:
        """(S,) the row of each sequence's last token."""
        return torch.tensor(self.lengths, device=self.ids.device).cumsum(0) - 1


def pack(model: Decoder, sequences: Sequence[Sequence[int]]) -> Batch:
    """Token-id sequences → one packed batch on the model's device."""
    lengths = [len(s) for s in sequences]
    ids = torch.tensor([i for s in sequences for i in s], dtype=torch.int64, device=model.device)
    positions = torch.cat([torch.arange(n) for n in lengths]).to(model.device)
    return Batch(ids, positions, Sequences.whole(lengths), lengths)


def batches(sequences: Sequence[Sequence[int]], max_rows: int) -> Iterator[slice]:
    """Yield slices of consecutive sequences with at most max_rows tokens together, at least one sequence each."""
    for numbers in pack_by_budget(range(len(sequences)), lambda i: len(sequences[i]), max_rows):
        yield slice(numbers[0], numbers[-1] + 1)


def embed(model: Decoder, ids: Tensor, positions: Tensor) -> Tensor:
    """ids, positions: (N,) int64 → (N, d) input of block 0."""
    with model.entry():
        return model.enter(model.embed_ids(ids), positions)


def rotary_rows(rotary: Rotary, rows: slice | Tensor) -> Rotary:
    """The rows (a slice, or (n,) int64) of the tables that `Decoder.rotary` returned."""
    return tuple(table[rows] for table in rotary)


def bring(rotary: Rotary, device: torch.device) -> Rotary:
    """The tables that `Decoder.rotary` returned, on `device`. Tables that are already on it are not copied."""
    return tuple(table.to(device) for table in rotary)


def recomputed(frozen: bool, call: Callable[..., Tensor], *inputs: Any) -> Tensor:
    """call(*inputs). If `frozen`, autograd keeps nothing of it, and calls it again in the backward pass.

    The weights that `call` brings and lets go then are not in memory between the two, and the numbers are the same.
    """
    if not (frozen and torch.is_grad_enabled()):
        return call(*inputs)
    result: Tensor = checkpoint(call, *inputs, use_reentrant=False, preserve_rng_state=False)
    return result


def attend(block: Block, h: Tensor, rotary: Rotary, sequences: Sequences, query_rows: Tensor | None = None) -> Tensor:
    """h: (N, d), query_rows: (n,) int64, or None for all → (n, d), what attention adds to the residual there."""
    return block.attn_out(head_outputs(block, h, rotary, sequences, query_rows))


def head_outputs(
    block: Block, h: Tensor, rotary: Rotary, sequences: Sequences, query_rows: Tensor | None = None
) -> Tensor:
    """As `attend`, before the output projection: (n, H·hd), the output z of each head, one after another."""
    x = block.attn_norm(h)
    k, v = block.key_value(x, rotary)
    if query_rows is not None:
        x, rotary = x[query_rows], rotary_rows(rotary, query_rows)
    return mix(block, block.query(x, rotary), k, v, sequences)


def mix(block: Block, q: Tensor, k: Tensor, v: Tensor, sequences: Sequences) -> Tensor:
    """q: (Nq, H, hd), k, v: (N, Hkv, hd) → (Nq, H·hd), the block's attention before its output projection."""
    return prefix_attention(
        q,
        k,
        v,
        sequences,
        block.scale,
        sliding_window=block.sliding_window,
        softcap=block.softcap,
        alibi=block.alibi,
        sinks=block.sinks,
    )


def mlp_rows(block: Block, like: Tensor) -> int:
    """Number of rows of one MLP product, for the device and dtype of `like`."""
    rows = MLP_ROWS
    if like.device.type != "cpu":
        rows = max(rows, KEY_BYTES // (block.key_width * like.element_size()))
    # The rows are divided among the experts, and one expert's keys are computed at a time.
    return rows if block.experts is None else rows * block.experts.count // block.experts.per_row


def mlp(block: Block, h: Tensor, rows: Tensor | None = None, *, added: bool = True) -> Tensor:
    """h: (N, d), rows: (n,) int64, or None for all → (n, d), what the MLP adds to the residual at these rows.

    added: False gives the MLP module's output instead, before `Block.mlp_add`.

    Rows are processed `mlp_rows` at a time, so that the keys stay small.
    """
    n, most = h.shape[0] if rows is None else rows.shape[0], mlp_rows(block, h)
    if n <= most:
        return _mlp_part(block, h, rows, added)
    out = torch.empty((n, h.shape[1]), dtype=h.dtype, device=h.device)
    for i in range(0, n, most):
        run = slice(i, i + most)
        out[run] = _mlp_part(block, h[run], None, added) if rows is None else _mlp_part(block, h, rows[run], added)
    return out


def _mlp_part(block: Block, h: Tensor, rows: Tensor | None, added: bool) -> Tensor:
    x = block.mlp_norm(h) if rows is None else block.mlp_norm_rows(h, rows)
    value = block.mlp_output(x)
    return block.mlp_add(value) if added else value


def layer_output(
    block: Block, h: Tensor, rotary: Rotary, sequences: Sequences, *, chosen_by: Tensor | None = None
) -> Tensor:
    """h: (N, d), the block's input → (N, d), the residual after it. chosen_by: as for `Block.mlp_output`."""
    resid_mid = h + attend(block, h, rotary, sequences)
    read = h if block.parallel else resid_mid
    if chosen_by is None:
        return resid_mid + mlp(block, read)
    return resid_mid + block.mlp_add(block.mlp_output(block.mlp_norm(read), chosen_by))


@torch.no_grad()
def forward(
    model: Decoder,
    batch: Batch,
    *,
    h: Tensor | None = None,
    on_key: Callable[[int, Keys], None] | None = None,
) -> Tensor:
    """Run every block over whole sequences. Return the (N, d) residual before the final norm.

    h: (N, d) input of block 0, or None for the batch's embeddings.
    on_key(layer, keys of the N rows) is called with each layer's down-projection inputs as they are computed.
    """
    h = embed(model, batch.ids, batch.positions) if h is None else h
    rotary = model.rotary(batch.positions)
    for layer, block in model.layers():
        h, rotary = h.to(block.device), bring(rotary, block.device)
        if on_key is None:
            h = layer_output(block, h, rotary, batch.sequences)
            continue
        resid_mid = h + attend(block, h, rotary, batch.sequences)
        keys, value = block.keys_and_value(block.mlp_norm(h if block.parallel else resid_mid))
        on_key(layer, keys)
        h = resid_mid + block.mlp_add(value)
    return h


@torch.no_grad()
def logits(model: Decoder, batch: Batch) -> Tensor:
    """(N, V) logits of every row, for tests and for inspecting a model. Scoring uses `row_logprob`."""
    return row_logits(model, forward(model, batch))


def row_logits(model: Decoder, h: Tensor) -> Tensor:
    """h: (R, d) residual before the final norm → (R, V) logits, on `model.unembed_device`."""
    return recomputed(model.frozen_head, _row_logits, model, h)


def _row_logits(model: Decoder, h: Tensor) -> Tensor:
    with model.head():
        x = model.final_norm(model.leave(h.to(model.norm_device))).to(model.unembed_device)
        return model.finish_logits(linear(x, model.unembed_weight, model.unembed_bias))


def row_logprob(model: Decoder, h: Tensor, target: Tensor) -> Tensor:
    """h: (R, d) residual before the final norm, target: (R,) int64 → (R,) float32 log p(target), on
    `model.unembed_device`."""
    device, scale = model.unembed_device, model.logit_scale

    def scaled(vector: Tensor | None) -> Tensor | None:
        # The op has no factor of the logits. The norm's output times the factor has the same effect.
        return vector if vector is None or scale == 1.0 else vector * scale

    with model.head():
        weight, bias = scaled(model.final_norm_weight), scaled(model.final_norm_bias)
        assert weight is not None
        return target_logprob(
            model.leave(h.to(device)),
            weight.to(device),
            None if bias is None else bias.to(device),
            model.norm_eps,
            model.norm_kind,
            model.unembed_weight,
            scaled(model.unembed_bias),
            target.to(device),
            model.logit_softcap,
        )


@torch.no_grad()
def sequence_logprob(
    model: Decoder, prompts: Sequence[Sequence[int]], targets: Sequence[Sequence[int]], max_rows: int = 4096
) -> Tensor:
    """log p(target | prompt), summed over each target's tokens: (S,) float64 on the CPU.

    prompts, targets: token ids. Targets are teacher-forced, so each sequence takes one forward pass.
    """
    if isinstance(model, HookedDecoder):
        return hooked_logprob(model, prompts, targets)
    whole = [[*p, *t[:-1]] for p, t in zip(prompts, targets, strict=True)]
    result = torch.zeros(len(whole), dtype=torch.float64)
    for part in batches(whole, max_rows):
        batch = pack(model, whole[part])
        h = forward(model, batch)
        ends = batch.last_rows.tolist()
        rows = [end - len(t) + 1 + j for end, t in zip(ends, targets[part], strict=True) for j in range(len(t))]
        tokens = [i for t in targets[part] for i in t]
        owner = [s for s, t in enumerate(targets[part]) for _ in t]
        logp = row_logprob(model, h[rows], torch.tensor(tokens, device=h.device)).double().cpu()
        sums = torch.zeros(len(ends), dtype=torch.float64).index_add_(0, torch.tensor(owner), logp)
        result[part] = sums
    return result
