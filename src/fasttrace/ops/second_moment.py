"""second_moment_: C += Kᵀ K, the uncentered second moment of a layer's keys, a batch of tokens at a time."""

import torch

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose


def second_moment_(C: torch.Tensor, K: torch.Tensor, impl: str = "auto") -> torch.Tensor:
    """C += Kᵀ K in place; returns C.

    C: (m, m) float32 or float64, contiguous; need not be symmetric ("native" keeps a symmetric C so).
    K: (n, m) float32 or bfloat16, any strides; one key a row.
    impl: "auto", "reference" (float64 product) or "native" (fasttrace._C: half of the product is computed, sums of
        at most 32 rows in float32; beyond, float64 on the CPU and, on CUDA, where matrix units multiply, Kahan's).

    Error of the native version, entry (i, j), relative to sqrt(sum_r K[r,i]² · sum_r K[r,j]²): on the CPU below 4e-7 in
    every test and falling with n; the bound is 32 · 2⁻²⁴ = 1.9e-6, which takes rows chosen to round one way. On CUDA,
    whose matrix units round towards zero, expected below 6e-7, some 2e-7 of it low whatever n (not yet measured).
    It does not grow with rows or calls. A float32 C adds one rounding a call, at most 2⁻²⁴ = 6e-8 of the
    entry each, so a sum over many calls belongs in a float64 C. On CUDA an infinite key makes NaN.

    Raises UserError for a wrong shape, dtype, device, layout or impl, or where a gradient is wanted.
    Source: Meng et al. 2022 (arXiv 2202.05262), the matrix C of equation 2.
    """
    _check(C, K)
    taken = choose("second_moment_", impl, {"reference": None, "native": native.problem(C.device)}, C, K)
    if taken == "native":
        torch.ops.fasttrace.second_moment_(C, K)
        return C
    return second_moment_reference(C, K)


def second_moment_reference(C: torch.Tensor, K: torch.Tensor) -> torch.Tensor:
    """The definition: the product in float64, added to C; same arguments as `second_moment_`."""
    keys = K.to(torch.float64)
    return C.add_(keys.T @ keys)


def _check(C: torch.Tensor, K: torch.Tensor) -> None:
    op = "second_moment_"
    if C.ndim != 2 or C.shape[0] != C.shape[1]:
        raise UserError(f"{op}: C has shape {tuple(C.shape)}, a square matrix (m, m) was wanted")
    if C.dtype not in (torch.float32, torch.float64):
        raise UserError(f"{op}: C is {C.dtype}, torch.float32 or torch.float64 was wanted")
    if not C.is_contiguous():
        raise UserError(f"{op}: C has strides {C.stride()}, a contiguous matrix was wanted")
    if K.ndim != 2 or K.shape[1] != C.shape[0]:
        raise UserError(f"{op}: K has shape {tuple(K.shape)}, (n, {C.shape[0]}) was wanted to match C")
    if K.dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"{op}: K is {K.dtype}, torch.float32 or torch.bfloat16 was wanted")
    native.refuse_gradients(op, C=C, K=K)


def _fake(C: torch.Tensor, K: torch.Tensor) -> None:
    """An in-place op makes nothing, so tracing needs nothing from it."""


if native.problem() is None:
    torch.library.register_fake("fasttrace::second_moment_")(_fake)
