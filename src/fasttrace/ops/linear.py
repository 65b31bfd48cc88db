"""linear: x wᵀ + b, through oneDNN's matrix product on CPUs where that is faster.

PyTorch's float32 product on a CPU is MKL's, which uses AVX-512 on Intel's processors alone. On AMD's it reaches less
than half of oneDNN's rate (183 against 424 GFLOP/s for 1024 x 576 by 576 x 576 on two Zen 5 cores). Without AVX-512
it takes a tenth off ROME, and the rest is as fast (Zen 3). In bfloat16 PyTorch uses oneDNN already, which has such a
product from AVX-512 on. Without, PyTorch's own loop reaches 6 to 10 GFLOP/s forward and 2 backward, and the product of
float32 copies 40 to 70 (192 to 1600 rows), so the operands are widened and the result is rounded once.
The processor and the dtype alone decide which of the two runs. They round differently, so a choice by a measurement
would let the last bits of a result depend on what else the machine was doing.
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
from fasttrace.ops.dispatch import choose
from fasttrace.processor import this_processor

ONEDNN_DTYPES = (torch.float32, torch.bfloat16)
_onednn_op: Callable[..., Tensor] | None = getattr(torch.ops.mkldnn, "_linear_pointwise", None)


def linear(
    x: Tensor, w: Tensor, bias: Tensor | None = None, *, activation: str | None = None, impl: str = "auto"
) -> Tensor:
    """y[..., j] = f(Σ_i x[..., i] w[j, i] + bias[j]).

    x: (..., k) floating point.
    w: (m, k) dtype of x. A transposed view of a (k, m) matrix is as fast. A slice of such a view is slow in oneDNN and
        goes to the reference.
    bias: (m,) dtype of x, or None.
    activation: f, None or "gelu_tanh", which oneDNN applies for less than the cost of a pass over y
        (6.5 -> 4.5 ms for 1024 x 576 -> 1536). Multiplying, adding and SiLU gained nothing and are not offered.
    impl: "reference" is torch.nn.functional.linear, "native" is oneDNN, or in bfloat16 on a processor for which oneDNN
        has no such product the float32 product of widened operands, rounded once. "auto" is native, except in float32
        on an Intel processor, on one without AVX-512 or in a torch without MKL, and the reference where oneDNN does not
        apply: other devices and dtypes, a weight or bias that requires grad, tensor subclasses, under torch.compile.
    Returns (..., m), the dtype of x; both implementations agree up to its rounding. Differentiable once w.r.t. x.

    Raises UserError for shapes and dtypes that do not match, an unknown activation or impl, and impl="native"
    where oneDNN does not apply.
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
    available = {"reference": None, "native": _onednn_reason(x, w, bias)}
    faster = lambda name: name == "reference" or _onednn_is_faster(x.dtype)  # noqa: E731
    if choose("linear", impl, available, x, w, bias, worthwhile=faster) == "reference":
        return linear_reference(x, w, bias, activation)
    if x.requires_grad and torch.is_grad_enabled():
        y: Tensor = _NativeLinear.apply(x, w, bias)
        return y if activation is None else functional.gelu(y, approximate="tanh")
    return _native(x, w, bias, activation)


def linear_reference(x: Tensor, w: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    """The definition of `linear`, with the same arguments."""
    y = functional.linear(x, w, bias)
    return y if activation is None else functional.gelu(y, approximate="tanh")


def _onednn_reason(x: Tensor, w: Tensor, bias: Tensor | None) -> str | None:
    """Why oneDNN's product cannot take these tensors, or None where it can."""
    if _onednn_op is None:
        return "this torch has no oneDNN"
    if x.device.type != "cpu":
        return f"oneDNN takes CPU tensors, these are on {x.device}"
    if x.dtype not in ONEDNN_DTYPES:
        return f"oneDNN takes float32 and bfloat16, these are {x.dtype}"
    if torch.is_grad_enabled() and (w.requires_grad or (bias is not None and bias.requires_grad)):
        return "w or bias requires grad"
    # With gaps between rows or columns (a slice of GPT-2's c_attn) oneDNN uses a loop that is hundreds of times slower.
    if not (w.is_contiguous() or w.t().is_contiguous() or _widens(x.dtype)):
        return f"oneDNN needs w without gaps between rows or columns, its strides are {w.stride()}"
    if x.numel() == 0 or w.numel() == 0:
        return "there is nothing to multiply"
    # Fake and wrapped tensors have no memory for oneDNN to read.
    if type(x) not in (Tensor, torch.nn.Parameter) or torch.compiler.is_compiling():
        return "x is not a plain tensor"
    if not _widens(x.dtype) and (refusal := _onednn_refusal(x.dtype)) is not None:
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


def _widens(dtype: torch.dtype) -> bool:
    """Whether a product of this dtype is that of float32 copies."""
    return dtype == torch.bfloat16 and _onednn_refusal(dtype) is not None


def _native(x: Tensor, w: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    if not _widens(x.dtype):
        return _onednn(x, w, bias, activation)
    wide = linear(x.float(), w.float(), None if bias is None else bias.float(), activation=activation)
    return wide.to(x.dtype)


def _onednn(x: Tensor, w: Tensor, bias: Tensor | None, activation: str | None = None) -> Tensor:
    assert _onednn_op is not None
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    name, algorithm = ("none", "") if activation is None else ("gelu", "tanh")
    if bias is not None:
        bias = bias.contiguous()  # oneDNN reads it as if it were contiguous
    return _onednn_op(rows, w, bias, name, [], algorithm).view(*x.shape[:-1], w.shape[0])


class _NativeLinear(torch.autograd.Function):
    """Computes only ∂/∂x = gy w, because weights and biases never need a gradient here."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(w)
        return _native(x, w, bias)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gy: Tensor) -> tuple[Tensor, None, None]:
        (w,) = ctx.saved_tensors
        # oneDNN reads the transposed view in place: 1.57 ms against 1.84 with a copy (1024 x 576 x 576).
        return _native(gy, w.t(), None), None, None


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
