"""RECT: keep the part of an update that changes its weights most (Gu et al. 2024, arXiv 2401.04700, section 5)."""

import torch
from torch import Tensor


def rect(weight: Tensor, change: Tensor, share: float) -> Tensor:
    """(d, m), the update with all but a share of its entries set to zero: those with the largest |ΔW/W| stay.

    A changed weight that was 0 has the largest of all. Of entries that are equal at the limit, all stay.

    weight: W before the update, (d, m). change: ΔW, (d, m) float32 or wider. share: from 0 to 1, 0 excluded.
    """
    relative = change.abs() / weight.to(change.dtype).abs()
    relative[change == 0] = 0.0  # 0/0 where the weight is 0 too
    dropped = relative.numel() - max(1, round(share * relative.numel()))
    if dropped <= 0:
        return change
    limit = relative.flatten().kthvalue(dropped + 1).values
    return torch.where(relative >= limit, change, 0.0)
