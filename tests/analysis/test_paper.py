"""The paper's tables and figures by number, on a store that has data for all of them and on stores that lack some."""

import csv
import html
import json

import numpy as np
import pytest
from click.testing import CliRunner
from plausible import edit_result, study_facts, trace_result

from fasttrace.analysis.figures import paper_figure
from fasttrace.analysis.paper import FIGURES, METHODS, PROBLEMS, TABLES, coverage, what_is_missing
from fasttrace.analysis.regression import regressions
from fasttrace.analysis.render import render
from fasttrace.analysis.tables import paper_table
from fasttrace.cli import cli
from fasttrace.errors import StoreError, UserError
from fasttrace.store import Store, Stores
from fasttrace.study import write_results


@pytest.mark.parametrize("number", TABLES)
def test_every_table_is_made(whole, number):
    table = paper_table(whole, number, resamples=50)
    assert table.num_rows
    for format in ("text", "markdown", "latex", "csv", "json"):
        assert render(table, format, title="x")


def test_table_3_is_the_regressions_in_the_papers_order(whole):
    table = paper_table(whole, 3, resamples=50).to_pylist()
    first = list(dict.fromkeys((row["problem"], row["method"]) for row in table))
    assert first == [(problem, method) for problem in PROBLEMS for method in METHODS]
    fits = {
        (row["problem"], row["method"]): row
        for row in regressions(whole).to_pylist()
        if row["model"].startswith("smol") and row["localization"] == "denoise" and row["source"] != "zsre" and row["n"]
    }
    for row in table:
        if row["model"].startswith("smol"):
            fit = fits[row["problem"], row["method"]]
            # DuckDB's threads add in no fixed order, so two queries may differ in the last bits.
            for name in ("n", "r2_layer", "r2_effect", "r2_both", "p_value"):
                assert row[name] == pytest.approx(fit[name], rel=1e-9), name
            assert row["r2_effect_low"] <= row["r2_effect_high"]
            assert 0 <= row["p_clustered"] <= 1


def test_tables_4_to_6_have_one_score_each(whole):
    for number, score in ((4, "paraphrase"), (5, "neighborhood"), (6, "overall")):
        row = paper_table(whole, number, resamples=0).to_pylist()[0]
        fit = regressions(whole, score, problem=row["problem"], method=row["method"]).to_pylist()
        assert any(one["n"] and row["r2_both"] == pytest.approx(one["r2_both"], abs=1e-12) for one in fit)


def test_tables_7_and_8_have_different_data(whole):
    seven, eight = (paper_table(whole, number).to_pylist() for number in (7, 8))
    assert {row["edit_metric"] for row in seven} == {"rewrite", "overall"}
    assert {(row["regression_metric"], row["predictor"]) for row in seven} == {
        (metric, by) for metric in ("R2", "RMSE", "MAE") for by in ("layer", "effect", "both")
    }
    assert {row["n"] for row in eight} == {8 * 10}
    assert [row["value"] for row in seven] != [row["value"] for row in eight]


def test_table_2_has_fewer_facts(whole):
    few, all_ = (paper_table(whole, number, resamples=0).to_pylist() for number in (2, 3))
    assert sum(row["n"] for row in few) < sum(row["n"] for row in all_)


def test_missing_data_are_named_with_the_command_that_makes_them(study):
    for number, words in (
        (3, None), (8, "--facts zsre_mend_eval.json"), (1, None),
    ):  # fmt: skip
        missing = what_is_missing(coverage(study), TABLES[number])
        assert missing is None if words is None else words in missing
    assert "no fact traced in" in what_is_missing(coverage(study), TABLES[2])
    with pytest.raises(StoreError, match=r"Figure 17 .*no such edits .*--problem fact-forcing --method ft-5"):
        paper_figure(study, 17)
    zeroing = "fasttrace trace --method zero --tokens whole-subject --windows 5"
    with pytest.raises(StoreError, match=rf"Figure 21 .*no such tracing effects .*{zeroing}"):
        paper_figure(study, 21)
    with pytest.raises(StoreError, match=r"Figure 12 .*--windows 10"):
        paper_figure(study, 12)
    with pytest.raises(StoreError, match=r"Figure 13 .*--windows 10 --model openai-community/gpt2-xl"):
        paper_figure(study, 13)


def test_numbers_that_the_paper_does_not_have(study):
    with pytest.raises(UserError, match=r"expected a table of the paper, .*, got 9"):
        paper_table(study, 9)
    with pytest.raises(UserError, match="Figure 5 of the paper is a drawing of the editing problems"):
        paper_figure(study, 5)
    with pytest.raises(UserError, match=r"expected a figure of the paper, .*, got 23"):
        paper_figure(study, 23)


def test_edits_can_be_compared_with_any_traced_window(whole):
    """Edits of window 5 can also be compared with effects of window 10. Effects of two windows are never mixed."""
    own, ten = (regressions(whole, window_size=size, problem="fact-forcing", method="memit") for size in (None, 10))
    assert set(own["window_size"].to_pylist()) == {5}
    assert set(ten["window_size"].to_pylist()) == {10}
    assert own["r2_layer"].to_pylist()[0] == pytest.approx(ten["r2_layer"].to_pylist()[0], abs=1e-12)
    assert own["r2_effect"].to_pylist()[0] != ten["r2_effect"].to_pylist()[0]


def test_effects_of_another_window_do_not_replace_those_the_edits_need(tmp_path):
    store, facts = Store(tmp_path / "ten.duckdb"), study_facts(count=4)
    store.add(trace_result(facts, windows=(10,)))
    assert what_is_missing(coverage(store), FIGURES[11]) is None
    store.add(edit_result(facts))  # compared with window 5
    with pytest.raises(StoreError, match=r"Table 3 .*no such tracing effects are in .*--windows 5"):
        paper_table(store, 3)
    assert paper_figure(store, 12).get_axes()
    with pytest.raises(StoreError, match=r"Figure 1 .*no such tracing effects are in .*--windows 5"):
        paper_figure(store, 1)


def test_traces_of_another_model_do_not_replace_those_the_edits_need(tmp_path):
    store, facts = Store(tmp_path / "other.duckdb"), study_facts(count=4)
    store.add(trace_result(facts, model="gpt2", model_hash="77aa"))
    store.add(edit_result(facts))
    with pytest.raises(StoreError, match=r"Figure 15 .*no such tracing effects are in "):
        paper_figure(store, 15)


def test_zeroing_token_by_token_is_not_that_of_figures_21_and_22(tmp_path):
    store, facts = Store(tmp_path / "zeroed.duckdb"), study_facts(count=4)
    store.add(edit_result(facts))
    store.add(trace_result(facts, localization="zero", run_id="each-token"))
    for number in (21, 22):
        with pytest.raises(StoreError, match=rf"Figure {number} .*--tokens whole-subject"):
            paper_figure(store, number)
    store.add(trace_result(facts, localization="zero", tokens="whole-subject", run_id="at-once"))
    drawn = paper_figure(store, 21).findobj(lambda artist: hasattr(artist, "get_offsets"))
    shown = np.concatenate([points.get_offsets() for points in drawn if len(points.get_offsets()) > 1])
    at_once = store.query(
        "SELECT effect FROM trace_effects JOIN edits USING (fact_id, layer) WHERE trace_effects.run_id = 'at-once'"
    )
    assert sorted(shown[:, 0].tolist()) == sorted(at_once["effect"].to_pylist())


def test_a_study_may_compare_edits_with_a_window_of_its_own(tmp_path):
    store, facts = Store(tmp_path / "s.duckdb"), study_facts(count=8)
    store.add(trace_result(facts, windows=(10,)))
    store.add(edit_result(facts))
    [(model,)] = store.query("SELECT DISTINCT model FROM runs").to_pandas().to_numpy()
    [report] = [path for path in write_results(store, tmp_path / "own", model, "paper") if path.suffix == ".html"]
    assert "fasttrace tables --tracing-window 10 compares them" in html.unescape(report.read_text())
    assert not list((tmp_path / "own").glob("tables/*"))
    names = {path.stem for path in write_results(store, tmp_path / "ten", model, "paper", 10)}
    assert {"table-1", "table-3", "table-7", "claims", "beside-paper", "figure-4", "figure-6", "figure-15"} <= names
    [row, *_] = csv.DictReader((tmp_path / "ten/tables/beside-paper.csv").open())
    wanted = pytest.approx(regressions(store, window_size=10)["r2_layer"][0].as_py(), rel=1e-9)
    assert float(row["r2_layer"]) == wanted
    where = ["--tracing-window", "10", "--json", "--store", str(store.path)]
    for words in (["figures", "6", "--out", str(tmp_path)], ["claims", "--cells", "--resamples", "0"]):
        run = CliRunner().invoke(cli, [*words, *where], catch_exceptions=False)
        assert run.exit_code == 0
    assert json.loads(run.stdout)[0]["r2_layer"] == wanted


def test_tables_take_a_tracing_window(whole):
    own, ten = (paper_table(whole, 3, resamples=0, window_size=size).to_pylist() for size in (None, 10))
    fits = regressions(whole, window_size=10, localization="denoise").to_pylist()
    for row in ten:
        assert any(fit["n"] and row["r2_both"] == pytest.approx(fit["r2_both"], rel=1e-9) for fit in fits)
    assert [row["r2_both"] for row in own] != [row["r2_both"] for row in ten]
    line = ["tables", "3", "--tracing-window", "10", "--json", "--resamples", "0", "--store", str(whole.path)]
    printed = json.loads(CliRunner().invoke(cli, line, catch_exceptions=False).stdout)
    assert [row["r2_both"] for row in printed] == pytest.approx([row["r2_both"] for row in ten], rel=1e-9)
    with pytest.raises(StoreError, match=r"Table 3 .*no such tracing effects .*--windows 7"):
        paper_table(whole, 3, window_size=7)


def test_tables_of_several_stores_are_those_of_one(tmp_path, study):
    facts = study_facts()
    traces, edits = Store(tmp_path / "t.duckdb"), Store(tmp_path / "e.duckdb")
    traces.add_facts(facts)
    traces.add(trace_result(facts))
    edits.add(edit_result([fact for fact in facts if not fact.fact_id.endswith("-21")]))
    [one], [both] = (paper_table(where, 1).to_pylist() for where in (study, Stores([traces.path, edits.path])))
    assert both == {name: pytest.approx(v, rel=1e-9) if isinstance(v, float) else v for name, v in one.items()}
