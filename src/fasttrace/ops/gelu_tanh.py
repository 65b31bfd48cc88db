"""gelu_tanh_: the activation of GPT-2's and GPT-J's MLPs in one pass, where transformers writes it as eight."""

import torch
from torch import Tensor
from torch.nn.functional import gelu

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose


def gelu_tanh_(x: Tensor, impl: str = "auto") -> Tensor:
    """x ← x/2 · (1 + tanh(√(2/π) · (x + 0.044715 x³))), rounded once to the dtype of x.

    x: any shape, of float32, bfloat16, float16 or float64.
    impl: "reference" is torch, on any device; "native" is the CPU's (float32 and bfloat16, x contiguous), which
    computes it as x / (1 + e^(−2u)), so that nothing cancels where it is small; "auto" takes native where it applies.
    Returns x itself, written; where autograd records a gradient, a new tensor, by the reference, and x stays.

    Raises UserError for another dtype, and for an impl that cannot be had here.
    Source: Hendrycks and Gimpel 2016 (arXiv 1606.08415), section 2, the approximation by tanh.
    """
    if not x.dtype.is_floating_point:
        raise UserError(f"gelu_tanh_: x is {x.dtype}, floating point was wanted")
    why = native.row_op_problem(x)
    if why is None and not x.is_contiguous():
        why = f"the compiled kernel takes x contiguous, and its strides are {x.stride()}"
    if choose("gelu_tanh_", impl, {"reference": None, "native": why}, x) == "native":
        torch.ops.fasttrace.gelu_tanh_(x)
        return x
    if torch.is_grad_enabled() and x.requires_grad:
        return gelu_tanh_reference(x)
    return torch.ops.aten.gelu_(x, approximate="tanh")


def gelu_tanh_reference(x: Tensor) -> Tensor:
    """The definition of `gelu_tanh_`, into a new tensor; same arguments."""
    return gelu(x, approximate="tanh")


def _fake(x: Tensor) -> None:
    """An in-place op makes nothing, so tracing needs nothing from it."""


if native.problem() is None:
    torch.library.register_fake("fasttrace::gelu_tanh_")(_fake)
