"""noised_embed for the corrupted rows of a batch of facts, beside torch.randn."""

import torch
from torch import Tensor

from fasttrace.benchmarks.load import Draw, Load
from fasttrace.ops.noised_embed import noised_embed, normals

SHAPES = [{"facts": 1}, {"facts": 24}]


def load(
    draw: Draw, facts: int = 24, samples: int = 10, tokens: int = 10, subject: int = 4, vocab: int = 49152, d: int = 576
) -> Load:
    """weight (vocab, d); one row per (fact, sample, token); `subject` tokens of each prompt have noise."""
    grid = torch.meshgrid(*map(torch.arange, (facts, samples, tokens)), indexing="ij")
    fact, sample, token = (axis.flatten().to(draw.device) for axis in grid)
    weight, ids = draw.normal(vocab, d), draw.below(vocab, len(fact))
    args = (weight, ids, 0.4 * (token < subject), fact * 977, sample, token, 1)
    gigabyte = 2e-9 * len(fact) * d * weight.element_size()
    return Load(noised_embed, args, _every_row, yardsticks={"randn": _randn}, gigabyte=gigabyte)


def _every_row(
    weight: Tensor, ids: Tensor, sigma: Tensor, fact_key: Tensor, sample: Tensor, token: Tensor, seed: int
) -> Tensor:
    """The definition without its blocks, computed for rows without noise too, so that it can be compiled."""
    z = normals(fact_key, sample, token, seed, weight.shape[1])
    return (weight[ids].double() + sigma.double()[:, None] * z.double()).float().to(weight.dtype)


def _randn(weight: Tensor, ids: Tensor, sigma: Tensor, *_: object) -> Tensor:
    """Noise that depends on the order of the rows."""
    noise = torch.randn(len(ids), weight.shape[1], device=weight.device)
    return weight[ids] + (sigma[:, None] * noise).to(weight.dtype)
