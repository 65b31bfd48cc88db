"""silu_mul_: the activation of a gated MLP, silu(gate) · up, in one pass over both."""

import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose, narrow_triton_reason, triton_launcher


def silu_mul_(gate: Tensor, up: Tensor, impl: str = "auto") -> Tensor:
    """gate ← round(silu(gate)) · up, with silu(x) = x / (1 + e^(−x)) and `round` to the dtype of gate.

    gate, up: of one shape, usually (N, m), and one dtype: float32, bfloat16, float16 or float64.
    impl: "reference" is torch, on any device. "native" is the compiled CPU kernel (float32 and bfloat16) and "triton"
        the GPU's (float16 too), both for a contiguous gate and without a gradient. "auto" takes the one for the device
        where it applies, else the reference.
    Returns gate, overwritten. Where autograd records a gradient, the reference returns a new tensor instead.

    Raises UserError for shapes and dtypes that differ from these, and for an impl that cannot run here.
    Source: Shazeer 2020 (arXiv 2002.05202), equation 6 without its last product.
    """
    if not gate.dtype.is_floating_point:
        raise UserError(f"silu_mul_: expected gate to be floating point, got {gate.dtype}")
    if up.shape != gate.shape or up.dtype != gate.dtype:
        found, wanted = f"{tuple(up.shape)} {up.dtype}", f"{tuple(gate.shape)} {gate.dtype}"
        raise UserError(f"silu_mul_: expected 'up' to be {wanted} to match gate, got {found}")
    why = native.row_op_reason(gate, up)
    no_triton = narrow_triton_reason(gate, up)
    if not gate.is_contiguous():
        gaps = f"the compiled kernel needs a contiguous gate, its strides are {gate.stride()}"
        why, no_triton = why or gaps, no_triton or gaps
    taken = choose("silu_mul_", impl, {"reference": None, "triton": no_triton, "native": why}, gate, up)
    if taken == "native":
        torch.ops.fasttrace.silu_mul_(gate, up.contiguous())
        return gate
    if taken == "triton":
        triton_launcher("silu_mul")(gate, up.contiguous())
        return gate
    if torch.is_grad_enabled() and (gate.requires_grad or up.requires_grad):
        return silu_mul_reference(gate, up)
    return torch.nn.functional.silu(gate, inplace=True).mul_(up)


def silu_mul_reference(gate: Tensor, up: Tensor) -> Tensor:
    """The definition of `silu_mul_`, for any device. Returns a new tensor."""
    return torch.nn.functional.silu(gate) * up


def _fake(gate: Tensor, up: Tensor) -> None:
    """The op works in place and returns nothing, so there is nothing to fake."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::silu_mul_")(_fake)
