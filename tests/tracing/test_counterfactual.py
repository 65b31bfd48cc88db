"""Counterfactual corruption against one hooked forward per cell: every module, both directions, every metric."""

import copy
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from grids import COLUMNS, EIFFEL, PARIS, YORK, begin_of, cells_of, check_grids, hooked
from small_models import small_model

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.tracing import prepare_trace

LATE = ft.Fact(
    prompt="of {} is the capital", subject="New York", target_true="Rome", target_false="Paris",
    counterfactual_prompt=("of New York is the city", "of New York is of capital"),
)  # fmt: skip
CHECKED = ("gpt2", "llama", "gemma2", *(pytest.param(name, marks=pytest.mark.slow) for name in ("gptj", "qwen3")))


@pytest.mark.parametrize("module", ["mlp", "attn", "block", "head"])
@pytest.mark.parametrize("method", ["denoise", "noise"])
@pytest.mark.parametrize("family", CHECKED)
def test_every_cell_of_every_module_equals_hooked_forwards(family, method, module, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    heads = [model.blocks[0].n_heads - 1, 1] if module == "head" else None
    windows = [4, 1] if family == "llama" and module != "head" else [3]
    check_grids(model, [EIFFEL, PARIS], module=module, method=method, heads=heads, windows=windows)


@pytest.mark.parametrize("method", ["denoise", "noise"])
@pytest.mark.parametrize("tokens", ["subject", "last-subject", "whole-subject"])
def test_facts_of_several_lengths_and_numbers_of_counterfactuals(tokens, method, small_tokenizer):
    """EIFFEL's differ from the middle of the subject on, LATE's only after it."""
    model = small_model("llama", small_tokenizer, torch.float64)
    facts = [PARIS, EIFFEL, YORK, LATE]
    assert [len(fact.counterfactuals) for fact in facts] == [1, 2, 3, 2]
    for module in ("mlp", "block", "head"):
        heads = [5] if module == "head" else None
        results = check_grids(model, facts, module=module, method=method, tokens=tokens, heads=heads)
        rows = results["kl"].facts.to_pylist()
        assert [row["counterfactuals"] for row in rows] == [list(fact.counterfactuals) for fact in facts]
        assert [row["sigma"] for row in rows] == [None] * 4


@pytest.mark.parametrize(("module", "method"), [("mlp", "noise"), ("head", "denoise")])
def test_waves_do_not_change_values_and_a_sweep_that_continues_has_its_bits(module, method, small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    facts = [EIFFEL, PARIS, YORK]
    how = {"corruption": "counterfactual", "module": module, "method": method, "metric": "kl", "keep": "all"}
    how |= {"heads": [4, 1]} if module == "head" else {}
    whole = ft.trace(model, facts, windows=[3], **how)
    plan = prepare_trace(model, facts, windows=[3], **how)
    memory = "1MB"
    assert plan.cost(memory).waves > 3
    parts = list(plan.batches(memory=memory))
    found, expected = cells_of(*parts), cells_of(whole)
    for column in [column for pair in COLUMNS.values() for column in pair] + ["effect"]:
        np.testing.assert_allclose(found[column], expected[column], rtol=1e-10, atol=1e-13, err_msg=column)
    done, *left = parts
    assert left
    rest = plan.batches(memory=memory, skip=set(done.facts["fact_id"].to_pylist()))
    pd.testing.assert_frame_equal(cells_of(*rest), cells_of(*left), check_exact=True)


def test_cells_before_the_first_difference_are_not_computed(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    plan = prepare_trace(model, [EIFFEL, LATE], corruption="counterfactual", keep="all", windows=[3])
    for item, fact in zip(plan.items(plan.encoded), (EIFFEL, LATE), strict=True):
        begin, length = begin_of(model, fact), len(item.encoded.ids)
        assert begin > item.encoded.subject_begin
        assert {cell.token for cell in item.cells} == set(range(begin, length))
        assert item.base_rows() == item.rows + len(fact.counterfactuals) * (item.rows - begin)
    none = prepare_trace(model, [LATE], corruption="counterfactual", keep="all", windows=[3], tokens="subject")
    assert none.items(none.encoded)[0].cells == ()
    every = prepare_trace(model, [LATE], corruption="noise", keep="all", windows=[3], tokens="subject", samples=2)
    assert none.cost().flops < every.cost().flops


@pytest.mark.parametrize("method", ["denoise", "noise"])
def test_tokens_beyond_the_reach_of_attention(method, small_tokenizer):
    """Every layer sees four tokens, so five windows reach 15 tokens: from a token after the subject, not from it."""
    model = small_model("mistral", small_tokenizer, torch.float32)
    prompt = "The {} is located in the city of Paris is the capital of France of Rome and New York is the city of"
    far = ft.Fact(prompt, "Eiffel Tower", "Paris", "Rome", counterfactual_subject="Paris Tower", fact_id="far")
    near = replace(far, counterfactual_prompt=far.text.replace("Rome and", "Rome in"), fact_id="near")
    assert model.reach(-1, 2) < len(small_tokenizer(far.text).input_ids) - 1
    how = {"corruption": "counterfactual", "method": method, "metric": "kl", "windows": [1], "keep": "all"}
    result = ft.trace(model, [far, near], module="head", heads=[1], **how)
    cells, (unseen, seen) = cells_of(result), result.facts.to_pylist()
    assert (unseen["p_noised"], unseen["kl_noised"]) == (unseen["p_clean"], 0.0)
    mine = cells[cells.fact_id == "far"]
    assert set(mine.p_restored) == {unseen["p_clean"]}
    assert set(mine.kl_restored) == {0.0}
    assert mine.effect.isna().all()
    assert seen["kl_noised"] > 1e-4
    model = small_model("mistral", small_tokenizer, torch.float64)
    check_grids(model, [EIFFEL, YORK], method=method, windows=[1])


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_float32(family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float32)
    for module, method in (("mlp", "denoise"), ("head", "noise")):
        check_grids(model, [EIFFEL], module=module, method=method, tolerance=1e-5)


def test_bfloat16_is_as_close_to_float64_as_transformers_own(small_tokenizer):
    """The errors of a grid's cells are not independent, so only their mean over several grids says much."""
    ratios = {"p": [], "logit_diff": [], "kl": []}
    for family, method in [(family, method) for family in ("gpt2", "llama") for method in ("denoise", "noise")]:
        model = small_model(family, small_tokenizer, torch.bfloat16)
        how = {"module": "head", "method": method, "corruption": "counterfactual"}
        result = ft.trace(model, [YORK], metric="kl", windows=[5], keep="all", heads=[0, 3], **how)
        how["heads"] = [[0], [3]]
        spots = range(begin_of(model, YORK), len(result.facts["tokens"][0]))
        theirs = hooked(model, YORK, 5, spots, **how).patched
        model.hf = copy.deepcopy(model.hf).double()
        exact = hooked(model, YORK, 5, spots, **how).patched
        cells = cells_of(result)
        cells = cells[cells.token_index >= spots[0]]
        for name, found in ratios.items():
            wanted = getattr(exact, name).mean(-1)
            own = np.abs(getattr(theirs, name).mean(-1) - wanted).mean()
            assert wanted.std() > 2 * own, "rounding hides the grid"
            found.append(np.abs(cells[COLUMNS[name][0]].to_numpy().reshape(wanted.shape) - wanted).mean() / own)
    assert max(np.mean(found) for found in ratios.values()) < 2, ratios


def test_counterfactuals_that_do_not_fit_are_named_and_the_others_traced(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    longer = "The big Eiffel Tower is located in the city of"
    mixed = replace(EIFFEL, counterfactual_prompt=(longer, *EIFFEL.counterfactual_prompt))
    none = replace(PARIS, counterfactual_subject=("New York",))
    how = {"corruption": "counterfactual", "keep": "all", "windows": [3]}
    found = ft.trace(model, [mixed, none, YORK], **how)
    first, left, last = found.facts.to_pylist()
    assert (first["kept"], left["kept"], last["kept"]) == (True, False, True)
    assert first["counterfactuals"] == list(EIFFEL.counterfactuals)
    assert f"{longer!r}: expected 9 tokens as the prompt has, got " in first["reason"]
    assert "'the New York is': expected 3 tokens as the prompt has, got 4" in left["reason"]
    assert (left["p_clean"], left["counterfactuals"], last["reason"]) == (None, [], None)
    assert set(found.cells["fact_id"].to_pylist()) == {mixed.fact_id, YORK.fact_id}
    assert EIFFEL.fact_id == mixed.fact_id, "counterfactuals are no part of a fact's id"
    mine, plain = cells_of(found), cells_of(ft.trace(model, [EIFFEL], **how))
    np.testing.assert_allclose(mine[mine.fact_id == mixed.fact_id].p_restored, plain.p_restored, rtol=1e-12)
    same = replace(PARIS, fact_id="same", counterfactual_prompt="the Paris is ", counterfactual_subject=())
    twice = replace(PARIS, counterfactual_subject="France", counterfactual_prompt="the France is ")
    left, once = ft.trace(model, [same, twice], **how).facts.to_pylist()
    assert (left["kept"], once["counterfactuals"]) == (False, ["the France is"])
    assert "'the Paris is ': expected tokens that differ from the prompt's, got the same" in left["reason"]
    assert "'the France is ': expected tokens that differ from another counterfactual's" in once["reason"]
    for bad, message in (
        ([none], f"trace: fact '{none.fact_id}': counterfactual 'the New York is': expected 3 tokens"),
        ([same], "counterfactual 'the Paris is ': expected tokens that differ from the prompt's, got the same"),
        ([replace(PARIS, counterfactual_subject=())], "expected a counterfactual_subject or .*, got neither"),
    ):
        with pytest.raises(UserError, match=message):
            ft.trace(model, bad, **how)


def test_a_counterfactual_answer_is_the_false_target_between_prompts_alone(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    open_ = replace(PARIS, target_false=None, counterfactual_answer=PARIS.target_false)
    how = {"corruption": "counterfactual", "keep": "all", "metric": "logit-difference"}
    mine, plain = ft.trace(model, [open_], **how), ft.trace(model, [PARIS], **how)
    assert mine.cells.equals(plain.cells)
    assert mine.facts.equals(plain.facts)
    noise = {"keep": "all", "sigma": 0.4, "samples": 2}
    [row] = ft.trace(model, [open_], **noise).facts.to_pylist()
    assert (row["target_false"], row["logit_diff_clean"]) == (None, None)
    with pytest.raises(UserError, match="metric logit-difference: expected a target_false, got none"):
        ft.trace(model, [open_], metric="logit-difference", **noise)
    with pytest.raises(UserError, match="expected a target_false or counterfactual_answer, got none"):
        ft.trace(model, [replace(PARIS, target_false=None)], **how)


def test_settings_of_noise_play_no_part(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    how = {"corruption": "counterfactual", "keep": "all"}
    one = ft.trace(model, [PARIS], **how)
    two = ft.trace(model, [PARIS], samples=3, sigma=0.7, noise="released", seed=9, **how)
    assert one.run["run_id"] == two.run["run_id"]
    assert one.cells.equals(two.cells)
    assert one.run["run_id"] != ft.trace(model, [PARIS], keep="all", samples=1).run["run_id"]
    assert one.run["run_id"] != ft.trace(model, [PARIS], metric="kl", **how).run["run_id"]
