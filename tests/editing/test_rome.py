"""Batched ROME against the one-at-a-time oracle, its scores against written weights, its export against
plain transformers."""

import json
import sys

import numpy as np
import pytest
import torch
from edit_cases import CONTEXTS, FACTS, check_zero
from hooked_rome import down_projection, hooked_rome
from hooked_trace import mlp_modules
from small_models import small_model

import fasttrace as ft
from fasttrace.editing import prepare_edit, value
from fasttrace.errors import FactError, UserError

FAMILIES = ["llama", "gpt2", "gptj", "neox", "gemma2", "bloom", "falcon-rw", "opt"]
SETTINGS = {"steps": 6, "lr": 0.5, "kl_factor": 0.0625, "weight_decay": 0.5, "clamp": 4.0}


def edited(family, tokenizer, corpus, tmp_path, **options):
    model = small_model(family, tokenizer, torch.float32)
    # From so few different tokens, second moments of a parallel block's first keys and of a ReLU's are singular. With a
    # tenth of this ridge, C's condition is 1.5e5, and float32 roundings of a key move C⁻¹k by the test's 1e-4.
    ridge = 0.0 if family in ("llama", "gpt2") else 1e-2
    moments = ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path, ridge=ridge)
    return model, moments, ft.edit(
        model, FACTS, layers=[0, 2, 4], moments=moments, contexts=CONTEXTS, essence=0, **{**SETTINGS, **options}
    )  # fmt: skip


@pytest.mark.parametrize("family", FAMILIES)
def test_batched_edits_equal_one_at_a_time(family, small_tokenizer, corpus, tmp_path):
    model, moments, result = edited(family, small_tokenizer, corpus, tmp_path)
    for edit in result.edits:
        fact = next(f for f in FACTS if f.fact_id == edit.fact_id)
        row = next(r for r in result.scores.to_pylist() if (r["fact_id"], r["layer"]) == (edit.fact_id, edit.layer))
        if edit.layer == model.n_layers - 1:
            check_zero(edit, row)
            continue
        model.hf.double()  # in transformers' float32 a neuron in a GELU's tail is noise, which C⁻¹ magnifies
        value, key = hooked_rome(
            model.hf, small_tokenizer, fact.prompt, fact.subject, fact.target_false, edit.layer, CONTEXTS,
            lambda k, layer=edit.layer: moments.inverse_key(layer, k[None])[0],
            SETTINGS["steps"], SETTINGS["lr"], SETTINGS["kl_factor"], SETTINGS["weight_decay"], SETTINGS["clamp"],
        )  # fmt: skip
        model.hf.float()
        [update] = edit.updates.values()
        torch.testing.assert_close(update.key[0].double(), key, rtol=0, atol=1e-4)
        assert float((update.value[0].double() - value).norm() / value.norm()) < 1e-4


@pytest.mark.parametrize("family", FAMILIES)
def test_scores_equal_weights_written_and_read_by_transformers(family, small_tokenizer, corpus, tmp_path):
    model, _, result = edited(family, small_tokenizer, corpus, tmp_path)
    before = model.weights_hash()
    prompts = result.prompts.to_pylist()
    for edit in result.edits:
        fact = next(f for f in FACTS if f.fact_id == edit.fact_id)
        weight = down_projection(mlp_modules(model.hf)[edit.layer]).weight
        saved = weight.detach().clone()
        update = edit.updates[edit.layer].matrix().float()
        with torch.no_grad():
            weight += update.t() if family == "gpt2" else update
        for row in prompts:
            if row["fact_id"] != edit.fact_id or row["layer"] != edit.layer:
                continue
            for target, column in ((fact.target_false, "p_after"), (fact.target_true, "p_true_after")):
                ids = small_tokenizer(row["prompt"])["input_ids"]
                extra = small_tokenizer(" " + target)["input_ids"]
                with torch.no_grad():
                    logp = model.hf(torch.tensor([[*ids, *extra]])).logits[0].double().log_softmax(-1)
                p = sum(float(logp[len(ids) - 1 + k, t]) for k, t in enumerate(extra))
                assert row[column] == pytest.approx(np.exp(p), rel=1e-3, abs=1e-7)
        with torch.no_grad():
            weight.copy_(saved)
    assert model.weights_hash() == before


def test_scores_follow_their_definitions(small_tokenizer, corpus, tmp_path):
    strong = {"steps": 25, "lr": 5.0, "kl_factor": 0.0, "weight_decay": 0.0, "clamp": 1e4}
    _, _, result = edited("llama", small_tokenizer, corpus, tmp_path, **strong)
    prompts = result.prompts.to_pandas()
    assert len(result.scores) == 6
    gains = [abs(row["rewrite"]) for row in result.scores.to_pylist()]
    assert max(gains) > 1e-3, f"edits without effect would make this test empty: {gains}"
    for row in result.scores.to_pylist():
        if row["layer"] == 4:
            assert row["p_after"] == row["p_before"]
            continue
        mine = prompts[(prompts.fact_id == row["fact_id"]) & (prompts.layer == row["layer"])]
        p, q = mine.p_before, mine.p_after
        gain = (q - p) / (1 - p)
        kept = 1 - (q - p).abs() / (0.5 + (p - 0.5).abs())
        assert row["rewrite"] == pytest.approx(gain[mine.kind == "rewrite"].mean())
        assert row["paraphrase"] == pytest.approx(gain[mine.kind == "paraphrase"].mean())
        assert row["neighborhood"] == pytest.approx(kept[mine.kind == "neighborhood"].mean())
        parts = (row["rewrite"], row["paraphrase"], row["neighborhood"])
        assert row["overall"] == pytest.approx(sum(parts) / 3)
        assert row["p_before"] == pytest.approx(float(p[mine.kind == "rewrite"].iloc[0]))
        assert row["success"] == (row["p_after"] > row["p_true_after"])


def test_batches_and_memory_do_not_change_edits(small_tokenizer, corpus, tmp_path):
    model, moments, whole = edited("llama", small_tokenizer, corpus, tmp_path)
    plan = prepare_edit(model, FACTS, layers=[0, 2, 4], moments=moments, contexts=CONTEXTS, essence=0, **SETTINGS)
    assert plan.run["run_id"] == whole.run["run_id"]
    done = {(FACTS[0].fact_id, 2), (FACTS[1].fact_id, 0)}
    parts = list(plan.batches(memory="200kB", skip=done))
    assert len(parts) > 1
    rows = {(r["fact_id"], r["layer"]): r for r in whole.scores.to_pylist()}
    seen = [r for part in parts for r in part.scores.to_pylist()]
    assert {(r["fact_id"], r["layer"]) for r in seen} == set(rows) - done
    assert len(seen) == 4
    for row in seen:
        assert row["p_after"] == pytest.approx(rows[row["fact_id"], row["layer"]]["p_after"], rel=1e-3, abs=1e-7)


def test_key_modes_differ_in_the_denominator(small_tokenizer, corpus, tmp_path):
    _, _, rome = edited("llama", small_tokenizer, corpus, tmp_path)
    _, _, averaged = edited("llama", small_tokenizer, corpus, tmp_path, key_mode="r-rome")
    a, b = (np.array([e.denominator for e in r.edits if e.reason is None]) for r in (rome, averaged))
    assert len(a) == 4
    assert (b > 0).all(), "u·k* is k*ᵀC⁻¹k* / |C⁻¹k*|, which is positive"
    assert np.abs(a - b).max() > 1e-3


def test_export_is_the_edited_model(small_tokenizer, corpus, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    for family in ("llama", "gpt2"):
        _, _, result = edited(family, small_tokenizer, corpus, tmp_path)
        with pytest.raises(UserError, match=r"expected one edit for .*, got 6"):
            result.export(tmp_path / "none")
        folder = result.export(tmp_path / f"out-{family}", fact_id=FACTS[1].fact_id, layer=2)
        with pytest.raises(UserError, match="exists and is not an empty folder"):
            result.export(folder, fact_id=FACTS[1].fact_id, layer=2)
        assert "quantization_config" not in json.loads((folder / "config.json").read_text())
        plain = AutoModelForCausalLM.from_pretrained(folder)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        ids = tokenizer(FACTS[1].text)["input_ids"]
        target = tokenizer(" " + FACTS[1].target_false)["input_ids"]
        with torch.no_grad():
            logp = plain(torch.tensor([[*ids, *target]])).logits[0].double().log_softmax(-1)
        p = np.exp(sum(float(logp[len(ids) - 1 + k, t]) for k, t in enumerate(target)))
        row = next(r for r in result.scores.to_pylist() if r["fact_id"] == FACTS[1].fact_id and r["layer"] == 2)
        assert row["p_after"] == pytest.approx(p, abs=1e-6, rel=1e-3)


def test_bad_settings_are_refused_in_a_sentence(small_tokenizer, corpus, tmp_path):
    model = small_model("llama", small_tokenizer, torch.float32)
    moments = ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path)
    for bad, message in (
        (
            {"method": "mend"},
            "edit: method: expected one of rome, memit, emmet, alphaedit, pmet, ft-1, ft-5, got 'mend'",
        ),
        ({"problem": "joke"}, "edit: problem: expected one of .*, got 'joke'"),
        ({"layers": [9]}, "edit: layers: expected some of 0 to 4, got 9"),
        ({"layers": []}, r"edit: layers: expected a list .*, got \[\]"),
        ({"key_mode": "x"}, "edit: key_mode: expected one of rome, r-rome, got 'x'"),
        ({"stepz": 3}, "edit has no setting 'stepz'; did you mean 'steps'"),
        ({"contexts": ["Hi. {}"]}, r"edit: contexts: expected '\{\}' as the first template, got 'Hi. \{\}'"),
    ):
        with pytest.raises(UserError, match=message):
            ft.edit(model, FACTS, **{"moments": moments, "contexts": CONTEXTS, "layers": [2], **bad})
    plain = ft.Fact(prompt="{} is the capital of", subject="Paris", target_true="France")
    with pytest.raises(FactError, match="expected the field 'target_false'"):
        ft.edit(model, [plain], moments=moments, contexts=CONTEXTS, layers=[2])


def test_moments_of_another_model_or_other_layers_are_refused_first(small_tokenizer, corpus, tmp_path, monkeypatch):
    model, other = (small_model(family, small_tokenizer, torch.float32) for family in ("llama", "llama-bias"))
    options = {"tokens": 3000, "sequence_length": 32, "cache_dir": tmp_path}
    strange = ft.second_moments(other, corpus, **options)
    few = ft.second_moments(model, corpus, layers=[1, 2], **options)
    # The package's `edit` is the function, which hides the module of its name.
    module = sys.modules["fasttrace.editing.edit"]
    monkeypatch.setattr(module, "method_contexts", lambda *_, **__: pytest.fail("computed something"))
    with pytest.raises(UserError, match=f"of 'llama' .*, got those of a model with hash {other.model_hash}"):
        ft.edit(model, FACTS, layers=[1], moments=strange)
    with pytest.raises(UserError, match=r"of layers 0, 3 too, got only those of layers 1, 2"):
        ft.edit(model, FACTS, method="memit", layers=[1, 2], window_size=3, moments=few)
    ft.edit(model, FACTS, method="ft-1", layers=[1], moments=strange, essence=0, steps=1)  # needs no moments


def test_real_model_is_edited_and_the_export_agrees(smollm2, tmp_path):
    from transformers import AutoModelForCausalLM, AutoTokenizer

    text = tmp_path / "text.txt"
    facts = ft.load_facts()
    text.write_text("\n".join(line for fact in facts for line in (fact.text, *fact.neighborhood)))
    moments = ft.second_moments(smollm2, text, tokens=6000, layers=[6], cache_dir=tmp_path)
    fact = ft.Fact(
        prompt="The capital of {} is",
        subject="France",
        target_true="Paris",
        target_false="Rome",
        paraphrases=("{}'s capital city is".replace("{}", "France"),),
        neighborhood=("The capital of Spain is", "The capital of Poland is"),
    )
    before = smollm2.weights_hash()
    result = ft.edit(smollm2, [fact], layers=[6], moments=moments, contexts=["{}", "It is known that. {}", "Yes. {}"])
    row = result.scores.to_pylist()[0]
    assert row["p_before"] < 0.05
    assert row["p_after"] > 0.5
    assert row["success"]
    assert smollm2.weights_hash() == before
    folder = result.export(tmp_path / "model")
    plain, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    assert plain.dtype == torch.float32
    with torch.no_grad():
        p = plain(torch.tensor([tokenizer(fact.text)["input_ids"]])).logits[0, -1].softmax(-1)
    assert float(p[tokenizer(" Rome")["input_ids"][0]]) == pytest.approx(row["p_after"], abs=1e-3)


def test_edits_that_stop_early_leave_the_batch(small_tokenizer, corpus, tmp_path, monkeypatch):
    model, moments, whole = edited("llama", small_tokenizer, corpus, tmp_path)
    losses = sorted(row["loss"] for row in whole.scores.to_pylist() if row["loss"] is not None)
    # Between two losses, so that no rounding decides which edits stop.
    early_stop = sum(losses[len(losses) // 2 - 1 :][:2]) / 2
    own = {**SETTINGS, "moments": moments, "contexts": CONTEXTS, "essence": 0, "early_stop": early_stop}
    in_batch = []
    losses_of = value._Objective.losses
    monkeypatch.setattr(
        value._Objective, "losses", lambda self, *given: in_batch.append(len(given[0])) or losses_of(self, *given)
    )
    batch = ft.edit(model, FACTS, layers=[0, 2], **own)
    together = list(in_batch)
    assert together[0] == 2 * len(FACTS)
    assert 0 < together[-1] < together[0], f"some stop and some go on, so that this test compares both: {together}"
    for edit in batch.edits:
        fact = next(f for f in FACTS if f.fact_id == edit.fact_id)
        [alone] = ft.edit(model, [fact], layers=[edit.layer], **own).edits
        assert edit.loss == pytest.approx(alone.loss, rel=1e-5)
        mine, its = (one.updates[edit.layer].value for one in (edit, alone))
        torch.testing.assert_close(mine, its, rtol=1e-4, atol=1e-6)


def test_an_early_stop_takes_no_step_and_released_scores_the_first_prompt(small_tokenizer, corpus, tmp_path):
    _, _, paper = edited("llama", small_tokenizer, corpus, tmp_path)
    _, _, released = edited("llama", small_tokenizer, corpus, tmp_path, protocol="released", early_stop=100.0)
    assert all(not edit.updates[edit.layer].value.any() for edit in released.edits), (
        "every loss is below 100, so no step is taken"
    )
    assert any(edit.updates[edit.layer].value.any() for edit in paper.edits)
    _, _, first = edited("llama", small_tokenizer, corpus, tmp_path, protocol="released", early_stop=None)
    prompts = first.prompts.to_pandas()
    for row in first.scores.to_pylist():
        mine = prompts[(prompts.fact_id == row["fact_id"]) & (prompts.layer == row["layer"])]
        paraphrase = mine[(mine.kind == "paraphrase") & (mine.prompt_index == 0)].iloc[0]
        gain = (paraphrase.p_after - paraphrase.p_before) / (1 - paraphrase.p_before)
        assert row["paraphrase"] == pytest.approx(max(gain, 2e-8))
        assert row["rewrite"] >= 2e-8
