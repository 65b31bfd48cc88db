"""Edits of experts against transformers with hooks and a loop over rows and experts: second moments, ROME, MEMIT and
mass edits, their scores, files and refusals."""

import numpy as np
import pytest
import torch
from closed_form import memit
from edit_cases import CONTEXTS, FACTS
from hooked_experts import SHARED, expert_weight, key_and_value_of, mixture_output, rows_of, weighted_key
from hooked_memit import hooked_memit
from hooked_rome import find_last_subject_token, hooked_rome
from hooked_trace import block_modules, mlp_modules
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.delta import parts_of
from fasttrace.errors import UserError

FAMILIES = ["mixtral", "qwen2-moe", "gpt-oss", "deepseek-v3"]
VALUE = {"steps": 4, "lr": 0.5, "kl_factor": 0.0625, "weight_decay": 0.5, "clamp": 4.0}
MEMIT = {**VALUE, "clamp": 0.75, "covariance_weight": 0.05}
ASKED = {"contexts": CONTEXTS, "essence": 0}


@pytest.fixture
def moments_of(corpus, tmp_path):
    return lambda model, **options: ft.second_moments(
        model, corpus, **{"tokens": 600, "sequence_length": 32, "cache_dir": tmp_path, "ridge": 1e-2, **options}
    )


def float64(family, tokenizer):
    return small_model(family, tokenizer, torch.float64)


def probability(model, prompt, target):
    """p(target | prompt) in plain transformers."""
    ids, more = (model.tokenizer(text)["input_ids"] for text in (prompt, " " + target))
    with torch.no_grad():
        logp = model.hf(torch.tensor([[*ids, *more]])).logits[0].log_softmax(-1)
    return np.exp(sum(float(logp[len(ids) - 1 + k, t]) for k, t in enumerate(more)))


def write(model, updates):
    """Add updates of experts to transformers' weights. Returns what undoes it."""
    saved = [weight.detach().clone() for weight in model.hf.parameters()]
    with torch.no_grad():
        for layer, update in updates.items():
            for expert, part in parts_of(update).items():
                mlp = mlp_modules(model.hf)[layer]
                weight = mlp.down_proj.weight if expert is None else expert_weight(mlp, expert)
                weight += part.matrix()

    def undo():
        with torch.no_grad():
            for weight, old in zip(model.hf.parameters(), saved, strict=True):
                weight.copy_(old)

    return undo


def check_scores(model, facts, updates, rows):
    """Assert that scored prompts have the probabilities of the model with the updates really written."""
    undo, moved = write(model, updates), []
    for row in rows:
        fact = next(one for one in facts if one.fact_id == row["fact_id"])
        for target, name in ((fact.target_false, "p"), (fact.target_true, "p_true")):
            p = probability(model, row["prompt"], target)
            assert row[f"{name}_after"] == pytest.approx(p, rel=1e-6)
            moved.append(abs(row[f"{name}_after"] - row[f"{name}_before"]) / p)
    undo()
    assert max(moved) > 1e-3, "an edit that changes nothing would make this test empty"


@pytest.mark.parametrize("family", FAMILIES)
def test_second_moments_are_sums_over_the_rows_that_go_to_an_expert(family, small_tokenizer, moments_of, corpus):
    model, layer = float64(family, small_tokenizer), 2
    found = moments_of(model, layers=[layer], batch_rows=100)
    ids, mlp = small_tokenizer(corpus.read_text(encoding="utf-8"))["input_ids"][:600], mlp_modules(model.hf)[layer]
    with torch.no_grad():
        rows = [row for i in range(0, 600, 32) for row in rows_of(model.hf, ids[i : i + 32], layer)]
        for row in rows[:50]:
            torch.testing.assert_close(mixture_output(mlp, row), row.out, rtol=0, atol=1e-12)
        for expert in found.experts[layer]:
            keys = torch.stack([weighted_key(mlp, row, expert) for row in rows])
            wanted = keys.T @ keys / 600
            assert float((found.matrix(layer, expert) - wanted).norm() / wanted.norm()) < 1e-6
            assert found.routed(layer, expert) == sum(expert == SHARED or expert in row.experts for row in rows)
    assert (SHARED in found.experts[layer]) == (family in ("qwen2-moe", "deepseek-v3"))


@pytest.mark.parametrize(
    ("family", "experts"),
    [*((family, None) for family in FAMILIES), ("qwen2-moe", "shared"), ("deepseek-v3", "top"), ("gpt-oss", (0, 3))],
)
def test_rome_equals_hooks(family, experts, small_tokenizer, moments_of):
    model, layers = float64(family, small_tokenizer), [1, 2]
    moments = moments_of(model, layers=layers)
    result = ft.edit(model, FACTS, layers=layers, moments=moments, experts=experts, **ASKED, **VALUE)
    compared = 0
    for edit in result.edits:
        fact = next(one for one in FACTS if one.fact_id == edit.fact_id)
        [(layer, update)] = edit.updates.items()
        at = find_last_subject_token(small_tokenizer, fact.text, fact.subject)
        row = rows_of(model.hf, small_tokenizer(fact.text)["input_ids"], layer)[at]
        top = row.experts[int(torch.stack(row.weights).argmax())]
        routed = {None: tuple(sorted(row.experts)), "shared": (SHARED,), "top": (top,)}
        assert update.experts == routed.get(experts, experts)
        if edit.reason is not None:
            assert not set(experts) & set(row.experts)
            assert edit.reason.startswith("the last subject token of the prompt does not go to expert 0, 3 of layer")
            assert not edit.changes()
            continue
        value, key = hooked_rome(
            model.hf, small_tokenizer, fact.prompt, fact.subject, fact.target_false, layer, CONTEXTS,
            lambda k, layer=layer, own=update.experts: moments.inverse_key(layer, k[None], experts=own)[0],
            *VALUE.values(), read=key_and_value_of(model.hf, small_tokenizer, fact.subject, layer, update.experts),
        )  # fmt: skip
        torch.testing.assert_close(update.key[0].double(), key, rtol=0, atol=1e-5)
        assert float((update.value[0].double() - value).norm() / value.norm()) < 1e-5
        rows = [r for r in result.prompts.to_pylist() if (r["fact_id"], r["layer"]) == (edit.fact_id, edit.layer)]
        check_scores(model, FACTS, edit.updates, rows)
        compared += 1
    assert compared >= 2


def test_an_edit_is_saved_applied_removed_and_exported(small_tokenizer, moments_of, tmp_path):
    from transformers import AutoModelForCausalLM

    for family, experts in (("gpt-oss", "routed"), ("qwen2-moe", "shared")):
        model = small_model(family, small_tokenizer, torch.float32)
        moments, before = moments_of(model, layers=[1]), model.weights_hash()
        result = ft.edit(model, FACTS[:1], layers=[1], moments=moments, experts=experts, **ASKED, **VALUE)
        file = result.save_delta(tmp_path / f"{family}.safetensors")
        rewrite = result.prompts.to_pylist()[0]
        with ft.apply_delta(model, ft.load_delta(file, model)):
            assert probability(model, rewrite["prompt"], FACTS[0].target_false) == pytest.approx(
                rewrite["p_after"], 1e-4
            )
        assert model.weights_hash() == before
        own = result.edits[0].updates[1].experts
        [norms] = ft.mass_edit(
            model, FACTS[:1], method="rome", layer=1, moments=moments, experts=experts, contexts=CONTEXTS, **VALUE
        ).norms.to_pylist()
        mlp, [edit] = mlp_modules(model.hf)[1], result.edits
        wanted = torch.cat([expert_weight(mlp, one).detach() for one in own], dim=1)
        assert norms["weight_norm_unedited"] == pytest.approx(float(wanted.double().norm()), rel=1e-6)
        assert norms["change_norm"] == pytest.approx(float(edit.updates[1].matrix().norm()), rel=1e-3)
        plain = AutoModelForCausalLM.from_pretrained(result.export(tmp_path / family)).state_dict()
        with ft.apply_delta(model, file):
            applied = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
        assert plain.keys() == applied.keys()
        assert all(torch.equal(plain[name], applied[name]) for name in plain)
        with pytest.raises(UserError, match=r"expected an edit of layers with one down-projection each for an adapter"):
            result.export(tmp_path / "adapter", format="peft")


@pytest.mark.parametrize(("family", "window"), [("deepseek-v3", (0, 1, 2)), ("gpt-oss", (0, 1, 2))])
def test_memit_equals_hooks_over_dense_and_routed_layers(family, window, small_tokenizer, moments_of):
    model, layer = float64(family, small_tokenizer), window[1]
    moments = moments_of(model, layers=window)
    asked = {"method": "memit", "window_size": 3, "moments": moments, **ASKED, **MEMIT}
    result = ft.edit(model, FACTS, layers=[layer], **asked)
    for fact, edit in zip(FACTS, result.edits, strict=True):
        experts = {at: update.experts for at, update in edit.updates.items()}

        def change_of(at, residual, key, experts=experts):
            k = key[None]
            u = moments.inverse_key(at, k, experts=experts[at])[0]
            return torch.outer(residual, u) / (MEMIT["covariance_weight"] + u @ key)

        target = small_tokenizer(" " + fact.target_false)["input_ids"]
        wanted = hooked_memit(
            model.hf, small_tokenizer, block_modules(model.hf), fact.prompt, fact.subject, target, window, CONTEXTS,
            change_of, *(MEMIT[name] for name in ("steps", "lr", "kl_factor", "weight_decay", "clamp")),
            experts=experts,
        )  # fmt: skip
        for at in window:
            mine = edit.updates[at].matrix()
            assert float((mine - wanted[at]).norm() / wanted[at].norm()) < 1e-5, at
        rows = [r for r in result.prompts.to_pylist() if r["fact_id"] == fact.fact_id]
        check_scores(model, FACTS, edit.updates, rows)


def test_many_facts_are_one_solve_over_the_experts_of_all(small_tokenizer, moments_of, tmp_path):
    model, layer = float64("mixtral", small_tokenizer), 1
    moments = moments_of(model, layers=[layer])
    asked = {"method": "memit", "window_size": 1, "moments": moments, "contexts": CONTEXTS, **MEMIT}
    alone = ft.edit(model, FACTS, layers=[layer], essence=0, **asked).edits
    many = ft.mass_edit(model, FACTS, layer=layer, **asked)
    [update] = many.updates.values()
    own = tuple(sorted({expert for edit in alone for expert in edit.updates[layer].experts}))
    assert update.experts == own
    C = torch.block_diag(*(moments.matrix(layer, expert).double() for expert in own))
    for i, part in enumerate(C.diagonal().view(len(own), -1)):
        m = len(part)
        C.diagonal()[i * m : (i + 1) * m] += 1e-2 * part.clone().mean()
    K = []
    for fact in FACTS:
        read = key_and_value_of(model.hf, small_tokenizer, fact.subject, layer, own)
        keys = [read(context.replace("{}", fact.text))[0] for context in CONTEXTS]
        K.append(0.5 * (keys[0] + torch.stack(keys[1:]).mean(0)))
    R = torch.stack([edit.updates[layer].value[0].double() for edit in alone], dim=1)
    wanted = memit(R.numpy(), torch.stack(K, dim=1).numpy(), C.numpy(), np.zeros((len(C), 0)), covariance_weight=0.05)
    assert float((update.matrix() - torch.from_numpy(wanted)).norm()) < 1e-5 * float(np.linalg.norm(wanted))
    check_scores(model, FACTS, many.updates, many.prompts.to_pylist())
    # In two groups, and from a file after the first: the same experts, and the first one's keys.
    groups = ft.mass_edit(model, FACTS, layer=layer, at_once=1, **asked)
    check_scores(model, FACTS, groups.updates, groups.prompts.to_pylist()[-4:])
    first = ft.mass_edit(model, FACTS[:1], layer=layer, experts=own, **asked)
    file = first.save_delta(tmp_path / "first.safetensors")
    second = ft.mass_edit(model, FACTS[1:], layer=layer, experts=own, continue_from=file, **asked)
    torch.testing.assert_close(second.updates[layer].change, groups.updates[layer].change, rtol=0, atol=1e-6)
    with pytest.raises(UserError, match=r"expected the keys of experts .* at layer 1, got those of .*: name the same"):
        ft.mass_edit(model, FACTS[1:], layer=layer, experts=own[:1], continue_from=file, **asked)


def test_every_method_and_what_is_done_afterwards(small_tokenizer, moments_of):
    model = float64("qwen2-moe-some", small_tokenizer)
    moments = moments_of(model)
    for method, more in (
        ("emmet", {}), ("alphaedit", {"null_unit": "trace"}), ("pmet", {}), ("memit", {"after": "rect"}),
        ("memit", {"after": "prune"}), ("rome", {"max_norm": 0.05}),
    ):  # fmt: skip
        asked = {"method": method, "layers": [1], "window_size": 3, "moments": moments, **ASKED}
        [edit] = (result := ft.edit(model, FACTS[:1], **asked, steps=4, lr=0.5, **more)).edits
        assert [at for at, update in edit.updates.items() if update.experts] == [1]
        check_scores(model, FACTS, edit.updates, result.prompts.to_pylist())


def test_what_does_not_fit_is_refused_in_a_sentence(small_tokenizer, moments_of):
    dense, routed = (small_model(family, small_tokenizer, torch.float32) for family in ("llama", "deepseek-v3"))
    for model, layer, asked, message in (
        (
            dense,
            1,
            {"experts": "top"},
            "edit: experts: expected no value, as no layer that is edited of 'llama'",
        ),
        (
            routed,
            0,
            {"experts": "top"},
            "edit: experts: expected no value, as no layer that is edited of 'deep",
        ),
        (routed, 1, {"experts": [6]}, "edit: experts: expected some of 0 to 5 at layer 1, got 6"),
        (
            routed,
            1,
            {"method": "ft-1"},
            "edit: method: expected rome or a method with a solve for layer 1, which",
        ),
    ):
        with pytest.raises(UserError, match=message):
            ft.edit(model, FACTS, layers=[layer], **asked)
    mixtral = small_model("mixtral", small_tokenizer, torch.float32)
    with pytest.raises(UserError, match="edit: experts: expected no shared one, which layer 1 does not have"):
        ft.edit(mixtral, FACTS, layers=[1], experts="shared")
    few = moments_of(mixtral, layers=[1], experts=[2], ridge=0.0, tokens=40)
    with pytest.raises(UserError, match=r"moments: expected those of experts .* of layer 1 too, got those of 2"):
        ft.edit(mixtral, FACTS, layers=[1], moments=few, experts=[0, 2])
    with pytest.raises(UserError, match=r"expert 2 of layer 1 \(40 x 40\) is singular with 40 tokens, of which \d+ go"):
        few.inverse_key(1, torch.ones(1, 40), experts=(2,))
    with pytest.raises(UserError, match="second_moments: experts: expected some of 0 to 4, got shared"):
        moments_of(mixtral, layers=[1], experts="shared")
    with pytest.raises(UserError, match="second_moments: experts: expected no value, as no layer of 'llama'"):
        moments_of(dense, experts=[1])
    with pytest.raises(UserError, match="moments: expected layers with one down-projection each for files"):
        few.export("nowhere", mixtral)
