"""rank_one_linear: a layer's product in which each row has its own low-rank edit of the weights, which are not changed.

Floor of the update: every row of y is read and written and every row of x is read. The key and value of each row's
edit, 4·w·(m + d) bytes, come from cache where rows of one edit lie together. The base product is that of `linear`.
"""

import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose
from fasttrace.ops.linear import linear

DTYPES = (torch.float32, torch.bfloat16, torch.float64)


def rank_one_linear(
    x: Tensor, W: Tensor, bias: Tensor | None, edit: Tensor, key: Tensor, value: Tensor, impl: str = "auto"
) -> Tensor:
    """y[r] = W x[r] + bias + Σ_j value[e, j] · (key[e, j] · x[r]) with e = edit[r]; there is no sum where e = −1.

    The base product is rounded to the dtype of x, as in the unedited layer. `rank_one_add_` adds the rest.

    x: (N, m) float32 or bfloat16, or float64 for the reference.
    W: (d, m) dtype of x.
    bias: (d,) dtype of x, or None.
    edit: (N,) int64, −1 … E-1.
    key, value: (E, w, m) and (E, w, d) float32 (float64 for float64 rows): edit e adds Σ_j value[e, j] key[e, j]ᵀ to W.
    impl: "auto", "reference" or "native", for the update (see `rank_one_add_`). `linear` chooses for the product.
    Returns (N, d), the dtype of x.

    Raises UserError for arguments that differ from these, and where a gradient is required.
    Source: Meng et al. 2022 (arXiv 2202.05262), equation 2; docs/algorithms.md, section 17.
    """
    if W.dim() != 2 or x.dim() != 2 or W.shape[1] != x.shape[1]:
        found = f"x {tuple(x.shape)} and W {tuple(W.shape)}"
        raise UserError(f"rank_one_linear: expected x of shape (N, m) and W (d, m), got {found}")
    optional = {} if bias is None else {"bias": bias}
    native.refuse_gradients("rank_one_linear", x=x, W=W, **optional, key=key, value=value)
    y = linear(x, W, bias, impl="reference" if impl == "reference" else "auto")
    return rank_one_add_(y, x, edit, key, value, impl)


def rank_one_add_(y: Tensor, x: Tensor, edit: Tensor, key: Tensor, value: Tensor, impl: str = "auto") -> Tensor:
    """y[r] += Σ_j value[e, j] · (key[e, j] · x[r]) in place with e = edit[r]; a row whose e is −1 does not change.

    The products and the sum are float32 (float64 for float64 rows), and y is rounded once.

    y: (N, d) float32 or bfloat16, or float64 for the reference; rows without gaps.
    x: (N, m) dtype of y.
    edit: (N,) int64, −1 … E-1.
    key, value: (E, w, m) and (E, w, d) float32 (float64 for float64 rows), w ≥ 1.
    impl: "auto", "reference" or "native" (fasttrace._C: one pass over the rows, no copy of an edit per row).
    Returns y.

    Raises UserError for arguments that differ from these, and where a gradient is required. An edit out of range is a
    UserError on the CPU. On other devices, where checking would stall every layer, its rows become NaN.
    Source: Meng et al. 2022 (arXiv 2202.05262), equation 2; docs/algorithms.md, section 17.
    """
    _check(y, x, edit, key, value)
    reason = native.unavailable_reason(y.device)
    if reason is None and y.dtype == torch.float64:
        reason = "the compiled kernel takes float32 and bfloat16, y is torch.float64"
    if choose("rank_one_add_", impl, {"reference": None, "native": reason}, y, x, edit, key, value) == "reference":
        return rank_one_add_reference(y, x, edit, key, value)
    if not len(y):
        return y  # without rows, torch's contiguous() keeps the strides
    rows = x if x.stride(1) == 1 else x.contiguous()
    torch.ops.fasttrace.rank_one_add_(y, rows, edit.contiguous(), key.contiguous(), value.contiguous())
    return y


def rank_one_add_reference(y: Tensor, x: Tensor, edit: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The definition of `rank_one_add_`, with the same arguments, for any device: it gathers the edit of each row."""
    rows = (edit != -1).nonzero()[:, 0]
    e = edit[rows]
    outside = (e < 0) | (e >= len(key))
    if len(key):
        e = e.clamp(0, len(key) - 1)
        along = torch.einsum("nm,nwm->nw", x[rows].to(key.dtype), key[e])
        edited = y[rows].to(key.dtype) + torch.einsum("nw,nwd->nd", along, value[e])
    else:
        edited = y[rows].to(key.dtype)
    y[rows] = edited.masked_fill_(outside[:, None], float("nan")).to(y.dtype)
    return y


def _check(y: Tensor, x: Tensor, edit: Tensor, key: Tensor, value: Tensor) -> None:
    op = "rank_one_add_"
    if y.dim() != 2 or y.dtype not in DTYPES:
        found = f"{tuple(y.shape)} {y.dtype}"
        raise UserError(f"{op}: expected y to be (N, d) float32, bfloat16 or float64, got {found}")
    if x.dim() != 2 or len(x) != len(y) or x.dtype != y.dtype:
        found = f"{tuple(x.shape)} {x.dtype}"
        raise UserError(f"{op}: expected x to be ({len(y)}, m) {y.dtype} to match y, got {found}")
    if edit.shape != y.shape[:1] or edit.dtype != torch.int64:
        found = f"{tuple(edit.shape)} {edit.dtype}"
        raise UserError(f"{op}: expected edit to be ({len(y)},) torch.int64, got {found}")
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    if key.dim() != 3 or key.shape[1] < 1 or key.shape[2] != x.shape[1] or key.dtype != wide:
        found = f"{tuple(key.shape)} {key.dtype}"
        raise UserError(f"{op}: expected key to be (E, w, {x.shape[1]}) {wide} with w at least 1, got {found}")
    expected = (*key.shape[:2], y.shape[1])
    if value.shape != expected or value.dtype != wide:
        raise UserError(f"{op}: expected value to be {expected} {wide}, got {tuple(value.shape)} {value.dtype}")
    if y.numel() and ((y.stride(1) != 1 and y.shape[1] > 1) or (y.stride(0) < y.shape[1] and len(y) > 1)):
        raise UserError(f"{op}: expected y with rows without gaps that share no element, got strides {y.stride()}")
    if edit.device.type == "cpu" and edit.numel():
        low, high = (int(number) for number in edit.aminmax())
        if low < -1 or high >= len(key):
            raise UserError(f"{op}: expected edit in -1 … {len(key) - 1}, got values {low} … {high}")
    native.refuse_gradients(op, y=y, x=x, key=key, value=value)


def _fake(y: Tensor, x: Tensor, edit: Tensor, key: Tensor, value: Tensor) -> None:
    """The op works in place and returns nothing, so there is nothing to fake."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::rank_one_add_")(_fake)
