"""ROME: one rank-one update of one down-projection, ΔW = δ uᵀ / (uᵀk).

u = C⁻¹k*, with k* the mean key over contexts at the last subject token. k is the key in the un-prefixed context, or k*
for R-ROME. The module `value` finds δ (docs/algorithms.md, section 13; Meng et al. 2022, arXiv 2202.05262, section
3.1).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from fasttrace.editing.delta import Edit, LowRank, unrouted, zero_edit
from fasttrace.editing.methods.base import alike
from fasttrace.editing.moments import Moments
from fasttrace.editing.value import ValueBatch
from fasttrace.settings.methods import RomeSettings


def solve_rome(
    batch: ValueBatch,
    jobs: Sequence[tuple[int, int]],
    settings: RomeSettings,
    moments: Moments,
    delta: Tensor,
    loss: Tensor,
) -> list[Edit]:
    """One edit of rank one per job, solved in float64.

    jobs: (index of the fact, layer). delta: (P, d) float32. loss: (P,).
    """
    of_contexts, bare = batch.read_by_rome(settings)
    u: list[Tensor] = [delta] * len(jobs)
    experts = [batch.facts[fact].experts.get(layer, ()) for fact, layer in jobs]
    for (layer, own), rows in alike([(layer, own) for (_, layer), own in zip(jobs, experts, strict=True)]):
        keys = torch.stack([of_contexts.mean_key[layer][jobs[row][0]] for row in rows]).float()
        for row, one in zip(rows, moments.inverse_key(layer, keys, experts=own), strict=True):
            u[row] = one
    divisor = of_contexts.mean_key if settings.key_mode == "r-rome" else bare.key
    edits = []
    for row, (fact, layer) in enumerate(jobs):
        fact_id, own, at = batch.facts[fact].fact.fact_id, experts[row], batch.model.blocks[layer].device
        if own and not bool(divisor[layer][fact].any()):
            edits.append(zero_edit(batch.model, fact_id, layer, [layer], unrouted(own, layer), {layer: own}))
            continue
        direction = u[row] / u[row].norm()
        denominator = float(direction @ divisor[layer][fact].double())
        missing = delta[row].double()
        if batch.anew and settings.key_mode == "rome":  # under new noise the output is not the one that δ was added to
            missing = missing + batch.clean.v0[layer][fact].double() - bare.v0[layer][fact].double()
        value = (missing / denominator).float()
        edits.append(
            Edit(
                fact_id,
                layer,
                {layer: LowRank(value[None].to(at), direction.float()[None].to(at), experts=own)},
                float(delta[row].norm() / batch.v0(layer, settings)[fact].float().norm()),
                float(loss[row]),
                denominator,
                moments.condition(layer, delta.device, experts=own),
            )
        )
    return edits
