"""rotary_: rotates queries or keys by the angles of their positions."""

from typing import Any

import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose, narrow_triton_reason, records, transformed_reason, triton_launcher


def rotary_(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False, impl: str = "auto") -> Tensor:
    """Rotate each pair (a, b) of a head's dimensions by the row's angle: (a cos − b sin, b cos + a sin).

    The pairs are the dimensions (i, i + hd/2), as in the Llama family, or (2i, 2i + 1) if interleaved, as in GPT-J.
    Products and sums are each rounded to the dtype of x, as in transformers.

    x: (N, H, hd) float32, bfloat16, float16 or float64, hd even.
    cos, sin: dtype of x; (N, hd), an entry for each dimension, or (N, hd/2) if interleaved, an entry for each pair.
    impl: "reference" is torch, on any device. "native" is the compiled CPU kernel (float32 and bfloat16, x contiguous,
        not interleaved) and "triton" the GPU's (float16 too, x's last dimension contiguous); both have no gradient.
        "auto" takes the one for the device where it applies, else the reference. Where autograd records a gradient of
        x, it takes that one on a copy.
    Returns x, overwritten. Where autograd records a gradient, a new tensor is returned instead.

    Raises UserError for shapes and dtypes that differ from these, and for an impl that cannot run here.
    Source: Su et al. 2021 (arXiv 2104.09864), section 3.4.2.
    """
    if x.dim() != 3 or x.shape[2] % 2 or not x.dtype.is_floating_point:
        raise UserError(
            f"rotary_: expected x to be (N, H, hd) floating point with hd even, got {tuple(x.shape)} {x.dtype}"
        )
    entries = x.shape[2] // 2 if interleaved else x.shape[2]
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != (x.shape[0], entries) or table.dtype != x.dtype:
            found, wanted = f"{tuple(table.shape)} {table.dtype}", f"({x.shape[0]}, {entries}) {x.dtype}"
            raise UserError(f"rotary_: expected {name} to be {wanted}, got {found}")
    if impl == "auto" and _differentiates(x, cos, sin):
        copied: Tensor = _OnACopy.apply(x, cos, sin, interleaved)
        return copied
    available = {
        "reference": None,
        "triton": _triton_reason(x, cos, sin),
        "native": _native_reason(x, cos, sin, interleaved),
    }
    taken = choose("rotary_", impl, available, x, cos, sin)
    if taken == "native":
        torch.ops.fasttrace.rotary_(x, cos.contiguous(), sin.contiguous())
        return x
    if taken == "triton":
        triton_launcher("rotary")(x, cos, sin, interleaved)
        return x
    turned = rotary_reference(x, cos, sin, interleaved=interleaved)
    return turned if turned.requires_grad else x.copy_(turned)


def _differentiates(x: Tensor, cos: Tensor, sin: Tensor) -> bool:
    """Whether autograd records a gradient of x, and none of the tables, and takes it from `_OnACopy`."""
    return records(x) and not records(cos, sin) and transformed_reason() is None


class _OnACopy(torch.autograd.Function):
    """`partial_rotary_` of a copy. The gradient is rotated back."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> Tensor:
        ctx.save_for_backward(cos, sin)
        ctx.interleaved = interleaved
        return partial_rotary_(x.clone(memory_format=torch.contiguous_format), cos, sin, interleaved=interleaved)

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> tuple[Tensor, None, None, None]:
        cos, sin = ctx.saved_tensors
        # Not interleaved, an entry of sin is that of the other half of the pair.
        back = -(sin if ctx.interleaved else sin.roll(sin.shape[-1] // 2, dims=-1))
        g = g.clone(memory_format=torch.contiguous_format)
        return partial_rotary_(g, cos, back, interleaved=ctx.interleaved), None, None, None


def _native_reason(x: Tensor, cos: Tensor, sin: Tensor, interleaved: bool) -> str | None:
    if interleaved:
        return "the compiled kernel pairs dimensions (i, i + hd/2), not neighbours"
    if (why := native.row_op_reason(x, cos, sin)) is not None:
        return why
    return None if x.is_contiguous() else f"the compiled kernel needs a contiguous x, its strides are {x.stride()}"


def _triton_reason(x: Tensor, cos: Tensor, sin: Tensor) -> str | None:
    if (why := narrow_triton_reason(x, cos, sin)) is not None:
        return why
    return None if x.stride(2) == 1 else f"Triton's kernel needs x with last stride 1, its strides are {x.stride()}"


def partial_rotary_(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """`rotary_` on the first r dimensions of every head. The others do not change.

    x: (N, H, hd). cos, sin: (N, r), or (N, r/2) if interleaved, r ≤ hd. Returns x, overwritten, or a new tensor where
    autograd records a gradient.
    """
    turned = cos.shape[-1] * (2 if interleaved else 1)
    if turned == x.shape[-1]:
        return rotary_(x, cos, sin, interleaved=interleaved)
    if _differentiates(x, cos, sin):
        copied: Tensor = _OnACopy.apply(x, cos, sin, interleaved)
        return copied
    first = rotary_(x[..., :turned], cos, sin, interleaved=interleaved)
    return torch.cat((first, x[..., turned:]), dim=-1) if first.requires_grad else x


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor, *, interleaved: bool = False) -> Tensor:
    """The definition of `rotary_`, with the same arguments, for any device. Returns a new tensor."""
    cos, sin = cos[:, None, :], sin[:, None, :]
    if interleaved:
        even, odd = x[..., ::2], x[..., 1::2]
        return torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    half = x.shape[-1] // 2
    crossed = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos + crossed * sin


def _fake(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """The op works in place and returns nothing, so there is nothing to fake."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::rotary_")(_fake)
