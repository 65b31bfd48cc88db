"""silu_mul_: the activation of a gated MLP, silu(gate) · up, in one pass over both."""

import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose, narrow_triton_reason, triton_launcher


def silu_mul_(gate: Tensor, up: Tensor, impl: str = "auto") -> Tensor:
    """gate ← round(silu(gate)) · up, with silu(x) = x / (1 + e^(−x)) and `round` to the dtype of gate.

    gate, up: one shape, usually (N, m), one dtype of float32, bfloat16, float16 and float64.
    impl: "reference" is torch, on any device; "native" is the CPU's (float32 and bfloat16), "triton" the GPU's (float16
    too), both for a contiguous gate; "auto" takes what applies.
    Returns gate itself, written; where autograd records a gradient, a new tensor, by the reference, and gate
    stays.

    Raises UserError for shapes and dtypes unlike these, and for an impl that cannot be had here.
    Source: Shazeer 2020 (arXiv 2002.05202), equation 6 without its last product.
    """
    if not gate.dtype.is_floating_point:
        raise UserError(f"silu_mul_: expected gate floating point, got {gate.dtype}")
    if up.shape != gate.shape or up.dtype != gate.dtype:
        found, wanted = f"{tuple(up.shape)} {up.dtype}", f"{tuple(gate.shape)} {gate.dtype}"
        raise UserError(f"silu_mul_: expected up {wanted}, as gate is, got {found}")
    why = native.row_op_reason(gate, up)
    no_triton = narrow_triton_reason(gate, up)
    if not gate.is_contiguous():
        gaps = f"the compiled kernel takes gate contiguous, and its strides are {gate.stride()}"
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
    """The definition of `silu_mul_`, into a new tensor; same arguments."""
    return torch.nn.functional.silu(gate) * up


def _fake(gate: Tensor, up: Tensor) -> None:
    """An in-place op makes nothing, so tracing needs nothing from it."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::silu_mul_")(_fake)
