"""Many facts in one model: MEMIT's joint solve against its formula, and sequential edits against written weights."""

import json

import numpy as np
import pytest
import torch
from edit_cases import CONTEXTS, FACTS, contexts_for
from hooked_rome import down_projection, hooked_rome
from hooked_trace import mlp_modules
from small_models import small_model

import fasttrace as ft
from fasttrace.errors import UserError

VALUE = {"steps": 4, "lr": 0.5, "kl_factor": 0.0625, "weight_decay": 0.5}
MEMIT = {**VALUE, "clamp": 0.75, "covariance_weight": 0.05, "window_size": 3}
MORE = [
    *FACTS,
    ft.Fact("{} is the capital of", "Rome", "New York", "France", neighborhood=("Paris is the capital of",)),
    ft.Fact("The city of {} is located in", "New York", "Paris", "Rome"),
]


@pytest.fixture
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


@pytest.fixture
def moments(model, corpus, tmp_path):
    return ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path)


def p_target(hf, tokenizer, fact):
    """p(o_false) in plain transformers."""
    ids, target = tokenizer(fact.text)["input_ids"], tokenizer(" " + fact.target_false)["input_ids"]
    with torch.no_grad():
        logp = hf(torch.tensor([[*ids, *target]])).logits[0].double().log_softmax(-1)
    return float(np.exp(sum(float(logp[len(ids) - 1 + k, t]) for k, t in enumerate(target))))


def test_scores_are_those_of_the_exported_model(model, moments, small_tokenizer, tmp_path, capfd):
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging

    before = model.weights_hash()
    result = ft.mass_edit(model, MORE, moments=moments, contexts=CONTEXTS, layer=2, **MEMIT)
    assert model.weights_hash() == before
    rows = result.scores.to_pylist()
    assert [row["position"] for row in rows] == [1, 2, 3, 4]
    assert {row["n_edits"] for row in rows} == {4}
    assert logging.is_progress_bar_enabled()
    folder = result.export(tmp_path / "model")
    assert capfd.readouterr() == ("", ""), "no bar of transformers"
    assert logging.is_progress_bar_enabled()
    plain = AutoModelForCausalLM.from_pretrained(folder)
    for row, fact in zip(rows, MORE, strict=True):
        assert row["p_after"] == pytest.approx(p_target(plain, small_tokenizer, fact), rel=1e-3, abs=1e-7)
        assert row["p_before"] == pytest.approx(p_target(model.hf, small_tokenizer, fact), rel=1e-3, abs=1e-7)


def test_one_fact_at_once_is_the_single_edit(model, moments):
    mass = ft.mass_edit(model, FACTS[:1], moments=moments, contexts=CONTEXTS, layer=2, **MEMIT)
    single = ft.edit(
        model, FACTS[:1], method="memit", layers=[2], moments=moments, contexts=CONTEXTS, essence=0, **MEMIT
    )
    [edit] = single.edits
    assert sorted(mass.updates) == sorted(edit.updates)
    for layer, update in edit.updates.items():
        difference = (mass.updates[layer].matrix() - update.matrix()).abs().max()
        assert float(difference) < 1e-3 * float(update.matrix().abs().max())


def test_the_joint_solve_is_the_normal_equation(model, moments):
    """No layer below the window's first is edited, so there K and R come from the unedited model."""
    from fasttrace.editing.methods.memit import Memit
    from fasttrace.editing.spread import _keys_and_values, spread_together
    from fasttrace.editing.value import contexts_of
    from fasttrace.facts import encode_fact
    from fasttrace.settings.methods import MemitSettings

    facts = [contexts_of(model, encode_fact(model.tokenizer, f), (5,), CONTEXTS) for f in MORE]
    settings = MemitSettings(covariance_weight=0.05)
    keys, v0 = _keys_and_values(model, facts, None, 1, 3, "block")
    delta = torch.randn(len(facts), model.width, generator=torch.Generator().manual_seed(0))
    updates, _, _ = spread_together(
        model, facts, None, [1, 2, 3], Memit(settings, moments, model=model, places=[]), v0, delta, {}, {}
    )
    K, R = keys.double().T, (delta.double() / 3).T
    exact = R @ K.T @ torch.linalg.inv(0.05 * moments.matrix(1).double() + K @ K.T)
    difference = float((updates[1].matrix() - exact).abs().max())
    assert difference < 1e-4 * float(exact.abs().max())


def test_sequential_rome_is_one_edit_after_another(model, moments, small_tokenizer):
    result = ft.mass_edit(
        model, FACTS, method="rome", layer=1, moments=moments, contexts=CONTEXTS, score_every=1, clamp=4.0, **VALUE
    )
    rows = {(row["n_edits"], row["position"]): row for row in result.scores.to_pylist()}
    assert sorted(rows) == [(1, 1), (2, 1), (2, 2)]
    weight = down_projection(mlp_modules(model.hf)[1]).weight
    saved = weight.detach().clone()
    for n_edits, fact in enumerate(FACTS, 1):
        value, key = hooked_rome(
            model.hf, small_tokenizer, fact.prompt, fact.subject, fact.target_false, 1, CONTEXTS,
            lambda k: moments.inverse_key(1, k[None])[0], 4, 0.5, 0.0625, 0.5, 4.0,
        )  # fmt: skip
        with torch.no_grad():
            weight += torch.outer(value, key).float()
        for position, earlier in enumerate(FACTS[:n_edits], 1):
            p = p_target(model.hf, small_tokenizer, earlier)
            assert rows[n_edits, position]["p_after"] == pytest.approx(p, rel=5e-3, abs=1e-6)
    with torch.no_grad():
        weight.copy_(saved)


def test_bad_settings_are_refused_in_a_sentence(model, moments):
    shared = {"moments": moments, "contexts": CONTEXTS, "layer": 1}
    for bad, sentence in (
        ({"method": "rome", "at_once": 2}, "rome edits one fact at a time"),
        ({"at_once": 0}, "mass: at_once: expected a whole number from 1 to 1000000, got 0"),
        ({"score_every": 0}, "mass: score_every: expected a whole number from 1 to 1000000, got 0"),
        ({"layer": 9}, "mass: layer: expected one of 0 to 4, got 9"),
    ):
        with pytest.raises(UserError, match=sentence):
            ft.mass_edit(model, FACTS, **{**shared, **bad})


def test_facts_that_share_a_key_need_a_covariance_weight(model, moments):
    twins = [FACTS[0], ft.Fact(FACTS[0].prompt, FACTS[0].subject, "Rome", "France")]
    options = {**MEMIT, "moments": moments, "contexts": CONTEXTS, "layer": 2}
    with pytest.raises(UserError, match=r"enough for 2 facts at layer 1, .* got 1e-25 and a singular system"):
        ft.mass_edit(model, twins, **{**options, "covariance_weight": 1e-25})
    assert len(ft.mass_edit(model, twins, **options).scores) == 2


def test_the_store_keeps_every_scored_step_and_a_second_run_computes_nothing(model, moments, tmp_path, monkeypatch):
    from fasttrace.editing import prepare_mass_edit
    from fasttrace.workflow import mass_into

    store = ft.Store(tmp_path / "study.duckdb")
    plan = prepare_mass_edit(
        model, FACTS, method="rome", layer=1, moments=moments, contexts=CONTEXTS, score_every=1, clamp=4.0, **VALUE
    )
    first = mass_into(store, plan, lambda n: None)
    monkeypatch.setattr(type(plan), "compute", lambda *_, **__: pytest.fail("computed again"))
    progress = []
    assert mass_into(store, plan, progress.append).to_pylist() == first.to_pylist()
    assert progress == [2]
    rows = store.query("SELECT n_edits, position FROM mass_edits ORDER BY ALL").to_pylist()
    assert rows == [{"n_edits": 1, "position": 1}, {"n_edits": 2, "position": 1}, {"n_edits": 2, "position": 2}]
    assert store.query("SELECT kind FROM runs WHERE kind = 'mass'").num_rows == 1


def test_progress_of_facts_that_are_solved_together_is_that_of_their_values(model, moments, monkeypatch):
    """A joint solve of many facts is otherwise a bar that stands still until its end."""
    from fasttrace.editing import mass, prepare_mass_edit

    plan = prepare_mass_edit(model, MORE, moments=moments, contexts=CONTEXTS, layer=2, **MEMIT)
    events = []
    solved, scored = mass.spread_together, mass.MassPlan._score
    monkeypatch.setattr(mass, "spread_together", lambda *given: events.append("solved") or solved(*given))
    monkeypatch.setattr(mass.MassPlan, "_score", lambda *given: events.append("scored") or scored(*given))
    largest = max(plan.plan._bytes(fact, 2) for fact in plan.facts)
    found = plan.compute(memory=largest, progress=events.append)  # one fact at a time, or nearly
    assert events[-3:-1] == ["solved", "scored"]
    assert sum(one for one in events if isinstance(one, int)) == len(MORE)
    assert len(events) > 4, "some facts are told of before the solve"
    assert found.scores.to_pandas()["p_after"].tolist() == pytest.approx(
        plan.compute().scores.to_pandas()["p_after"].tolist(), rel=1e-5
    )


def test_a_fact_left_out_has_a_row_with_the_reason(model, moments, tmp_path):
    from fasttrace.editing import prepare_mass_edit
    from fasttrace.workflow import mass_into

    likely = ft.Fact("{} is the capital of", "Rome", "Fr")
    store = ft.Store(tmp_path / "study.duckdb")
    plan = prepare_mass_edit(
        model,
        [FACTS[0], likely, FACTS[1]],
        problem="fact-erasure",
        layer=2,
        moments=moments,
        contexts=CONTEXTS,
        **MEMIT,
    )
    for _ in range(2):
        rows = mass_into(store, plan, lambda n: None).to_pylist()
        assert [(row["n_edits"], row["position"], row["fact_id"]) for row in rows if row["reason"] is None] == [
            (1, 1, likely.fact_id)
        ]
        left = {row["fact_id"]: row for row in rows if row["reason"] is not None}
        assert set(left) == {fact.fact_id for fact in FACTS}
        for row in left.values():
            assert "is below 0.02, too little to erase" in row["reason"]
            assert (row["n_edits"], row["position"], row["rewrite"]) == (1, None, None)


@pytest.mark.parametrize("method", ["memit", "rome"])
def test_a_mass_edit_that_no_prediction_sees_is_zero_and_has_a_reason(method, model, moments, tmp_path):
    options = MEMIT if method == "memit" else {**VALUE, "clamp": 4.0}
    result = ft.mass_edit(model, MORE, method=method, layer=4, moments=moments, **contexts_for(method), **options)
    assert not any(update.changes() for update in result.updates.values())
    rows = result.scores.to_pylist()
    assert {row["fact_id"] for row in rows} == {fact.fact_id for fact in MORE}
    for row in rows:
        assert row["reason"].endswith("sees the last subject token after layer 4: its δ is zero")
        assert (row["p_after"], row["p_true_after"], row["rewrite"]) == (row["p_before"], row["p_true_before"], 0.0)
    store = ft.Store(tmp_path / "study.duckdb")
    store.add(result)
    [counted] = store.query("SELECT count(*) AS n FROM mass_edits WHERE reason IS NOT NULL").to_pylist()
    assert counted["n"] == len(rows)


def test_seen_and_unseen_facts_share_a_solve(small_tokenizer, corpus, tmp_path):
    """Above layer 3 the small Gemma 2 has windows of four tokens, so only one fact's prediction sees its subject."""
    gemma = small_model("gemma2", small_tokenizer, torch.float32)
    shared = {"layer": 2, "contexts": CONTEXTS, **MEMIT}  # the window of layer 2 ends at layer 3
    shared["moments"] = ft.second_moments(
        gemma, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path, ridge=1e-3
    )
    near = ft.Fact("The city of {} is in", "Rome", "Paris", "France")
    both = ft.mass_edit(gemma, [FACTS[0], near], **shared)
    far_row, near_row = both.scores.to_pylist()
    assert far_row["reason"].endswith("after layer 3: its δ is zero")
    assert near_row["reason"] is None
    assert near_row["p_after"] > near_row["p_before"] * 1.001


def test_a_prompt_that_another_edit_of_the_model_changes_is_not_a_neighbor(model, caplog):
    near = ("Rome is the capital of", "New York is the capital of")
    paris = ft.Fact("{} is the capital of", "Paris", "France", "Rome", neighborhood=near)
    rome = ft.Fact("{} is the capital of", "Rome", "York", "France")
    tuned = {"method": "ft-1", "layer": 1, "steps": 2, "epsilon": 1e-2}

    def asked(result):
        rows = result.prompts.to_pylist()
        return [row["prompt"] for row in rows if row["kind"] == "neighborhood" and row["n_edits"] == 1]

    each = {"together": "case", "score_every": 1}
    own = [ft.Fact(f.prompt, f.subject, f.target_true, f.target_false, neighborhood=f.neighborhood, case_id=f.subject)
           for f in (paris, rome)]  # fmt: skip
    assert asked(ft.mass_edit(model, [paris], **tuned)) == list(near)
    assert asked(ft.mass_edit(model, own, **each, **tuned)) == list(near)
    caplog.clear()
    result = ft.mass_edit(model, [paris, rome], score_every=1, **tuned)
    assert asked(result) == [near[1]]
    assert caplog.messages == [
        "not asked, because other edits of the model change what should stay: 1 prompt, such as "
        "'Rome is the capital of'"
    ]
    assert json.loads(result.run["settings"])["contradicted"] == "not asked"
    kept = ft.mass_edit(model, [paris], **tuned).scores.to_pylist()[0]["neighborhood"]
    assert result.scores.to_pylist()[0]["neighborhood"] != kept
