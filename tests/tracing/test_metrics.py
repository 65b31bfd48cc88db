"""What is measured of every pass, and the effects made of it, against hooked forwards and by formula."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from grids import COLUMNS, EIFFEL, PARIS, cells_of, check_grid, check_grids, hooked
from hypothesis import given
from hypothesis import strategies as st
from small_models import small_model

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.facts import encode_fact
from fasttrace.models import readout
from fasttrace.tracing.measures import Span, metric_effect

NOISE = {"corruption": "noise", "samples": 3, "sigma": 0.5, "windows": [4]}


@pytest.mark.parametrize(("module", "method"), [("mlp", "denoise"), ("attn", "noise"), ("block", "denoise")])
@pytest.mark.parametrize("family", ["gpt2", "gemma2"])
def test_metrics_with_noise_equal_hooked_forwards(family, module, method, small_tokenizer):
    check_grids(
        small_model(family, small_tokenizer, torch.float64), [PARIS, EIFFEL], module=module, method=method, **NOISE
    )


@pytest.mark.parametrize("family", ["phi", "gemma2", "llama"])
def test_divergence_in_blocks_of_the_vocabulary_equals_whole_logits(family, small_tokenizer, monkeypatch):
    """A small model's vocabulary is one block, so the blocks are made smaller than it. Phi's unembedding has a bias."""
    monkeypatch.setattr(readout, "VOCAB_BLOCK", 37)
    monkeypatch.setattr(readout, "ROW_BLOCK", 5)
    monkeypatch.setattr(readout, "TOKEN_ROWS", 7)
    model = small_model(family, small_tokenizer, torch.float64)
    check_grids(model, [PARIS], metrics=("kl",))
    h = torch.randn(9, model.width, dtype=torch.float64) * torch.logspace(-2, 2, 9, dtype=torch.float64)[:, None]
    of = torch.tensor([0, 0, 1, 8, 4, 8, 8, 7, 8])
    with torch.no_grad():
        whole = torch.cat(
            [readout._logits(model, readout._normed(model, h), b) for b in range(0, model.vocab_size, 37)], 1
        )
        logp = whole.log_softmax(1)
        expected = (logp[of].exp() * (logp[of] - logp)).sum(1)
        found = readout.divergence(model, h, of)
    torch.testing.assert_close(found, expected, rtol=1e-10, atol=1e-12)
    assert found[0] == found[8] == 0.0


def traced(model, facts, **settings):
    return ft.trace(model, facts, corruption="counterfactual", keep="all", keep_samples=True, windows=[3], **settings)


def test_without_a_contrast_only_probabilities_and_kl_are_measured(small_tokenizer):
    """No o_false, one that begins o_true, one that o_true begins, and scored tokens that are the same."""
    model = small_model("llama", small_tokenizer, torch.float64)
    none = replace(PARIS, target_false=None)
    begins, begun = replace(EIFFEL, target_false="New"), replace(EIFFEL, target_true="New", target_false="New York")
    for fact, more in ((none, {}), (begins, {}), (begun, {}), (EIFFEL, {"scored": "first-token"})):
        targets = encode_fact(small_tokenizer, fact).target_true_ids[: 1 if more else None]
        spots = list(range(1 if fact is none else 2, len(encode_fact(small_tokenizer, fact).ids)))
        how = {"module": "mlp", "method": "denoise", "heads": [()]}
        expected = hooked(model, fact, 3, spots, corruption="counterfactual", targets=targets, **how)
        if more:  # the oracle's contrast is at the second token
            nothing = [np.full_like(part.p, np.nan) for part in expected]
            expected = type(expected)(
                *(part._replace(p_false=nan, logit_diff=nan) for part, nan in zip(expected, nothing, strict=True))
            )
        assert np.isnan(expected.patched.logit_diff).all()
        for metric in ("probability", "log-probability", "kl"):
            result = traced(model, [fact], metric=metric, **more)
            how = {"metric": metric, "method": "denoise", "heads": [()], "reached": True, "tolerance": 1e-11}
            check_grid(model, fact, result, expected, 3, first=spots[0], **how)
        found = traced(model, [fact, replace(PARIS, fact_id="other")], metric="logit-difference", **more)
        left, kept = found.facts.to_pylist()
        assert (left["kept"], kept["kept"]) == (False, True)
        assert "metric logit-difference: expected a target_false" in left["reason"]
        assert set(found.cells["fact_id"].to_pylist()) == {"other"}
        with pytest.raises(
            UserError, match=f"trace: fact '{fact.fact_id}': metric logit-difference: expected a target"
        ):
            traced(model, [fact], metric="logit-difference", **more)


def test_targets_that_are_one_token_are_contrasted_there(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float64)
    encoded = encode_fact(small_tokenizer, PARIS)
    with torch.no_grad():
        answer = int(model.hf(torch.tensor([encoded.ids])).logits[0, -1].argmax())
    true, false = encoded.target_true_ids[0], encoded.target_false_ids[0]
    assert answer not in (true, false)
    how = {"module": "mlp", "method": "denoise", "heads": [()], "corruption": "counterfactual"}
    of_answer, of_true = (hooked(model, PARIS, 3, [0, 1, 2], targets=[token], **how) for token in (answer, true))
    for scored, expected in (("first-token", of_true), ("argmax-first", of_answer)):
        mixed = type(of_true)(
            *(p._replace(logit_diff=t.logit_diff, p_false=t.p_false) for p, t in zip(expected, of_true, strict=True))
        )
        for metric in ("logit-difference", "kl"):
            result = traced(model, [PARIS], metric=metric, scored=scored)
            how = {"metric": metric, "method": "denoise", "heads": [()], "reached": True, "tolerance": 1e-11}
            check_grid(model, PARIS, result, mixed, 3, first=0, **how)


def test_one_set_of_passes_has_the_same_measures_in_every_metric(small_tokenizer):
    """The metric decides only what effects are made of, and whether logarithms and KL are reported."""
    model = small_model("gemma2", small_tokenizer, torch.float32)
    found = {metric: traced(model, [EIFFEL, PARIS], metric=metric) for metric in
             ("probability", "log-probability", "logit-difference", "kl")}  # fmt: skip
    assert len({result.run["run_id"] for result in found.values()}) == 4
    plain = cells_of(found["probability"])
    for metric, result in found.items():
        cells = cells_of(result)
        for name in ("p", "p_false", "logit_diff"):
            for column in COLUMNS[name]:
                np.testing.assert_array_equal(cells[column], plain[column], err_msg=f"{metric} {column}")
        assert cells.logprob_restored.notna().all() == (metric == "log-probability")
        assert cells.kl_restored.notna().all() == (metric == "kl")


def test_a_store_keeps_every_column_of_cells_and_samples(small_tokenizer, tmp_path):
    model = small_model("llama", small_tokenizer, torch.float32)
    store, facts = ft.Store(tmp_path / "s.duckdb"), [EIFFEL, replace(PARIS, target_false=None)]
    for more in ({"metric": "kl", "module": "head", "heads": [4, 0]}, {"metric": "log-probability", "method": "noise"}):
        result = traced(model, facts, **more)
        run_id = result.run["run_id"]
        assert (store.add(result), store.add(result)) == (2, 0)
        for relation, table in (("trace_cells", result.cells), ("trace_samples", result.samples)):
            key = ["fact_id", "token_index", "layer", "head", *(["sample"] if relation == "trace_samples" else [])]
            rows = store.query(f"SELECT {', '.join(table.column_names)} FROM {relation} WHERE run_id = '{run_id}'")
            found, wanted = (each.to_pandas().sort_values(key, ignore_index=True) for each in (rows, table))
            assert found.equals(wanted.astype(found.dtypes)), relation
        effects = store.query(f"FROM trace_effects WHERE run_id = '{run_id}'").to_pandas()
        largest = cells_of(result).groupby(["fact_id", "window_size", "layer"]).effect.max().reset_index()
        both = effects.merge(largest, on=["fact_id", "window_size", "layer"], validate="one_to_one")
        assert len(both) == len(largest) == 2 * model.n_layers
        np.testing.assert_array_equal(both.effect_x, both.effect_y)


def test_a_difference_of_about_0_has_no_effect(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    for metric in ("log-probability", "logit-difference", "kl"):
        for method in ("denoise", "noise"):
            how = {"metric": metric, "method": method, "keep": "all", "samples": 2, "noise": "released"}
            tiny = ft.trace(model, [PARIS], sigma=1e-9, **how)
            small = ft.trace(model, [PARIS], sigma=0.1, **how)
            assert tiny.cells["effect"].null_count == len(tiny.cells)
            assert tiny.cells[COLUMNS["logit_diff"][0]].null_count == 0
            assert small.cells["effect"].null_count == 0


numbers = st.floats(-50, 50)


@given(numbers, numbers, st.lists(numbers, min_size=1, max_size=4))
def test_an_effect_is_the_share_of_the_metrics_loss(clean, noised, values):
    values = np.array(values)
    found = {method: metric_effect(values, Span(clean, noised), method) for method in ("denoise", "noise")}
    if abs(clean - noised) <= 1e-6 * max(1.0, abs(clean), abs(noised)):
        assert found == {"denoise": None, "noise": None}
        return
    np.testing.assert_allclose(found["denoise"] + found["noise"], 1.0, atol=1e-9 * 50 / abs(clean - noised))
    ends = metric_effect(np.array([noised, clean]), Span(clean, noised), "denoise")
    np.testing.assert_allclose(ends, [0.0, 1.0])
    zeroed = metric_effect(values, Span(clean, None), "zero")
    assert zeroed is None if abs(clean) <= 1e-6 else np.allclose(zeroed * clean, clean - values)


def test_metrics_that_a_method_does_not_have_are_refused_in_a_sentence(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    for bad, message in (
        ({"metric": "logits"}, "metric: expected one of probability, log-probability, .*, got 'logits'"),
        (
            {"method": "zero", "metric": "kl"},
            "metric: expected probability or logit-difference with method zero, got kl",
        ),
        ({"method": "zero", "metric": "log-probability"}, "metric: expected probability or logit-difference with"),
        ({"method": "attribution", "metric": "kl"}, "metric: expected .* with method attribution, got kl"),
        ({"method": "zero", "corruption": "counterfactual"}, "corruption: expected noise with method zero"),
        ({"corruption": "tokens"}, "corruption: expected one of noise, counterfactual, got 'tokens'"),
    ):
        with pytest.raises(UserError, match=message):
            ft.trace(model, [PARIS], keep="all", **bad)
