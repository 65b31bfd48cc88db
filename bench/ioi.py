"""The load of indirect-object identification: prompts whose subject is swapped for the other name, and its grid."""

from collections.abc import Sequence

import numpy as np

import fasttrace as ft
from fasttrace.models import Decoder


def _fact(prompt: str, name: str, subject: str) -> ft.Fact:
    """`name` is the answer, and the counterfactual has it as the subject."""
    return ft.Fact(prompt=prompt, subject=subject, counterfactual_subject=name, target_true=name, target_false=subject)


# Every name is one token of SmolLM2's, and every prompt has 14, so that peers can have all of them in one batch.
FACTS = (
    _fact("When Mary and John went to the store, {} gave a drink to", "Mary", "John"),
    _fact("When Tom and James went to the park, {} gave the ball to", "Tom", "James"),
    _fact("When Sarah and Paul went to the office, {} gave a letter to", "Sarah", "Paul"),
    _fact("After Alice and David went to the school, {} gave a book to", "Alice", "David"),
)
SETTINGS = {
    "corruption": "counterfactual",
    "metric": "logit-difference",
    "windows": [1],
    "tokens": "all",
    "keep": "all",
}


def ioi_grid(model: Decoder, facts: Sequence[ft.Fact], module: str) -> np.ndarray:
    """The logit differences (facts, T, L, H) of a sweep, with H = 1 for module "block"."""
    cells = ft.trace(model, facts, module=module, **SETTINGS).cells.to_pandas()
    cells["fact"] = cells.fact_id.map({fact.fact_id: i for i, fact in enumerate(facts)})
    heads = max(1, cells["head"].nunique())  # it is NULL for blocks
    found = cells.sort_values(["fact", "token_index", "layer", "head"]).logit_diff_restored
    return found.to_numpy().reshape(len(facts), -1, model.n_layers, heads)
