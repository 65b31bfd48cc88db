"""Attention heads as modules: both corruptions, and what heads have to do with the whole of attention."""

import numpy as np
import pytest
import torch
from grids import EIFFEL, PARIS, YORK, cells_of, check_grids
from small_models import small_model

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.tracing import prepare_trace


@pytest.mark.parametrize("method", ["denoise", "noise"])
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "qwen3", "gemma2"])
def test_heads_with_noise_equal_hooked_forwards(family, method, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    noise = {"corruption": "noise", "samples": 2, "sigma": 0.5}
    check_grids(model, [PARIS, EIFFEL], module="head", method=method, heads=[2], windows=[2], **noise)


def test_zeroed_heads_equal_hooked_forwards(small_tokenizer):
    model = small_model("gptj", small_tokenizer, torch.float64)
    how = {"module": "head", "method": "zero", "corruption": "noise", "metrics": ("probability", "logit-difference")}
    for tokens in ("all", "whole-subject"):
        check_grids(model, [EIFFEL, PARIS], tokens=tokens, heads=[3, 0], **how)


@pytest.mark.parametrize("method", ["denoise", "noise"])
@pytest.mark.parametrize("family", ["llama", "gemma2", "bloom"])
def test_all_heads_at_once_are_attention_and_some_heads_are_rows_of_all(family, method, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    count = model.blocks[0].n_heads
    how = {"method": method, "corruption": "counterfactual", "keep": "all", "windows": [3, 1], "metric": "kl"}
    facts = [EIFFEL, YORK]
    whole, at_once, every, some = (
        cells_of(ft.trace(model, facts, **how, **more))
        for more in (
            {"module": "attn"},
            {"module": "head", "heads": "at-once"},
            {"module": "head"},
            {"module": "head", "heads": [5, 2, 5]},
        )
    )
    values = [name for name in whole if name.endswith(("_restored", "_sem", "effect"))]
    assert at_once["head"].isna().all()
    for name in values:
        np.testing.assert_allclose(
            at_once[name], whole[name], rtol=1e-12, atol=1e-12 if name == "effect" else 1e-14, err_msg=name
        )
    assert sorted(set(every["head"])) == list(range(count))
    assert len(every) == count * len(whole)
    rows = every[every["head"].isin([2, 5])].reset_index(drop=True)
    assert (some[["fact_id", "head"]] == rows[["fact_id", "head"]]).all(axis=None)
    for name in values:
        np.testing.assert_allclose(
            some[name], rows[name], rtol=1e-12, atol=1e-12 if name == "effect" else 1e-14, err_msg=name
        )
    assert every.groupby(["fact_id", "window_size", "token_index", "layer"]).p_restored.nunique().max() == count


def test_the_same_heads_are_the_same_run(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    count = model.blocks[0].n_heads

    def run_id(heads):
        return prepare_trace(model, [PARIS], module="head", heads=heads, keep="all", sigma=0.4).run["run_id"]

    assert run_id([3, 1]) == run_id([1, 3]) == run_id([3, 1, 1])
    assert run_id(range(count)) == run_id("all") == run_id(None)
    assert len({run_id(heads) for heads in ([3, 1], [3], "all", "at-once")}) == 4


def test_bad_heads_are_refused_in_a_sentence(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    for bad, message in (
        ({"module": "head", "heads": [6]}, r"trace: heads: expected numbers from 0 to 5 for 'llama', got 6"),
        ({"module": "head", "heads": [0, -1]}, r"trace: heads: expected .*, got \[0, -1\]"),
        ({"module": "head", "heads": []}, r"trace: heads: expected .*, got \[\]"),
        ({"module": "head", "heads": "some"}, r"trace: heads: expected .*, got 'some'"),
        ({"module": "head", "heads": [1.5]}, r"trace: heads: expected .*, got \[1.5\]"),
        ({"module": "attn", "heads": [1]}, "trace: heads: expected module head, got module attn"),
        ({"heads": "all"}, "trace: heads: expected module head, got module mlp"),
        (
            {"module": "head", "heads": "at-once", "method": "attribution"},
            "trace: heads: expected one head per cell with method attribution, got at-once",
        ),
    ):
        with pytest.raises(UserError, match=message):
            ft.trace(model, [PARIS], keep="all", **bad)
