"""Averages by token role, windows and corruptions: SQL against Python and scipy, on real traces of a small model."""

import json
from itertools import product

import duckdb
import numpy as np
import pytest
import torch
from made_results import made_trace
from scipy import stats
from small_models import small_model

import fasttrace as ft
from fasttrace.analysis.exhibits import exhibits
from fasttrace.analysis.figures import role_effects, role_figure, save
from fasttrace.analysis.relation import relation
from fasttrace.errors import StoreError, UserError
from fasttrace.show.words import ROLE_WORDS
from fasttrace.store.migrate import added
from fasttrace.tracing.roles import AVERAGES, ROLES, average_by_role, role_of

FACTS = [
    ft.Fact("The {} is located in the city of", "Eiffel Tower", "Paris", "Rome", counterfactual_subject="New York"),
    ft.Fact("{} is the capital of", "Paris", "Rome", "France", counterfactual_prompt="Paris is the city of"),
    ft.Fact("The {}", "New York Tower of Rome", "Paris", "Rome", counterfactual_subject="New York Tower of Paris"),
]
CORRUPTED = {"noise": {"samples": 2, "sigma": 0.5}, "counterfactual": {}}


def test_roles_of_tokens_by_hand():
    # "The capital of New South Wales is the city": the subject is [3, 6)
    found = [role_of(t, 3, 6, 9) for t in range(9)]
    assert found == [None] * 3 + ["first-subject", "middle-subject", "last-subject", "first-after", "further"] + [
        "last-prompt"
    ]
    assert [role_of(t, 0, 1, 3) for t in range(3)] == ["last-subject", "first-after", "last-prompt"]
    assert [role_of(t, 1, 3, 4) for t in range(4)] == [None, "first-subject", "last-subject", "last-prompt"]
    assert [role_of(t, 1, 3, 3) for t in range(3)] == [None, "first-subject", "last-subject"]


@pytest.fixture(scope="module")
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float64)


@pytest.fixture(scope="module")
def traced(model, tmp_path_factory):
    """(store, results): runs of every corruption, of two directions, of every metric, and of heads."""
    runs = [{"corruption": c, "method": m, **CORRUPTED[c]} for c in CORRUPTED for m in ("denoise", "noise")]
    runs += [{"corruption": "counterfactual", "metric": m} for m in ("log-probability", "logit-difference", "kl")]
    runs += [{"corruption": "counterfactual", "module": "head", "heads": [0, 4]}, {"method": "zero", "tokens": "all"}]
    results = [ft.trace(model, FACTS, keep="all", **{"windows": [3, 1], **run}) for run in runs]
    store = ft.Store(tmp_path_factory.mktemp("roles") / "s.duckdb")
    store.add_facts(FACTS)
    for result in results:
        store.add(result)
    return store, results


def indirect(result, cell, fact, metric, method):
    names = {"probability": "p", "log-probability": "logprob", "logit-difference": "logit_diff", "kl": "kl"}
    name = names[metric]
    clean, noised = (0.0 if metric == "kl" else fact[f"{name}_clean"]), fact[f"{name}_noised"]
    moved = clean - cell[f"{name}_restored"] if method in ("noise", "zero") else cell[f"{name}_restored"] - noised
    return -moved if metric == "kl" else moved


def test_averages_are_means_over_facts_of_means_over_tokens(traced):
    for result in traced[1]:
        asked = {"metric": "probability", "method": "denoise"} | json.loads(result.run["settings"])
        facts = {row["fact_id"]: row for row in result.facts.to_pylist()}
        by_fact = {}
        for cell in result.cells.to_pylist():
            fact = facts[cell["fact_id"]]
            role = role_of(cell["token_index"], fact["subject_begin"], fact["subject_end"], len(fact["tokens"]))
            key = (cell["window_size"], role, cell["layer"], cell["head"])
            moved = indirect(result, cell, fact, asked["metric"], asked["method"])
            by_fact.setdefault(key, {}).setdefault(cell["fact_id"], []).append(moved)
        average = result.average(by="role")
        assert average.schema == AVERAGES
        assert {(r["window_size"], r["role"], r["layer"], r["head"]) for r in average.to_pylist()} == {
            key for key in by_fact if key[1] is not None
        }
        spread = 0
        for row in average.to_pylist():
            values = [np.mean(v) for v in by_fact[row["window_size"], row["role"], row["layer"], row["head"]].values()]
            assert row["n"] == len(values)
            assert row["mean_effect"] == pytest.approx(np.mean(values), rel=1e-9, abs=1e-15)
            if len(values) > 1:
                assert row["sem_effect"] == pytest.approx(stats.sem(values), rel=1e-9, abs=1e-15)
                low, high = stats.t.interval(0.95, len(values) - 1, np.mean(values), max(stats.sem(values), 1e-300))
                assert (row["low"], row["high"]) == pytest.approx((low, high), rel=1e-9, abs=1e-15)
                spread += row["high"] > row["low"]
            else:
                assert (row["sem_effect"], row["low"], row["high"]) == (None, None, None)
        assert spread > 5, "the averages are too flat to show errors"


def test_sql_has_the_same_averages(traced):
    store, results = traced
    table = relation(store, "effects_by_role").to_pylist()
    first = [row for row in table if (row["trace_run_id"], row["window_size"]) == (table[0]["trace_run_id"], 1)]
    assert [ROLES.index(row["role"]) for row in first] == sorted(ROLES.index(row["role"]) for row in first)
    for result in results:
        found = {
            (row["window_size"], row["role"], row["layer"], row["head"]): row
            for row in table
            if row["trace_run_id"] == result.run["run_id"]
        }
        expected = result.average(by="role").to_pylist()
        assert len(found) == len(expected)
        for row in expected:
            mine = found[row["window_size"], row["role"], row["layer"], row["head"]]
            assert mine["n"] == row["n"]
            for name in ("mean_effect", "sem_effect"):
                assert mine[name] == (None if row[name] is None else pytest.approx(row[name], rel=1e-9, abs=1e-15))


@pytest.mark.parametrize("name", ["effects_by_role", "window_peaks", "corruption_correlations"])
def test_the_order_of_the_rows_in_a_store_changes_no_bit(name, traced, tmp_path):
    """A sweep that was interrupted, or a sum over several threads, has its rows in another order."""
    wanted = relation(traced[0], name)
    for seed in range(3):
        mixed = ft.Store(tmp_path / f"{seed}.duckdb")
        mixed.create()
        with duckdb.connect(str(mixed.path)) as con:
            con.execute(f"ATTACH '{traced[0].path}' AS other (READ_ONLY)").fetchall()
            con.execute(f"SELECT setseed({seed / 10})").fetchall()
            for one in ("runs", "traces", "trace_cells", "trace_effects"):
                con.execute(f"INSERT INTO {one} BY NAME FROM other.{one} ORDER BY random()").fetchall()
        assert relation(mixed, name).equals(wanted)


def test_runs_older_than_heads_and_metrics_have_averages(tmp_path):
    """Their cells lack the columns of both, and the settings of their runs lack tokens."""
    store, result = ft.Store(tmp_path / "s.duckdb"), made_trace(["f0", "f1", "f2"], left_out=("f2",))
    store.add(result)
    with store.writing() as con:
        for name in ("trace_cells", "traces"):
            new = ", ".join(f"{column} = NULL" for column in added(name, 7))
            con.execute(f"UPDATE {name} SET {new}").fetchall()
    assert "tokens" not in json.loads(result.run["settings"])
    found = role_effects(store)
    expected = average_by_role(result.run["settings"], result.facts, result.cells)
    assert len(expected) == 3 * 4
    assert found.select(["window_size", "role", "layer", "head", "n"]) == expected.select(
        ["window_size", "role", "layer", "head", "n"]
    )
    for name in ("mean_effect", "sem_effect", "low", "high"):
        np.testing.assert_allclose(found[name].to_numpy(), expected[name].to_numpy(), rtol=1e-9)


def test_cells_of_the_whole_subject_have_no_role(model, tmp_path):
    result, store = ft.trace(model, FACTS, windows=[1], method="zero", keep="all"), ft.Store(tmp_path / "s.duckdb")
    store.add(result)
    assert relation(store, "effects_by_role").num_rows == 0
    with pytest.raises(UserError, match="average: expected a trace with one token per cell, got tokens whole-subject"):
        result.average(by="role")


def test_lines_are_labelled_apart_from_each_other(tmp_path):
    store = ft.Store(tmp_path / "s.duckdb")
    store.add(
        made_trace(["f0", "f1", "f2"], tokens=7, effects=dict.fromkeys(product(("f0", "f1", "f2"), range(4)), 0.5))
    )
    figure = role_figure(store)
    figure.draw_without_rendering()
    [part] = figure.subfigs
    boxes = [text.get_window_extent() for text in part.axes[0].texts]
    assert [text.get_text() for text in part.axes[0].texts if "last subject" in text.get_text()] == [
        "last subject token, n = 3"
    ]
    assert len(boxes) == 5
    assert not any(a.overlaps(b) for i, a in enumerate(boxes) for b in boxes[:i])
    page = figure.bbox.padded(1)
    assert all(page.contains(box.x0, box.y0) and page.contains(box.x1, box.y1) for box in boxes)


def test_the_report_shows_roles_and_corruptions(traced):
    store, results = traced
    shown = {exhibit.key: exhibit for exhibit in exhibits(store)}
    roles = shown["roles"]
    runs = {result.run["run_id"] for result in results if result.cells["head"].null_count}
    assert set(roles.runs) == runs
    assert len(roles.panels) == 2 * len(runs), "a panel for each run and window"
    assert "single heads" in roles.caption
    assert [one.name for one in roles.panels[0].series] == [ROLE_WORDS[role] for role in ROLES]
    of_run = [row for row in roles.table.rows if row["trace_run_id"] == results[0].run["run_id"]]
    assert len(of_run) == len(results[0].average(by="role"))
    assert {row["layer"] for row in shown["corruptions"].table.rows} == {None, *range(5)}


def test_another_average_is_refused(traced):
    with pytest.raises(UserError, match="by: expected role, got 'token'"):
        traced[1][0].average(by="token")


def test_the_figure_has_a_panel_for_each_run(traced, tmp_path, command, monkeypatch):
    store, results = traced
    figure = role_figure(store)
    assert len(figure.subfigs) == len(results)
    path = save(role_figure(store, localization="counterfactual", metric="logit-difference"), tmp_path / "roles.svg")
    text = path.read_text()
    for words in ("last subject token", "logit difference (logits)", "window 3", "3 facts"):
        assert words in text, words
    monkeypatch.chdir(tmp_path)
    words = ["figures", "roles", "--metric", "kl", "--tracing-window", "1", "--store", str(store.path), "--out", "f"]
    assert command(*words).stdout.split() == ["f/roles.svg"]
    assert "window 1" in (tmp_path / "f" / "roles.svg").read_text()
    with pytest.raises(StoreError, match=r"expected a trace at single tokens with localization attribution in"):
        role_figure(store, localization="attribution")
    said = command("figures", "role", "--store", str(store.path), code=2).stderr
    assert "expected the number of a figure or roles or edits, got 'role'" in said


def test_windows_are_compared_by_their_peaks(traced):
    store, results = traced
    rows = {(row["trace_run_id"], row["window_size"]): row for row in relation(store, "window_peaks").to_pylist()}
    effects = relation(store, "peak_layers").to_pylist()
    for (run_id, window), row in rows.items():
        mine = [one for one in effects if (one["trace_run_id"], one["window_size"]) == (run_id, window)]
        peaks = [one["peak_effect"] for one in mine]
        layers = [one["peak_layer"] for one in mine]
        assert row["n"] == len(mine)
        assert row["mean_peak"] == pytest.approx(np.mean(peaks))
        assert row["above_one"] == pytest.approx(np.mean(np.array(peaks) > 1))
        assert row["mean_layer"] == pytest.approx(np.mean(layers))
        assert row["median_layer"] == pytest.approx(np.median(layers))
        assert row["most_share"] == pytest.approx(max(map(layers.count, layers)) / len(layers))
        assert layers.count(row["most_layer"]) == max(map(layers.count, layers))
    assert {run for run, _ in rows} == {result.run["run_id"] for result in results}


def test_corruptions_are_correlated_over_facts(traced):
    store, results = traced
    table = relation(store, "corruption_correlations").to_pylist()
    names = {result.run["run_id"]: i for i, result in enumerate(results)}
    # The denoising runs of the MLPs in probabilities, and the noising ones. No other run has a counterpart.
    assert {(names[r["noise_run_id"]], names[r["counterfactual_run_id"]]) for r in table} == {(0, 2), (1, 3)}
    effects = store.query("SELECT * FROM trace_effects").to_pylist()
    of = {(row["run_id"], row["window_size"], row["layer"], row["fact_id"]): row["effect"] for row in effects}
    checked = 0
    for row in table:
        layers = range(5) if row["layer"] is None else [row["layer"]]
        runs = (row["noise_run_id"], row["counterfactual_run_id"])
        keys = [(row["window_size"], at, fact.fact_id) for at in layers for fact in FACTS]
        pairs = [tuple(of[run, *key] for run in runs) for key in keys]
        a, b = np.array([pair for pair in pairs if None not in pair], dtype=float).T
        assert row["n"] == len(a)
        assert row["mean_noise"] == pytest.approx(a.mean())
        assert row["mean_counterfactual"] == pytest.approx(b.mean())
        if len(a) > 2 and np.ptp(a) > 0 and np.ptp(b) > 0:
            assert row["pearson"] == pytest.approx(stats.pearsonr(a, b).statistic, abs=1e-9)
            assert row["spearman"] == pytest.approx(stats.spearmanr(a, b).statistic, abs=1e-9)
            checked += 1
        assert (row["same_peak"] is None) == (row["layer"] is not None)
    assert checked > 3
