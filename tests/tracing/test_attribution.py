"""Attribution patching against hooks and autograd in plain transformers, and against the exact sweep."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from grids import EIFFEL, PARIS, begin_of, cells_of
from hooked_attribution import hooked_attribution
from hooked_trace import Noise
from scipy import stats
from small_models import small_model

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.facts import encode_fact
from fasttrace.tracing.attribution import attribute, rank_correlation
from fasttrace.tracing.measures import P
from fasttrace.tracing.plan import make_item

SAMPLES = 3
MODULES = ("mlp", "attn", "block")
FACTS = [
    ft.Fact(prompt="The {} is located in the city of", subject="Eiffel Tower", target_true="Paris"),
    ft.Fact(prompt="{} is the capital of", subject="Paris", target_true="New York"),
]
PERU = ft.Fact(prompt="{} is located in the country of", subject="Machu Picchu", target_true="Peru")


def items_of(model, facts, windows, tokens="all", samples=SAMPLES):
    return [
        make_item(encode_fact(model.tokenizer, fact), windows, model.n_layers, tokens, samples=samples)
        for fact in facts
    ]


def oracle(model, item, module, nudge=None):
    begin, end = item.encoded.subject_begin, item.encoded.subject_end
    noise = Noise(begin, 0.4 * np.random.RandomState(1).randn(SAMPLES, end - begin, model.width))
    return hooked_attribution(model.hf, item.encoded.ids, item.targets, noise, module, nudge)


@pytest.mark.parametrize("module", MODULES)
@pytest.mark.parametrize("family", ["llama", "mistral", "gpt2"])
def test_estimates_equal_hooked_autograd(family, module, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    items = items_of(model, FACTS, [3, 1])
    assert items[1].encoded.subject_begin == 0, "one subject must begin its prompt"
    assert max(len(item.targets) for item in items) > 1, "one target must have several tokens"
    result = attribute(model, items, 0.4, "released", 0, module)
    for number, item in enumerate(items):
        log_p, slopes = oracle(model, item, module)
        noised = np.exp(log_p[1:])
        assert result.clean[number][P] == pytest.approx(np.exp(log_p[0]), rel=1e-9)
        np.testing.assert_allclose(result.noised[number][P], noised, rtol=1e-9)
        assert set(result.estimates[number]) == set(item.cells)
        unclipped = 0
        for cell, estimate in result.estimates[number].items():
            layers = slice(cell.stop - 1 if module == "block" else cell.start, cell.stop)
            change = slopes[layers, cell.token].sum(0)
            expected = np.clip(noised * (1.0 + change), 0.0, 1.0)
            # 1 + change may almost cancel. Only the error relative to p is then meaningful.
            np.testing.assert_allclose(estimate[P], expected, rtol=1e-9, atol=1e-9 * noised.min(), err_msg=str(cell))
            unclipped += int((np.abs(change) > 1e-3).all() and ((expected > 0.0) & (expected < 1.0)).all())
        assert unclipped > 10, "the oracle's slopes are too flat to show errors"


@pytest.mark.parametrize(
    ("module", "corruption"), [("head", "noise"), ("head", "counterfactual"), ("mlp", "counterfactual")]
)
@pytest.mark.parametrize("family", ["gpt2", "gptj", "llama", "qwen3", "gemma2"])
def test_estimates_of_heads_and_from_counterfactuals_equal_hooked_autograd(family, module, corruption, small_tokenizer):
    """In each metric that can be estimated."""
    model = small_model(family, small_tokenizer, torch.float64)
    facts, heads = [EIFFEL, PARIS], [3, 0] if module == "head" else None
    how = {"module": module, "corruption": corruption, "heads": heads, "windows": [3], "keep": "all"}
    how |= {"samples": 2, "sigma": 0.4, "noise": "released"} if corruption == "noise" else {}
    found = {
        metric: ft.trace(model, facts, method="attribution", metric=metric, keep_samples=True, **how)
        for metric in ("probability", "log-probability", "logit-difference")
    }
    for fact in facts:
        encoded = encode_fact(small_tokenizer, fact)
        ids, targets, begin = encoded.ids, encoded.target_true_ids, encoded.subject_begin
        corrupted = [small_tokenizer(text).input_ids for text in fact.counterfactuals]
        if corruption == "noise":
            corrupted = Noise(begin, 0.4 * np.random.RandomState(1).randn(2, encoded.subject_end - begin, model.width))
        else:
            begin = begin_of(model, fact)
        for head in heads or [0]:
            log_p, slopes = hooked_attribution(model.hf, ids, targets, corrupted, module, head=head)
            diff, diff_slopes = hooked_attribution(
                model.hf, ids, targets, corrupted, module, head=head, false=encoded.target_false_ids
            )
            # The sum of three layers' slopes, (L, tokens, n).
            change, diff_change = (
                np.stack([each[max(0, layer - 1) : layer + 2].sum(0) for layer in range(model.n_layers)])
                for each in (slopes, diff_slopes)
            )
            p = np.exp(log_p[1:])
            expected = {
                "probability": np.clip(p * (1.0 + change), 0.0, 1.0),
                "log-probability": np.minimum(log_p[1:] + change, 0.0),
                "logit-difference": diff[1:] + diff_change,
            }
            for metric, result in found.items():
                cells = cells_of(result)
                cells = cells[(cells.fact_id == fact.fact_id) & (module != "head" or cells["head"] == head)]
                column = {"probability": "p", "log-probability": "logprob", "logit-difference": "logit_diff"}[metric]
                exact = expected[metric].mean(-1)[:, : len(ids)].T
                stored = cells[f"{column}_restored"].to_numpy().reshape(exact.shape)
                assert not change[:, :begin].any() or np.abs(change[:, :begin]).max() < 1e-12
                assert exact[begin:].std() > 1e-6 * np.abs(exact).max(), (
                    "the oracle's slopes are too flat to show errors"
                )
                np.testing.assert_allclose(stored, exact, rtol=1e-9, atol=1e-10 * np.abs(exact).max(), err_msg=metric)
                guessed = cells.approximate.to_numpy().reshape(exact.shape)
                assert guessed[begin:].all()
                assert not guessed[:begin].any()


@pytest.mark.parametrize("module", ["mlp", "head"])
def test_hooked_slopes_are_finite_differences(module, small_tokenizer):
    model = small_model("gptj", small_tokenizer, torch.float64)
    ids, targets, false, others = [5, 9, 2, 7], [3, 8], [3, 21], [[5, 9, 30, 7], [5, 17, 2, 7]]
    for score in (None, false):
        how = {"head": 2, "false": score}
        _, slopes = hooked_attribution(model.hf, ids, targets, others, module, **how)
        up, down = (
            hooked_attribution(model.hf, ids, targets, others, module, (2, [1, 2], e), **how)[0][1:]
            for e in (1e-5, -1e-5)
        )
        assert np.abs(up - down).min() > 1e-8
        # Nudges of two layers add up to first order.
        np.testing.assert_allclose((up - down) / 2e-5, slopes[1:3, 2].sum(0), rtol=1e-5)


@pytest.mark.parametrize("metric", ["probability", "logit-difference"])
def test_the_largest_estimates_of_heads_are_verified(metric, small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    how = {"module": "head", "corruption": "counterfactual", "metric": metric, "windows": [3], "keep": "all"}
    exact = cells_of(ft.trace(model, [EIFFEL, PARIS], **how))
    screened = ft.trace(model, [EIFFEL, PARIS], method="attribution", verify_top=9, **how)
    plain = cells_of(ft.trace(model, [EIFFEL, PARIS], method="attribution", **how))
    cells, column = cells_of(screened), "p_restored" if metric == "probability" else "logit_diff_restored"
    for fact, row in zip((EIFFEL, PARIS), screened.facts.to_pylist(), strict=True):
        mine = (cells.fact_id == fact.fact_id) & (cells.token_index >= begin_of(model, fact))
        verified, guessed = mine & ~cells.approximate, mine & cells.approximate
        # Several layers' windows of three can be clipped to one interval, which is one cell.
        assert 9 <= verified.sum() <= 18
        for name in ("p_restored", "logit_diff_restored", "logit_diff_sem", "p_false_restored", "effect"):
            np.testing.assert_allclose(cells[verified][name], exact[verified][name], rtol=1e-9, atol=1e-15)
        np.testing.assert_array_equal(cells[guessed][column], plain[guessed][column])
        order = plain[column] if metric == "probability" else plain.effect
        assert order[verified].min() >= order[guessed].max() - 1e-12
        assert -1.0 <= row["rank_correlation"] <= 1.0


@pytest.mark.parametrize("metric", ["log-probability", "logit-difference"])
def test_where_the_corruption_raises_the_metric_the_smallest_values_are_verified(metric, small_tokenizer):
    """The effect is relative to clean − noised, so there the largest effects lower the metric."""
    model = small_model("llama", small_tokenizer, torch.float64)
    how = {"corruption": "counterfactual", "metric": metric, "windows": [1], "keep": "all"}
    pairs = [replace(PARIS, counterfactual_subject=name, fact_id=name) for name in ("Tower", "Rome", "France", "York")]
    # Exchanging the targets exchanges the signs of logit differences.
    pairs += [
        replace(fact, target_true=fact.target_false, target_false=fact.target_true, fact_id=f"{fact.fact_id} <")
        for fact in pairs
    ]
    screened = ft.trace(model, pairs, method="attribution", verify_top=4, **how)
    cells, name = cells_of(screened), "logprob" if metric == "log-probability" else "logit_diff"
    guesses = cells_of(ft.trace(model, pairs, method="attribution", **how))
    raised = [row["fact_id"] for row in screened.facts.to_pylist() if row[f"{name}_noised"] > row[f"{name}_clean"]]
    assert 0 < len(raised) < len(pairs)
    for fact in pairs:
        mine = (cells.fact_id == fact.fact_id) & (cells.token_index >= begin_of(model, fact))
        verified, guessed = (guesses[mine & which].effect for which in (~cells.approximate, cells.approximate))
        assert len(verified) == 4
        assert verified.min() >= guessed.max() - 1e-12


def test_batches_do_not_change_estimates(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float64)
    items = items_of(model, [*FACTS, FACTS[0]], [3])
    whole = attribute(model, items, 0.4, "released", 0)
    single = attribute(model, items, 0.4, "released", 0, memory_rows=max(i.base_rows() for i in items))
    for number in range(len(items)):
        np.testing.assert_allclose(single.clean[number], whole.clean[number], rtol=1e-12)
        for cell, estimate in whole.estimates[number].items():
            np.testing.assert_allclose(single.estimates[number][cell], estimate, rtol=1e-12)


@pytest.mark.parametrize("module", MODULES)
def test_slopes_are_finite_differences(module, small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float64)
    (item,) = items_of(model, FACTS[:1], [3])
    result = attribute(model, [item], 0.4, "released", 0, module)
    cell = next(c for c in item.cells if c.token == item.encoded.subject_begin + 1 and c.stop - c.start == 3)
    layers = range(cell.stop - 1 if module == "block" else cell.start, cell.stop)
    up, down = (oracle(model, item, module, (cell.token, layers, e))[0][1:] for e in (1e-5, -1e-5))
    slope = result.estimates[0][cell][P] / result.noised[0][P] - 1.0
    assert np.abs(slope).min() > 1e-3
    assert ((result.estimates[0][cell][P] > 0.0) & (result.estimates[0][cell][P] < 1.0)).all()
    np.testing.assert_allclose(slope, (up - down) / 2e-5, rtol=1e-6)


def test_a_single_layer_is_right_to_first_order(small_tokenizer):
    """The error against the exact sweep falls with the square of sigma, and the effect falls linearly."""
    model = small_model("llama", small_tokenizer, torch.float64)
    (item,) = items_of(model, FACTS[:1], [1], samples=1)
    errors, effects = [], []
    for sigma in (1e-2, 1e-3):
        found = attribute(model, [item], sigma, "released", 0)
        cells = ft.trace(model, FACTS[:1], windows=[1], samples=1, sigma=sigma, noise="released", keep="all").cells
        exact = {(c["token_index"], c["layer"]): c["p_restored"] for c in cells.to_pylist()}
        pairs = [(p[P, 0], exact[cell.token, cell.start]) for cell, p in found.estimates[0].items()]
        estimate, truth = np.array(pairs).T
        errors.append(np.abs(estimate - truth).max())
        effects.append(np.abs(truth - found.noised[0][P]).max())
    assert 5 < effects[0] / effects[1] < 20
    assert errors[0] / errors[1] > 50
    assert errors[1] < 5e-2 * effects[1]


def test_real_model_is_right_to_first_order_and_ranks_the_best_cell_high(smollm2):
    (item,) = items_of(smollm2, [PERU], [5], "subject")
    result = attribute(smollm2, [item], 0.4, "released", 0)
    cells = ft.trace(
        smollm2, [PERU], windows=[5], samples=SAMPLES, sigma=0.4, noise="released", keep="all", tokens="subject"
    ).cells.to_pandas()
    estimated = {cell: p[P].mean() for cell, p in result.estimates[0].items()}
    best = cells.loc[cells.p_restored.idxmax()]
    own = next(
        c
        for c in item.cells
        if c.token == best.token_index and c.start == max(0, best.layer - 2) and c.stop == min(30, best.layer + 3)
    )
    better = sum(p > estimated[own] for p in estimated.values())
    assert better < len(estimated) / 4
    up, down = (oracle(smollm2, item, "mlp", (own.token, range(own.start, own.stop), e))[0][1:] for e in (1e-2, -1e-2))
    slope = result.estimates[0][own][P] / result.noised[0][P] - 1.0
    assert (result.estimates[0][own][P] < 1.0).all()
    np.testing.assert_allclose(slope, (up - down) / 2e-2, rtol=2e-2)


def test_bfloat16_and_weights_without_gradients(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.bfloat16)
    result = attribute(model, items_of(model, FACTS, [3], samples=2), 0.4, "philox", 0, "attn")
    assert all(np.isfinite(p[P]).all() for cells in result.estimates.values() for p in cells.values())
    assert all(weight.grad is None and not weight.requires_grad for weight in model.hf.parameters())


def test_bad_settings_are_refused_in_a_sentence(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    items = items_of(model, FACTS, [3])
    with pytest.raises(UserError, match="module: expected one of mlp, attn, block, head, got 'norm'"):
        attribute(model, items, 0.4, "philox", 0, "norm")
    with pytest.raises(UserError, match=r"memory: expected a budget of at least .* rows for fact .*, got 5"):
        attribute(model, items, 0.4, "philox", 0, memory_rows=5)


def test_rank_correlation():
    rng = np.random.default_rng(0)
    a, b = rng.random(40), rng.random(40)
    assert rank_correlation(a, b) == pytest.approx(stats.pearsonr(stats.rankdata(a), stats.rankdata(b)).statistic)
    assert rank_correlation(a.reshape(8, 5), np.exp(a).reshape(8, 5)) == pytest.approx(1.0)
    assert rank_correlation(a[:2], b[:2]) is None
    assert rank_correlation(a, np.ones(40)) is None


def test_a_screening_run_marks_estimates_and_verifies_the_largest(small_tokenizer, tmp_path):
    model = small_model("llama", small_tokenizer, torch.float64)
    settings = {"windows": [3, 1], "samples": 3, "sigma": 0.3, "keep": "all"}
    exact = ft.trace(model, FACTS, **settings).cells.to_pandas()
    screened = ft.trace(model, FACTS, method="attribution", verify_top=7, **settings)
    key = ["fact_id", "window_size", "token_index", "layer"]
    both = screened.cells.to_pandas().merge(exact, on=key, suffixes=("", "_exact"), validate="one_to_one")
    assert len(both) == len(exact)
    for fact in screened.facts.to_pylist():
        mine = both[both.fact_id == fact["fact_id"]]
        reached = mine[mine.token_index >= fact["subject_begin"]]
        verified = reached[~reached.approximate]
        assert np.allclose(verified.p_restored, verified.p_restored_exact, rtol=0, atol=1e-7)
        assert (reached[reached.approximate].p_restored == reached[reached.approximate].p_screened).all()
        assert verified.p_screened.min() >= reached[reached.approximate].p_screened.max() - 1e-12
        # Windows of two sizes can share an interval, which counts as one of the seven cells.
        assert 7 <= len(verified) <= 14
        assert -1.0 <= fact["rank_correlation"] <= 1.0
    store = ft.Store(tmp_path / "s.duckdb")
    store.add(screened)
    stored = store.query("SELECT approximate, count(*) AS n FROM trace_cells GROUP BY ALL ORDER BY ALL").to_pylist()
    assert stored[1]["n"] == int(screened.cells.to_pandas().approximate.sum()) > 0


def test_verify_top_is_for_screening_only(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    with pytest.raises(UserError, match="verify_top: expected method attribution, got method denoise"):
        ft.trace(model, FACTS, verify_top=3)
