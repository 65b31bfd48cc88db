"""AlphaEdit: ΔW = R Kᵀ P (K_p K_pᵀ P + K Kᵀ P + μI)⁻¹ (Fang et al. 2024, arXiv 2410.02355, equation 14).

P = U₀ U₀ᵀ projects on the null space of C, the eigenvectors U₀ with eigenvalues below a threshold. So the change does
nothing to keys in the span of the other eigenvectors. It equals R Kᵀ (K_p K_pᵀ + K Kᵀ + μI)⁻¹ for keys U₀ᵀ k.
"""

import logging
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fasttrace.editing.methods.base import Solve
from fasttrace.editing.moments import Place, places_of
from fasttrace.editing.null_space import load_projection
from fasttrace.errors import UserError
from fasttrace.models.adapter import Decoder
from fasttrace.settings.methods import AlphaEditSettings

log = logging.getLogger(__name__)


class AlphaEdit(Solve[AlphaEditSettings]):
    """μ is norm_weight. G = P. C may be singular."""

    name = "alphaedit"
    freedom = "norm_weight"

    def __init__(self, *about: Any, model: Decoder, places: Sequence[Place]) -> None:
        super().__init__(*about, model=model, places=places)
        self._bases: dict[int, Tensor] = {}  # of P from a file
        own = self.settings
        if own.projections is None:
            for place in places:
                self.moments.check_null_space(place, own.null_threshold, own.null_unit, model.device)
        else:
            if routed := [place.layer for place in places if place.expert is not None]:
                raise UserError(
                    f"alphaedit: projections: expected no file for layer {routed[0]}, which has experts, got "
                    f"'{own.projections}'"
                )
            layers = [place.layer for place in places]
            read = load_projection(own.projections, model, layers)
            told = "alphaedit: the projections of '%s' are taken, in their order, for layers %s"
            log.warning(told, own.projections, ", ".join(map(str, layers)))
            for layer, P in zip(layers, read, strict=True):
                values, vectors = torch.linalg.eigh(P.double())
                self._bases[layer] = vectors[:, values > 0.5].contiguous().to(model.device)

    @property
    def weight(self) -> float:
        """μ."""
        return self.settings.norm_weight

    def slack(self, n: int) -> float:
        """μ."""
        return self.settings.norm_weight

    def moved(self, layer: int, keys: Tensor, past: Tensor | None = None, experts: tuple[int, ...] = ()) -> Tensor:
        """U₀ (I + U₀ᵀ K_p K_pᵀ U₀ / μ)⁻¹ U₀ᵀ k. Raises UserError where C has no null space."""
        if experts:
            parts = zip(places_of([layer], {layer: experts}), keys.chunk(len(experts), dim=1), strict=True)
            return torch.cat([self._moved(place, one, None) for place, one in parts], dim=1)
        return self._moved(Place(layer), keys, past)

    def _moved(self, place: Place, keys: Tensor, past: Tensor | None) -> Tensor:
        own = self.settings
        basis = self._bases.get(place.layer)
        if basis is None:
            basis = self.moments.null_space(place, own.null_threshold, own.null_unit, keys.device)
        inside = keys.to(basis.device, torch.float64) @ basis
        if past is not None:
            system = basis.T @ past.to(basis.device) @ basis / own.norm_weight
            system.diagonal().add_(1.0)
            inside = torch.cholesky_solve(inside.T, torch.linalg.cholesky(system)).T
        return (inside @ basis.T).to(keys.device)
