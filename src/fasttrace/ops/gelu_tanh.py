"""gelu_tanh_: the activation of GPT-2's and GPT-J's MLPs in one pass, where transformers writes it as eight."""

import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose, narrow_triton_reason, triton_launcher


def gelu_tanh_(x: Tensor, impl: str = "auto") -> Tensor:
    """x ← x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), rounded once to the dtype of x.

    x: any shape, of float32, bfloat16, float16 or float64.
    impl: "reference" is torch, on any device; "native" is the CPU's (float32 and bfloat16), "triton" the GPU's (float16
    too), both for a contiguous x; "auto" takes what applies. All compute it as x · sigmoid(2u), in float32 or float64,
    as 1 + tanh u cancels where it is small: keys of 1e-8 matter where C⁻¹ is large.
    Returns x itself, written; where autograd records a gradient, a new tensor, by the reference, and x stays.

    Raises UserError for another dtype, and for an impl that cannot be had here.
    Source: Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2, the approximation by tanh.
    """
    if not x.dtype.is_floating_point:
        raise UserError(f"gelu_tanh_: expected x floating point, got {x.dtype}")
    why = native.row_op_reason(x)
    no_triton = narrow_triton_reason(x)
    if not x.is_contiguous():
        gaps = f"the compiled kernel takes x contiguous, and its strides are {x.stride()}"
        why, no_triton = why or gaps, no_triton or gaps
    taken = choose("gelu_tanh_", impl, {"reference": None, "triton": no_triton, "native": why}, x)
    if taken == "native":
        torch.ops.fasttrace.gelu_tanh_(x)
        return x
    if taken == "triton":
        triton_launcher("gelu_tanh")(x)
        return x
    found = gelu_tanh_reference(x)
    return found if torch.is_grad_enabled() and x.requires_grad else x.copy_(found)


def gelu_tanh_reference(x: Tensor) -> Tensor:
    """The definition of `gelu_tanh_`, into a new tensor; same arguments."""
    wide = x if x.dtype == torch.float64 else x.float()
    return (wide * torch.sigmoid(1.5957691216057308 * wide * (1 + 0.044715 * wide * wide))).to(x.dtype)


def _fake(x: Tensor) -> None:
    """An in-place op makes nothing, so tracing needs nothing from it."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::gelu_tanh_")(_fake)
