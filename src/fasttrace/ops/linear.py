"""linear: x wᵀ + b on CPUs, by a compiled kernel or oneDNN where they are faster than PyTorch's product.

Without AVX-512, PyTorch's float32 product (MKL's) and oneDNN's spend much of their time packing w where x has few rows.
The compiled kernel (csrc/linear.cpp) reads w where it lies. For w with contiguous rows, Zen 3 does 17, 38, 49 and 55
GFLOP/s with 8, 24, 48 and 85 rows of x (k 576, m 1536), MKL 9, 21, 29 and 39. A row of its y has the same bits in any
batch and with any number of threads.
With AVX-512, MKL uses it on Intel's processors alone. On AMD's it reaches less than half of oneDNN's rate (183 against
424 GFLOP/s for 1024 x 576 by 576 x 576 on two Zen 5 cores). In bfloat16 PyTorch uses oneDNN already, which has such a
product from AVX-512 on. Without, PyTorch's own loop reaches 6 to 10 GFLOP/s forward and 2 backward, and the product of
float32 copies 40 to 70 (192 to 1600 rows), so the operands are widened and the result is rounded once.
The processor, the dtype and the shapes alone decide which of them runs. They round differently, so a choice by a
measurement would let the last bits of a result depend on what else the machine was doing.
"""

import functools
import platform
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose, transformed_reason, wrapped_reason
from fasttrace.processor import this_processor

ONEDNN_DTYPES = NATIVE_DTYPES = (torch.float32, torch.bfloat16)
MOST_ROWS = 256  # of x, for which the compiled kernel takes a transposed view of w
_onednn_op: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def linear(
    x: Tensor, w: Tensor, bias: Tensor | None = None, *, activation: str | None = None, impl: str = "auto"
) -> Tensor:
    """y[..., j] = f(Σ_i x[..., i] w[j, i] + bias[j]).

    x: (..., k) floating point.
    w: (m, k) dtype of x. It may be a transposed view of a (k, m) matrix. A slice of such a view is slow in oneDNN and
        does not go there.
    bias: (m,) dtype of x, or None.
    activation: f, None or "gelu_tanh", which oneDNN applies for less than the cost of a pass over y
        (6.5 -> 4.5 ms for 1024 x 576 -> 1536). Multiplying, adding and SiLU gained nothing and are not offered.
    impl: "reference" is torch.nn.functional.linear, "onednn" is oneDNN's product, "native" is the compiled kernel: in
        float32 for a w whose rows or columns may have gaps between them, in bfloat16 for float32 copies.
        In float32, "auto" is native on a processor with AVX2 and no AVX-512, oneDNN on one with AVX-512 that is not
        Intel's, and else the reference. Native leaves products with a transposed view to the reference where x has one
        row or more than 256. In bfloat16, "auto" is oneDNN, or native where oneDNN has no such product. The reference
        also takes what the others do not: other devices and dtypes, a weight or bias that requires grad, tensor
        subclasses, calls under torch.compile.
    Returns (..., m), the dtype of x; all implementations agree up to its rounding. Differentiable once w.r.t. x.

    Raises UserError for shapes and dtypes that do not match, an unknown activation or impl, and an impl
    that does not apply.
    """
    if x.dim() < 1 or w.dim() != 2 or x.shape[-1] != w.shape[1]:
        found = f"x {tuple(x.shape)} and w {tuple(w.shape)}"
        raise UserError(f"linear: expected x of shape (..., k) and w (m, k), got {found}")
    if bias is not None and bias.shape != w.shape[:1]:
        raise UserError(f"linear: expected bias of shape ({w.shape[0]},), got {tuple(bias.shape)}")
    if w.dtype != x.dtype or (bias is not None and bias.dtype != x.dtype):
        name, dtype = ("w", w.dtype) if w.dtype != x.dtype or bias is None else ("bias", bias.dtype)
        raise UserError(f"linear: expected {name} to be {x.dtype} to match x, got {dtype}")
    if activation not in (None, "gelu_tanh"):
        raise UserError(f"linear: expected activation to be None or 'gelu_tanh', got {activation!r}")
    available = {"reference": None, "native": _native_reason(x, w, bias), "onednn": _onednn_reason(x, w, bias)}
    taken = choose("linear", impl, available, x, w, bias, worthwhile=lambda name: _is_faster(name, x, w))
    if taken == "reference":
        return linear_reference(x, w, bias, activation)
    if x.requires_grad and torch.is_grad_enabled():
        y: Tensor = _Linear.apply(x, w, bias, taken, impl)
        return y if activation is None else functional.gelu(y, approximate="tanh")
    return (_onednn if taken == "onednn" else _native)(x, w, bias, activation)


def linear_reference(x: Tensor, w: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    """The definition of `linear`, with the same arguments."""
    y = functional.linear(x, w, bias)
    return y if activation is None else functional.gelu(y, approximate="tanh")


def _native_reason(x: Tensor, w: Tensor, bias: Tensor | None) -> str | None:
    """Why the compiled kernel cannot take these tensors, or None where it can."""
    if x.device.type != "cpu":
        return f"the compiled kernel is for the CPU, these are on {x.device}"
    if x.dtype not in NATIVE_DTYPES:
        return f"the compiled kernel takes float32 and bfloat16, these are {x.dtype}"
    if x.dtype == torch.float32 and 1 not in w.stride():
        return f"the compiled kernel needs w with one stride of 1, its strides are {w.stride()}"
    return _frozen_and_plain_reason(x, w, bias) or native.unavailable_reason()


def _frozen_and_plain_reason(x: Tensor, w: Tensor, bias: Tensor | None) -> str | None:
    """Why neither product but the reference can take these tensors, or None."""
    if torch.is_grad_enabled() and (w.requires_grad or (bias is not None and bias.requires_grad)):
        return "w or bias requires grad"
    if x.numel() == 0 or w.numel() == 0:
        return "there is nothing to multiply"
    return transformed_reason() or wrapped_reason(x)


def _onednn_reason(x: Tensor, w: Tensor, bias: Tensor | None) -> str | None:
    """Why oneDNN's product cannot take these tensors, or None where it can."""
    if _onednn_op is None:
        return "this torch has no oneDNN"
    if x.device.type != "cpu":
        return f"oneDNN takes CPU tensors, these are on {x.device}"
    if x.dtype not in ONEDNN_DTYPES:
        return f"oneDNN takes float32 and bfloat16, these are {x.dtype}"
    # With gaps between rows or columns (a slice of GPT-2's c_attn) oneDNN uses a loop that is hundreds of times slower.
    if not (w.is_contiguous() or w.t().is_contiguous()):
        return f"oneDNN needs w without gaps between rows or columns, its strides are {w.stride()}"
    if (reason := _frozen_and_plain_reason(x, w, bias)) is not None:
        return reason
    if (refusal := _onednn_refusal(x.dtype)) is not None:
        return f"oneDNN has no {x.dtype} product on this processor ({refusal})"
    return None


@functools.cache
def _onednn_refusal(dtype: torch.dtype) -> str | None:
    """oneDNN's message where it has no product of the dtype (such as bfloat16 without AVX-512), or None."""
    one = torch.ones(1, 1, dtype=dtype)
    with torch.inference_mode():
        try:
            _onednn(one, one, None)
        except RuntimeError as error:
            return str(error).partition(".")[0]
    return None


def _onednn(x: Tensor, w: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    assert _onednn_op is not None
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    name, algorithm = ("none", "") if activation is None else ("gelu", "tanh")
    if bias is not None:
        bias = bias.contiguous()  # oneDNN reads it as if it were contiguous
    return _onednn_op(rows, w, bias, name, [], algorithm).view(*x.shape[:-1], w.shape[0])


def _native(x: Tensor, w: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    if x.dtype == torch.bfloat16:
        wide = linear(x.float(), w.float(), None if bias is None else bias.float(), activation=activation)
        return wide.to(x.dtype)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    y = torch.empty(len(rows), len(w), dtype=x.dtype)
    torch.ops.fasttrace.linear_(rows, w.detach(), None if bias is None else bias.detach().contiguous(), y)
    if activation is not None:
        torch.ops.fasttrace.gelu_tanh_(y)
    return y.view(*x.shape[:-1], len(w))


class _Linear(torch.autograd.Function):
    """Computes only ∂/∂x = gy w, because weights and biases never need a gradient here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None, taken: str, impl: str) -> Tensor:
        ctx.save_for_backward(w)
        ctx.impl = impl
        return (_onednn if taken == "onednn" else _native)(x, w, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None, None, None]:
        (w,) = ctx.saved_tensors
        # oneDNN reads the transposed view in place: 1.57 ms against 1.84 with a copy (1024 x 576 x 576).
        return linear(gy, w.t(), impl=ctx.impl), None, None, None, None


def _is_faster(name: str, x: Tensor, w: Tensor) -> bool:
    """Whether "auto" takes an implementation that applies. The processor, the dtype and the shapes decide."""
    if name != "native":
        return name == "reference" or _onednn_is_faster(x.dtype)
    if x.dtype == torch.bfloat16:
        return _onednn_refusal(x.dtype) is not None
    # For these shapes the compiled kernel is at least as fast as MKL (measured on Zen 3).
    return _takes_native() and (w.stride(1) == 1 or 1 < x.numel() // x.shape[-1] <= MOST_ROWS)


@functools.cache
def _takes_native() -> bool:
    """Whether this is a processor with AVX2 and no AVX-512, as the one that the compiled kernel was measured on."""
    found = this_processor()
    return found is not None and {"avx2", "fma"} <= found.flags and "avx512f" not in found.flags


@functools.cache
def _onednn_is_faster(dtype: torch.dtype) -> bool:
    """Whether "auto" takes oneDNN. This depends on the processor, and not on how fast it is at the moment."""
    if dtype != torch.float32:
        return True  # functional.linear is oneDNN too, but cannot apply the activation
    return torch.backends.mkl.is_available() and not _suits_mkl()


def _suits_mkl() -> bool:
    """Whether MKL has its fastest kernels for the processor: Intel's, or one without AVX-512."""
    if sys.platform == "darwin":
        return platform.machine() == "x86_64"
    found = this_processor()
    if found is None:
        return "GenuineIntel" in platform.processor()
    return found.vendor == "GenuineIntel" or "avx512f" not in found.flags


def _fake(x: Tensor, w: Tensor, bias: Tensor | None, out: Tensor) -> None:
    """The op works in place and returns nothing, so there is nothing to fake."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::linear_")(_fake)
