"""Layers that cannot act, scores below 0, effects outside 0 to 1, and runs named by their settings.

Every number is computed again with pandas and statsmodels from the rows that the test wrote.
"""

import html
import json
import re

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
from made_results import made_edit, made_trace
from statsmodels.formula.api import ols

from fasttrace.analysis import tables
from fasttrace.analysis.certainty import certainty
from fasttrace.analysis.naming import group_names
from fasttrace.analysis.regress import regress
from fasttrace.analysis.regression import FLOORED, layer_correlations, layer_means, regressions
from fasttrace.analysis.relation import query, relation
from fasttrace.analysis.render import render
from fasttrace.analysis.report import report_page
from fasttrace.analysis.tables import layer_table, paper_table, r2_table, summary
from fasttrace.errors import UserError
from fasttrace.store import Store

IDS = [f"f{i}" for i in range(14)]
KEPT = {"all": (0, 1, 2, 3), "acting": (0, 1, 2), "working": (0, 1)}


def made_scores():
    """{(fact, layer): scores}. Layer 2 works badly and is below 0 for two facts. No edit at layer 3 acts."""
    random, scores = np.random.default_rng(5), {}
    for place, fact in enumerate(IDS):
        for layer in range(4):
            rewrite = (0.95, 0.9, 0.3, 0.0)[layer] - abs(random.normal(0, 0.05)) * (layer < 3)
            paraphrase = 0.5 * rewrite
            if layer == 2 and place in (3, 8):
                rewrite, paraphrase = -2.0 - place, -0.1
            if layer == 1 and place == 5:
                paraphrase = -0.1
            neighborhood = 1 - 0.02 * layer
            row = {"rewrite": rewrite, "paraphrase": paraphrase, "neighborhood": neighborhood}
            row["overall"] = (rewrite + paraphrase + neighborhood) / 3
            if layer == 3:
                row |= {"p_before": 0.1, "p_after": 0.1, "p_true_before": 0.8, "p_true_after": 0.8}
            scores[fact, layer] = row
    return scores


def made_effects():
    """{(fact, layer): effect}, of which one is below 0 and one above 1."""
    random = np.random.default_rng(6)
    effects = {(fact, layer): float(random.uniform(0.05, 0.95)) for fact in IDS for layer in range(4)}
    return effects | {("f2", 0): -1.02, ("f5", 1): 1.3}


@pytest.fixture(scope="module")
def frame():
    effects = made_effects()
    rows = [{"fact": f, "layer": layer, "x": effects[f, layer], **row} for (f, layer), row in made_scores().items()]
    frame = pd.DataFrame(rows)
    for score in ("rewrite", "paraphrase"):
        frame[f"{score}_floored"] = frame[score].clip(lower=0)
    frame["overall_floored"] = (frame["rewrite_floored"] + frame["paraphrase_floored"] + frame["neighborhood"]) / 3
    return frame


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    store = Store(tmp_path_factory.mktemp("layers") / "s.duckdb")
    store.add(made_trace(IDS, tokens=1, effects=made_effects()))
    store.add(made_edit(IDS, scores=made_scores()))
    return store


def fitted(frame, score):
    """(R² by layer, of both, the F-test's p, the clustered p) by statsmodels."""
    layer, both = (ols(f"{score} ~ {terms}", frame).fit() for terms in ("C(layer)", "C(layer) * x"))
    return layer.rsquared, both.rsquared, both.compare_f_test(layer)[1]


@pytest.mark.parametrize("score", ["rewrite", "paraphrase", "overall", "neighborhood", *FLOORED.values()])
@pytest.mark.parametrize("layers", KEPT)
def test_regressions_on_some_layers(store, frame, layers, score):
    kept = frame[frame.layer.isin(KEPT[layers])]
    [row] = regressions(store, score, layers=layers).to_pylist()
    assert (row["layers"], row["n"], row["n_layers"]) == (layers, len(kept), len(KEPT[layers]))
    assert row["n_below_0"] == (kept[score] < 0).sum()
    assert row["n_outside"] == ((kept.x < 0) | (kept.x > 1)).sum() == 2
    assert (row["effect_min"], row["effect_max"]) == pytest.approx((-1.02, 1.3))
    if score == "neighborhood":  # constant within a layer, so that "both" leaves nothing
        return
    r2_layer, r2_both, p = fitted(kept, score)
    assert (row["r2_layer"], row["r2_both"], row["p_value"]) == pytest.approx((r2_layer, r2_both, p), rel=1e-9)
    assert row["diff"] == pytest.approx(r2_both - r2_layer, rel=1e-8)
    assert row["mae_layer"] == pytest.approx(ols(f"{score} ~ C(layer)", kept).fit().resid.abs().mean(), rel=1e-9)


def test_the_rule_bites(store):
    """The floor and the choice of layers change the result, or the test above would show nothing."""
    found = {
        (layers, score): regressions(store, score, layers=layers)["r2_layer"][0].as_py()
        for layers in KEPT
        for score in ("rewrite", "rewrite_floored")
    }
    assert len({round(value, 6) for value in found.values()}) == 5  # both layers that work have no score below 0
    with pytest.raises(UserError, match=r"expected one of all, acting, working as layers, got 'most'"):
        regressions(store, layers="most")


def test_intervals_and_clustered_errors_follow_the_choice(store, frame):
    kept = frame[frame.layer.isin(KEPT["working"])]
    [row] = certainty(store, layers="working", resamples=300).to_pylist()
    fit = ols("rewrite ~ C(layer) + C(layer):x", kept).fit(
        cov_type="cluster", cov_kwds={"groups": kept.fact.factorize()[0]}, use_t=True
    )
    slopes = np.array(
        [[float(name == slope) for name in fit.params.index] for slope in fit.params.index if ":x" in slope]
    )
    assert row["p_clustered"] == pytest.approx(float(fit.f_test(slopes).pvalue), rel=1e-8)
    assert row["r2_layer_low"] < fitted(kept, "rewrite")[0] < row["r2_layer_high"]
    assert layer_correlations(store, layers="acting")["layer"].to_pylist() == [0, 1, 2]


def test_means_by_layer_with_and_without_a_floor(store, frame):
    for score in ("rewrite", "overall", *FLOORED.values()):
        for row in layer_means(store, score).to_pylist():
            here = frame[frame.layer == row["layer"]][score]
            assert row["mean"] == pytest.approx(here.mean(), abs=1e-12)
            assert row["n_below_0"] == (here < 0).sum()
    wide = relation(store, "scores_by_layer").to_pylist()
    assert [row["rewrite_below_0"] for row in wide] == [0, 0, 2, 0]
    assert [row["paraphrase_below_0"] for row in wide] == [0, 1, 2, 0]
    floored = frame.groupby("layer")["overall_floored"].mean().tolist()
    assert [row["overall_floored"] for row in wide] == pytest.approx(floored)


def test_a_missing_score_has_no_floor(tmp_path):
    store = Store(tmp_path / "s.duckdb")
    store.add(made_edit(["a"], layers=(0,), scores={("a", 0): {"rewrite": None, "overall": None}}))
    [row] = query(store, "SELECT rewrite_floored, paraphrase_floored, overall_floored FROM scored_edits").to_pylist()
    assert row["rewrite_floored"] is None
    assert row["overall_floored"] is None
    assert row["paraphrase_floored"] > 0


def test_a_formula_may_use_a_floored_score(store, frame):
    fit = regress(store, "layer", score="rewrite_floored").statistics
    assert fit["r2"] == pytest.approx(fitted(frame, "rewrite_floored")[0], rel=1e-9)


def test_nothing_works_where_no_mean_is_positive(tmp_path):
    store = Store(tmp_path / "s.duckdb")
    store.add(made_trace(IDS))
    store.add(made_edit(IDS, scores={(fact, layer): {"rewrite": -1.0 - layer} for fact in IDS for layer in range(4)}))
    assert query(store, "SELECT count(*) AS n FROM edited_layers WHERE working")["n"].to_pylist() == [0]
    assert regressions(store, layers="working").num_rows == 0


@pytest.fixture(scope="module")
def alike(tmp_path_factory):
    """Two editing runs that differ in contexts, two tracing runs that differ in samples, one of the whole subject."""
    store = Store(tmp_path_factory.mktemp("alike") / "s.duckdb")
    asked = {"module": "mlp", "method": "denoise", "tokens": "all", "samples": 10}
    for run_id, change in (("t1", {}), ("t2", {"samples": 5}), ("t3", {"tokens": "whole-subject"})):
        store.add(made_trace(IDS, run_id=run_id, settings=json.dumps(asked | change)))
    for run_id, contexts in (("e1", 0), ("e2", 21)):
        settings = json.dumps({"method": "rome", "problem": "error-injection", "contexts": contexts})
        store.add(made_edit(IDS, run_id=run_id, settings=settings))
    return store


def test_runs_are_named_by_the_settings_in_which_they_differ(alike):
    rows = regressions(alike).to_pylist()
    assert {(row["edit_run_id"], row["edit_run"]) for row in rows} == {("e1", "contexts 0"), ("e2", "contexts 21")}
    assert {(row["trace_run_id"], row["tokens"], row["trace_run"]) for row in rows} == {
        ("t1", "all", "samples 10"),
        ("t2", "all", "samples 5"),
        ("t3", "whole-subject", None),
    }
    names = list(group_names(rows, always=()).values())
    assert len(set(names)) == 6
    assert "all · edit contexts 0 · trace samples 5" in names
    assert "whole-subject · edit contexts 21" in names
    assert not any(" run " in name for name in names)


def test_tokens_choose_tracing_runs(alike):
    rows = regressions(alike, tokens="whole-subject").to_pylist()
    assert {row["trace_run_id"] for row in rows} == {"t3"}
    curve = relation(alike, "mean_effect").to_pylist()
    assert {(row["trace_run_id"], row["tokens"]) for row in curve} == {
        ("t1", "all"),
        ("t2", "all"),
        ("t3", "whole-subject"),
    }
    assert {row["tokens"] for row in relation(alike, "trace_coverage").to_pylist()} == {"all", "whole-subject"}


def test_runs_of_the_same_settings_are_told_apart_by_id(tmp_path):
    store = Store(tmp_path / "s.duckdb")
    store.add(made_trace(IDS))
    for run_id in ("aaaa1111-first", "bbbb2222-again"):
        store.add(made_edit(IDS, run_id=run_id))
    rows = regressions(store).to_pylist()
    assert {row["edit_run"] for row in rows} == {None}
    assert list(group_names(rows, always=("method",)).values()) == [
        "rome · edit run aaaa1111",
        "rome · edit run bbbb2222",
    ]


@pytest.mark.parametrize(("number", "score"), [(1, "rewrite"), (4, "paraphrase"), (6, "overall"), (5, "neighborhood")])
def test_a_score_below_0_has_a_second_row_with_a_floor(store, frame, number, score):
    rows = paper_table(store, number, resamples=0).to_pylist()
    if score == "neighborhood":
        assert len(rows) == 1
        assert "n_below_0" not in rows[0]
        return
    plain, floored = rows
    assert (plain["score"], floored["score"]) == (score, FLOORED[score])
    assert (plain["n_below_0"], floored["n_below_0"]) == ((frame[score] < 0).sum(), 0)
    for row in rows:
        assert row["r2_layer"] == pytest.approx(fitted(frame, row["score"])[0], rel=1e-9)
        acting = frame[frame.layer.isin(KEPT["acting"])]
        working = frame[frame.layer.isin(KEPT["working"])]
        assert row["r2_layer_acting"] == pytest.approx(fitted(acting, row["score"])[0], rel=1e-9)
        r2_layer, r2_both, p = fitted(working, row["score"])
        assert row["r2_layer_working"] == pytest.approx(r2_layer, rel=1e-9)
        assert row["diff_working"] == pytest.approx(r2_both - r2_layer, rel=1e-8)
        assert row["p_working"] == pytest.approx(p, rel=1e-8)


def test_errors_are_of_the_scores_with_a_floor_too(store, frame):
    table = paper_table(store, 7)
    found = {(row["edit_metric"], row["regression_metric"], row["predictor"]): row for row in table.to_pylist()}
    for score in ("rewrite", "rewrite_floored", "overall", "overall_floored"):
        assert found[score, "R2", "layer"]["value"] == pytest.approx(fitted(frame, score)[0], rel=1e-9)
        assert {found[score, name, "both"]["n_below_0"] for name in ("R2", "RMSE", "MAE")} == {(frame[score] < 0).sum()}
    assert "Overall score: Without the 1 layer where ROME cannot act" in render(table, "markdown").replace(
        "\u00a0", " "
    )


def test_the_report_says_what_is_left_out_and_below_0(store, frame):
    page = html.unescape(report_page(store)).replace("\u00a0", " ")
    (without, _, _), (few, _, _) = (
        fitted(frame[frame.layer.isin(KEPT[name])], "rewrite") for name in ("acting", "working")
    )
    assert f"Without the 1 layer where ROME cannot act, the layer explains {100 * without:.1f} %" in page
    assert f"best mean rewrite score, the layer explains {100 * few:.1f} %" in page
    assert "Of 56 edits, 2 have a tracing effect below 0 or above 1" in page
    assert "Of 56 edits, 2 have a score below 0, which is kept." in page
    for words in ("R² layer, acting", "R² layer, working", "rewrite floored", "below 0", "paraphrase below 0"):
        assert re.search(rf"<th[^>]*>\s*(<button[^>]*>)?\s*{re.escape(words)}\s*<", page), words


@pytest.mark.parametrize(("moved", "rows"), [(1e-15, 1), (1e-6, 2)])
def test_a_floor_that_changes_only_last_bits_has_no_row(store, monkeypatch, moved, rows):
    fits = tables.fits_with_certainty(store, "overall", resamples=0).to_pandas().assign(n_below_0=0)

    def made(store, score, **_):
        return pa.Table.from_pandas(fits if score == "overall" else fits.assign(r2_layer=fits.r2_layer + moved))

    monkeypatch.setattr(tables, "fits_with_certainty", made)
    assert len(paper_table(store, 6, resamples=0)) == rows


def test_the_notes_say_what_is_left_out(store, frame):
    acting, working = (frame[frame.layer.isin(KEPT[name])] for name in ("acting", "working"))
    (without, _, _), (few, both, p) = (fitted(rows, "rewrite") for rows in (acting, working))
    table = r2_table(store, resamples=0)
    for format in ("text", "markdown", "latex"):
        text = " ".join(render(table, format).replace("\u00a0", " ").split())
        assert f"Without the 1 layer where ROME cannot act, the layer explains {100 * without:.1f} %" in text
        assert "among the 2 layers with at least nine tenths of the best mean rewrite score" in text
        assert f"the layer explains {100 * few:.1f} %, and both {100 * both:.1f} % (p = {p:.3f})." in text
        assert "Of 56 edits, 2 have a tracing effect below 0 or above 1 (effects: −1.02 to 1.30)" in text
        assert "Of 56 edits, 2 have a score below 0" in text
    assert "cannot act" not in render(table, "csv")
    below = layer_table(store).select(["rewrite_below_0", "paraphrase_below_0", "overall_below_0"]).to_pydict()
    assert list(below.values()) == [[0, 0, 2, 0], [0, 1, 2, 0], [0, 0, 2, 0]]
    assert "paraphrase below 0" in summary(store, width=400)
    assert "rewrite floored" in summary(store, width=400)
    assert "R² layer, working" in render(table, "markdown")


def test_the_table_names_runs_by_their_settings(alike):
    table = r2_table(alike, resamples=0)
    assert table.column_names[2:5] == ["tokens", "edit_run", "trace_run"]
    assert "edit_run_id" not in table.column_names
    assert "contexts 21" in render(table)
