"""gelu_tanh_: the activation of GPT-2's and GPT-J's MLPs in one pass; transformers takes eight."""

from typing import Any

import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose, narrow_triton_reason, records, transformed_reason, triton_launcher


def gelu_tanh_(x: Tensor, impl: str = "auto") -> Tensor:
    """x ← x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), rounded once to the dtype of x.

    x: any shape; float32, bfloat16, float16 or float64.
    impl: "reference" is torch, on any device. "native" is the compiled CPU kernel (float32 and bfloat16) and "triton"
        the GPU's (float16 too), both for a contiguous x and without a gradient. "auto" takes the one for the device
        where it applies, else the reference. Where autograd records a gradient, it takes that one on a copy of x.
    Returns x, overwritten. Where autograd records a gradient, a new tensor is returned instead.

    With u the argument of tanh, every impl computes x · sigmoid(2u), in float32 (float64 for float64 x): 1 + tanh u
    cancels where tanh u is near −1, and keys of 1e-8 matter where C⁻¹ is large.
    Raises UserError for another dtype, and for an impl that cannot run here.
    Source: Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2, the approximation by tanh.
    """
    if not x.dtype.is_floating_point:
        raise UserError(f"gelu_tanh_: expected x to be floating point, got {x.dtype}")
    if impl == "auto" and records(x) and transformed_reason() is None:
        copied: Tensor = _OnACopy.apply(x)
        return copied
    why = native.row_op_reason(x)
    no_triton = narrow_triton_reason(x)
    if not x.is_contiguous():
        gaps = f"the compiled kernel needs a contiguous x, its strides are {x.stride()}"
        why, no_triton = why or gaps, no_triton or gaps
    taken = choose("gelu_tanh_", impl, {"reference": None, "triton": no_triton, "native": why}, x)
    if taken == "native":
        torch.ops.fasttrace.gelu_tanh_(x)
        return x
    if taken == "triton":
        triton_launcher("gelu_tanh")(x)
        return x
    found = gelu_tanh_reference(x)
    return found if records(x) else x.copy_(found)


class _OnACopy(torch.autograd.Function):
    """`gelu_tanh_` of a copy, with torch's gradient. Two passes, and x is all that is kept for the backward pass; the
    reference takes twenty and keeps five tensors in float32."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        ctx.save_for_backward(x)
        return gelu_tanh_(x.clone())

    @staticmethod
    def backward(ctx: Any, g: Tensor) -> Tensor:
        (x,) = ctx.saved_tensors
        return torch.ops.aten.gelu_backward(g, x, approximate="tanh")


def gelu_tanh_reference(x: Tensor) -> Tensor:
    """The definition of `gelu_tanh_`, for any device. Returns a new tensor."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.sigmoid(1.5957691216057308 * wide * (1 + 0.044715 * wide * wide))).to(x.dtype)


def _fake(x: Tensor) -> None:
    """The op works in place and returns nothing, so there is nothing to fake."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::gelu_tanh_")(_fake)
