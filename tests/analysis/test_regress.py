"""ft.regress against the SQL regressions and against numpy by hand, and its refusals."""

import re
import subprocess
import sys
import warnings

import numpy as np
import pytest
from made_results import made_edit, made_trace

import fasttrace as ft
from fasttrace.analysis.certainty import certainty
from fasttrace.analysis.naming import number, p_cell, p_text
from fasttrace.analysis.regress import MODELS, regress
from fasttrace.analysis.regression import regressions
from fasttrace.errors import UserError
from fasttrace.facts import Fact
from fasttrace.store import Store, Stores

IDS = [f"f{i}" for i in range(24)]
ROME = "method = 'rome'"


@pytest.fixture(autouse=True)
def _no_warning_leaks():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def magnitudes(seed):
    rng = np.random.default_rng(seed)
    return {(fact, layer): {"magnitude": rng.normal(), "success": None} for fact in IDS for layer in range(4)}


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Two methods. One fact has no effect, one no cells, one a missing paraphrase score and one a NaN rewrite score."""
    store = Store(tmp_path_factory.mktemp("regress") / "s.duckdb")
    store.add(made_trace(IDS, windows=(3, 5), layers=8, no_effect=("f3",), left_out=("f4",)))
    scores = magnitudes(1)
    scores["f7", 2] |= {"paraphrase": None, "reason": "no paraphrase prompts"}
    scores["f8", 1] |= {"rewrite": float("nan")}
    store.add(made_edit(IDS, scores=scores))
    store.add(made_edit(IDS, run_id="e1", method="memit", seed=5, scores=magnitudes(2)))
    return store


@pytest.mark.parametrize("score", ["rewrite", "paraphrase", "neighborhood", "overall", "magnitude"])
@pytest.mark.parametrize("method", ["rome", "memit"])
def test_the_papers_models_agree_with_sql(store, score, method):
    [wanted] = regressions(store, score, method=method).to_pylist()
    fits = {name: regress(store, name, score=score, where=f"method = '{method}'") for name in MODELS}
    for name, found in fits.items():
        numbers = found.statistics
        assert (numbers["n"], numbers["n_dropped"]) == (wanted["n"], wanted["n_left_out"])
        assert numbers["n_facts"] == wanted["n_facts"]
        assert numbers["r2"] == pytest.approx(wanted[f"r2_{name}"], rel=1e-9, abs=1e-9)
        assert numbers["rmse"] == pytest.approx(wanted[f"rmse_{name}"], rel=1e-9)
        assert np.mean(np.abs(found.fit.resid)) == pytest.approx(wanted[f"mae_{name}"], rel=1e-9)
    f_value, p_value, df_num = fits["both"].fit.compare_f_test(fits["layer"].fit)
    assert (df_num, fits["both"].fit.df_resid) == (wanted["df_num"], wanted["df_den"])
    assert f_value == pytest.approx(wanted["f_value"], rel=1e-9)
    assert p_value == pytest.approx(wanted["p_value"], rel=1e-9, abs=1e-12)


def test_other_effects_subsets_and_windows_agree_with_sql(store):
    for effect_at, column in (("last-subject", "effect_last_subject"), ("last-subject-absolute", "effect_absolute")):
        [wanted] = regressions(store, effect_at=effect_at, method="rome").to_pylist()
        found = regress(store, f"rewrite ~ C(layer) * {column}", where=ROME).statistics
        assert found["r2"] == pytest.approx(wanted["r2_both"], rel=1e-9)
    [wanted] = regressions(store, subset="concentrated", method="rome").to_pylist()
    few = "(trace_run_id, fact_id, window_size) IN (SELECT (run_id, fact_id, window_size) FROM concentrated_facts)"
    found = regress(store, "both", where=[ROME, few]).statistics
    assert 8 < found["n"] == wanted["n"] < regress(store, "both", where=ROME).statistics["n"]
    assert found["r2"] == pytest.approx(wanted["r2_both"], rel=1e-9)
    [wanted] = regressions(store, method="rome", window_size=3).to_pylist()
    found = regress(store, "both", where=ROME, tracing_window=3)
    assert found.statistics["r2"] == pytest.approx(wanted["r2_both"], rel=1e-9)
    assert found.selection.describes["window_size"] == [3]


def test_several_stores_are_read_once(store, tmp_path):
    other = Store(tmp_path / "other.duckdb")
    other.add(made_edit(IDS[:9], scores=magnitudes(1)))
    found = regress(Stores([store.path, other.path]), "both", where=ROME)
    assert found.statistics == pytest.approx(regress(store, "both", where=ROME).statistics, rel=1e-9)


def test_clustered_errors_are_those_of_certainty(store):
    found = regress(store, "both", where=ROME, cluster="fact_id")
    [wanted] = certainty(store, resamples=0, method="rome").to_pylist()
    slopes = np.zeros((4, 8))
    slopes[:, found.fit.model.exog_names.index("effect")] = 1
    for place in (1, 2, 3):
        slopes[place, found.fit.model.exog_names.index(f"C(layer)[T.{place}]:effect")] = 1
    test = found.fit.f_test(slopes)
    assert float(test.fvalue) == pytest.approx(wanted["f_clustered"], rel=1e-9)
    assert float(test.pvalue) == pytest.approx(wanted["p_clustered"], rel=1e-9)


def test_robust_errors_by_hand(store):
    """HC3 is the covariance of MacKinnon and White, with every residual divided by 1 - its leverage."""
    found = regress(store, "rewrite ~ effect + C(layer)", robust=True)
    x, rest = found.fit.model.exog, found.fit.resid.to_numpy()
    inverse = np.linalg.inv(x.T @ x)
    leverage = np.einsum("ij,jk,ik->i", x, inverse, x)
    covariance = inverse @ (x.T * (rest / (1 - leverage)) ** 2) @ x @ inverse
    table = found.coefficients.to_pydict()
    assert table["std_error"] == pytest.approx(np.sqrt(np.diag(covariance)), rel=1e-9)
    assert table["statistic"] == pytest.approx(np.divide(table["estimate"], table["std_error"]), rel=1e-12)
    assert all(low < middle < high for low, middle, high in zip(
        table["estimate_low"], table["estimate"], table["estimate_high"], strict=True))  # fmt: skip


def test_a_mixed_model_of_a_balanced_layout_by_hand(tmp_path):
    """If every fact has equally many rows, REML's variances are those of the analysis of variance."""
    rng, store = np.random.default_rng(3), Store(tmp_path / "s.duckdb")
    y = rng.normal(size=(24, 1)) + 0.3 * rng.normal(size=(24, 4))
    store.add(made_trace(IDS))
    store.add(made_edit(IDS, scores={(f"f{i}", j): {"rewrite": y[i, j]} for i in range(24) for j in range(4)}))
    found = regress(store, "rewrite ~ 1", groups="fact_id")
    within, between = y.var(axis=1, ddof=1).mean(), 4 * y.mean(axis=1).var(ddof=1)
    assert found.mixed
    assert found.statistics["variance_residual"] == pytest.approx(within, rel=1e-3)
    assert found.statistics["variance_groups"] == pytest.approx((between - within) / 4, rel=1e-3)
    [row] = found.coefficients.to_pylist()
    assert row["estimate"] == pytest.approx(y.mean(), abs=1e-6)
    assert row["std_error"] == pytest.approx(np.sqrt(between / y.size), rel=1e-3)
    assert "r2" not in found.statistics


def test_the_counts_of_rows(store):
    found = regress(store, "paraphrase ~ effect", where="layer > 0")
    assert found.selection.n_selected == 144
    assert found.selection.dropped.to_pylist() == [
        {"column": "effect", "reason": "the noise did not lower p(o_true)", "rows": 6, "facts": 1},
        {"column": "effect", "reason": "the trace has no cells of this fact and layer", "rows": 6, "facts": 1},
        {"column": "paraphrase", "reason": "no paraphrase prompts", "rows": 1, "facts": 1},
    ]
    account = found.account()
    assert "Rows: 131 of 144 selected, of 22 facts" in account
    assert "Dropped: 1 without paraphrase (no paraphrase prompts)" in account
    assert "Pooled: method memit, rome" in account
    assert "problem error-injection" in account
    assert "Pooled: method" not in regress(store, "rewrite ~ method").account(), "the formula has the method"
    assert regress(store, "rewrite ~ layer").statistics["n_dropped"] == 1, "the NaN score"


def test_columns_of_facts_and_booleans(store, tmp_path):
    facts = Store(tmp_path / "s.duckdb")
    relations = {f"f{i}": "capital" if i % 2 else "language" for i in range(20)}
    facts.add_facts(
        Fact(fact_id=name, relation=relation, prompt="{} is in", subject=name, target_true=" Rome", source="test")
        for name, relation in relations.items()
    )
    facts.add(made_edit(IDS, scores={(name, 1): {"success": False} for name in IDS[:5]}))
    found = regress(facts, "success ~ C(layer) + relation", where="source IS NULL OR source = 'test'")
    assert found.statistics["n"] == 80
    assert found.selection.dropped.to_pylist() == [
        {"column": "relation", "reason": "the store was not given the fact", "rows": 16, "facts": 4}
    ]
    slopes = dict(zip(*found.coefficients.select(["term", "estimate"]).to_pydict().values(), strict=True))
    assert slopes["C(layer)[T.1]"] == pytest.approx(-5 / 20)


def test_the_text_has_the_coefficients_the_statistics_and_the_account(store):
    found = regress(store, "both", where=ROME, cluster="fact_id")
    text, statistics = str(found), found.statistics
    assert text.startswith("rewrite ~ C(layer) * effect\n\n")
    lines = text.splitlines()
    for row in found.coefficients.to_pylist():
        [line] = [line for line in lines if line.split()[:1] == [row["term"]]]
        interval = f"{row['estimate']:.3f} [{row['estimate_low']:.3f}, {row['estimate_high']:.3f}]"
        assert f"{interval}  " in line
        assert line.split()[-1] == p_cell(row["p_value"])
    adjusted = number(statistics["r2_adjusted"])
    assert f"Least squares: n = {statistics['n']}, R² {statistics['r2']:.3f}, adjusted {adjusted}, RMSE " in text
    assert f"All terms: F(7, 21) = {statistics['f_value']:.3f}, {p_text(statistics['p_value'])}\n" in text
    assert "Student's t with 21 degrees of freedom" in text
    assert text.endswith(found.account())
    assert "Errors: clustered by fact_id" in text
    few = str(regress(store, "rewrite ~ effect", where=[ROME, "layer = 0", "fact_id < 'f15'"]))
    assert "Least squares: n = 7, R² " in few
    assert "All terms" not in str(regress(store, "rewrite ~ 1")), "a constant explains nothing"
    assert "R² (uncentered) " in str(regress(store, "rewrite ~ 0 + effect"))


@pytest.mark.parametrize("options", [{}, {"robust": True}, {"cluster": "fact_id"}, {"groups": "fact_id"}])
def test_a_small_p_is_below_1e_4_and_never_0(tmp_path, options):
    rng, store = np.random.default_rng(4), Store(tmp_path / "s.duckdb")
    own = {fact: 0.1 * rng.normal() for fact in IDS}
    scores = {(fact, j): {"rewrite": j / 4 + own[fact] + 0.1 * rng.normal()} for fact in IDS for j in range(4)}
    store.add(made_trace(IDS))
    store.add(made_edit(IDS, scores=scores))
    found = regress(store, "rewrite ~ I(1000 * layer)", **options)
    [_, slope] = found.coefficients.to_pylist()
    assert (slope["p_value"] < 1e-4, slope["estimate"]) == (True, pytest.approx(2.5e-4, rel=0.1))
    text = str(found)
    [line] = [line for line in text.splitlines() if line.startswith(" I(1000 * layer) ")]
    assert line.split()[-1] == "<1e-4"
    assert f" {slope['estimate']:.2e} [{slope['estimate_low']:.2e}, {slope['estimate_high']:.2e}] " in line
    assert ("p < 1e-4" in text) == (not found.mixed), "the F-test of all terms"
    assert not re.search(r"(?<![\d.])0\.0+(?!\d)", text)


def test_a_warning_of_statsmodels_becomes_a_note(store):
    found = regress(store, "rewrite ~ effect", groups="fact_id", where=ROME)
    assert any("boundary" in note for note in found.notes)
    assert "Note: " in found.account()


@pytest.mark.parametrize(
    ("formula", "options", "sentence"),
    [
        ("rewrite ~ efect", {}, "expected a column of traced_edits, got 'efect' (did you mean 'effect'"),
        ("rewrite ~ efect", {}, "it has model, protocol, "),
        ("rewrite ~ __import__('os')", {}, "expected a column of traced_edits, got '__import__'"),
        ("both", {"score": "beauty"}, "expected a column of traced_edits, got 'beauty'"),
        ("both", {"score": "1 or 2"}, "expected the name of a score, got '1 or 2'"),
        ("rewrite ~ effect", {"score": "overall"}, "expected a score only with layer, effect, both"),
        ("rewrite ~ effect", {"cluster": "who"}, "expected a column of traced_edits, got 'who'"),
        ("neither", {}, "expected a formula such as 'rewrite ~ C(layer) * effect', or one of layer, effect, both"),
        ("rewrite ~ effect +", {}, "got 'rewrite ~ effect +'"),
        ("rewrite ~ C(layer", {}, "got 'rewrite ~ C(layer'"),
        ("rewrite ~ effect layer", {}, "got 'rewrite ~ effect layer'"),
        ("~ effect", {}, "got '~ effect'"),
        ("rewrite ~ 0", {}, "expected at least one term to the right of ~, got none in 'rewrite ~ 0'"),
        ("np.arange(4) ~ effect", {}, "expected a column to the left of ~, got 'np.arange(4) ~ effect'"),
        ("rewrite + overall ~ effect", {}, "got 'rewrite + overall ~ effect'"),
        ("rewrite ~ effect(3)", {}, "expected a formula that can be evaluated, got 'rewrite ~ effect(3)'"),
        ("rewrite ~ np.log(effect)", {}, "expected a formula that can be evaluated"),
        ("rewrite ~ np.log(layer)", {}, "expected finite numbers"),
        ("method ~ effect", {}, "expected a number to the left of ~, got method"),
        ("rewrite ~ effect", {"where": "nothing = 3"}, 'Referenced column "nothing" not found'),
        ("rewrite ~ effect", {"where": "nothing = 3"}, "it has model, protocol, "),
        ("rewrite ~ effect", {"where": "layer >"}, "expected a SQL condition over the columns of traced_edits"),
        ("rewrite ~ effect", {"where": "layer = 0; DROP TABLE edits"}, "expected a SQL condition"),
        ("rewrite ~ effect", {"where": "layer = 'first'"}, "Could not convert string 'first'"),
        ("rewrite ~ effect", {"where": "layer > 9"}, "expected edits for which layer > 9, got none"),
        ("essence ~ effect", {}, "expected edits with essence, effect, got none of 192: 191 have no essence"),
        ("rewrite ~ effect", {"tracing_window": 9}, "no trace of this model, protocol and window size"),
        ("p_after ~ effect", {}, "expected p_after to vary, got 0.9 in all"),
        ("rewrite ~ effect + I(2 * effect)", {}, "expected independent terms, got I(2 * effect)"),
        ("rewrite ~ C(layer) + layer", {}, "expected independent terms, got layer"),
        ("rewrite ~ C(fact_id)", {"where": [ROME, "layer = 0"]}, "expected more rows than coefficients, got 24 rows"),
        ("rewrite ~ C(layer)", {"where": [ROME, "layer = 0 OR (layer = 1 AND fact_id = 'f1')"], "robust": True},
            "got a single row for some (1 of 25 rows)"),
        ("rewrite ~ effect", {"cluster": "problem"}, "expected at least two values of problem to group by"),
        ("rewrite ~ effect", {"cluster": "fact_id", "robust": True}, "expected one of robust, cluster and groups"),
    ],
)  # fmt: skip
def test_bad_arguments_are_refused_in_one_sentence(store, formula, options, sentence):
    with pytest.raises(UserError) as refused:
        regress(store, formula, **options)
    assert sentence in str(refused.value)
    assert "\n" not in str(refused.value)


def test_a_store_without_edits(tmp_path):
    store = Store(tmp_path / "empty.duckdb")
    store.create()
    with pytest.raises(UserError, match="expected a store with edits"):
        regress(store, "both")


def test_regress_is_exported_and_imported_lazily():
    assert ft.regress is regress
    script = "import sys, fasttrace; assert not {'statsmodels', 'duckdb'} & set(sys.modules); fasttrace.regress"
    subprocess.run([sys.executable, "-W", "ignore", "-c", script], check=True, timeout=120)
