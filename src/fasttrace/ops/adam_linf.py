"""adam_linf_: a step of Adam on many weight changes and the clamp to a max-norm ball, in one pass.

Floor: 24 bytes per element of delta (delta, m and v, each read and written) at the memory's bandwidth. Reading the
factors and the 2·R/P operations per element of the gradient take less time than that.
"""

import math

import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose, triton_launcher

_FLOATS = (torch.float32, torch.bfloat16)


def adam_linf_(
    delta: Tensor,
    m: Tensor,
    v: Tensor,
    g: Tensor,
    k: Tensor,
    begin: Tensor,
    step: int,
    lr: float,
    limit: float | None,
    *,
    active: Tensor | None = None,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
    impl: str = "auto",
) -> Tensor:
    """For each item p, with rows r = begin[p] … begin[p + 1] − 1 and t = step, in place and in float32:

        G = Σ_r g[r] k[r]ᵀ
        m = β1 m + (1 − β1) G,   v = β2 v + (1 − β2) G²
        delta = clamp(delta − lr / (1 − β1ᵗ) · m / (√v / √(1 − β2ᵗ) + eps), −limit, limit)

    delta: (P, d, n) float32, contiguous: the weights of item p minus the weights they started from.
    m, v: (P, d, n) float32, contiguous: Adam's moments, zeros before step 1.
    g: (R, d) float32 or bfloat16: the loss's gradient w.r.t. the layer's output rows.
    k: (R, n) float32 or bfloat16: the layer's input rows.
    begin: (P + 1,) int64 on the CPU, ascending from 0 to R. An item without rows has gradient 0.
    step: 1, 2, …: the number of this step, the same for every active item.
    limit: > 0, in the unit of a weight, or None for no clamp.
    active: (P,) bool on the CPU, or None for all. Inactive items keep their delta, m and v.
    impl: "auto", "reference", "triton", or "native" (CPU). The last two never store G as a whole.
    Returns delta.

    Raises UserError for arguments that differ from these, and where a gradient is required.
    Source: Kingma and Ba 2015 (arXiv 1412.6980), algorithm 1; Zhu et al. 2020 (arXiv 2012.00363), the constraint;
    docs/algorithms.md, section 15 (constrained fine-tuning). The order of operations is torch.optim.Adam's.
    """
    _check(delta, m, v, g, k, begin, active)
    if step < 1:
        raise UserError(f"adam_linf_: expected step to be 1 or more, got {step}")
    if limit is not None and not limit > 0:
        raise UserError(f"adam_linf_: expected limit to be a positive number or None, got {limit}")
    for name, beta in (("beta1", beta1), ("beta2", beta2)):
        if not 0 <= beta < 1:
            raise UserError(f"adam_linf_: expected 0 ≤ {name} < 1, got {beta}")
    if not eps >= 0:
        raise UserError(f"adam_linf_: expected eps to be 0 or more, got {eps}")
    impl = choose("adam_linf_", impl, _available(delta), delta, m, v, g, k)
    if impl == "reference":
        return adam_linf_reference(
            delta, m, v, g, k, begin, step, lr, limit, active=active, beta1=beta1, beta2=beta2, eps=eps
        )
    g, k = (t if t.stride(1) == 1 else t.contiguous() for t in (g, k))
    bound = math.inf if limit is None else limit
    if impl == "triton":
        triton_launcher("adam_linf")(delta, m, v, g, k, begin, active, step, lr, bound, beta1, beta2, eps)
        return delta
    chosen = None if active is None else active.contiguous()
    torch.ops.fasttrace.adam_linf_(delta, m, v, g, k, begin.contiguous(), chosen, step, lr, bound, beta1, beta2, eps)
    return delta


def adam_linf_reference(
    delta: Tensor,
    m: Tensor,
    v: Tensor,
    g: Tensor,
    k: Tensor,
    begin: Tensor,
    step: int,
    lr: float,
    limit: float | None,
    *,
    active: Tensor | None = None,
    beta1: float = 0.9,
    beta2: float = 0.999,
    eps: float = 1e-8,
) -> Tensor:
    """The definition of `adam_linf_`, with the same arguments, for any device: one item at a time, with G in memory."""
    bounds = begin.tolist()
    for p in range(len(delta)):
        if active is not None and not active[p]:
            continue
        rows = slice(bounds[p], bounds[p + 1])
        G = g[rows].float().T @ k[rows].float()
        m[p].lerp_(G, 1 - beta1)
        v[p].mul_(beta2).addcmul_(G, G, value=1 - beta2)
        denominator = (v[p].sqrt() / math.sqrt(1 - beta2**step)).add_(eps)
        delta[p].addcdiv_(m[p], denominator, value=-lr / (1 - beta1**step))
        if limit is not None:
            delta[p].clamp_(-limit, limit)
    return delta


def _available(delta: Tensor) -> dict[str, str | None]:
    on_cpu = delta.device.type == "cpu"
    elsewhere = f"the compiled kernel is for the CPU, delta is on {delta.device}"
    return {"reference": None, "triton": None, "native": native.unavailable_reason() if on_cpu else elsewhere}


def _check(delta: Tensor, m: Tensor, v: Tensor, g: Tensor, k: Tensor, begin: Tensor, active: Tensor | None) -> None:
    op = "adam_linf_"
    if delta.dim() != 3:
        raise UserError(f"{op}: expected delta of shape (P, d, n), got {tuple(delta.shape)}")
    items, d, n = delta.shape
    for name, tensor in (("delta", delta), ("m", m), ("v", v)):
        if tensor.shape != delta.shape or tensor.dtype != torch.float32:
            found, expected = f"{tuple(tensor.shape)} {tensor.dtype}", f"{tuple(delta.shape)} torch.float32"
            raise UserError(f"{op}: expected {name} to be {expected}, got {found}")
        if not tensor.is_contiguous():
            raise UserError(f"{op}: expected {name} to be contiguous, got strides {tensor.stride()}")
    for name, tensor, width in (("g", g, d), ("k", k, n)):
        if tensor.dim() != 2 or tensor.shape[1] != width or len(tensor) != len(g):
            shape = tuple(tensor.shape)
            raise UserError(f"{op}: expected {name} of shape (R, {width}) with R the rows of g, got {shape}")
        if tensor.dtype not in _FLOATS:
            raise UserError(f"{op}: expected {name} to be torch.float32 or torch.bfloat16, got {tensor.dtype}")
    for name, vector, count, dtype in (("begin", begin, items + 1, torch.int64), ("active", active, items, torch.bool)):
        if vector is None:
            continue
        if vector.shape != (count,) or vector.dtype != dtype or vector.device.type != "cpu":
            found = f"{tuple(vector.shape)} {vector.dtype} on {vector.device}"
            raise UserError(f"{op}: expected {name} to be ({count},) {dtype} on cpu, got {found}")
    bounds = begin.tolist()
    if bounds[0] != 0 or bounds[-1] != len(g) or bounds != sorted(bounds):
        raise UserError(f"{op}: expected begin to ascend from 0 to {len(g)}, the rows of g, got {bounds}")
    native.refuse_gradients(op, delta=delta, m=m, v=v, g=g, k=k)


def _fake(
    delta: Tensor,
    m: Tensor,
    v: Tensor,
    g: Tensor,
    k: Tensor,
    begin: Tensor,
    active: Tensor | None,
    step: int,
    lr: float,
    limit: float,
    beta1: float,
    beta2: float,
    eps: float,
) -> None:
    """The op works in place and returns nothing, so there is nothing to fake."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::adam_linf_")(_fake)
