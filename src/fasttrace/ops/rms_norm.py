"""rms_norm: the root-mean-square norm of the Llama family, in one pass over all rows or over rows given by index."""

from typing import Any

import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose, narrow_triton_reason, records, reference_gradient, triton_launcher


def rms_norm(x: Tensor, weight: Tensor, eps: float, *, rows: Tensor | None = None, impl: str = "auto") -> Tensor:
    """y[i] = weight · round(x[r] · (mean x[r]² + eps)^(−1/2)), r = rows[i], or i where rows is None.

    Means and scales are float32, or float64 for float64 x, and `round` is to the dtype of x, as in transformers'
    LlamaRMSNorm.

    x: (N, d) float32, bfloat16, float16 or float64. weight: (d,) dtype of x. eps: added to the mean square.
    rows: (n,) int64, 0 … N−1, or None for all. A row out of range is a UserError on the CPU. On a GPU, "triton" makes
        it NaN.
    impl: "reference" is torch, on any device and differentiable w.r.t. x and weight. "native" is the compiled CPU
        kernel (float32 and bfloat16), differentiable w.r.t. x. "triton" is the GPU's (float16 too) and has no gradient.
        Without one, both read the rows in place. "auto" takes the one for the device where it applies, else the
        reference.
    Returns (n or N, d), the dtype of x. A native gradient is rounded once.

    Raises UserError for shapes and dtypes that differ from these, and for an impl that cannot run here.
    Source: Zhang and Sennrich 2019 (arXiv 1910.07467), equation 4.
    """
    if x.dim() != 2 or not x.dtype.is_floating_point:
        raise UserError(f"rms_norm: expected x to be (N, d) floating point, got {tuple(x.shape)} {x.dtype}")
    if weight.shape != x.shape[1:] or weight.dtype != x.dtype:
        found = f"{tuple(weight.shape)} {weight.dtype}"
        raise UserError(f"rms_norm: expected weight to be ({x.shape[1]},) {x.dtype}, got {found}")
    if rows is not None:
        _check_rows(rows, x.shape[0])
    available = {
        "reference": None,
        "triton": narrow_triton_reason(x, weight),
        "native": native.row_op_reason(x, weight, frozen=(weight,)),
    }
    taken = choose("rms_norm", impl, available, x, weight, rows)
    if taken == "reference":
        return rms_norm_reference(x, weight, eps, rows=rows)
    if taken == "triton":
        normed: Tensor = triton_launcher("rms_norm")(x, weight, eps, rows)
        return normed
    if records(x):
        normed = _RmsNorm.apply(x if rows is None else x.index_select(0, rows), weight, eps)
        return normed
    return _native(x, weight, eps, rows)


def _native(x: Tensor, weight: Tensor, eps: float, rows: Tensor | None = None) -> Tensor:
    out = x.new_empty((x.shape[0] if rows is None else rows.shape[0], x.shape[1]))
    named = None if rows is None else rows.contiguous()
    torch.ops.fasttrace.rms_norm_(x.contiguous(), weight.contiguous(), eps, named, out)
    return out


def rms_norm_reference(x: Tensor, weight: Tensor, eps: float, *, rows: Tensor | None = None) -> Tensor:
    """The definition of `rms_norm`, with the same arguments, for any device."""
    if rows is not None:
        x = x.index_select(0, rows)
    wide = x.to(torch.promote_types(x.dtype, torch.float32))
    scaled = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * scaled.to(x.dtype)


def _check_rows(rows: Tensor, count: int) -> None:
    if rows.dim() != 1 or rows.dtype != torch.int64:
        raise UserError(f"rms_norm: expected rows to be (n,) torch.int64, got {tuple(rows.shape)} {rows.dtype}")
    if rows.device.type == "cpu" and rows.numel():
        low, high = (int(value) for value in rows.aminmax())
        if low < 0 or high >= count:
            raise UserError(f"rms_norm: expected rows in 0 … {count - 1}, got values {low} … {high}")


class _RmsNorm(torch.autograd.Function):
    """The compiled kernel, and its gradient in one pass. It keeps x; the reference also keeps three tensors like it."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.eps = eps
        return _native(x, weight, eps)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors
        if torch.is_grad_enabled():  # for a second derivative
            again = reference_gradient(lambda x: rms_norm_reference(x, weight, ctx.eps), (x,), grad)
            return *again, None, None
        given = tuple(t.contiguous() for t in (grad, x, weight))
        grad_x = torch.empty_like(given[0])
        torch.ops.fasttrace.rms_norm_backward_(*given, ctx.eps, grad_x)
        return grad_x, None, None


def _fake(*arguments: Tensor | float | None) -> None:
    """The ops write into their arguments and return nothing, so there is nothing to fake."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::rms_norm_")(_fake)
    torch.library.register_fake("fasttrace::rms_norm_backward_")(_fake)
