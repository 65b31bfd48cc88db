"""PMET where it differs from MEMIT: it stops, or weighs the target less, once the target is the likeliest."""

import pytest
import torch
from edit_oracles import options_of, oracle
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.problems import PROBLEMS


def second_best(model, prompt, subject):
    """The fact whose o_false is the likeliest word but one."""
    tokenizer = model.tokenizer
    logits = model.hf(torch.tensor([tokenizer(prompt.format(subject))["input_ids"]])).logits[0, -1]
    words = [tokenizer.decode(one) for one in logits.argsort(descending=True)[1:]]
    word = next(one for one in words if one[:1] == " " and len(tokenizer(one)["input_ids"]) == 1 and one.strip())
    return ft.Fact(prompt, subject, "York", word.strip())


def test_pmet_stops_where_the_target_has_settled(small_tokenizer, corpus, tmp_path):
    model, kind = small_model("llama", small_tokenizer, torch.float32), PROBLEMS["error-injection"]
    moments = ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path)
    facts = [second_best(model, "{} is the capital of", "Rome"), second_best(model, "The {} is in", "France")]
    shared = {"layers": [1], "moments": moments, "contexts": ["{}"], "essence": 0}
    losses = {}
    for settled_kl in (None, 10.0):
        options = {
            **options_of("pmet"),
            "steps": 40,
            "lr": 0.5,
            "clamp": 6.0,
            "kl_factor": 1e-3,
            "settled_kl": settled_kl,
        }
        result = ft.edit(model, facts, method="pmet", **shared, **options)
        losses[settled_kl] = [edit.loss for edit in result.edits]
        for edit in result.edits:
            fact = next(f for f in facts if f.fact_id == edit.fact_id)
            wanted = oracle(model, moments, fact, "pmet", kind, 1, sorted(edit.updates), options, contexts=["{}"])
            for at, change in wanted.items():
                error = (edit.updates[at].matrix() - change).abs().max()
                assert float(error) < 2e-3 * max(float(one.abs().max()) for one in wanted.values()), at
    assert losses[10.0][0] > 5 * losses[None][0], "the first settles: it stops, or its NLL weighs a tenth"
    assert losses[10.0][1] == pytest.approx(losses[None][1]), "the second does not"


def test_pmet_amplifies_what_is_the_likeliest_already(small_tokenizer, corpus, tmp_path):
    tower = ft.Fact("{} is located", "Tower", "located", "York")
    model = small_model("gemma2", small_tokenizer, torch.float32)
    with torch.no_grad():
        logits = model.hf(torch.tensor([small_tokenizer(tower.text)["input_ids"]])).logits[0, -1]
    assert small_tokenizer(" located")["input_ids"] == [int(logits.argmax())]
    moments = ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path, ridge=1e-3)
    shared = {"problem": "fact-amplification", "layers": [0, 1], "moments": moments, "contexts": ["{}"], "essence": 0}
    for edit in ft.edit(model, [tower], method="pmet", window_size=1, steps=3, **shared).edits:
        assert edit.changes()
    [first, _] = ft.edit(model, [tower], method="pmet", window_size=1, steps=3, settled_kl=0.01, **shared).edits
    assert "pmet's target had settled" in first.reason
