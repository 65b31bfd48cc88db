"""Known facts: the 36-token rule, the released floor, and the facts that a sweep leaves out."""

import pytest

import fasttrace as ft
from fasttrace.errors import UserError

FACTS = [
    ft.Fact(prompt="The capital of {} is", subject="France", target_true="Paris"),
    ft.Fact(prompt="The capital of {} is", subject="Japan", target_true="Zanzibar"),
]


def test_known_and_unknown(smollm2):
    first, second = ft.check_known(smollm2, FACTS).verdicts.to_pylist()
    assert first["known"]
    assert first["p_first_token_top"]
    assert first["p_true"] > 0.5
    assert "Paris" in first["continuation"]
    assert first["reason"] is None
    assert not second["known"]
    assert "36 greedy tokens" in second["reason"]
    assert second["p_true"] < 0.01


def test_the_released_protocol_also_requires_a_probability(smollm2):
    # The model continues with " Paris.\n\nThe answer is: …", so "answer" comes within 36 tokens but not next.
    fact = ft.Fact(prompt="The capital of {} is", subject="France", target_true="answer")
    paper = ft.check_known(smollm2, [fact]).verdicts.to_pylist()[0]
    released = ft.check_known(smollm2, [fact], protocol="released").verdicts.to_pylist()[0]
    assert paper["known"]
    assert paper["p_true"] < 0.02
    assert not released["known"]
    assert "below 0.02" in released["reason"]
    with pytest.raises(UserError, match="protocol: expected one of paper, released, got 'mine'"):
        ft.check_known(smollm2, [fact], protocol="mine")


def test_a_sweep_keeps_known_facts_and_gives_a_reason_for_the_others(smollm2):
    result = ft.trace(smollm2, FACTS, windows=[3], samples=1, tokens="last-subject")
    kept, left = result.facts.to_pylist()
    assert kept["kept"]
    assert not left["kept"]
    assert "36 greedy tokens" in left["reason"]
    assert left["p_noised"] is None
    assert set(result.cells["fact_id"].to_pylist()) == {FACTS[0].fact_id}
