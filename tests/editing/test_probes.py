"""Probes: their probabilities, greedy matches and scores, against weights really written and plain generation."""

import itertools
import math
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from edit_cases import CONTEXTS, FACTS
from plain_scores import p_of, written
from small_models import small_model

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.facts import encode_joined

ROME = {"steps": 6, "lr": 0.5, "kl_factor": 0.0625, "weight_decay": 0.5, "clamp": 4.0}
MEMIT = {"steps": 4, "lr": 0.5, "kl_factor": 0.0625, "weight_decay": 0.5, "clamp": 0.75, "covariance_weight": 0.05}
PROBES = (
    ft.Probe("alias", "The capital of France is", ("New York", "Rome", "New")),
    ft.Probe("locality", "The city of New York is located in", ("Paris", "France")),
    ft.Probe("portability", "Paris is the capital of", ("Rome", "located in")),
    ft.Probe("general", "The city of Rome is", ("located in", "capital"), expect="true"),
    ft.Probe("bare", "Rome is the capital of"),
    ft.Probe("bare", "Rome is located in", expect="unchanged"),
    ft.Probe("paraphrase", "The capital is", ("Paris",)),
)
FACT = replace(
    FACTS[0],
    paraphrases=("The city of France is", "France is located in"),
    neighborhood=("Rome is the capital of",),
    probes=PROBES,
)


@torch.no_grad()
def is_greedy(hf, ids, target):
    """Whether plain greedy decoding continues ids with target."""
    found = hf.generate(torch.tensor([ids]), max_new_tokens=len(target), do_sample=False, eos_token_id=None)
    return found[0, len(ids) :].tolist() == list(target)


def numbers(row):
    return {name: value for name, value in row.items() if isinstance(value, float)}


@torch.no_grad()
def answered(model):
    """A probe whose answer the unedited model gives: the first prompt whose likeliest next token is a text that
    follows it as that token."""
    words = [word for fact in FACTS for word in (*fact.text.split(), *fact.target_false.split())]
    for prompt in map(" ".join, itertools.product(words, repeat=3)):
        ids = model.tokenizer(prompt)["input_ids"]
        text = model.tokenizer.decode(model.hf(torch.tensor([ids])).logits[0, -1].argmax())
        if text.startswith(" ") and text.strip():
            encoded = encode_joined(model.tokenizer, prompt, [text])
            if is_greedy(model.hf, list(encoded.ids), encoded.targets[0]):
                return ft.Probe("known", prompt, ("Paris", text), "unchanged")
    raise AssertionError("no prompt has an answer")


def expected(model, prompt, answers, before_after):
    """(p, whether greedy decoding gives one of the answers, the likeliest answer) before and after."""
    encoded = encode_joined(model.tokenizer, prompt, answers)
    found = []
    for changes in before_after:
        with written(model.hf, changes):
            p = [p_of(model.hf, list(encoded.ids), list(target)) for target in encoded.targets]
            match = any(is_greedy(model.hf, list(encoded.ids), target) for target in encoded.targets)
        found.append((max(p), match, answers[int(np.argmax(p))]))
    return found


@pytest.mark.parametrize("family", ["llama", "gpt2", "qwen2", "gemma2"])
def test_probes_are_scored_as_the_written_weights_answer(family, small_tokenizer, corpus, tmp_path):
    model = small_model(family, small_tokenizer, torch.float64)
    moments = ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path)
    probes = (*PROBES, answered(model))
    facts = [replace(FACT, probes=probes)]
    result = ft.edit(model, facts, layers=[1, 2], moments=moments, contexts=CONTEXTS, essence=0, **ROME)
    rows = result.prompts.to_pylist()
    matches = Counter()
    for edit in result.edits:
        changes = {layer: update.matrix() for layer, update in edit.updates.items()}
        mine = {(row["kind"], row["prompt_index"]): row for row in rows if row["layer"] == edit.layer}
        assert len(mine) == 1 + 2 + 1 + len(probes)
        count = Counter(paraphrase=2, neighborhood=1)
        for probe in probes:
            row = mine[probe.kind, count[probe.kind]]
            count[probe.kind] += 1
            answers = probe.answers or ((FACT.target_true,) if probe.expect == "unchanged" else (FACT.target_false,))
            (p, match, _), (q, match_after, best) = expected(model, probe.prompt, answers, ({}, changes))
            matches[match] += 1
            assert (row["match_before"], row["match_after"], row["expect"]) == (match, match_after, probe.expect)
            if not probe.answers:
                assert row["answer"] is None
                (p, *_), (q, *_) = expected(model, probe.prompt, (FACT.target_false,), ({}, changes))
            else:
                assert (row["answer"], row["p_true_after"], row["p_false_after"]) == (best, None, None)
            assert (
                row["p_before"] if probe.expect != "unchanged" or probe.answers else row["p_false_before"]
            ) == pytest.approx(p, rel=1e-6)
            score = {
                "changed": (q - p) / (1 - p),
                "unchanged": 1 - abs(q - p) / (0.5 + abs(p - 0.5)),
                "true": q,
            }[probe.expect]
            assert row["score"] == pytest.approx(score, rel=1e-5, abs=1e-9)
        [scores] = [row for row in result.scores.to_pylist() if row["layer"] == edit.layer]
        assert mine["rewrite", 0]["score"] == scores["rewrite"]
        assert np.mean([mine["paraphrase", i]["score"] for i in (0, 1)]) == scores["paraphrase"], (
            "without answers alone"
        )
        assert mine["neighborhood", 0]["score"] == scores["neighborhood"]
        assert (
            mine["rewrite", 0]["match_after"] == expected(model, FACT.text, (FACT.target_false,), ({}, changes))[1][1]
        )
    assert len(matches) == 2, "some match, and some do not"


def test_a_fact_with_probes_has_the_scores_that_it_has_without(small_tokenizer, corpus, tmp_path):
    model = small_model("llama", small_tokenizer, torch.float32)
    moments = ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path)
    with_, without = (
        ft.edit(model, [fact], layers=[1], moments=moments, contexts=CONTEXTS, essence=0, **ROME).scores.to_pylist()
        for fact in (FACT, replace(FACT, probes=()))
    )
    assert numbers(with_[0]) == pytest.approx(numbers(without[0]), rel=1e-5)


@pytest.mark.parametrize("problem", ["fact-amplification", "fact-erasure", "tracing-reversal"])
def test_answers_that_follow_from_o_false_have_no_score_for_another_target(problem, small_tokenizer, corpus, tmp_path):
    model = small_model("llama", small_tokenizer, torch.float32)
    asked = {"problem": problem, "sigma": 0.5, "essence": 0, "layers": [1], "method": "ft-1", "steps": 2}
    result = ft.edit(model, [FACT], **asked)
    scores = {(row["kind"], row["prompt_index"]): row["score"] for row in result.prompts.to_pylist()}
    if not scores:
        assert problem == "fact-erasure", "o_true is too unlikely to erase"
        return
    taken_away = [] if problem == "fact-amplification" else [("general", 0)]
    assert [kind for kind, score in scores.items() if score is None] == [
        ("alias", 0), ("portability", 0), *taken_away, ("paraphrase", 2),
    ]  # fmt: skip


def test_probes_of_the_papers_kinds_that_say_more_do_not_enter_its_scores(small_tokenizer):
    """A paraphrase that should not change, a neighborhood prompt that should, and both in a case."""
    model = small_model("llama", small_tokenizer, torch.float32)
    more = (
        ft.Probe("paraphrase", "The city of Rome is", expect="unchanged"),
        ft.Probe("neighborhood", "Rome is located in", expect="changed"),
        ft.Probe("paraphrase", "New York is", after="case"),
        ft.Probe("neighborhood", "New York is the", after="case"),
    )
    plain = replace(FACT, probes=(), case_id="c")
    for protocol in ("paper", "released"):
        asked = {"layer": 1, "method": "ft-1", "steps": 2, "protocol": protocol}
        without, with_ = (
            ft.mass_edit(model, [fact], **asked).scores.to_pylist()[0] for fact in (plain, replace(plain, probes=more))
        )
        assert numbers(with_) == pytest.approx(numbers(without), rel=1e-4)
    scored = ft.edit(model, [replace(plain, probes=more)], layers=[1], method="ft-1", steps=2, essence=0).scores
    [row], [bare] = (
        scored.to_pylist(),
        ft.edit(model, [plain], layers=[1], method="ft-1", steps=2, essence=0).scores.to_pylist(),
    )
    assert numbers(row) == pytest.approx(numbers(bare), rel=1e-4)


def test_released_scores_have_its_floor_and_its_target(small_tokenizer, corpus, tmp_path):
    model = small_model("llama", small_tokenizer, torch.float32)
    result = ft.edit(model, [FACT], layers=[1], essence=0, method="ft-1", steps=2, protocol="released")
    rows = {(row["kind"], row["prompt_index"]): row for row in result.prompts.to_pylist()}
    assert all(row["score"] >= 2e-8 for row in rows.values() if row["expect"] == "changed")
    near, [scores] = rows["neighborhood", 0], result.scores.to_pylist()
    p, q = near["p_before"], near["p_after"]
    assert near["score"] == scores["neighborhood"] == pytest.approx(1 - abs(q - p) / (0.5 + abs(p - 0.5)))
    assert rows["paraphrase", 0]["score"] == scores["paraphrase"]


# ---- cases ------------------------------------------------------------------------------------------------

HOP = ft.Probe("multi-hop", "The capital of Rome is located in", ("New York", "Paris"), after="case")
CASE = [
    replace(FACTS[0], fact_id="c/0", case_id="c", case_edits=2),
    replace(FACTS[1], fact_id="c/1", case_id="c", case_edits=2, probes=(HOP,)),
]
ALONE = ft.Fact("{} is the capital of", "Rome", "New York", "France", fact_id="alone", probes=(PROBES[1],))


@pytest.fixture
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float64)


@pytest.fixture
def moments(model, corpus, tmp_path):
    return ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path)


@pytest.mark.parametrize(("method", "settings"), [("memit", MEMIT), ("rome", ROME)])
def test_the_edits_of_a_case_are_in_one_model_and_other_cases_are_not(method, settings, model, moments):
    asked = {"method": method, "moments": moments, "contexts": CONTEXTS, "layer": 2, **settings}
    result = ft.mass_edit(model, [CASE[0], ALONE, CASE[1]], together="case", **asked)
    scores = {row["fact_id"]: row for row in result.scores.to_pylist()}
    assert {name: (row["n_edits"], row["position"]) for name, row in scores.items()} == {
        "c/0": (2, 1), "c/1": (2, 2), "alone": (1, 1),
    }  # fmt: skip
    both, one = (ft.mass_edit(model, facts, score_every=9, **asked) for facts in (CASE, [ALONE]))
    for fact_id, same in (("c/0", both), ("c/1", both), ("alone", one)):
        [row] = [row for row in same.scores.to_pylist() if row["fact_id"] == fact_id]
        assert numbers(scores[fact_id]) == pytest.approx(numbers(row), rel=1e-9)
    changes = {layer: update.matrix() for layer, update in both.updates.items()}
    [hop] = [row for row in result.prompts.to_pylist() if row["kind"] == "multi-hop"]
    (p, match, _), (q, match_after, best) = expected(model, HOP.prompt, HOP.answers, ({}, changes))
    assert (hop["fact_id"], hop["n_edits"], hop["answer"]) == ("c/1", 2, best)
    assert (hop["p_before"], hop["p_after"]) == pytest.approx((p, q), rel=1e-6)
    assert (hop["match_before"], hop["match_after"]) == (match, match_after)
    with pytest.raises(UserError, match="expected the edits of one model, got those of 2 cases"):
        result.save_delta("delta.safetensors")


def test_a_probe_of_a_case_waits_for_all_its_edits(model, moments, caplog):
    asked = {"method": "rome", "moments": moments, "contexts": CONTEXTS, "layer": 1, "score_every": 1, **ROME}
    rows = ft.mass_edit(model, [CASE[1], CASE[0]], **asked).prompts.to_pylist()
    assert [(row["n_edits"], row["fact_id"]) for row in rows if row["kind"] == "multi-hop"] == [(2, "c/1")]
    assert not caplog.text
    cut = ft.mass_edit(model, CASE[1:], **asked).prompts.to_pylist()
    assert [row["kind"] for row in cut].count("multi-hop") == 0, "the other edit of the case is not made"
    assert "1 probe" in caplog.text
    caplog.clear()
    alone = ft.edit(model, CASE, layers=[1], moments=moments, contexts=CONTEXTS, essence=0, **ROME)
    assert "multi-hop" not in alone.prompts["kind"].to_pylist()
    assert "1 probe" in caplog.text
    assert "together" in caplog.text


def test_one_case_can_be_saved(model, moments, tmp_path):
    asked = {"method": "rome", "moments": moments, "contexts": CONTEXTS, "layer": 1, **ROME}
    result = ft.mass_edit(model, CASE, together="case", **asked)
    path = result.save_delta(tmp_path / "case.safetensors")
    assert math.isclose(
        float(ft.load_delta(path, model)[1].matrix().norm()), float(result.updates[1].matrix().norm()), rel_tol=1e-6
    )
