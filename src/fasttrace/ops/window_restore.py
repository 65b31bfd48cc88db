"""window_restore: the residual sum of a block in which a window's module outputs are restored or zeroed."""

from typing import Any

import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose, triton_launcher

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
NATIVE_DTYPES = DTYPES[:2]


def window_restore(h: Tensor, out: Tensor, base: Tensor, source: Tensor, impl: str = "auto") -> Tensor:
    """result[i] = (h[base[i]] if base[i] ≥ 0 else 0) + (out[source[i]] if source[i] ≥ 0 else 0), rounded once.

    `base` names the residual row, `source` the module output that is added to it: the row's own, the clean
    run's where a window restores it, −1 where a window zeroes it; both are −1 where a whole block is zeroed. Rows
    that enter the wave are named alike.

    h: (N, d) float32, bfloat16, float16 or float64.
    out: (M, d) dtype of h; M may be 0 where every source is −1.
    base: (P,) int64, −1 … N−1.
    source: (P,) int64, −1 … M−1.
    impl: "auto", "reference", "triton" or "native" (the CPU's: float32 and bfloat16, one pass).
    Returns (P, d), the dtype of h. Linear in h and out, and differentiable w.r.t. both.

    Raises UserError for shapes and dtypes unlike these. Rows out of range are a UserError for the reference
    and the native op on the CPU; elsewhere, where looking would hold up every layer, their result is NaN.
    Source: docs/algorithms.md, sections 5 and 7 (a cell; zeroing) and 9.
    """
    if h.dim() != 2 or h.dtype not in DTYPES:
        raise UserError(f"window_restore: h is {tuple(h.shape)} {h.dtype}, (N, d) floating point was wanted")
    if out.dim() != 2 or out.shape[1] != h.shape[1] or out.dtype != h.dtype:
        found, wanted = f"{tuple(out.shape)} {out.dtype}", f"(M, {h.shape[1]}) {h.dtype}"
        raise UserError(f"window_restore: out is {found}, {wanted} was wanted")
    for name, rows in (("base", base), ("source", source)):
        if rows.dim() != 1 or rows.dtype != torch.int64 or rows.shape != base.shape:
            found = f"{tuple(rows.shape)} {rows.dtype}"
            raise UserError(f"window_restore: {name} is {found}, (P,) torch.int64 as base was wanted")
    impl = choose("window_restore", impl, _available(h), h, out, base, source)
    result: Tensor = _op(h, out, base, source, impl)
    return result


def _available(h: Tensor) -> dict[str, str | None]:
    why = native.problem() if h.device.type == "cpu" else f"the compiled kernel is the CPU's, h is on {h.device}"
    if why is None and h.dtype not in NATIVE_DTYPES:
        why = f"the compiled kernel takes float32 and bfloat16, h is {h.dtype}"
    return {"reference": None, "triton": None, "native": why}


@torch.library.custom_op("fasttrace::window_restore", mutates_args=())
def _op(h: Tensor, out: Tensor, base: Tensor, source: Tensor, impl: str) -> Tensor:
    if impl == "triton":
        result: Tensor = triton_launcher("window_restore")(h, out, base, source)
        return result
    if impl == "native":
        _check_rows(h, out, base, source)
        result = h.new_empty(base.shape[0], h.shape[1])
        operands = [t.contiguous() for t in (h, out, base, source)]
        torch.ops.fasttrace.window_restore_(*operands, result)
        return result
    return window_restore_reference(h, out, base, source)


@_op.register_fake
def _(h: Tensor, out: Tensor, base: Tensor, source: Tensor, impl: str) -> Tensor:
    return h.new_empty(base.shape[0], h.shape[1])


def window_restore_reference(h: Tensor, out: Tensor, base: Tensor, source: Tensor) -> Tensor:
    """The definition of `window_restore`, with the same arguments, for any device."""
    if h.device.type == "cpu":
        _check_rows(h, out, base, source)
    elif base.numel():
        outside = (base < -1) | (base >= len(h)) | (source < -1) | (source >= len(out))
        base, source = base.clamp(-1, len(h) - 1), source.clamp(-1, len(out) - 1)
        rows = _sum(h, out, base, source)
        return rows.masked_fill_(outside[:, None], float("nan"))
    return _sum(h, out, base, source)


def _check_rows(h: Tensor, out: Tensor, base: Tensor, source: Tensor) -> None:
    if base.numel() == 0:
        return
    for name, rows, end in (("base", base, len(h)), ("source", source, len(out))):
        low, high = (int(value) for value in rows.aminmax())
        if low < -1 or high >= end:
            found, wanted = f"values {low} … {high}", f"-1 … {end - 1}"
            raise UserError(f"window_restore: {name} has {found}, {wanted} was wanted")


def _sum(h: Tensor, out: Tensor, base: Tensor, source: Tensor) -> Tensor:
    nothing = base < 0
    if bool(nothing.any()):
        result = h.new_zeros(len(base), h.shape[1]).index_add_(0, (~nothing).nonzero()[:, 0], h[base[~nothing]])
    else:
        result = h.index_select(0, base)
    zeroed = source < 0
    if bool(zeroed.any()):
        # Not 0 · out: a zeroed output may hold anything, infinities too.
        added = (~zeroed).nonzero()[:, 0]
        return result.index_add_(0, added, out.index_select(0, source[added]))
    return result.add_(out.index_select(0, source))


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    h, out, base, source, _ = inputs
    ctx.rows = (h.shape[0], out.shape[0])
    ctx.save_for_backward(base, source)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    base, source = ctx.saved_tensors
    n, m = ctx.rows
    grad_h = grad_out = None
    if ctx.needs_input_grad[0]:
        grad_h = _gathered(grad, base, n)
    if ctx.needs_input_grad[1]:
        grad_out = _gathered(grad, source, m)
    return grad_h, grad_out, None, None, None


def _gathered(grad: Tensor, rows: Tensor, count: int) -> Tensor:
    """(count, d) sums of grad's rows by the row they came from; those of −1 fall into one that is cut off."""
    rows = torch.where(rows < 0, count, rows)
    return grad.new_zeros(count + 1, grad.shape[1]).index_add(0, rows, grad)[:count]


_op.register_autograd(_backward, setup_context=_setup_context)


def _fake_native(h: Tensor, out: Tensor, base: Tensor, source: Tensor, result: Tensor) -> None:
    """An in-place op makes nothing, so tracing needs nothing from it."""


if native.problem() is None:
    torch.library.register_fake("fasttrace::window_restore_")(_fake_native)
