"""rank_one_linear: a layer's product with each row's own low-rank edit of its weights, which are not touched.

Floor of the update: every row of y read and written, every row of x read, and the key and value of each row's edit,
4·w·(m + d) bytes, from cache where rows of one edit lie together; the base product is `linear`'s.
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
    """y[r] = W x[r] + bias + Σ_j value[e, j] · (key[e, j] · x[r]), e = edit[r]; the sum is left out where e = −1.

    The base product is rounded to the dtype of x, as the unedited layer's is; then see `rank_one_add_`.

    x: (N, m) float32 or bfloat16, or float64 for the reference.
    W: (d, m) dtype of x; whole rows or columns.
    bias: (d,) dtype of x, or None.
    edit: (N,) int64, −1 … E-1.
    key, value: (E, w, m) and (E, w, d) float32 (float64 for float64 rows): edit e adds Σ_j value[e, j] key[e, j]ᵀ to W.
    impl: "auto", "reference", or "native" (the update's, see `rank_one_add_`; the product is chosen by `linear`).
    Returns (N, d), the dtype of x.

    Raises UserError for arguments unlike these, and where a gradient is wanted.
    Source: Meng et al. 2022 (arXiv 2202.05262), equation 2; docs/algorithms.md, section 17.
    """
    if W.dim() != 2 or x.dim() != 2 or W.shape[1] != x.shape[1]:
        shapes = f"x is {tuple(x.shape)} and W is {tuple(W.shape)}"
        raise UserError(f"rank_one_linear: {shapes}, (N, m) and (d, m) were wanted")
    optional = {} if bias is None else {"bias": bias}
    native.refuse_gradients("rank_one_linear", x=x, W=W, **optional, key=key, value=value)
    y = linear(x, W, bias, impl="reference" if impl == "reference" else "auto")
    return rank_one_add_(y, x, edit, key, value, impl)


def rank_one_add_(y: Tensor, x: Tensor, edit: Tensor, key: Tensor, value: Tensor, impl: str = "auto") -> Tensor:
    """y[r] += Σ_j value[e, j] · (key[e, j] · x[r]) in place, e = edit[r]; a row whose e is −1 is left as it is.

    The products and the sum are float32 (float64 for float64 rows), and y is rounded once.

    y: (N, d) float32 or bfloat16, or float64 for the reference; rows without gaps.
    x: (N, m) dtype of y.
    edit: (N,) int64, −1 … E-1.
    key, value: (E, w, m) and (E, w, d) float32 (float64 for float64 rows), w ≥ 1.
    impl: "auto", "reference" or "native" (fasttrace._C: one pass over the rows, no edit is copied for each).
    Returns y.

    Raises UserError for arguments unlike these, and where a gradient is wanted. Edits out of range are a UserError on
    the CPU; elsewhere, where looking would hold up every layer, their rows are NaN.
    Source: Meng et al. 2022 (arXiv 2202.05262), equation 2; docs/algorithms.md, section 17.
    """
    _check(y, x, edit, key, value)
    why = native.problem(y.device)
    if why is None and y.dtype == torch.float64:
        why = "the compiled kernel takes float32 and bfloat16, y is torch.float64"
    if choose("rank_one_add_", impl, {"reference": None, "native": why}, y, x, edit, key, value) == "reference":
        return rank_one_add_reference(y, x, edit, key, value)
    if not len(y):
        return y  # of no rows torch makes no contiguous copy
    rows = x if x.stride(1) == 1 else x.contiguous()
    torch.ops.fasttrace.rank_one_add_(y, rows, edit.contiguous(), key.contiguous(), value.contiguous())
    return y


def rank_one_add_reference(y: Tensor, x: Tensor, edit: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """The definition of `rank_one_add_`, with the same arguments, for any device: each row's edit is gathered."""
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
        raise UserError(f"{op}: y is {tuple(y.shape)} {y.dtype}, (N, d) float32, bfloat16 or float64 was wanted")
    if x.dim() != 2 or len(x) != len(y) or x.dtype != y.dtype:
        raise UserError(f"{op}: x is {tuple(x.shape)} {x.dtype}, ({len(y)}, m) {y.dtype} was wanted, as y is")
    if edit.shape != y.shape[:1] or edit.dtype != torch.int64:
        found = f"{tuple(edit.shape)} {edit.dtype}"
        raise UserError(f"{op}: edit is {found}, ({len(y)},) torch.int64 was wanted")
    wide = torch.float64 if y.dtype == torch.float64 else torch.float32
    if key.dim() != 3 or key.shape[1] < 1 or key.shape[2] != x.shape[1] or key.dtype != wide:
        found = f"{tuple(key.shape)} {key.dtype}"
        raise UserError(f"{op}: key is {found}, (E, w, {x.shape[1]}) {wide} was wanted, w at least 1")
    wanted = (*key.shape[:2], y.shape[1])
    if value.shape != wanted or value.dtype != wide:
        raise UserError(f"{op}: value is {tuple(value.shape)} {value.dtype}, {wanted} {wide} was wanted")
    if y.numel() and ((y.stride(1) != 1 and y.shape[1] > 1) or (y.stride(0) < y.shape[1] and len(y) > 1)):
        raise UserError(f"{op}: y has strides {y.stride()}, rows without gaps that share nothing were wanted")
    if edit.device.type == "cpu" and edit.numel():
        low, high = (int(number) for number in edit.aminmax())
        if low < -1 or high >= len(key):
            raise UserError(f"{op}: edit has values {low} … {high}, -1 … {len(key) - 1} was wanted")
    native.refuse_gradients(op, y=y, x=x, key=key, value=value)


def _fake(y: Tensor, x: Tensor, edit: Tensor, key: Tensor, value: Tensor) -> None:
    """An in-place op makes nothing, so tracing needs nothing from it."""


if native.problem() is None:
    torch.library.register_fake("fasttrace::rank_one_add_")(_fake)
