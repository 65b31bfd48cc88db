"""rank_one_: W += alpha · u vᵀ in place, the form of every ROME update."""

import torch

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose

_FLOATS = (torch.float32, torch.bfloat16)


def rank_one_(
    W: torch.Tensor, u: torch.Tensor, v: torch.Tensor, alpha: float = 1.0, impl: str = "auto"
) -> torch.Tensor:
    """W += alpha · u vᵀ in place, in float32 arithmetic, rounded once to W's dtype; returns W.

    W: (a, b) float32 or bfloat16; one stride is 1: a matrix, a slice of its rows, or a transpose of either.
    u: (a,) float32 or bfloat16, any stride.
    v: (b,) float32 or bfloat16, any stride.
    impl: "auto", "reference" or "native" (fasttrace._C: one pass, no (a, b) temporary).

    Raises UserError for a wrong shape, dtype, device, layout or impl, and where a gradient is required.
    Source: Meng et al. 2022 (arXiv 2202.05262), equation 2, W + Λ(C⁻¹k)ᵀ.
    """
    _check(W, u, v)
    available = {"reference": None, "native": native.unavailable_reason(W.device)}
    if choose("rank_one_", impl, available, W, u, v) == "native":
        torch.ops.fasttrace.rank_one_(W, u, v, alpha)
        return W
    return rank_one_reference(W, u, v, alpha)


def rank_one_reference(W: torch.Tensor, u: torch.Tensor, v: torch.Tensor, alpha: float = 1.0) -> torch.Tensor:
    """The definition, through a float32 outer product; same arguments as `rank_one_`."""
    return W.copy_(W.float() + torch.outer(alpha * u.float(), v.float()))


def _check(W: torch.Tensor, u: torch.Tensor, v: torch.Tensor) -> None:
    op = "rank_one_"
    if W.ndim != 2:
        raise UserError(f"{op}: expected W to be a matrix (a, b), got shape {tuple(W.shape)}")
    for name, tensor in (("W", W), ("u", u), ("v", v)):
        if tensor.dtype not in _FLOATS:
            raise UserError(f"{op}: expected {name} to be torch.float32 or torch.bfloat16, got {tensor.dtype}")
    for name, tensor, axis, count in (("u", u, "rows", W.shape[0]), ("v", v, "columns", W.shape[1])):
        if tensor.shape != (count,):
            found = tuple(tensor.shape)
            raise UserError(f"{op}: expected {name} of shape ({count},) to match the {axis} of W, got {found}")
    if not _one_axis_is_dense(W):
        expected = "W with one stride of 1 and the other at least the length of that axis"
        raise UserError(f"{op}: expected {expected}, got strides {W.stride()}")
    native.refuse_gradients(op, W=W, u=u, v=v)


def _one_axis_is_dense(W: torch.Tensor) -> bool:
    """Whether W lies in memory row by row or column by column, with no element shared."""
    if W.numel() == 0:
        return True
    (rows, columns), (down, across) = W.shape, W.stride()
    by_rows = (columns == 1 or across == 1) and (rows == 1 or down >= columns)
    by_columns = (rows == 1 or down == 1) and (columns == 1 or across >= rows)
    return by_rows or by_columns


def _fake(W: torch.Tensor, u: torch.Tensor, v: torch.Tensor, alpha: float) -> None:
    """The op works in place and returns nothing, so there is nothing to fake."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::rank_one_")(_fake)
