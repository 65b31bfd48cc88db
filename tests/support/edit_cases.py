"""Facts and contexts that every test of editing on small random models shares."""

import fasttrace as ft
from fasttrace.settings.methods import METHODS

FACTS = [
    ft.Fact(
        prompt="The {} is located in the city of",
        subject="Eiffel Tower",
        target_true="Paris",
        target_false="Rome",
        paraphrases=("Eiffel Tower is in the city of", "of Eiffel Tower, located in"),
        neighborhood=("The capital is located in the city of", "The France is located in the city of"),
    ),
    ft.Fact(
        prompt="{} is the capital of",
        subject="Paris",
        target_true="France",
        target_false="New York",
        paraphrases=("Paris, the capital of",),
        neighborhood=("Rome is the capital of",),
    ),
]
CONTEXTS = ["{}", "The city. {}", "of New York is the. {}"]


def contexts_for(method):
    """The contexts as a keyword, for the methods that use them."""
    return {"contexts": CONTEXTS} if METHODS[method].solved else {}


def check_zero(edit, row):
    """Assert that the edit is exactly zero, was not optimised and has the reason, and keeps the unedited scores."""
    assert not any(update.matrix().any() for update in edit.updates.values())
    assert "no token that predicts the target sees the last subject token after layer" in edit.reason
    assert row["reason"] == edit.reason
    assert (edit.loss, edit.delta_norm, row["loss"], row["delta_norm"]) == (None, 0.0, None, 0.0)
    for name in ("p", "p_true", "ppl"):
        assert row[f"{name}_after"] == row[f"{name}_before"]
    assert row["rewrite"] == 0.0
    assert row["paraphrase"] in (0.0, None)
    assert row["neighborhood"] in (1.0, None)
