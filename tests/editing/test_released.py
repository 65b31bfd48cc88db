"""protocol="released" does what the released code does, held to a few lines that do the same plainly."""

import numpy as np
import pytest
import torch
from edit_cases import CONTEXTS, FACTS, contexts_for
from released_forcing import Inputs, released_finetune, released_memit, released_rome
from small_models import small_model

import fasttrace as ft
from fasttrace.editing import prepare_edit
from fasttrace.editing.essence import essence_texts
from fasttrace.errors import UserError
from fasttrace.facts import encode_fact

SIGMA = 0.3
FORCED = {"problem": "fact-forcing", "protocol": "released", "sigma": SIGMA, "essence": 0}
VALUE = {"lr": 0.5, "kl_factor": 0.0625, "weight_decay": 0.5}


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    path = tmp_path_factory.mktemp("corpus") / "text.txt"
    path.write_text(
        "\n".join(f"{fact.text} {fact.target_true}, and {fact.target_false} is not." for fact in FACTS * 60)
    )
    return path


@pytest.fixture(params=["gpt2", "llama", "gptj"])
def model(request, small_tokenizer):
    return small_model(request.param, small_tokenizer, torch.float64)


def inputs_of(model, fact, target=None):
    ids = model.tokenizer(" " + (target or fact.target_true))["input_ids"]
    own = encode_fact(model.tokenizer, fact)
    inputs = Inputs(model.tokenizer, fact.prompt, fact.subject, ids, CONTEXTS)
    return inputs, (own.subject_begin, own.subject_end)


def moments_of(model, corpus, folder):
    return ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=folder, ridge=1e-3)


def matrix_of(moments, layer):
    C = moments.matrix(layer).double()
    return C + moments.ridge * C.diagonal().mean() * torch.eye(len(C), dtype=C.dtype)


def close(mine, wanted, within=1e-5):
    assert float(wanted.abs().max()) > 0
    assert float((mine - wanted).norm()) < within * float(wanted.norm())


def released(method, model, moments, edit, inputs, span, **own):
    """(layer → ΔW, losses) of the released code for one edit. own: settings, of which `steps` counts the losses."""
    if method == "rome":
        inverse_key = lambda k: moments.inverse_key(edit.layer, k[None])[0]  # noqa: E731
        return released_rome(model.hf, inputs, edit.layer, span, SIGMA, inverse_key, **own)
    blocks, window = [block.layer for block in model.blocks], sorted(edit.updates)
    return released_memit(model.hf, inputs, blocks, window, span, SIGMA, lambda at: matrix_of(moments, at), **own)


def test_rome_draws_new_noise_in_every_forward(model, corpus, tmp_path):
    moments = moments_of(model, corpus, tmp_path)
    own = {"clamp": 4.0, **VALUE}
    result = ft.edit(model, FACTS, layers=[0, 1], moments=moments, contexts=CONTEXTS, steps=4, **FORCED, **own)
    assert [edit.layer for edit in result.edits] == [0, 1, 0, 1], "two facts at two layers"
    for edit in result.edits:
        inputs, span = inputs_of(model, next(f for f in FACTS if f.fact_id == edit.fact_id))
        wanted, _ = released("rome", model, moments, edit, inputs, span, steps=5, **own)
        close(edit.updates[edit.layer].matrix(), wanted[edit.layer])


def test_memit_draws_new_noise_in_every_forward(model, corpus, tmp_path):
    moments = moments_of(model, corpus, tmp_path)
    own = {"clamp": 0.75, "covariance_weight": 0.05, **VALUE}
    result = ft.edit(
        model, FACTS, method="memit", layers=[2], window_size=2, moments=moments, contexts=CONTEXTS, steps=4, **FORCED,
        **own,
    )  # fmt: skip
    assert len(result.edits) == len(FACTS)
    for edit in result.edits:
        inputs, span = inputs_of(model, next(f for f in FACTS if f.fact_id == edit.fact_id))
        wanted, _ = released("memit", model, moments, edit, inputs, span, steps=5, **own)
        assert sorted(edit.updates) == [1, 2]
        for at, change in wanted.items():
            close(edit.updates[at].matrix(), change)


@pytest.mark.parametrize("method", ["ft-1", "ft-5"])
def test_fine_tuning_is_on_ten_noise_rows_drawn_anew(model, method):
    own = {"steps": 6, "lr": 5e-3, "epsilon": 1e-2}
    result = ft.edit(model, FACTS, method=method, window_size=2, layers=[1], **FORCED, **own)
    assert len(result.edits) == len(FACTS)
    for edit in result.edits:
        inputs, span = inputs_of(model, next(f for f in FACTS if f.fact_id == edit.fact_id))
        wanted, losses = released_finetune(model.hf, inputs, sorted(edit.updates), span, SIGMA, 10, 6, 5e-3, 1e-2)
        assert edit.loss == pytest.approx(losses[-1], rel=1e-6)
        for at, change in wanted.items():
            close(edit.updates[at].matrix(), change, within=1e-4)


def test_fine_tuning_goes_on_after_a_pause(small_tokenizer):
    """New noise can raise a loss again that was too low for a step. Five low losses in a row end the loop."""
    model = small_model("gpt2", small_tokenizer, torch.float64)
    inputs, span = inputs_of(model, FACTS[0])
    for least in (1.2, 8.0):
        forced = FORCED | {"sigma": 2.0, "steps": 40, "lr": 2e-2, "epsilon": 5e-1, "early_stop": least}
        [edit] = ft.edit(model, FACTS[:1], method="ft-1", layers=[1], **forced).edits
        wanted, losses = released_finetune(model.hf, inputs, [1], span, 2.0, 10, 40, 2e-2, 5e-1, least=least)
        low = np.array(losses) < least
        pauses = low[:-1] & ~low[1:]
        assert pauses.any() if least == 1.2 else low[-5:].all() and len(low) < 40, f"this tests nothing: {losses}"
        close(edit.updates[1].matrix(), wanted[1], within=1e-4)


def likely(model):
    """A fact with p(o_true) of at least 0.02."""
    for prompt, subject in (("The {} is", "Eiffel Tower"), ("{} of", "France"), ("{} is the capital of", "Rome")):
        ids = model.tokenizer(prompt.format(subject))["input_ids"]
        p = model.hf(torch.tensor([ids])).logits[0, -1].softmax(-1)
        for token in (p > 0.02).nonzero().flatten().tolist():
            text = model.tokenizer.decode([token])
            if text.startswith(" ") and model.tokenizer(text)["input_ids"] == [token]:
                return ft.Fact(prompt, subject, text.strip(), "Rome")
    raise AssertionError("no fact is likely enough to erase")


def test_fine_tuning_stops_erasing_below_one_percent(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float64)
    fact = likely(model)
    own = {"steps": 30, "lr": 2e-2, "epsilon": 5e-1}
    released = {"problem": "fact-erasure", "protocol": "released", "essence": 0}
    [edit] = ft.edit(model, [fact], method="ft-1", layers=[1], **released, **own).edits
    inputs, _ = inputs_of(model, fact)
    wanted, losses = released_finetune(model.hf, inputs, [1], None, 0.0, 1, 30, 2e-2, 5e-1, erase=True)
    assert losses[0] >= 0.02
    assert losses[-1] < 0.01
    assert losses[-1] == losses[-2], "p did not fall below 0.01 early, so this tests nothing"
    assert edit.loss == pytest.approx(losses[-1], rel=1e-6)
    close(edit.updates[1].matrix(), wanted[1], within=1e-4)


@pytest.mark.parametrize(
    ("method", "problem", "updates"),
    [
        ("rome", "error-injection", 19),
        ("rome", "fact-erasure", 20),
        ("rome", "fact-forcing", 24),
        ("memit", "error-injection", 24),
        ("memit", "fact-erasure", 24),
        ("memit", "fact-forcing", 24),
    ],
)
def test_low_losses_end_no_loop_and_the_last_one_makes_no_update(
    method, problem, updates, small_tokenizer, corpus, tmp_path
):
    """The released loops make 20 or 25 losses. Only ROME's erasure makes an update after the last one."""
    model = small_model("gpt2", small_tokenizer, torch.float64)
    moments = moments_of(model, corpus, tmp_path)
    erase, forced = problem == "fact-erasure", problem == "fact-forcing"
    # Without the KL term and the decay, a large δ at the prompt's last token makes Tower or France certain.
    fact = likely(model) if erase else ft.Fact("The {}", "Eiffel", "Tower", "France")
    own = {"lr": 5.0, "kl_factor": 0.0, "weight_decay": 0.0, "clamp": 100.0}
    own |= {"covariance_weight": 0.05} if method == "memit" else {}
    asked = FORCED | {"method": method, "problem": problem, "layers": [2], "window_size": 2, "contexts": CONTEXTS}
    [edit] = ft.edit(model, [fact], moments=moments, **asked, **own).edits
    inputs, span = inputs_of(model, fact, fact.target_false if problem == "error-injection" else fact.target_true)
    wanted, losses = released(
        method, model, moments, edit, inputs, span if forced else None, erase=erase,
        steps=25 if forced or method == "memit" else 20, **own,
    )  # fmt: skip
    assert max(losses[-8:]) < 0.05, f"an early stop after five losses below 0.05 changes nothing: {losses}"
    assert edit.loss == pytest.approx(losses[updates - 1], rel=1e-5)
    assert sorted(edit.updates) == sorted(wanted)
    for at, change in wanted.items():
        close(edit.updates[at].matrix(), change)


def test_essence_is_corrupted_and_divided_by_all_tokens(small_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("FASTTRACE_CACHE", str(tmp_path))
    model = small_model("gpt2", small_tokenizer, torch.float64)
    plan = prepare_edit(
        model, FACTS[:1], method="ft-1", layers=[1], problem="fact-forcing", protocol="released", sigma=SIGMA,
        essence=2, lr=5e-3, steps=2,
    )  # fmt: skip
    [result] = plan.batches()
    texts = [row for row in result.prompts.to_pylist() if row["kind"] == "essence"]
    subject = len(small_tokenizer(FACTS[0].subject)["input_ids"])  # the text begins with it
    noise = np.random.RandomState(1).randn(1, subject, model.width)[0]
    ppl = []
    drawn = essence_texts(model, [FACTS[0].subject], texts=2)[0]
    for row, text in zip(texts, drawn, strict=True):
        ids = torch.tensor([text])
        x = model.hf.get_input_embeddings().weight[ids].detach().clone()
        x[0, :subject] += torch.from_numpy(SIGMA * noise)
        logp = model.hf(inputs_embeds=x).logits[0].log_softmax(-1)
        total = float(sum(logp[i, ids[0, i + 1]] for i in range(ids.shape[1] - 1)))
        assert np.log(row["p_before"]) == pytest.approx(total, rel=1e-9)
        ppl.append(np.exp(-total / ids.shape[1]))
    [scores] = result.scores.to_pylist()
    assert scores["ppl_before"] == pytest.approx(np.mean(ppl), rel=1e-9)


def test_mass_memit_of_forced_facts_is_not_released(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float32)
    with pytest.raises(UserError, match="expected paper with memit and fact-forcing"):
        ft.mass_edit(model, FACTS, method="memit", problem="fact-forcing", protocol="released", sigma=SIGMA)


@pytest.mark.parametrize("method", ["rome", "memit", "ft-1", "ft-5"])
@pytest.mark.parametrize("edit", [ft.edit, ft.mass_edit])
def test_scores_may_have_another_draw(edit, method, small_tokenizer, corpus, tmp_path):
    """Under the paper's protocol, the noise sample of the optimisation and that of the scores are settings."""
    model = small_model("gpt2", small_tokenizer, torch.float32)
    same = {"method": method, "problem": "fact-forcing", "window_size": 2, "sigma": SIGMA, "essence": 0, "steps": 3}
    same |= {"layers": [1]} if edit is ft.edit else {"layer": 1}
    if method in ("rome", "memit"):
        same |= {"moments": moments_of(model, corpus, tmp_path), **contexts_for(method)}
    if method == "memit":
        same["covariance_weight"] = 0.05
    one, two, both = (
        edit(model, FACTS, **same, **draws)
        for draws in ({}, {"score_noise_sample": 3}, {"noise_sample": 3, "score_noise_sample": 3})
    )
    assert len({result.run["run_id"] for result in (one, two, both)}) == 3
    assert edit(model, FACTS, **same, noise_sample=0, score_noise_sample=0).run["run_id"] == one.run["run_id"]
    for a, b, c in zip(changes(one), changes(two), changes(both), strict=True):
        assert torch.equal(a, b)
        assert not torch.equal(a, c)
    rows = [result.scores.to_pylist() for result in (one, two, both)]
    for a, b, c in zip(*rows, strict=True):
        assert a["p_before"] != b["p_before"] == c["p_before"]
        assert b["p_after"] != c["p_after"]


def changes(result):
    """Every ΔW of a result of single or mass edits."""
    return [update.matrix() for edit in getattr(result, "edits", [result]) for update in edit.updates.values()]
