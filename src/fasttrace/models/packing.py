"""Linear layers as GPTQ, AWQ, compressed-tensors and FP8 checkpoints pack them, read without their packages.

Those packages compute with GPU kernels, or dequantise a whole model at its first pass. Here a layer keeps its packed
tensors (`PackedLinear`), and `dequantised` makes its weight of them in a few steps of torch, on any device.
`reading.py` loads such layers.

A weight is scale · (number − zero), in float32. That is exact where the scale is float16 or bfloat16: the number has at
most 9 bits, the scale 11, and float32 has 24. The packages compute in the scale's dtype and round there.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn import functional

AWQ_COLUMNS = (0, 4, 1, 5, 2, 6, 3, 7)  # where a word of AWQ has column 0, 1, … of its eight


def unpack(words: Tensor, bits: int, count: int) -> Tensor:
    """words: (…, n) int32 → (…, count) int32: numbers of `bits` bits, one after another from word 0's lowest bit."""
    mask = (1 << bits) - 1
    if 32 % bits == 0:
        shifts = torch.arange(0, 32, bits, dtype=torch.int32, device=words.device)
        return ((words[..., None] >> shifts) & mask).flatten(-2)[..., :count]
    starts = torch.arange(count, device=words.device) * bits
    wide = functional.pad(words.long() & 0xFFFFFFFF, (0, 1))  # a number may begin in one word and end in the next
    both = wide[..., starts // 32] | (wide[..., starts // 32 + 1] << 32)
    return ((both >> (starts % 32)) & mask).int()


class PackedLinear(nn.Module):
    """A linear layer whose parameters are the packed tensors of a checkpoint.

    kind: its format and bits, as in "gptq-int4". layout: one of LAYOUTS. shape: (out, in). bits: of a packed integer.
    parts: the checkpoint's tensors by name. bias: (out,) or None. block: rows and columns of a scale, or None where the
    scales divide the matrix into equal parts. one_less: whether the packed zeros are one less than the zeros (GPTQ's
    first format).
    """

    qweight: Tensor
    qzeros: Tensor
    scales: Tensor
    weight: Tensor
    weight_packed: Tensor
    bias: Tensor | None

    def __init__(
        self,
        kind: str,
        layout: str,
        shape: tuple[int, int],
        bits: int,
        parts: Mapping[str, Tensor],
        bias: Tensor | None = None,
        block: tuple[int, int] | None = None,
        one_less: bool = False,
    ) -> None:
        super().__init__()
        self.kind, self.layout, self.bits, self.block, self.one_less = kind, layout, bits, block, one_less
        self.out_features, self.in_features = shape
        for name, part in parts.items():
            self.register_parameter(name, nn.Parameter(part, requires_grad=False))
        self.register_parameter("bias", None if bias is None else nn.Parameter(bias, requires_grad=False))

    def dequantised(self) -> Tensor:
        """The weight, (out, in) float32."""
        number, zero, scale = LAYOUTS[self.layout](self)
        return (number if zero is None else number - self._spread(zero)) * self._spread(scale)

    def forward(self, x: Tensor) -> Tensor:
        """x: (…, in) → (…, out)."""
        return functional.linear(x, self.dequantised().to(x.dtype), self.bias)

    def part(self, *names: str) -> Tensor | None:
        """The first packed tensor that the checkpoint has of these names, or None."""
        return next((self._parameters[name] for name in names if name in self._parameters), None)

    def scale(self) -> Tensor:
        """The scales of compressed-tensors or FP8."""
        found = self.part("weight_scale", "weight_scale_inv")
        assert found is not None
        return found

    def _spread(self, table: Tensor) -> Tensor:
        """A table of scales or zeros → float32 that broadcasts with the weight.

        table: one number, (out,), or (blocks of rows, blocks of columns).
        """
        table = table.float()
        if table.numel() == 1:
            return table.reshape(1, 1)
        table = table[:, None] if table.ndim == 1 else table
        group = self.part("g_idx", "weight_g_idx")
        if group is not None and table.shape[1] > 1:
            return table[:, group.long()]
        for axis, size in enumerate((self.out_features, self.in_features)):
            if table.shape[axis] not in (1, size):
                each = size // table.shape[axis] if self.block is None else self.block[axis]
                table = table.repeat_interleave(each, axis).narrow(axis, 0, size)
        return table


def _gptq(linear: PackedLinear) -> tuple[Tensor, Tensor, Tensor]:
    """qweight (in · bits / 32, out), packed along in; qzeros (groups, out · bits / 32); scales (groups, out)."""
    zero = unpack(linear.qzeros, linear.bits, linear.out_features)
    if linear.one_less:
        zero = (zero + 1) & ((1 << linear.bits) - 1)
    return unpack(linear.qweight.t(), linear.bits, linear.in_features), zero.t(), linear.scales.t()


def _awq(linear: PackedLinear) -> tuple[Tensor, Tensor, Tensor]:
    """qweight (in, out / 8), packed along out in the order of AWQ_COLUMNS; qzeros (groups, out / 8); scales as GPTQ."""

    def columns(words: Tensor) -> Tensor:
        found = unpack(words, 4, linear.out_features)
        return found.unflatten(1, (-1, 8))[:, :, AWQ_COLUMNS].flatten(1).t()

    return columns(linear.qweight), columns(linear.qzeros), linear.scales.t()


def _packed(linear: PackedLinear) -> tuple[Tensor, Tensor | None, Tensor]:
    """weight_packed (out, in · bits / 32), packed along in, and weight_zero_point (out · bits / 32, groups), along out.

    Numbers and zeros lie half a range above what they stand for, so the difference needs neither's offset.
    """
    half, zero = 1 << (linear.bits - 1), linear.part("weight_zero_point")
    number = unpack(linear.weight_packed, linear.bits, linear.in_features)
    if zero is None:
        return number - half, None, linear.scale()
    return number, unpack(zero.t(), linear.bits, linear.out_features).t(), linear.scale()


def _scaled(linear: PackedLinear) -> tuple[Tensor, Tensor | None, Tensor]:
    """weight (out, in), int8 or a float of 8 bits."""
    return linear.weight.float(), linear.part("weight_zero_point"), linear.scale()


LAYOUTS = {"gptq": _gptq, "awq": _awq, "packed": _packed, "scaled": _scaled}
