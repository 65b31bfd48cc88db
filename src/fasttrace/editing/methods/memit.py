"""MEMIT: ΔW = R Kᵀ (λC + K_p K_pᵀ + K Kᵀ + μI)⁻¹ (Meng et al. 2022, arXiv 2210.07229, equation 14; μ = 0 there)."""

import torch
from torch import Tensor

from fasttrace.editing.methods.base import Solve
from fasttrace.settings.methods import MemitSettings


class Memit(Solve[MemitSettings]):
    """λ is covariance_weight and μ norm_weight. G = (C + μ/λ I)⁻¹."""

    name = "memit"
    freedom = "covariance_weight"

    @property
    def weight(self) -> float:
        """λ: with MEMIT, an earlier key counts as one of the new ones."""
        return self.settings.covariance_weight

    def slack(self, n: int) -> float:
        """λ."""
        return self.settings.covariance_weight

    def moved(self, layer: int, keys: Tensor, past: Tensor | None = None, experts: tuple[int, ...] = ()) -> Tensor:
        """(C + μ/λ I + K_p K_pᵀ / λ)⁻¹ k. Raises UserError where that matrix is singular."""
        extra = None if past is None else past / self.settings.covariance_weight
        return self.moments.inverse_key(layer, keys, experts=experts, added=self._added, extra=extra)

    def condition(self, layer: int, device: torch.device, experts: tuple[int, ...] = ()) -> float:
        """Condition number of C + μ/λ I plus the ridge, its diagonal scaled to 1."""
        return self.moments.condition(layer, device, experts=experts, added=self._added)

    @property
    def _added(self) -> float:
        return self.settings.norm_weight / self.settings.covariance_weight
