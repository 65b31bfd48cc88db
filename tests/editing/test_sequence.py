"""Mass edits in groups: earlier keys, going on from a file, interruptions, and what is done to updates afterwards."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from edit_cases import CONTEXTS, FACTS
from small_models import small_model

import fasttrace as ft
from fasttrace.cache import load_tensors, save_tensors
from fasttrace.editing import prepare_mass_edit
from fasttrace.editing.after.prune import largest_singular_value, prune
from fasttrace.editing.after.rect import rect
from fasttrace.errors import UserError
from fasttrace.settings.methods import SPREAD
from fasttrace.workflow import mass_into

MORE = [
    *FACTS,
    ft.Fact("{} is the capital of", "Rome", "New York", "France", neighborhood=("Paris is the capital of",)),
    ft.Fact("The city of {} is located in", "New York", "Paris", "Rome"),
    ft.Fact("The capital of {} is", "France", "Paris", "Rome"),
]
VALUE = {"steps": 4, "lr": 0.5, "window_size": 3, "layer": 1, "contexts": CONTEXTS}
OPTIONS = {
    "memit": {**VALUE, "covariance_weight": 0.05},
    "emmet": VALUE,
    "alphaedit": {**VALUE, "null_threshold": 0.01, "null_unit": "trace", "norm_weight": 0.05},
    "pmet": {**VALUE, "lr": 0.3, "covariance_weight": 0.05},
    "rome": {"steps": 4, "layer": 1, "contexts": CONTEXTS},
    "ft-1": {"steps": 3, "lr": 5e-3, "epsilon": 1e-2, "layer": 1},
}


@pytest.fixture
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


@pytest.fixture
def options(model, corpus, tmp_path, monkeypatch):
    """method → the keywords of its mass edits. Checkpoints are in the test's own folder."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    moments = ft.second_moments(model, corpus, tokens=3000, sequence_length=32)

    def make(method, **more):
        known = {} if method.startswith("ft") else {"moments": moments}
        return {"method": method, **OPTIONS[method], **known, **more}

    return make


def same(first, second):
    assert sorted(first) == sorted(second)
    for layer in first:
        torch.testing.assert_close(first[layer].change, second[layer].change, rtol=0, atol=0)


def off(first, second):
    return max(float((first[at].matrix() - second[at].matrix()).norm() / second[at].matrix().norm()) for at in second)


@pytest.mark.parametrize("method", SPREAD)
def test_groups_keep_the_keys_of_earlier_ones(method, model, options):
    """Against the published solve of the second group, from keys and residuals that are read in the edited model."""
    given = options(method, at_once=3)
    kept, ignored = (ft.mass_edit(model, MORE, past_keys=which, **given) for which in ("keep", "ignore"))
    assert kept.run["run_id"] != ignored.run["run_id"]
    assert off(kept.updates, ignored.updates) > 1e-4, "earlier keys would not be seen"
    assert json.loads(kept.run["settings"])["past_keys"] == "keep"
    for past in kept.sequence.past.values():
        assert past.keys.shape == (len(MORE), model.key_width)
    assert not ignored.sequence.past
    one = ft.mass_edit(model, MORE, **options(method, past_keys="ignore"))
    assert "past_keys" not in json.loads(one.run["settings"]), "one group has no earlier keys"


def test_the_second_group_is_the_published_solve(model, options):
    from closed_form import memit

    from fasttrace.editing.applied import edited_view
    from fasttrace.editing.spread import _keys_and_values
    from fasttrace.editing.value import contexts_of
    from fasttrace.facts import encode_fact

    given = options("memit", at_once=3, window_size=1)
    first = ft.mass_edit(model, MORE[:3], **given)
    both = ft.mass_edit(model, MORE, **given)
    view = edited_view(model, first.updates)

    def keys_in(which, facts):
        ready = [contexts_of(which, encode_fact(model.tokenizer, f), (5,), CONTEXTS) for f in facts]
        return _keys_and_values(which, ready, None, 1, 1, "block")[0].double().numpy().T

    K_p, K = keys_in(model, MORE[:3]), keys_in(view, MORE[3:])
    C = given["moments"].matrix(1).double().numpy()
    change = (both.updates[1].matrix() - first.updates[1].matrix()).numpy()
    # ΔW = R X for the solve X of unit residuals, whatever the values were.
    X = memit(np.eye(2), K, C, K_p, 0.05)
    R = np.linalg.lstsq(X.T, change.T, rcond=None)[0].T
    assert np.linalg.norm(change - R @ X) < 1e-4 * np.linalg.norm(change)
    apart = memit(np.eye(2), K, C, np.zeros((len(C), 0)), 0.05)
    R = np.linalg.lstsq(apart.T, change.T, rcond=None)[0].T
    assert np.linalg.norm(change - R @ apart) > 1e-2 * np.linalg.norm(change)


@pytest.mark.parametrize("method", OPTIONS)
def test_a_sequence_goes_on_from_its_delta_bit_for_bit(method, model, options, tmp_path):
    given = options(method, score_every=1, **({"at_once": 2} if method in SPREAD else {}))
    whole = ft.mass_edit(model, MORE, **given)
    first = ft.mass_edit(model, MORE[:2], **given)
    path = first.save_delta(tmp_path / "first.safetensors")
    rest = ft.mass_edit(model, MORE[2:], **given, continue_from=path)
    same(rest.updates, whole.updates)
    assert rest.sequence.n_edits == whole.sequence.n_edits == len(MORE)
    rows = {(row["n_edits"], row["fact_id"]): row for row in whole.scores.to_pylist()}
    for row in rest.scores.to_pylist():
        assert row == rows[row["n_edits"], row["fact_id"]]
    last = rest.save_delta(tmp_path / "rest.safetensors")
    again = whole.save_delta(tmp_path / "whole.safetensors")
    tensors, wanted = load_tensors(last)[0], load_tensors(again)[0]
    assert tensors.keys() == wanted.keys()
    assert all(torch.equal(tensors[name], wanted[name]) for name in wanted)
    assert rest.run["run_id"] != ft.mass_edit(model, MORE[2:], **given).run["run_id"]


@pytest.mark.parametrize("stopped_after", [2, 3])  # groups; with cases, in the first or after it
@pytest.mark.parametrize("together", ["all", "case"])
@pytest.mark.parametrize("method", ["memit", "rome"])
def test_an_interrupted_run_goes_on(method, together, stopped_after, model, options, tmp_path, monkeypatch):
    from fasttrace.editing import sequence

    monkeypatch.setattr(sequence, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(sequence, "CHECKPOINT_SHARE", 0.0)
    given = options(method, score_every=1, together=together, **({"at_once": 1} if method == "memit" else {}))
    cased = [*(replace(fact, case_id="one", case_edits=3) for fact in MORE[:3]), *MORE[3:]]
    plan = prepare_mass_edit(model, cased, **given)
    wanted = plan.compute()
    plan.checkpoint.unlink(missing_ok=True)
    store = ft.Store(tmp_path / "study.duckdb")
    solved = []
    solve = type(plan)._solve

    def counted(self, view, group, *rest):
        solved.append(group)
        return solve(self, view, group, *rest)

    monkeypatch.setattr(type(plan), "_solve", counted)

    class Stopped(Exception):
        pass

    def stop(n):
        if len(solved) == stopped_after + (together == "case" and stopped_after == 3):
            raise Stopped

    with pytest.raises(Stopped):
        mass_into(store, plan, stop)
    assert plan.checkpoint.exists()
    again = prepare_mass_edit(model, cased, **given)
    steps = []
    found = mass_into(store, again, steps.append)
    assert len(solved) == len(MORE), "groups that were done would be solved again"
    assert steps[0] in (2, 3, 4)
    assert sum(steps) == len(MORE)
    assert found.to_pylist() == wanted.scores.to_pylist()
    assert not again.checkpoint.exists()
    counts = store.query("SELECT count(*) AS n FROM mass_prompts").to_pylist()
    assert counts == [{"n": len(wanted.prompts)}]


def test_a_checkpoint_is_of_whole_facts(model, options, monkeypatch):
    """A run is named by the ids of its facts, which leave out the target that is edited in."""
    from fasttrace.editing import sequence

    monkeypatch.setattr(sequence, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(sequence, "CHECKPOINT_SHARE", 0.0)
    given = options("memit", at_once=1)
    plan = prepare_mass_edit(model, MORE, **given)
    with pytest.raises(KeyboardInterrupt):
        plan.compute(progress=interrupted)
    assert plan.checkpoint.exists()
    other = [replace(MORE[0], target_false="New York"), *MORE[1:]]
    again = prepare_mass_edit(model, other, **given)
    assert again.run["run_id"] == plan.run["run_id"]
    assert not again.checkpoint.exists()


def interrupted(n):
    raise KeyboardInterrupt


def test_facts_that_no_prediction_sees_leave_their_keys_in_every_grouping(model, options, monkeypatch):
    from fasttrace.editing.value import FactContexts

    lost = MORE[1].fact_id
    monkeypatch.setattr(FactContexts, "unseen", lambda self, *_: "unseen" if self.fact.fact_id == lost else None)
    together = ft.mass_edit(model, MORE[:3], **options("memit", at_once=3))
    for at_once in (1, 2):
        grouped = ft.mass_edit(model, MORE[:3], **options("memit", at_once=at_once))
        for layer, past in grouped.sequence.past.items():
            assert past.keys.shape == together.sequence.past[layer].keys.shape == (3, model.key_width)
    alone = ft.mass_edit(model, MORE[1:2], **options("memit"))
    assert not any(update.changes() for update in alone.updates.values())


def test_a_result_is_not_written_while_its_edit_is_applied(model, options, tmp_path):
    mass = ft.mass_edit(model, MORE[:2], **options("memit"))
    given = options("rome")
    single = ft.edit(model, MORE[:1], essence=0, layers=[given.pop("layer")], **given)
    for result in (mass, single):
        with result.applied():
            for write in (result.export, result.save_delta):
                with pytest.raises(UserError, match="expected 'llama' with the weights that were edited"):
                    write(tmp_path / "out")
        assert not (tmp_path / "out").exists()
        result.save_delta(tmp_path / f"{result.run['kind']}.safetensors")


def test_a_damaged_checkpoint_is_not_read(model, options):
    plan = prepare_mass_edit(model, MORE, **options("memit", at_once=2))
    wanted = plan.compute()
    plan.checkpoint.parent.mkdir(parents=True)
    save_tensors(plan.checkpoint, {"scores": torch.zeros(1, dtype=torch.uint8)}, {"models": 0})
    with open(plan.checkpoint, "r+b") as file:
        file.seek(-1, 2)
        file.write(b"x")
    assert plan.compute().scores.to_pylist() == wanted.scores.to_pylist()


def test_a_delta_that_cannot_be_continued_is_refused_in_a_sentence(model, options, tmp_path, caplog):
    ignored = ft.mass_edit(model, MORE[:2], **options("memit", at_once=1, past_keys="ignore"))
    bare = ignored.save_delta(tmp_path / "bare.safetensors")
    kept = ft.mass_edit(model, MORE[:2], **options("memit"))
    path = kept.save_delta(tmp_path / "kept.safetensors")
    pruned = ft.mass_edit(model, MORE[:2], **options("memit", after="prune")).save_delta(
        tmp_path / "pruned.safetensors"
    )
    tensors, about = load_tensors(path)
    narrow, nan = tmp_path / "narrow.safetensors", tmp_path / "nan.safetensors"
    save_tensors(narrow, {**tensors, "1.past_keys": tensors["1.past_keys"][:, 1:]}, about)
    save_tensors(nan, {**tensors, "1.past_keys": tensors["1.past_keys"] * math.nan}, about)
    odd, none = tmp_path / "odd.safetensors", tmp_path / "no-edits.safetensors"
    assert set(about["changed"]) == {prompt for one in MORE[:2] for prompt in (one.text, *one.paraphrases)}
    save_tensors(odd, tensors, {**about, "changed": [1]})
    save_tensors(none, tensors, {**about, "facts": 0})
    many = tmp_path / "many-edits.safetensors"
    save_tensors(many, tensors, {**about, "facts": 10**12})
    about_one = {name: value for name, value in options("memit", after="prune").items() if name != "layer"}
    single = ft.edit(model, MORE[:1], layers=[1], **about_one)
    one = single.save_delta(tmp_path / "one.safetensors")
    assert set(load_tensors(one)[1]["changed"]) == {MORE[0].text, *MORE[0].paraphrases}
    text = tmp_path / "text.safetensors"
    text.write_text("x")
    for file, more, sentence in (
        (bare, {}, "expected the keys of its edits at layers 0, 1, 2, which .* got none: past_keys=ignore"),
        (path, {"layer": 3}, "expected the keys of its edits at layers 3, 4"),
        (narrow, {}, r"expected finite float64 keys of width \d+ in 1.past_keys, got others"),
        (nan, {}, r"expected finite float64 keys of width \d+ in 1.past_keys, got others"),
        (odd, {}, r"expected the prompts that its edits change in the metadata, got \[1\]"),
        (none, {}, "expected the number of its edits in the metadata, got 0"),
        (many, {}, "expected the number of its edits in the metadata, got 1000000000000"),
        (
            one,
            {"past_keys": "ignore"},
            "expected the sum of the edits as they were made, got one that prune has changed",
        ),
        (text, {}, "expected a complete safetensors file"),
        (pruned, {}, "expected the sum of the edits as they were made, got one that prune has changed"),
        (tmp_path / "none.safetensors", {}, "expected a complete safetensors file"),
        (path, {"together": "case"}, "continue_from: expected a file only with together all, got one with"),
        (path, {"after": "prune"}, "continue_from: expected a file only without after prune, got one with"),
    ):
        with pytest.raises(UserError, match=sentence):
            ft.mass_edit(model, MORE[2:], **options("memit", continue_from=file, **more))
    assert (
        ft.mass_edit(model, MORE[2:], **options("memit", continue_from=bare, past_keys="ignore")).sequence.n_edits == 5
    )
    with pytest.raises(
        UserError, match="past_keys: expected a value only with memit, emmet, alphaedit, pmet, got one with rome"
    ):
        ft.mass_edit(model, MORE, **options("rome", past_keys="keep"))


def test_rect_keeps_the_share_that_changes_its_weights_most():
    generator = torch.Generator().manual_seed(0)
    weight, change = (torch.randn(30, 40, generator=generator, dtype=torch.float64) for _ in range(2))
    weight[0, 0] = change[0, 1] = weight[0, 2] = change[0, 2] = 0.0
    kept = rect(weight, change, 0.25)
    ratio = np.nan_to_num((change / weight).abs().numpy().ravel(), posinf=np.inf)
    order = np.argsort(-ratio)
    wanted = np.zeros(change.numel())
    wanted[order[:300]] = change.numpy().ravel()[order[:300]]
    np.testing.assert_array_equal(kept.numpy().ravel(), wanted)
    assert kept[0, 0] == change[0, 0], "a changed weight that was 0 has the largest ratio"
    torch.testing.assert_close(rect(weight, change, 1.0), change)


@pytest.mark.parametrize("base", [math.e, 1.2, 1.01])
def test_prune_presses_down_singular_values_above_the_weights_own(base):
    generator = torch.Generator().manual_seed(0)
    weight = torch.randn(12, 30, generator=generator)
    change = 1.3 * torch.randn(12, 30, generator=generator).double()
    largest = largest_singular_value(weight)
    assert largest == pytest.approx(float(np.linalg.svd(weight.double().numpy(), compute_uv=False)[0]), rel=1e-9)
    u, sigma, v = np.linalg.svd(change.numpy(), full_matrices=False)
    assert 0 < (sigma > largest).sum() < len(sigma)
    pressed = np.where(sigma > largest, np.log(sigma) / np.log(base) - np.log(largest) / np.log(base) + largest, sigma)
    assert (pressed > sigma).any() == (base == 1.01), "the paper's function raises those just above M"
    pressed = np.minimum(pressed, sigma)
    np.testing.assert_allclose(prune(largest, change, base).numpy(), (u * pressed) @ v, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("method", ["memit", "rome", "ft-1"])
@pytest.mark.parametrize("how", ["rect", "prune", "max_norm"])
def test_what_is_done_afterwards_is_in_edits_and_mass_edits(how, method, model, options):
    """A mass edit of one fact and an edit of it have the same update, which is the method's own after the formula."""
    given = options(method)
    layer = given.pop("layer")
    more = {"max_norm": 1e-3} if how == "max_norm" else {"after": how}
    if how == "rect":
        more["rect_share"] = 0.1
    [plain] = ft.edit(model, MORE[:1], essence=0, layers=[layer], **given).edits
    [edit] = (found := ft.edit(model, MORE[:1], essence=0, layers=[layer], **given, **more)).edits
    mass = ft.mass_edit(model, MORE[:1], layer=layer, **given, **more)
    for at, update in plain.updates.items():
        weight = model.blocks[at].down.detach().double()
        wanted = update.matrix()
        if how == "rect":
            wanted = rect(weight, wanted, 0.1)
            assert 0 < int((wanted != 0).sum()) <= math.ceil(0.1 * wanted.numel())
        elif how == "prune":
            wanted = prune(largest_singular_value(weight), wanted, math.e)
        else:
            wanted = wanted * min(1.0, 1e-3 * float(weight.norm()) / float(wanted.norm()))
            assert float(edit.updates[at].matrix().norm()) <= 1e-3 * float(weight.norm()) * (1 + 1e-6)
        torch.testing.assert_close(edit.updates[at].matrix(), wanted, rtol=1e-5, atol=1e-9)
        torch.testing.assert_close(mass.updates[at].matrix(), wanted, rtol=2e-3, atol=1e-6)
    with ft.apply_delta(model, edit):
        encoded = model.tokenizer(MORE[0].text).input_ids
        target = model.tokenizer(" " + MORE[0].target_false).input_ids
        with torch.no_grad():
            logp = model.hf(torch.tensor([[*encoded, *target]])).logits[0].double().log_softmax(-1)
    p = math.exp(sum(float(logp[len(encoded) - 1 + k, t]) for k, t in enumerate(target)))
    assert found.scores["p_after"][0].as_py() == pytest.approx(p, rel=1e-3, abs=1e-7)


def test_prune_leaves_the_sequence_and_changes_what_is_scored_and_written(model, options):
    given = options("memit", at_once=2, score_every=1)
    plain, pruned = (
        ft.mass_edit(model, MORE, **given),
        ft.mass_edit(model, MORE, **given, after="prune", prune_base=8.0),
    )
    assert off(pruned.sequence.updates, plain.updates) == 0
    for at, update in plain.updates.items():
        weight = model.blocks[at].down
        wanted = prune(largest_singular_value(weight), update.matrix(), 8.0)
        torch.testing.assert_close(pruned.updates[at].matrix(), wanted, rtol=1e-5, atol=1e-8)
