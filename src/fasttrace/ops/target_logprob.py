"""target_logprob: the log-probability of one token per row, computed without storing a row of V logits."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fasttrace.errors import UserError
from fasttrace.ops.dispatch import choose, triton_launcher
from fasttrace.ops.linear import linear

IMPLEMENTATIONS = ("reference", "triton")
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# 256 x 8192 float32 logits stay in cache: 512 rows and a (49152, 576) unembedding take 90 ms, whole rows 149 ms.
ROW_BLOCK, VOCAB_BLOCK = 256, 8192


def target_logprob(
    h: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    kind: str,
    unembed: Tensor,
    bias: Tensor | None,
    target: Tensor,
    softcap: float | None = None,
    impl: str = "auto",
) -> Tensor:
    """result[i] = a[i, t_i] − log Σ_v exp(a[i, v]), with a = cap(x Uᵀ + b), x = norm(h) and t = target.

    cap(a) = softcap · tanh(a / softcap) where a softcap is given (Gemma 2), else a.
    "rms":   norm(h) = norm_weight · h / √(mean h² + eps)
    "layer": norm(h) = norm_weight · (h − mean h) / √(var h + eps) + norm_bias
    The norm's statistics, the logits and their sum are float32 (float64 for float64 rows); norm(h) is rounded
    to the dtype of h, as the models do.

    h: (R, d) float32, bfloat16, float16 or float64: residual rows before the final norm.
    norm_weight, norm_bias: (d,) dtype of h. norm_bias is None for "rms", and for a "layer" norm without a bias.
    unembed: (V, d) dtype of h.
    bias: (V,) dtype of h, or None.
    target: (R,) int64, 0 … V-1. A target out of range is a UserError, or a result of NaN with Triton on a GPU.
    softcap: > 0, in nats, or None.
    Returns (R,) float32 (float64 for float64 rows), in nats. Differentiable once w.r.t. h: the backward pass
    computes the softmax again, block by block.

    Raises UserError for arguments that differ from these, and for a norm_weight, norm_bias, unembed or bias that
    requires grad while grad is enabled.
    Source: docs/algorithms.md, sections 4 (score) and 9 (logits at the scored positions only).
    """
    if h.dim() != 2 or h.dtype not in DTYPES or 0 in h.shape[1:]:
        raise UserError(f"target_logprob: expected h to be (R, d) floating point, got {tuple(h.shape)} {h.dtype}")
    rows, d = h.shape
    if unembed.dim() != 2 or unembed.shape[1] != d or unembed.shape[0] == 0:
        raise UserError(f"target_logprob: expected unembed of shape (V, {d}), got {tuple(unembed.shape)}")
    vectors = (("norm_weight", norm_weight, d), ("norm_bias", norm_bias, d), ("bias", bias, unembed.shape[0]))
    for name, vector, size in vectors:
        if vector is not None and vector.shape != (size,):
            raise UserError(f"target_logprob: expected {name} of shape ({size},), got {tuple(vector.shape)}")
    for name, weight in (*((name, vector) for name, vector, _ in vectors), ("unembed", unembed)):
        if weight is not None and weight.dtype != h.dtype:
            raise UserError(f"target_logprob: expected {name} to be {h.dtype} to match h, got {weight.dtype}")
        if weight is not None and weight.requires_grad and torch.is_grad_enabled():
            raise UserError(f"target_logprob: {name} requires grad, but the gradient is w.r.t. h only")
    if target.shape != (rows,) or target.dtype != torch.int64:
        found = f"{tuple(target.shape)} {target.dtype}"
        raise UserError(f"target_logprob: expected target to be ({rows},) torch.int64, got {found}")
    if kind not in ("rms", "layer"):
        raise UserError(f"target_logprob: expected kind to be 'rms' or 'layer', got {kind!r}")
    if kind == "rms" and norm_bias is not None:
        raise UserError("target_logprob: expected norm_bias to be None for kind 'rms', got a tensor")
    if softcap is not None and softcap <= 0:
        raise UserError(f"target_logprob: expected softcap to be a positive number or None, got {softcap}")
    impl = choose("target_logprob", impl, _available(h), h, norm_weight, norm_bias, unembed, bias, target)
    logprob, _ = _op(h, norm_weight, norm_bias, float(eps), kind, unembed, bias, target, softcap, impl)
    return logprob


def _available(h: Tensor) -> dict[str, str | None]:
    why = "the Triton kernel sums in float32 and h is float64" if h.dtype == torch.float64 else None
    return {"reference": None, "triton": why}


@torch.library.custom_op("fasttrace::target_logprob", mutates_args=())
def _op(
    h: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    kind: str,
    unembed: Tensor,
    bias: Tensor | None,
    target: Tensor,
    softcap: float | None,
    impl: str,
) -> tuple[Tensor, Tensor]:
    """(log p, log-sum-exp), both (R,)."""
    # Triton's kernel returns NaN for a target out of range, because reading targets here would stall the GPU.
    if target.numel() and (impl == "reference" or target.device.type == "cpu"):
        low, high = torch.stack(target.aminmax()).tolist()
        if low < 0 or high >= len(unembed):
            raise UserError(f"target_logprob: expected target in 0 … {len(unembed) - 1}, got values {low} … {high}")
    if impl == "triton":
        launch = triton_launcher("target_logprob")
        pair: tuple[Tensor, Tensor] = launch(h, norm_weight, norm_bias, eps, kind, unembed, bias, target, softcap)
        return pair
    return target_logprob_reference(h, norm_weight, norm_bias, eps, kind, unembed, bias, target, softcap)


@_op.register_fake
def _(
    h: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    kind: str,
    unembed: Tensor,
    bias: Tensor | None,
    target: Tensor,
    softcap: float | None,
    impl: str,
) -> tuple[Tensor, Tensor]:
    empty = h.new_empty(h.shape[0], dtype=_wide(h.dtype))
    return empty, torch.empty_like(empty)


def _wide(dtype: torch.dtype) -> torch.dtype:
    return torch.float64 if dtype == torch.float64 else torch.float32


def _norm(h: Tensor, weight: Tensor, bias: Tensor | None, eps: float, kind: str) -> Tensor:
    """The final norm: (R, d) → (R, d), as defined in `target_logprob`."""
    x = h.to(_wide(h.dtype))
    if kind == "rms":
        return weight * (x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps)).to(h.dtype)
    wide = None if bias is None else bias.to(x.dtype)
    return functional.layer_norm(x, h.shape[-1:], weight.to(x.dtype), wide, eps).to(h.dtype)


def _logits(x: Tensor, unembed: Tensor, bias: Tensor | None, softcap: float | None, begin: int) -> Tensor:
    """cap(x · U[v] + b[v]) for the block of v that starts at `begin`: (rows, ≤ VOCAB_BLOCK), float32 or wider."""
    wide = _wide(x.dtype)
    block = slice(begin, begin + VOCAB_BLOCK)
    logits = linear(x.to(wide), unembed[block].to(wide), None if bias is None else bias[block].to(wide))
    return logits if softcap is None else logits.div_(softcap).tanh_().mul_(softcap)


def target_logprob_reference(
    h: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    kind: str,
    unembed: Tensor,
    bias: Tensor | None,
    target: Tensor,
    softcap: float | None,
) -> tuple[Tensor, Tensor]:
    """The definition of `target_logprob`, for any device: (log p, log-sum-exp), both (R,)."""
    x = _norm(h, norm_weight, norm_bias, eps, kind)
    logprob = h.new_empty(len(h), dtype=_wide(h.dtype))
    total = torch.empty_like(logprob)
    for top in range(0, len(h), ROW_BLOCK):
        rows = slice(top, top + ROW_BLOCK)
        hit = torch.zeros_like(total[rows])
        parts = []
        for begin in range(0, len(unembed), VOCAB_BLOCK):
            logits = _logits(x[rows], unembed, bias, softcap, begin)
            parts.append(logits.logsumexp(1))
            # The target's logit comes from the product that is summed, so that log p ≤ 0 up to a rounding.
            column = target[rows] - begin
            here = (column >= 0) & (column < logits.shape[1])
            at = logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])[:, 0]
            hit = torch.where(here, at, hit)
        total[rows] = torch.stack(parts).logsumexp(0)
        logprob[rows] = hit - total[rows]
    return logprob, total


@torch.library.custom_op("fasttrace::target_logprob_backward", mutates_args=())
def _backward_op(
    grad: Tensor,
    total: Tensor,
    h: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    kind: str,
    unembed: Tensor,
    bias: Tensor | None,
    target: Tensor,
    softcap: float | None,
) -> Tensor:
    """∂/∂h of Σ_i grad[i] log p_i: grad (1[v = t] − softmax_v) at logit v, back through cap, U and the norm."""
    wide = _wide(h.dtype)
    x = _norm(h, norm_weight, norm_bias, eps, kind)
    grad_x = torch.zeros(h.shape, dtype=wide, device=h.device)
    for top in range(0, len(h), ROW_BLOCK):
        rows = slice(top, top + ROW_BLOCK)
        scale = grad[rows, None]
        for begin in range(0, len(unembed), VOCAB_BLOCK):
            logits = _logits(x[rows], unembed, bias, softcap, begin)
            # d cap(a) / da = 1 − (cap(a) / softcap)².
            steep = None if softcap is None else 1 - (logits / softcap).square_()
            slope = logits.sub_(total[rows, None]).exp_().mul_(-scale)
            column = target[rows, None] - begin
            here = (column >= 0) & (column < slope.shape[1])
            slope.scatter_add_(1, column.clamp(0, slope.shape[1] - 1), torch.where(here, scale, 0.0))
            if steep is not None:
                slope *= steep
            grad_x[rows] += linear(slope, unembed[begin : begin + VOCAB_BLOCK].to(wide).t())
    return _norm_backward(grad_x, h.to(wide), norm_weight.to(wide), eps, kind).to(h.dtype)


def _norm_backward(grad: Tensor, h: Tensor, weight: Tensor, eps: float, kind: str) -> Tensor:
    """∂/∂h = (g − [mean g] − ĥ · mean(g · ĥ)) / s with g = grad · weight, ĥ the norm without weight and bias,
    s its divisor, and [mean g] for "layer" only."""
    grad = grad * weight
    if kind == "layer":
        h = h - h.mean(-1, keepdim=True)
        grad = grad - grad.mean(-1, keepdim=True)
    inverse = torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    unit = h * inverse
    return inverse * (grad - unit * (grad * unit).mean(-1, keepdim=True))


@_backward_op.register_fake
def _(
    grad: Tensor,
    total: Tensor,
    h: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    kind: str,
    unembed: Tensor,
    bias: Tensor | None,
    target: Tensor,
    softcap: float | None,
) -> Tensor:
    return torch.empty_like(h)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    h, norm_weight, norm_bias, ctx.eps, ctx.kind, unembed, bias, target, ctx.softcap, _ = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1], h, norm_weight, norm_bias, unembed, bias, target)


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    total, h, norm_weight, norm_bias, unembed, bias, target = ctx.saved_tensors
    grad_h = _backward_op(grad, total, h, norm_weight, norm_bias, ctx.eps, ctx.kind, unembed, bias, target, ctx.softcap)
    return (grad_h, *(None,) * 9)


_op.register_autograd(_backward, setup_context=_setup_context)
