"""Known facts: the 36-token rule, the released floor, and the facts that a sweep leaves out."""

import pyarrow as pa
import pytest
import torch
from small_models import small_model

import fasttrace as ft
import fasttrace.tracing.known as known_module
from fasttrace.cluster.crew import Alone
from fasttrace.errors import UserError
from fasttrace.runs import describe_run
from fasttrace.workflow import known_into

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


@pytest.mark.parametrize("protocol", ["paper", "released"])
def test_case_is_ignored(smollm2, protocol):
    [spelled] = ft.check_known(smollm2, [FACTS[0]]).verdicts.to_pylist()
    assert "Paris" in spelled["continuation"]
    fact = ft.Fact(prompt="The capital of {} is", subject="France", target_true="PARIS")
    [verdict] = ft.check_known(smollm2, [fact], protocol=protocol).verdicts.to_pylist()
    assert "PARIS" not in verdict["continuation"]
    # Another spelling has another probability, which only `released` reads.
    assert verdict["known"] == (protocol == "paper" or verdict["p_true"] >= 0.02)
    assert verdict["reason"] is None or "is below 0.02" in verdict["reason"]


@pytest.mark.parametrize(
    ("text", "target", "known"),
    [
        (" a member of the Nato alliance", "the NATO", True),
        (" Die STRASSE endet hier", "straße", True),
        (" a member of the Nat", "NATO", False),
    ],
)
def test_case_is_folded_as_unicode_does(small_tokenizer, monkeypatch, text, target, known):
    tokens = small_tokenizer(text).input_ids
    monkeypatch.setattr(known_module, "greedy_tokens", lambda model, prompts, n: [tokens] * len(prompts))
    model = small_model("llama", small_tokenizer, torch.float32)
    fact = ft.Fact(prompt="{} is", subject="It", target_true=target)
    [verdict] = ft.check_known(model, [fact]).verdicts.to_pylist()
    assert verdict["continuation"] == text
    assert verdict["known"] is known


def test_verdicts_of_a_test_that_told_case_apart_are_not_used(small_tokenizer, tmp_path):
    model, store = small_model("llama", small_tokenizer, torch.float32), ft.Store(tmp_path / "old.duckdb")
    result = ft.check_known(model, FACTS)
    old = describe_run("facts", model, {"greedy_tokens": 36}, seed=0, protocol="paper")
    wrong = result.verdicts.set_column(1, "known", pa.array([True, True]))
    store.add(known_module.KnownResult({**old, "seconds": 0.0}, wrong))
    assert [row["known"] for row in known_into(store, Alone(model), FACTS, "paper", lambda n: None)] == [False, False]


def test_a_sweep_keeps_known_facts_and_gives_a_reason_for_the_others(smollm2):
    result = ft.trace(smollm2, FACTS, windows=[3], samples=1, tokens="last-subject")
    kept, left = result.facts.to_pylist()
    assert kept["kept"]
    assert not left["kept"]
    assert "36 greedy tokens" in left["reason"]
    assert left["p_noised"] is None
    assert set(result.cells["fact_id"].to_pylist()) == {FACTS[0].fact_id}
