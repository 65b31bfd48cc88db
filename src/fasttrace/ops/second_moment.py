"""second_moment_: C += Kᵀ K, the uncentered second moment of a layer's keys, a batch of tokens at a time."""

import torch

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose


def second_moment_(C: torch.Tensor, K: torch.Tensor, impl: str = "auto") -> torch.Tensor:
    """C += Kᵀ K in place; returns C.

    C: (m, m) float32 or float64, contiguous. It need not be symmetric; "native" keeps a symmetric C symmetric.
    K: (n, m) float32 or bfloat16, any strides; one key per row.
    impl: "auto", "reference" (float64 product) or "native" (fasttrace._C: half of the product is computed. At most 32
        rows are summed in float32; beyond that the CPU sums in float64, and CUDA's matrix units use Kahan summation).

    Error of the native version in entry (i, j), relative to sqrt(sum_r K[r,i]² · sum_r K[r,j]²): on the CPU it is below
    4e-7 in every test and falls with n. The bound is 32 · 2⁻²⁴ = 1.9e-6, for rows chosen to round in one direction. On
    CUDA, whose matrix units round towards zero, it should be below 6e-7, of which some 2e-7 is a bias downwards for
    every n (not yet measured). The error does not grow with rows or calls. A float32 C adds one rounding per call, at
    most 2⁻²⁴ = 6e-8 of the entry, so a sum over many calls needs a float64 C. On CUDA an infinite key gives NaN.

    Raises UserError for a wrong shape, dtype, device, layout or impl, and where a gradient is required.
    Source: Meng et al. 2022 (arXiv 2202.05262), the matrix C of equation 2.
    """
    _check(C, K)
    available = {"reference": None, "native": native.unavailable_reason(C.device)}
    if choose("second_moment_", impl, available, C, K) == "native":
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
        raise UserError(f"{op}: expected C to be a square matrix (m, m), got shape {tuple(C.shape)}")
    if C.dtype not in (torch.float32, torch.float64):
        raise UserError(f"{op}: expected C to be torch.float32 or torch.float64, got {C.dtype}")
    if not C.is_contiguous():
        raise UserError(f"{op}: expected C to be contiguous, got strides {C.stride()}")
    if K.ndim != 2 or K.shape[1] != C.shape[0]:
        raise UserError(f"{op}: expected K of shape (n, {C.shape[0]}) to match C, got {tuple(K.shape)}")
    if K.dtype not in (torch.float32, torch.bfloat16):
        raise UserError(f"{op}: expected K to be torch.float32 or torch.bfloat16, got {K.dtype}")
    native.refuse_gradients(op, C=C, K=K)


def _fake(C: torch.Tensor, K: torch.Tensor) -> None:
    """The op works in place and returns nothing, so there is nothing to fake."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::second_moment_")(_fake)
