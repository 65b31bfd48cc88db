"""PRUNE: press down the large singular values of a summed update (Ma et al. 2024, arXiv 2405.16821, section 4.2)."""

import math

import torch
from torch import Tensor


def prune(largest: float, change: Tensor, base: float) -> Tensor:
    """(d, m) float64, the update whose singular values σ above M have become M + log(σ) − log(M), to the given base.

    That number exceeds σ just above M where M · ln(base) < 1. There σ stays, where the paper's function raises it.

    largest: M, the largest singular value of W before any edit. change: ΔW, (d, m), the sum of all edits.
    """
    u, sigma, v = torch.linalg.svd(change.double(), full_matrices=False)
    pressed = largest + (sigma / largest).log() / math.log(base)
    return (u * torch.where(sigma > largest, torch.minimum(pressed, sigma), sigma)) @ v


def largest_singular_value(weight: Tensor) -> float:
    """The largest singular value of a matrix (d, m), from the eigenvalues of its smaller Gram matrix in float64."""
    w = weight.detach().double()
    gram = w @ w.T if w.shape[0] <= w.shape[1] else w.T @ w
    return float(torch.linalg.eigvalsh(gram)[-1].sqrt())
