"""target_logprob: the log-probability of one token per row, computed without storing a row of V logits."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose, triton_launcher
from fasttrace.ops.linear import linear

DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)
# 256 x 8192 float32 logits stay in cache: 512 rows and a (49152, 576) unembedding take 90 ms, whole rows 149 ms.
ROW_BLOCK, VOCAB_BLOCK = 256, 8192
# Whether the processor multiplies bfloat16 itself. Elsewhere the kernel's gradient is slower (128 rows: 802 ms, 576).
NATIVE_IS_FASTER = native.unavailable_reason() is None and torch.ops.fasttrace.bfloat16_products() > 0


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
    impl: "native" is for bfloat16 on a CPU. It multiplies bfloat16 and sums in float32, by the processor's own products
        where it has AMX or AVX512_BF16; "auto" takes it there. The reference widens both factors to float32. Neither
        rounds a logit to bfloat16.
    Returns (R,) float32 (float64 for float64 rows), in nats. Differentiable once w.r.t. h. Where h requires grad, log p
    and ∂ log p / ∂h come from one pass over the unembedding: the reference's, for Triton too. Native has two.

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
    tensors = (h, norm_weight, norm_bias, unembed, bias, target)
    faster = lambda name: name != "native" or NATIVE_IS_FASTER  # noqa: E731
    impl = choose("target_logprob", impl, _available(h), *tensors, worthwhile=faster)
    sloped = h.requires_grad and torch.is_grad_enabled()
    logprob, _ = _op(h, norm_weight, norm_bias, float(eps), kind, unembed, bias, target, softcap, impl, sloped)
    return logprob


def _available(h: Tensor) -> dict[str, str | None]:
    why = "the Triton kernel sums in float32 and h is float64" if h.dtype == torch.float64 else None
    return {"reference": None, "triton": why, "native": _native_reason(h)}


def _native_reason(h: Tensor) -> str | None:
    """Why the compiled kernel cannot take these rows, or None where it can."""
    if h.device.type != "cpu":
        return f"the compiled kernel is for the CPU, these are on {h.device}"
    if h.dtype != torch.bfloat16:
        return f"the compiled kernel takes bfloat16, these are {h.dtype}"
    return native.unavailable_reason()


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
    sloped: bool,
) -> tuple[Tensor, Tensor]:
    """(R,) log p, and (R, d) ∂ log p / ∂h where it is asked for (`sloped`), else (0, d)."""
    # Triton's kernel returns NaN for a target out of range, because reading targets here would stall the GPU.
    if target.numel() and (impl != "triton" or target.device.type == "cpu"):
        low, high = torch.stack(target.aminmax()).tolist()
        if low < 0 or high >= len(unembed):
            raise UserError(f"target_logprob: expected target in 0 … {len(unembed) - 1}, got values {low} … {high}")
    args = (h, norm_weight, norm_bias, eps, kind, unembed, bias, target, softcap)
    if impl == "native":
        return _compiled(*args, sloped)
    if sloped:
        return _with_slope(*args)
    logprob = triton_launcher("target_logprob")(*args)[0] if impl == "triton" else target_logprob_reference(*args)
    return logprob, h.new_empty((0, h.shape[1]), dtype=_wide(h.dtype))


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
    sloped: bool,
) -> tuple[Tensor, Tensor]:
    wide = _wide(h.dtype)
    return h.new_empty(h.shape[0], dtype=wide), h.new_empty((h.shape[0] if sloped else 0, h.shape[1]), dtype=wide)


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


def _compiled(
    h: Tensor,
    norm_weight: Tensor,
    norm_bias: Tensor | None,
    eps: float,
    kind: str,
    unembed: Tensor,
    bias: Tensor | None,
    target: Tensor,
    softcap: float | None,
    sloped: bool,
) -> tuple[Tensor, Tensor]:
    """The values of `_op` by the compiled kernel, whose second pass for the slope computes the logits again."""
    x = _norm(h, norm_weight, norm_bias, eps, kind).contiguous()
    args = (x, unembed, None if bias is None else bias.contiguous(), target.contiguous(), softcap or 0.0)
    logprob, total = (h.new_empty(len(h), dtype=torch.float32) for _ in range(2))
    torch.ops.fasttrace.token_logprob_(*args, logprob, total)
    slope = h.new_empty((len(h) if sloped else 0, h.shape[1]), dtype=torch.float32)
    if sloped:
        torch.ops.fasttrace.token_logprob_backward_(torch.ones_like(total), total, *args, slope)
        slope = _norm_backward(slope, h.float(), norm_weight.float(), eps, kind)
    return logprob, slope


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
) -> Tensor:
    """The definition of `target_logprob`, for any device: (R,) log p."""
    x = _norm(h, norm_weight, norm_bias, eps, kind)
    logprob = h.new_empty(len(h), dtype=_wide(h.dtype))
    for top in range(0, len(h), ROW_BLOCK):
        rows = slice(top, top + ROW_BLOCK)
        hit = torch.zeros_like(logprob[rows])
        parts = []
        for begin in range(0, len(unembed), VOCAB_BLOCK):
            logits = _logits(x[rows], unembed, bias, softcap, begin)
            parts.append(logits.logsumexp(1))
            # The target's logit comes from the product that is summed, so that log p ≤ 0 up to a rounding.
            hit = _hit(hit, logits, target[rows] - begin)
        logprob[rows] = hit - torch.stack(parts).logsumexp(0)
    return logprob


def _hit(before: Tensor, logits: Tensor, column: Tensor) -> Tensor:
    """logits[i, column[i]] where that column is in the block, else before[i]: (rows,)."""
    here = (column >= 0) & (column < logits.shape[1])
    return torch.where(here, logits.gather(1, column.clamp(0, logits.shape[1] - 1)[:, None])[:, 0], before)


def _with_slope(
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
    """(R,) log p and (R, d) ∂ log p / ∂h, from one pass over the unembedding.

    ∂ log p / ∂x = s_t U_t − Σ_v softmax_v s_v U_v, with s = ∂ cap(a) / ∂a. The sum is kept relative to the largest
    logit so far, and scaled down where a later block has a larger one.
    """
    wide = _wide(h.dtype)
    x = _norm(h, norm_weight, norm_bias, eps, kind)
    logprob = h.new_empty(len(h), dtype=wide)
    slope = h.new_empty(h.shape, dtype=wide)
    for first in range(0, len(h), ROW_BLOCK):
        rows = slice(first, first + ROW_BLOCK)
        # A target outside the vocabulary stays NaN, as in Triton's kernel.
        hit, total = torch.full_like(logprob[rows], torch.nan), torch.zeros_like(logprob[rows])
        top, mean = torch.full_like(hit, -torch.inf), torch.zeros_like(slope[rows])
        for begin in range(0, len(unembed), VOCAB_BLOCK):
            logits = _logits(x[rows], unembed, bias, softcap, begin)
            hit = _hit(hit, logits, target[rows] - begin)
            higher = torch.maximum(top, logits.amax(1))
            # inf − inf would be NaN in the exponents.
            level = torch.where(higher.isinf(), 0.0, higher)
            shrunk = torch.exp(top - level)
            # d cap(a) / da = 1 − (cap(a) / softcap)².
            steep = None if softcap is None else 1 - (logits / softcap).square_()
            weights = logits.sub_(level[:, None]).exp_()
            total = total * shrunk + weights.sum(1)
            if steep is not None:
                weights *= steep
            below = unembed[begin : begin + VOCAB_BLOCK].to(wide)
            mean = mean.mul_(shrunk[:, None]).add_(linear(weights, below.t()))
            top = higher
        logprob[rows] = hit - (top + total.log())
        own = unembed[target[rows].clamp(0, len(unembed) - 1)].to(wide)
        if softcap is not None:
            own = own * (1 - (hit / softcap).square())[:, None]
        slope[rows] = own - mean / total[:, None]
    return logprob, _norm_backward(slope, h.to(wide), norm_weight.to(wide), eps, kind)


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


@torch.library.custom_op("fasttrace::scaled_slope", mutates_args=())
def _scaled(grad: Tensor, slope: Tensor, dtype: torch.dtype) -> Tensor:
    """(R, d), grad[i] · slope[i]. An op without a gradient of its own, so that a second derivative is refused."""
    return (grad[:, None] * slope).to(dtype)


@_scaled.register_fake
def _(grad: Tensor, slope: Tensor, dtype: torch.dtype) -> Tensor:
    return torch.empty_like(slope, dtype=dtype)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(output[1])
    ctx.dtype = inputs[0].dtype


def _backward(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    (slope,) = ctx.saved_tensors
    return (_scaled(grad, slope, ctx.dtype), *(None,) * 10)


_op.register_autograd(_backward, setup_context=_setup_context)
