"""adam_linf_ on the down-projections of many edits at once, beside torch's own fused Adam."""

import math

import torch
from torch import Tensor

from fasttrace.benchmarks.load import Draw, Load, traffic
from fasttrace.ops.adam_linf import adam_linf_

SHAPES = [{"items": 32, "d": 576, "m": 1536}, {"items": 2, "d": 4096, "m": 14336}]


def load(draw: Draw, items: int = 32, d: int = 576, m: int = 1536, rows: int = 15) -> Load:
    """delta and both moments (items, d, m) float32; gradients of `rows` rows per item: a prompt and its target."""
    state = [torch.zeros(items, d, m, device=draw.device) for _ in range(3)]
    factors = [draw.normal(rows * items, width) for width in (d, m)]
    args = (*state, *factors, torch.arange(items + 1) * rows, 7, 5e-4, 1e-3)
    gigabyte, gigaflop = 2 * traffic(*state) + traffic(*factors), 2e-9 * items * rows * d * m
    return Load(adam_linf_, args, _batched, {"fused_adam": _fused}, gigabyte=gigabyte, gigaflop=gigaflop)


def _batched(
    delta: Tensor, m: Tensor, v: Tensor, g: Tensor, k: Tensor, begin: Tensor, step: int, lr: float, limit: float
) -> Tensor:
    """The definition for items of equally many rows, without the loop, so that torch.compile can fuse it."""
    G = _gradients(delta, g, k)
    m.lerp_(G, 0.1)
    v.mul_(0.999).addcmul_(G, G, value=0.001)
    denominator = v.sqrt() / math.sqrt(1 - 0.999**step) + 1e-8
    return delta.addcdiv_(m, denominator, value=-lr / (1 - 0.9**step)).clamp_(-limit, limit)


def _fused(
    delta: Tensor, m: Tensor, v: Tensor, g: Tensor, k: Tensor, begin: Tensor, step: int, lr: float, limit: float
) -> Tensor:
    steps = [torch.tensor(float(step), device=delta.device)]
    torch._fused_adam_(
        [delta],
        [_gradients(delta, g, k)],
        [m],
        [v],
        [],
        steps,
        lr=lr,
        beta1=0.9,
        beta2=0.999,
        eps=1e-8,
        weight_decay=0.0,
        amsgrad=False,
        maximize=False,
    )
    return delta.clamp_(-limit, limit)


def _gradients(delta: Tensor, g: Tensor, k: Tensor) -> Tensor:
    return torch.bmm(g.view(len(delta), -1, g.shape[1]).float().mT, k.view(len(delta), -1, k.shape[1]).float())
