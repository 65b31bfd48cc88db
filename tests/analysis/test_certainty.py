"""Intervals over facts and clustered errors, compared with slow resampling and with statsmodels."""

import numpy as np
import pytest
from statsmodels_fits import check_with_statsmodels

from fasttrace.analysis.certainty import SHARES, Sample, certainty, shares
from fasttrace.analysis.regression import KEYS, regression_rows, regressions
from fasttrace.errors import UserError


def made_rows(seed, facts=30, layers=5, gain=0.5, missing=0.1):
    """(fact, layer, x, y) of edits. Errors of the same fact are correlated, and some edits are missing."""
    random = np.random.default_rng(seed)
    fact, layer = (grid.ravel() for grid in np.meshgrid(np.arange(facts), np.arange(layers), indexing="ij"))
    kept = random.uniform(size=fact.size) >= missing
    fact, layer = np.unique(fact[kept], return_inverse=True)[1], layer[kept]
    x = random.uniform(size=fact.size)
    y = 0.1 * layer + gain * x * (layer % 2) + random.normal(size=facts)[fact] + 0.3 * random.normal(size=fact.size)
    return fact, layer, x, y


@pytest.mark.parametrize("dead", [None, 3], ids=["all layers vary", "layer 3 does not"])
@pytest.mark.parametrize("seed", range(4))
def test_clustered_errors_are_those_of_statsmodels(seed, dead):
    import pandas as pd
    from statsmodels.formula.api import ols

    fact, layer, x, y = made_rows(seed)
    y = np.where(layer == dead, 0.0, y)
    frame = pd.DataFrame({"fact": fact, "layer": layer, "x": x, "y": y})
    fit = ols("y ~ C(layer) + C(layer):x", frame).fit(cov_type="cluster", cov_kwds={"groups": fact}, use_t=True)
    slopes = [name for name in fit.params.index if name.endswith(":x") and f"[{dead}]" not in name]
    assert len(slopes) == (5 if dead is None else 4)
    restriction = np.array([[float(name == slope) for name in fit.params.index] for slope in slopes])
    theirs = fit.f_test(restriction)
    ours = Sample(fact, layer, x, y).clustered_test()
    assert ours["f_clustered"] == pytest.approx(float(theirs.fvalue), rel=1e-9)
    assert ours["p_clustered"] == pytest.approx(float(theirs.pvalue), rel=1e-8)
    assert ours["df_clustered"] == theirs.df_denom == len(np.unique(fact)) - 1


@pytest.mark.parametrize("dead", [None, 3], ids=["all layers vary", "layer 3 does not"])
@pytest.mark.parametrize("missing", [0, 0.1])
def test_hotelling_is_that_of_statsmodels(missing, dead):
    import pandas as pd
    from statsmodels.stats.multivariate import test_mvmean as hotelling

    fact, layer, x, y = made_rows(5, missing=missing)
    y = np.where(layer == dead, 0.0, y)
    frame = pd.DataFrame({"fact": fact, "layer": layer, "x": x, "y": y})
    apart = frame[["x", "y"]] - frame.groupby("layer")[["x", "y"]].transform("mean")
    products = (apart.x * apart.y).groupby([frame.fact, frame.layer]).sum().unstack(fill_value=0.0)
    theirs = hotelling(products.drop(columns=[] if dead is None else [dead]))
    wanted = pytest.approx(float(theirs.pvalue), rel=1e-8)
    assert Sample(fact, layer, x, y).hotelling()["p_hotelling"] == wanted
    units = np.where(layer == 1, 1e-5, 1.0)  # a layer whose scores hardly vary is not a lack of rank
    assert Sample(fact, layer, x, y * units).hotelling()["p_hotelling"] == wanted


def test_with_few_facts_hotelling_is_not_lenient():
    """Of studies without any relation, it rejects at most one in twenty at 5 %. The clustered test rejects far more."""
    rejected = {"p_hotelling": 0, "p_clustered": 0}
    for seed in range(300):
        sample = Sample(*made_rows(2000 + seed, facts=25, missing=0, gain=0.0))
        for name, p_value in (sample.hotelling() | sample.clustered_test()).items():
            if name in rejected:
                rejected[name] += p_value < 0.05
    assert rejected["p_hotelling"] <= 25, "expected 15, at most 25 with probability 0.995"
    assert rejected["p_clustered"] > 30
    assert Sample(*made_rows(1, facts=200, gain=3.0)).hotelling()["p_hotelling"] < 1e-3


def test_shares_are_r_squared_of_least_squares():
    fact, layer, x, y = made_rows(7)
    sample = Sample(fact, layer, x, y)
    found = {name: float(value[0]) for name, value in shares(sample.sums.sum(0)[None]).items()}
    dummies = (layer[:, None] == np.arange(5)).astype(float)
    for name, design in (
        ("r2_layer", dummies),
        ("r2_effect", np.stack([np.ones_like(x), x], 1)),
        ("r2_both", np.hstack([dummies, dummies * x[:, None]])),
    ):
        rest = y - design @ np.linalg.lstsq(design, y, rcond=None)[0]
        assert found[name] == pytest.approx(1 - rest @ rest / ((y - y.mean()) @ (y - y.mean())), abs=1e-12)


def test_a_resample_is_the_regression_of_the_facts_drawn():
    fact, layer, x, y = made_rows(3, facts=12)
    sample = Sample(fact, layer, x, y)
    random, seed, slow = np.random.default_rng(5), 5, {name: [] for name in SHARES}
    for counts in random.multinomial(sample.n_facts, np.full(sample.n_facts, 1 / sample.n_facts), size=300):
        drawn = np.repeat(np.arange(sample.n_facts), counts)
        rows = np.concatenate([np.flatnonzero(fact == one) for one in drawn])
        again = Sample(np.zeros(len(rows), int), layer[rows], x[rows], y[rows])
        for name, value in shares(again.sums.sum(0)[None]).items():
            slow[name].append(float(value[0]))
    fast = sample.intervals(300, 0.9, seed)
    for name in SHARES:
        assert [fast[f"{name}_low"], fast[f"{name}_high"]] == pytest.approx(
            np.percentile(slow[name], [5, 95]), abs=1e-9
        )


def test_an_interval_covers_what_it_should():
    """Over studies drawn from one population, a 90 % interval of the effect's R² mostly covers the population's R²."""
    world = float(shares(Sample(*made_rows(0, facts=40_000, missing=0)).sums.sum(0)[None])["r2_effect"][0])
    held = 0
    for seed in range(100):
        found = Sample(*made_rows(1000 + seed, facts=60)).intervals(200, 0.9, seed)
        held += found["r2_effect_low"] <= world <= found["r2_effect_high"]
    assert 78 <= held <= 99, held


def test_too_few_facts_have_no_interval():
    fact, layer, x, y = made_rows(1, facts=1, missing=0)
    sample = Sample(fact, layer, x, y)
    assert set(sample.intervals(100, 0.95, 0).values()) == {None}
    assert set(sample.clustered_test().values()) == set(sample.hotelling().values()) == {None}
    nothing = Sample(*(np.array([], kind) for kind in (int, int, float, float)))
    assert set(nothing.clustered_test().values()) == set(nothing.hotelling().values()) == {None}


def test_certainty_of_a_store(wide_study, monkeypatch):
    found, fits = certainty(wide_study, resamples=100), regressions(wide_study)
    assert found.select(KEYS).to_pylist() == fits.select(KEYS).to_pylist()
    for row, fit in zip(found.to_pylist(), fits.to_pylist(), strict=True):
        if fit["n"]:
            assert row["r2_layer_low"] < fit["r2_layer"] < row["r2_layer_high"] + 0.05
    assert certainty(wide_study, resamples=100, seed=1) != found
    assert certainty(wide_study, resamples=100) == found
    chosen = certainty(wide_study, resamples=0, problem="fact-forcing")
    assert {row["problem"] for row in chosen.to_pylist()} == {"fact-forcing"}
    assert chosen["r2_layer_low"].null_count == chosen.num_rows
    rows = {tuple(keys.values()): len(arrays["x"]) for keys, arrays in regression_rows(wide_study)}
    assert rows == {
        tuple(row[name] for name in KEYS): row["n"] for row in check_with_statsmodels(wide_study).to_pylist()
    }
    monkeypatch.setattr("fasttrace.analysis.regression.AT_ONCE", 10)
    assert certainty(wide_study, resamples=100) == found, "the same in parts or at once"
    with pytest.raises(UserError, match="at least 0 resamples, got"):
        certainty(wide_study, resamples=-1)
