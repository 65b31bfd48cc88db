"""Regressions of data sets, localization methods, concentrated facts and absolute effects are kept apart."""

import json

import numpy as np
import pytest
from made_results import made_edit, made_trace
from statsmodels_fits import check_with_statsmodels

from fasttrace.analysis.figures import paper_figure
from fasttrace.analysis.regression import layer_correlations, regressions
from fasttrace.analysis.relation import query
from fasttrace.analysis.tables import paper_table, r2_table
from fasttrace.errors import StoreError, UserError
from fasttrace.facts import load_facts
from fasttrace.facts.record import Fact
from fasttrace.store import Store

LAYERS = 8
IDS = [f"f{i}" for i in range(12)]
CONCENTRATED = IDS[:8]
SOURCES = {fact_id: "zsre" if place % 2 else "counterfact" for place, fact_id in enumerate(IDS[:10])}
NUMBERS = ("r2_layer", "r2_effect", "r2_both", "f_value", "rmse_both", "mae_layer", "mae_effect", "mae_both")


def peaked(facts, n_high, rng):
    """Effects with a peak of 0.8 and `n_high` other layers at exactly half of it or above."""
    effects = {}
    for fact in facts:
        high = [0.4, *rng.uniform(0.4, 0.79, n_high - 1)]
        low = rng.uniform(-0.1, 0.399, LAYERS - 1 - n_high)
        layers = rng.permutation(LAYERS).tolist()
        effects |= {(fact, layer): float(value) for layer, value in zip(layers, [0.8, *high, *low], strict=True)}
    return effects


@pytest.fixture(scope="module")
def store(tmp_path_factory):
    """Three tracing and two editing runs of 12 facts. 8 are concentrated; 10 are from two data sets and 2 from none."""
    rng = np.random.default_rng(3)
    store = Store(tmp_path_factory.mktemp("subsets") / "study.duckdb")
    store.add_facts([Fact("{} is in", i, "Rome", "Oslo", fact_id=i, source=source) for i, source in SOURCES.items()])
    effects = peaked(CONCENTRATED, 3, rng) | peaked(IDS[8:], 4, rng)
    for method, seed in (("denoise", 0), ("zero", 1), ("noise", 2)):
        settings = json.dumps({"module": "mlp", "method": method})
        made = {"layers": LAYERS, "effects": effects, "seed": seed, "settings": settings}
        store.add(made_trace(IDS, run_id=f"t-{method}", **made))
    store.add(made_edit(IDS, layers=(0, 2, 4, 6)))
    store.add(made_edit(IDS, run_id="e1", layers=(1, 3), method="memit", problem="fact-erasure", seed=8))
    return store


def test_a_fact_is_concentrated_with_at_most_three_layers_besides_the_peak(store):
    rows = query(store, "FROM concentrated_facts ORDER BY run_id, fact_id").to_pylist()
    assert [row["fact_id"] for row in rows] == CONCENTRATED * 3
    assert {(row["window_size"], row["protocol"], row["n_layers_high"], row["peak_effect"]) for row in rows} == {
        (5, "paper", 3, 0.8)
    }


def test_a_fact_without_a_positive_effect_is_not_concentrated(tmp_path):
    store = Store(tmp_path / "none.duckdb")
    store.add(made_trace(["f0"], effects={("f0", layer): -0.1 * layer for layer in range(4)}))
    store.add(made_trace(["f1"], no_effect=("f1",)))
    assert query(store, "FROM concentrated_facts").num_rows == 0


def test_data_sets_are_regressed_apart(store):
    rows = regressions(store, problem="error-injection", localization="denoise").to_pylist()
    assert [(row["source"], row["n_facts"], row["n"]) for row in rows] == [
        ("counterfact", 5, 20), ("zsre", 5, 20), (None, 2, 8),
    ]  # fmt: skip
    assert len({row["r2_layer"] for row in rows}) == 3
    assert "source" in r2_table(store, problem="error-injection", localization="denoise").column_names


def both_forms(folder):
    """Two lists of facts of one zsRE file: 6 in the form of the paper's experiments, and 5 in the bare form."""
    records = [
        {"subject": f"s{i}", "src": f"Where is s{i}?", "rephrase": f"s{i} is where?", "answers": [f"a{i}"], "alt": "b"}
        for i in range(6)
    ]
    path = folder / "zsre.json"
    path.write_text(json.dumps(records))
    return load_facts(path), load_facts(path, zsre="bare", limit=5)


def stored(path, facts):
    """A store with one tracing and one editing run of the facts."""
    store, ids = Store(path), [fact.fact_id for fact in facts]
    store.add_facts(facts)
    store.add(made_trace(ids))
    store.add(made_edit(ids))
    return store


def test_the_two_forms_of_zsre_are_two_data_sets(tmp_path):
    asked, bare = both_forms(tmp_path)
    store = stored(tmp_path / "study.duckdb", [*asked, *bare])
    rows = regressions(store).to_pylist()
    assert len({(row["edit_run_id"], row["trace_run_id"]) for row in rows}) == 1
    assert [(row["source"], row["n_facts"], row["n"]) for row in rows] == [("zsre", 6, 24), ("zsre-bare", 5, 20)]
    table = paper_table(store, 8).to_pylist()
    assert {row["n"] for row in table} == {24}
    [r2] = [row["value"] for row in table if (row["edit_metric"], row["regression_metric"], row["predictor"]) == (
        "rewrite", "R2", "both")]  # fmt: skip
    assert r2 == pytest.approx(rows[0]["r2_both"], rel=1e-9)
    for number in (19, 20):
        drawn = paper_figure(store, number).findobj(lambda artist: hasattr(artist, "get_offsets"))
        assert sum(len(points.get_offsets()) for points in drawn if len(points.get_offsets()) > 1) == 24
    with pytest.raises(StoreError, match=r"Table 7 .*no such edits"):
        paper_table(store, 7)


def test_table_8_has_no_facts_of_the_bare_form(tmp_path):
    _, bare = both_forms(tmp_path)
    store = stored(tmp_path / "bare.duckdb", bare)
    for make, number in ((paper_table, 8), (paper_figure, 19), (paper_figure, 20)):
        with pytest.raises(StoreError, match=r"no such edits .*--facts zsre_mend_eval.json"):
            make(store, number)


def test_the_subset_is_the_regression_of_those_facts_alone(store):
    rows = regressions(store, subset="concentrated", problem="error-injection", localization="denoise").to_pylist()
    assert [(row["source"], row["n_facts"], row["subset"]) for row in rows] == [
        ("counterfact", 4, "concentrated"), ("zsre", 4, "concentrated"),
    ]  # fmt: skip
    sql = "FROM regression_rows WHERE score = 'rewrite' AND effect_at = 'max' AND subset = ? AND layers = 'all'"
    table = query(store, sql, ["concentrated"])
    assert set(table["fact_id"].to_pylist()) == set(CONCENTRATED)


@pytest.mark.parametrize("subset", ["all", "concentrated"])
@pytest.mark.parametrize("effect_at", ["max", "last-subject", "last-subject-absolute"])
def test_every_choice_equals_statsmodels(store, subset, effect_at):
    choice = {"subset": subset, "effect_at": effect_at}
    ours, theirs = regressions(store, **choice).to_pylist(), check_with_statsmodels(store, **choice).to_pylist()
    assert len(ours) == len(theirs) == 2 * 3 * (3 if subset == "all" else 2)
    for row, wanted in zip(ours, theirs, strict=True):
        assert (row["edit_run_id"], row["trace_run_id"], row["source"], row["n"]) == (
            wanted["edit_run_id"], wanted["trace_run_id"], wanted["source"], wanted["n"],
        )  # fmt: skip
        for name in NUMBERS:
            value = None if wanted[name] is None else pytest.approx(wanted[name], rel=1e-9, abs=1e-12)
            assert row[name] == value, name


@pytest.mark.parametrize(
    ("choice", "count"),
    [
        ({}, 18), ({"source": "zsre"}, 6), ({"problem": "fact-erasure"}, 9), ({"method": "rome"}, 9),
        ({"localization": "noise"}, 6), ({"model": "toy", "window_size": 5, "protocol": "paper"}, 18),
        ({"model": "other"}, 0), ({"window_size": 3}, 6),
        ({"source": "zsre", "localization": "zero", "method": "memit"}, 1),
    ],
)  # fmt: skip
def test_choices_keep_only_what_they_name(store, choice, count):
    rows = regressions(store, **choice).to_pylist()
    assert len(rows) == count
    assert all(row[name] == value for row in rows for name, value in choice.items())
    layers = {"rome": 4, "memit": 2}
    correlations = layer_correlations(store, **choice).to_pylist()
    assert len(correlations) == sum(layers[row["method"]] for row in rows)
    assert all(row[name] == value for row in correlations for name, value in choice.items())


def test_the_absolute_effect_is_the_probability_gained_or_lost_at_the_last_subject_token(store):
    sql = "SELECT * FROM trace_cells JOIN traces USING (run_id, fact_id) WHERE token_index = 1"
    cells = store.query(sql).to_pylist()
    kept = {
        (row["run_id"], row["fact_id"], row["layer"]): row["effect_absolute"]
        for row in store.query("FROM trace_effects").to_pylist()
    }
    assert len(kept) == len(cells) == 3 * 12 * LAYERS
    for cell in cells:
        found = kept[cell["run_id"], cell["fact_id"], cell["layer"]]
        won = cell["p_restored"] - cell["p_noised"]
        assert found == (won if cell["run_id"] == "t-denoise" else cell["p_clean"] - cell["p_restored"])


def test_unknown_choices_are_refused(store):
    with pytest.raises(UserError, match="expected one of all, concentrated as subset, got 'few'"):
        regressions(store, subset="few")
    with pytest.raises(UserError, match="expected one of max, last-subject, last-subject-absolute as effect_at"):
        layer_correlations(store, effect_at="first")
    with pytest.raises(UserError, match=r"regressions has no setting 'windows'; did you mean 'window_size'\?"):
        regressions(store, windows=5)
