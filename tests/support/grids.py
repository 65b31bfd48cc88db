"""Whole grids of a sweep against one hooked transformers forward per cell: every measure, effect and sample."""

import numpy as np
import pandas as pd
import pytest
from held_to import GRIDS
from hooked_trace import Noise, hooked_trace

import fasttrace as ft
from fasttrace.facts import encode_fact

# The counterfactuals differ from the second subject token on, or after the subject. The targets share a first token.
EIFFEL = ft.Fact(
    prompt="The {} is located in the city of", subject="Eiffel Tower",
    target_true="New York", target_false="New France",
    counterfactual_subject="Eiffel York", counterfactual_prompt="The Eiffel Tower is located in the capital of",
)  # fmt: skip
PARIS = ft.Fact(
    prompt="the {} is", subject="Paris", target_true="Rome", target_false="Paris France", counterfactual_subject="Tower"
)
YORK = ft.Fact(
    prompt="of {} is the capital of", subject="York", target_true="Paris Rome", target_false="Rome",
    counterfactual_subject=("Tower", "Eiffel", "New"),
)  # fmt: skip
METRICS = {"probability": "p", "logit-difference": "logit_diff", "log-probability": "logprob", "kl": "kl"}
COLUMNS = {
    "p": ("p_restored", "p_restored_sem"),
    "p_false": ("p_false_restored", "p_false_sem"),
    "logit_diff": ("logit_diff_restored", "logit_diff_sem"),
    "logprob": ("logprob_restored", "logprob_sem"),
    "kl": ("kl_restored", "kl_sem"),
}

KEY = ["fact_id", "window_size", "token_index", "layer", "head"]


def cells_of(*results):
    """The cells of the results, in order."""
    return pd.concat([one.cells.to_pandas() for one in results]).sort_values(KEY).reset_index(drop=True)


def begin_of(model, fact):
    """The first token at which any of the fact's counterfactuals differs."""
    ids, *others = (model.tokenizer(text).input_ids for text in (fact.text, *fact.counterfactuals))
    assert all(len(other) == len(ids) for other in others)
    return min(t for other in others for t in range(len(ids)) if other[t] != ids[t])


def spots_of(encoded, tokens):
    """What the hooked forwards replace: the prompt's tokens that a cell intervenes at, each a number or a slice."""
    begin, end = encoded.subject_begin, encoded.subject_end
    return {
        "all": list(range(len(encoded.ids))),
        "subject": list(range(begin, end)),
        "last-subject": [end - 1],
        "whole-subject": [slice(begin, end)],
    }[tokens]


def hooked(model, fact, window, spots, *, module, method, heads, corruption, samples=0, sigma=0.0, targets=None):
    """What hooked forwards give, its cells with an axis for the heads: (spots, L, heads, runs)."""
    encoded = encode_fact(model.tokenizer, fact)
    begin, end = encoded.subject_begin, encoded.subject_end
    corrupted = Noise(begin, sigma * np.random.RandomState(1).randn(samples, end - begin, model.width))
    if corruption == "counterfactual":
        corrupted = [model.tokenizer(text).input_ids for text in fact.counterfactuals]
    targets = encoded.target_true_ids if targets is None else targets
    found = [
        hooked_trace(
            model.hf, encoded.ids, targets, corrupted, window, spots, module, method,
            heads=some, false=encoded.target_false_ids,
        )
        for some in heads
    ]  # fmt: skip
    cells = zip(*(one.patched for one in found), strict=True)
    return found[0]._replace(patched=type(found[0].patched)(*(np.stack(parts, 2) for parts in cells)))


def effect_of(metric, cells, clean, noised, method):
    """Effects (…) in a metric of cells' values (…), and the denominator; None where effects are not defined."""
    whole = clean - (0.0 if method == "zero" else noised)
    defined = whole > 0 if metric == "probability" else abs(whole) > 1e-6 * max(1.0, abs(clean), abs(clean - whole))
    return ((cells - noised if method == "denoise" else clean - cells) / whole if defined else None), whole


def check_grid(model, fact, result, expected, window, *, metric, method, heads, first, reached, tolerance):
    """Every column of a fact's cells of one window, and its row, against `expected` (as `hooked` gives it).

    first: the number of cells' tokens before those in `expected`; they must have the values of the pass that a cell
    changes. reached: whether any cell changes anything. tolerance: of the largest value of a measure.
    """
    row = next(row for row in result.facts.to_pylist() if row["fact_id"] == fact.fact_id)
    grid = result.cells.to_pandas()
    grid = grid[(grid.fact_id == fact.fact_id) & (grid.window_size == window)]
    grid = grid.sort_values(["token_index", "layer", "head"])
    spots, *rest = expected.patched.p.shape[:3]
    shape, runs = (first + spots, *rest), expected.patched.p.shape[3]
    assert len(grid) == np.prod(shape)
    if first:
        base = expected.noised if method == "denoise" else expected.clean
        padded = [np.broadcast_to(b, (first, *rest, runs)) for b in base]
        whole = [np.concatenate((p, x)) for p, x in zip(padded, expected.patched, strict=True)]
        expected = expected._replace(patched=type(expected.patched)(*whole))
    number = np.array([some[0] if some else None for some in heads], dtype=float)
    assert np.array_equal(grid["head"].to_numpy(float), np.tile(number, shape[0] * shape[1]), equal_nan=True)
    for name, columns in COLUMNS.items():
        value, error = (grid[column].to_numpy(float).reshape(shape) for column in columns)
        exact, clean, noised = (getattr(part, name) for part in (expected.patched, expected.clean, expected.noised))
        given = (row.get(f"{name}_clean"), row.get(f"{name}_noised"))
        if np.isnan(exact).all() or (name in ("logprob", "kl") and METRICS[metric] != name):
            assert np.isnan(value).all()
            assert np.isnan(error).all()
            assert given == (None, None)
            continue
        limit = tolerance * max(np.abs(exact).max(), np.abs(noised).max(initial=0.0))
        assert not reached or exact.mean(-1)[first:].std() > 50 * limit, "the oracle's grid is too flat to show errors"
        assert np.abs(value - exact.mean(-1)).max() <= limit, name
        if method == "zero":
            assert np.isnan(error).all()
            assert given == (pytest.approx(clean, abs=limit), None)
        else:
            assert given == (None if name == "kl" else pytest.approx(clean, abs=limit),
                             pytest.approx(noised.mean(), abs=limit)), name  # fmt: skip
            spread = exact.std(-1, ddof=1) / np.sqrt(runs) if runs > 1 else np.full(shape, np.nan)
            assert np.isnan(error).all() if runs == 1 else np.abs(error - spread).max() <= limit, name
        if METRICS[metric] == name:
            effect, whole = effect_of(metric, exact.mean(-1), clean, noised.mean() if noised.size else None, method)
            stored = grid.effect.to_numpy(float).reshape(shape)
            if effect is None:
                assert np.isnan(stored).all()
            else:
                assert np.abs(stored - effect).max() < 4 * limit / abs(whole) * (1 + np.abs(effect).max()), name
        # Cells that nothing changed are not computed: they have the other pass's values, not values near them.
        if first:
            same = row[f"{name}_noised"] if method == "denoise" else row.get(f"{name}_clean", 0.0)
            assert set(value[:first].ravel()) == {same}, name
            assert runs == 1 or method == "denoise" or not error[:first].any(), name
    drawn = result.samples.to_pandas()
    drawn = drawn[(drawn.fact_id == fact.fact_id) & (drawn.window_size == window)]
    drawn = drawn.sort_values(["token_index", "layer", "head", "sample"])
    for name in ("p", "logit_diff"):
        exact = getattr(expected.patched, name)
        mine = drawn[f"{name}_restored"].to_numpy(float).reshape(exact.shape)
        if np.isnan(exact).all():
            assert np.isnan(mine).all()
        else:
            assert np.abs(mine - exact).max() < tolerance * np.abs(exact).max()


def check_grids(
    model, facts, *, module="mlp", method="denoise", corruption="counterfactual", heads=None, windows=(3,),
    tokens="all", metrics=METRICS, tolerance=GRIDS, **settings,
):  # fmt: skip
    """Trace the facts in each metric, and check every grid. Return the results by metric.

    settings: samples and sigma of noise, and others of `trace`.
    """
    count, asked = model.blocks[0].n_heads, {"module": module, "method": method, "windows": windows, **settings}
    groups = [()]
    if module in ("head", "expert"):
        count = count if module == "head" else model.n_experts
        asked[f"{module}s"] = heads or "all"
        groups = [[h] for h in sorted(heads or range(count))]
    noised = {name: settings[name] for name in ("samples", "sigma") if name in settings}
    common = {"corruption": corruption, "tokens": tokens, "noise": "released", "keep": "all", "keep_samples": True}
    results = {metric: ft.trace(model, facts, metric=metric, **common, **asked) for metric in metrics}
    for fact in facts:
        encoded = encode_fact(model.tokenizer, fact)
        begin = begin_of(model, fact) if corruption == "counterfactual" else encoded.subject_begin
        spots = spots_of(encoded, tokens)
        # One cell before the first corrupted token is computed by the oracle, too.
        first = max(0, begin - 1 - spots[0]) if tokens in ("all", "subject") and method != "zero" else 0
        first = min(first, len(spots) - 1)
        how = {"module": module, "method": method, "heads": groups, "corruption": corruption, **noised}
        for window in windows:
            expected = hooked(model, fact, window, spots[first:], **how)
            last = spots[-1].stop - 1 if tokens == "whole-subject" else spots[-1]
            for metric, result in results.items():
                check_grid(
                    model, fact, result, expected, window,
                    metric=metric, method=method, heads=groups, first=first, reached=last >= begin or method == "zero",
                    tolerance=tolerance,
                )  # fmt: skip
    return results
