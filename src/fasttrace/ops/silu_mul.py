"""silu_mul_: the activation of a gated MLP, silu(gate) · up, in one pass over both."""

from typing import Any

import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose, narrow_triton_reason, records, reference_gradient, triton_launcher


def silu_mul_(gate: Tensor, up: Tensor, impl: str = "auto") -> Tensor:
    """gate ← round(silu(gate)) · up, with silu(x) = x / (1 + e^(−x)) and `round` to the dtype of gate.

    gate, up: of one shape, usually (N, m), and one dtype: float32, bfloat16, float16 or float64.
    impl: "reference" is torch, on any device. "native" is the compiled CPU kernel (float32 and bfloat16), for a gate
        that is contiguous or of which a gradient is recorded. "triton" is the GPU's (float16 too), for a contiguous
        gate and without a gradient. "auto" takes the one for the device where it applies, else the reference.
    Returns gate, overwritten. Where autograd records a gradient, a new tensor is returned instead. A native gradient is
    rounded once.

    Raises UserError for shapes and dtypes that differ from these, and for an impl that cannot run here.
    Source: Shazeer 2020 (arXiv 2002.05202), equation 6 without its last product.
    """
    if not gate.dtype.is_floating_point:
        raise UserError(f"silu_mul_: expected gate to be floating point, got {gate.dtype}")
    if up.shape != gate.shape or up.dtype != gate.dtype:
        found, wanted = f"{tuple(up.shape)} {up.dtype}", f"{tuple(gate.shape)} {gate.dtype}"
        raise UserError(f"silu_mul_: expected 'up' to be {wanted} to match gate, got {found}")
    recorded = records(gate, up)
    why = native.row_op_reason(gate, up, frozen=())
    no_triton = narrow_triton_reason(gate, up)
    if not gate.is_contiguous() and not recorded:
        gaps = f"the compiled kernel needs a contiguous gate, its strides are {gate.stride()}"
        why, no_triton = why or gaps, no_triton or gaps
    taken = choose("silu_mul_", impl, {"reference": None, "triton": no_triton, "native": why}, gate, up)
    if taken == "native":
        if recorded:
            product: Tensor = _SiluMul.apply(gate, up)
            return product
        torch.ops.fasttrace.silu_mul_(gate, up.contiguous())
        return gate
    if taken == "triton":
        triton_launcher("silu_mul")(gate, up.contiguous())
        return gate
    if recorded:
        return silu_mul_reference(gate, up)
    return torch.nn.functional.silu(gate, inplace=True).mul_(up)


def silu_mul_reference(gate: Tensor, up: Tensor) -> Tensor:
    """The definition of `silu_mul_`, for any device. Returns a new tensor."""
    return torch.nn.functional.silu(gate) * up


class _SiluMul(torch.autograd.Function):
    """The compiled kernel on a copy of gate, and both gradients in one pass. It keeps gate and up; the reference also
    keeps silu(gate)."""

    @staticmethod
    def forward(ctx: Any, gate: Tensor, up: Tensor) -> Tensor:
        ctx.save_for_backward(gate, up)
        product = gate.clone(memory_format=torch.contiguous_format)
        torch.ops.fasttrace.silu_mul_(product, up.contiguous())
        return product

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        gate, up = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            return reference_gradient(silu_mul_reference, (gate, up), grad)
        given = tuple(x.contiguous() for x in (grad, gate, up))
        grads = torch.empty_like(given[0]), torch.empty_like(given[0])
        torch.ops.fasttrace.silu_mul_backward_(*given, *grads)
        return grads


def _fake(*tensors: Tensor) -> None:
    """The ops write into their arguments and return nothing, so there is nothing to fake."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::silu_mul_")(_fake)
    torch.library.register_fake("fasttrace::silu_mul_backward_")(_fake)
