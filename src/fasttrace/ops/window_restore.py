"""window_restore: the residual sum of a block in which a window restores or zeroes module outputs."""

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

    `base` is the residual row. `source` is the module output added to it: the row's own output, the clean run's where
    a window restores it, or −1 where a window zeroes it. Both are −1 where a whole block is zeroed. Rows that enter the
    wave are given in the same way.

    h: (N, d) float32, bfloat16, float16 or float64.
    out: (M, d) dtype of h; M may be 0 where every source is −1.
    base: (P,) int64, −1 … N−1.
    source: (P,) int64, −1 … M−1.
    impl: "auto", "reference", "triton" or "native" (CPU, float32 and bfloat16, one pass).
    Returns (P, d), the dtype of h. Linear in h and out, and differentiable w.r.t. both.

    Raises UserError for shapes and dtypes that differ from these. Rows out of range are a UserError for the reference
    and the native op on the CPU. On other devices, where checking would stall every layer, their result is NaN.
    Source: docs/algorithms.md, sections 5 and 7 (a cell; zeroing) and 9.
    """
    if h.dim() != 2 or h.dtype not in DTYPES:
        raise UserError(f"window_restore: expected h to be (N, d) floating point, got {tuple(h.shape)} {h.dtype}")
    if out.dim() != 2 or out.shape[1] != h.shape[1] or out.dtype != h.dtype:
        found, expected = f"{tuple(out.shape)} {out.dtype}", f"(M, {h.shape[1]}) {h.dtype}"
        raise UserError(f"window_restore: expected out to be {expected} to match h, got {found}")
    for name, rows in (("base", base), ("source", source)):
        if rows.dim() != 1 or rows.dtype != torch.int64 or rows.shape != base.shape:
            found = f"{tuple(rows.shape)} {rows.dtype}"
            raise UserError(f"window_restore: expected {name} to be (P,) torch.int64, as long as base, got {found}")
    impl = choose("window_restore", impl, _available(h), h, out, base, source)
    result: Tensor = _op(h, out, base, source, impl)
    return result


def _available(h: Tensor) -> dict[str, str | None]:
    on_cpu = h.device.type == "cpu"
    reason = native.unavailable_reason() if on_cpu else f"the compiled kernel is for the CPU, h is on {h.device}"
    if reason is None and h.dtype not in NATIVE_DTYPES:
        reason = f"the compiled kernel takes float32 and bfloat16, h is {h.dtype}"
    return {"reference": None, "triton": None, "native": reason}


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
            raise UserError(f"window_restore: expected {name} in -1 … {end - 1}, got values {low} … {high}")


def _sum(h: Tensor, out: Tensor, base: Tensor, source: Tensor) -> Tensor:
    nothing = base < 0
    if bool(nothing.any()):
        result = h.new_zeros(len(base), h.shape[1]).index_add_(0, (~nothing).nonzero()[:, 0], h[base[~nothing]])
    else:
        result = h.index_select(0, base)
    zeroed = source < 0
    if bool(zeroed.any()):
        # Not 0 · out, because a zeroed output may contain infinities.
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
    """(count, d): the rows of grad (P, d) summed by the row they came from. Those from −1 are dropped."""
    rows = torch.where(rows < 0, count, rows)
    return grad.new_zeros(count + 1, grad.shape[1]).index_add(0, rows, grad)[:count]


_op.register_autograd(_backward, setup_context=_setup_context)


def _fake_native(h: Tensor, out: Tensor, base: Tensor, source: Tensor, result: Tensor) -> None:
    """The op works in place and returns nothing, so there is nothing to fake."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::window_restore_")(_fake_native)
