"""ROME: one rank-one update of one down-projection, ΔW = δ uᵀ / (uᵀk).

u = C⁻¹k*, with k* the mean key over contexts at the last subject token; δ: see `value` (docs/algorithms.md, section 13;
Meng et al. 2022, arXiv 2202.05262, section 3.1).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fasttrace.editing.delta import Edit, LowRank
from fasttrace.editing.moments import Moments
from fasttrace.editing.value import ValueBatch
from fasttrace.settings.methods import RomeSettings


def solve_rome(
    batch: ValueBatch,
    problems: Sequence[tuple[int, int]],
    settings: RomeSettings,
    moments: Moments,
    delta: Tensor,
    loss: Tensor,
) -> list[Edit]:
    """δ (P, d) → the rank-one updates, in the order of the problems (fact number, layer). Solved in float64."""
    keys = torch.stack([batch.clean.mean_key[layer][fact] for fact, layer in problems]).float()
    u = torch.empty(keys.shape, dtype=torch.float64, device=keys.device)
    for layer in {layer for _, layer in problems}:
        here = [i for i, (_, at) in enumerate(problems) if at == layer]
        u[here] = moments.inverse_key(layer, keys[here])
    divisor = batch.clean.mean_key if settings.key_mode == "r-rome" else batch.clean.key
    edits = []
    for row, (fact, layer) in enumerate(problems):
        direction = u[row] / u[row].norm()
        denominator = float(direction @ divisor[layer][fact].double())
        value = (delta[row].double() / denominator).float()
        edits.append(
            Edit(
                batch.facts[fact].fact.fact_id,
                layer,
                {layer: LowRank(value[None], direction.float()[None])},
                float(delta[row].norm() / batch.v0(layer, settings)[fact].float().norm()),
                float(loss[row]),
                denominator,
                moments.condition(layer),
            )
        )
    return edits
