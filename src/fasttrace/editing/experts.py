"""Which experts an edit changes at a layer with experts: where the bare prompt's last subject token goes, or others.

A layer's MLP output is Σ W_e κ_e over its experts, with the weighted keys κ_e (`models.keys.Keys`). That is one dense
down-projection [W_1 W_2 …] of all weighted keys one after another. An edit of some experts changes their columns
(docs/algorithms.md, section 14).
"""

import copy
from collections.abc import Mapping, Sequence

import torch

from fasttrace.editing.delta import Update
from fasttrace.editing.wave import Visited, walk
from fasttrace.facts import EncodedFact
from fasttrace.models.adapter import Decoder
from fasttrace.models.corrupt import Corruption, Subject, embed_corrupted, own_place
from fasttrace.models.experts import SHARED
from fasttrace.models.packed import batches, pack
from fasttrace.settings.base import refusal
from fasttrace.settings.edit import EditingSettings

PASS_ROWS = 4096  # tokens per pass over the prompts of many facts

Chosen = Mapping[int, tuple[int, ...]]  # layer with experts → those that an edit changes, ascending


def routed_layers(model: Decoder, layers: Sequence[int]) -> list[int]:
    """Those of the layers that have experts."""
    return [layer for layer in layers if model.blocks[layer].experts is not None]


def check_experts(model: Decoder, asked: EditingSettings, layers: Sequence[int], *, tuned: bool) -> list[int]:
    """Those of the layers that have experts. tuned: whether the method is fine-tuning.

    Raises UserError where a method or a setting does not fit them, or no layer has experts and a setting is for some.
    """
    routed = routed_layers(model, layers)
    if not routed and asked.experts is not None:
        raise refusal(asked, "experts", f"no value, as no layer that is edited of '{model.name}' has experts", "one")
    if routed and tuned:
        expected = f"rome or a method with a solve for layer {routed[0]}, which has experts"
        raise refusal(asked, "method", expected, asked.method)
    for layer in routed:
        block = model.blocks[layer]
        assert block.experts is not None
        if asked.experts == "shared" and block.shared is None:
            raise refusal(asked, "experts", f"no shared one, which layer {layer} does not have", "shared")
        if not isinstance(asked.experts, str | None) and max(asked.experts) >= block.experts.count:
            last = block.experts.count - 1
            raise refusal(asked, "experts", f"some of 0 to {last} at layer {layer}", max(asked.experts))
    return routed


@torch.no_grad()
def chosen_experts(
    model: Decoder,
    facts: Sequence[EncodedFact],
    layers: Sequence[int],
    asked: EditingSettings,
    corruption: Corruption | None,
) -> list[dict[int, tuple[int, ...]]]:
    """The experts that each fact's edit changes, at each of the layers, which all have experts.

    "routed": those that the router of the unedited model gives the last subject token of the bare prompt to. "top": the
    one of them with the largest weight. corruption: the noise on the subject, if the edit is optimised with it.
    """
    if asked.experts == "shared" or not isinstance(asked.experts, str | None):
        same = (SHARED,) if asked.experts == "shared" else tuple(sorted(set(asked.experts)))
        return [dict.fromkeys(layers, same) for _ in facts]
    found: list[dict[int, tuple[int, ...]]] = [{} for _ in facts]
    if not layers:
        return found
    heads = [list(fact.ids[: fact.subject_end]) for fact in facts]
    lower = copy.copy(model)
    lower.blocks = model.blocks[: max(layers) + 1]
    for part in batches(heads, PASS_ROWS):
        packed = pack(model, heads[part])
        anew = corruption is not None and corruption.anew
        subjects = [
            own_place(fact, len(head), 0) if anew else Subject(fact, fact.subject_begin, fact.subject_end)
            for fact, head in zip(facts[part], heads[part], strict=True)
        ]

        def visit(seen: Visited, mine: slice = part, rows: torch.Tensor = packed.last_rows) -> None:
            if seen.layer not in layers:
                return
            routing = seen.keys[rows.to(seen.value.device)].routing
            assert routing is not None
            experts = routing.experts
            if asked.experts == "top":
                experts = experts.gather(1, routing.weights.argmax(1, keepdim=True))
            for one, own in zip(found[mine], experts.tolist(), strict=True):
                one[seen.layer] = tuple(sorted(own))

        walk(lower, packed, embed_corrupted(model, packed, subjects, corruption), visit)
    return found


def union(chosen: Sequence[Chosen]) -> dict[int, tuple[int, ...]]:
    """Layer → all experts that any of these edits changes there, ascending."""
    layers = sorted({layer for one in chosen for layer in one})
    return {layer: tuple(sorted({e for one in chosen for e in one.get(layer, ())})) for layer in layers}


def named(updates: Mapping[int, Update]) -> str | None:
    """The experts that an edit changes, as in "5:3,7 6:0" or "5:shared". None where no layer has experts."""
    parts = []
    for layer, update in sorted(updates.items()):
        if update.experts:
            parts.append(f"{layer}:{','.join('shared' if one == SHARED else str(one) for one in update.experts)}")
    return " ".join(parts) or None
