"""Names, labels and numbers as text."""

import pytest

from fasttrace.analysis.naming import effect_label, group_names, number, p_text
from fasttrace.show.words import visible


def test_a_group_is_named_by_what_distinguishes_it():
    row = {
        "problem": "error-injection",
        "method": "rome",
        "protocol": "paper",
        "model": "a",
        "edit_run_id": "e" * 16,
    }
    assert list(group_names([row, row]).values()) == ["error-injection · rome"]
    assert list(group_names([row, row | {"model": "b"}]).values()) == [
        "error-injection · rome · a",
        "error-injection · rome · b",
    ]
    told = list(group_names([row, row | {"edit_run_id": "f" * 16}]).values())
    assert told == [
        "error-injection · rome · edit run eeeeeeee",
        "error-injection · rome · edit run ffffffff",
    ]


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.1234, "0.123"), (-0.5, "−0.500"), (-0.0001, "0.000"), (None, "–"), (float("nan"), "–")],
)
def test_numbers_for_labels(value, text):
    assert number(value) == text


def test_p_values_and_tokens_as_words():
    assert [p_text(p) for p in (0.00004, 0.03149, None)] == ["p < 1e-4", "p = 0.031", "p –"]
    assert [visible(token) for token in (" Tower", "\n", "  ", "a\tb")] == ["Tower", "⏎", "␣", "a⇥b"]


@pytest.mark.parametrize(
    ("localization", "effect_at", "label"),
    [
        ("denoise", "max", "tracing effect (share of p_clean − p_noised)"),
        ("attribution", "max", "estimated effect (share of p_clean − p_noised)"),
        ("noise", "last-subject", "effect of noising at the last subject token (share of p_clean − p_noised)"),
        ("noise", "last-subject-absolute", "absolute effect of noising at the last subject token (p_clean − p)"),
        ("zero", "max", "share of p(o_true) deleted by zeroing"),
        ("zero", "last-subject-absolute", "p(o_true) deleted by zeroing at the last subject token"),
    ],
)
def test_an_axis_says_what_its_effects_are(localization, effect_at, label):
    assert effect_label(localization, effect_at) == label
