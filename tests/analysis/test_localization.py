"""Counterfactual prompts, metrics and heads as other localizations: told apart, never pooled, and the paper's tables go
on choosing its own."""

import typing

import pyarrow as pa
import pytest
from made_results import made_edit, made_trace

from fasttrace.analysis.exhibits import exhibits
from fasttrace.analysis.figures import heatmap, paper_figure
from fasttrace.analysis.naming import LOCALIZATIONS, effect_label, method_and_corruption
from fasttrace.analysis.paper import FIGURES, TABLES, coverage, what_is_missing
from fasttrace.analysis.regress import regress
from fasttrace.analysis.regression import KEYS, regressions
from fasttrace.analysis.relation import query, relation
from fasttrace.analysis.tables import paper_table
from fasttrace.errors import StoreError, UserError
from fasttrace.settings.trace import Metric, TraceMethod
from fasttrace.show.words import METRICS
from fasttrace.store import Store

IDS = [f"f{i}" for i in range(14)]
OTHERS = {
    "pairs": {"corruption": "counterfactual"},
    "pairs-noise": {"corruption": "counterfactual", "method": "noise"},
    "pairs-logits": {"corruption": "counterfactual", "metric": "logit-difference"},
    "logits": {"metric": "logit-difference"},
    "noise": {"method": "noise"},
}


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    """Traces by noise, denoising and probabilities alone, and edits at four layers."""
    return filled(tmp_path_factory.mktemp("plain") / "plain.duckdb")


@pytest.fixture(scope="module")
def every(tmp_path_factory):
    """The same with other localizations and metrics beside."""
    store = filled(tmp_path_factory.mktemp("every") / "every.duckdb")
    for place, (run_id, asked) in enumerate(OTHERS.items(), 1):
        store.add(traced(run_id, seed=place, **asked))
    return store


def traced(run_id, seed=0, heads=(None,), **asked):
    return made_trace(IDS, run_id=run_id, seed=seed, no_effect=("f3",), heads=heads, asked={"tokens": "all"} | asked)


def filled(path):
    store = Store(path)
    store.add(traced("t0"))
    store.add(made_edit(IDS))
    return store


def test_names_in_sql_are_those_in_python(tmp_path):
    store = Store(tmp_path / "s.duckdb")
    every = [(c, m) for c in ("noise", "counterfactual") for m in typing.get_args(TraceMethod)]
    for corruption, method in every:
        if (corruption, method) != ("counterfactual", "zero"):  # the settings refuse it
            store.add(
                made_trace(["f0"], run_id=f"{corruption} {method}", asked={"corruption": corruption, "method": method})
            )
    found = query(store, "SELECT run_id, localization FROM trace_runs").to_pylist()
    assert sorted(row["localization"] for row in found) == sorted(LOCALIZATIONS)
    assert {row["run_id"]: row["localization"] for row in found} | {
        "noise denoise": "denoise",
        "noise zero": "zero",
        "counterfactual denoise": "counterfactual",
        "counterfactual noise": "counterfactual-noise",
    } == {row["run_id"]: row["localization"] for row in found}
    assert {f"{c} {m}" for m, c in map(method_and_corruption, LOCALIZATIONS)} == {row["run_id"] for row in found}
    assert tuple(METRICS) == typing.get_args(Metric)
    assert all(effect_label(*how) for how in [(one, "max", metric) for one in LOCALIZATIONS for metric in METRICS])


@pytest.mark.parametrize("number", [1, 3, 4, 6, 7])
def test_the_papers_tables_are_those_of_noise_denoising_and_probabilities(plain, every, number):
    own, beside = (paper_table(store, number, resamples=50).to_pylist() for store in (plain, every))
    assert len(own) == len(beside) > 0
    for a, b in zip(own, beside, strict=True):
        assert a.keys() == b.keys()
        assert all(
            a[name] == (pytest.approx(b[name], rel=1e-9) if isinstance(a[name], float) else b[name]) for name in a
        )


def test_the_papers_figures_are_those_of_noise_denoising_and_probabilities(plain, every):
    for number in (1, 10, 11):
        own, beside = (paper_figure(store, number) for store in (plain, every))
        assert len(own.axes) == len(beside.axes)
        for a, b in zip(own.axes, beside.axes, strict=True):
            assert [line.get_ydata().tolist() for line in a.lines] == [line.get_ydata().tolist() for line in b.lines]
            assert [bar.get_height() for bar in a.patches] == [bar.get_height() for bar in b.patches]
    own, beside = (paper_figure(store, 2).axes[0] for store in (plain, every))
    assert (own.collections[0].get_array() == beside.collections[0].get_array()).all()
    assert own.get_title(loc="left") == beside.get_title(loc="left")


@pytest.mark.parametrize(
    ("choice", "run_ids"),
    [
        ({"localization": "counterfactual"}, ["pairs", "pairs-logits"]),
        ({"localization": "counterfactual", "metric": "probability"}, ["pairs"]),
        ({"localization": "counterfactual-noise"}, ["pairs-noise"]),
        ({"metric": "logit-difference"}, ["logits"]),
    ],
)
def test_a_table_of_another_localization_is_of_its_runs_alone(every, choice, run_ids):
    rows = paper_table(every, 3, resamples=0, **choice).to_pylist()
    assert [row.get("metric", choice.get("metric", "probability")) for row in rows] == [
        "logit-difference" if run.endswith("logits") else "probability" for run in sorted(run_ids, key=rank)
    ]
    for row, run_id in zip(rows, sorted(run_ids, key=rank), strict=True):
        fits = {
            name: regress(every, name, where=[f"trace_run_id = '{run_id}'"]) for name in ("layer", "effect", "both")
        }
        for name, fit in fits.items():
            assert row[f"r2_{name}"] == pytest.approx(fit.statistics["r2"], rel=1e-9)
            assert row["n"] == fit.statistics["n"] == 13 * 4


def rank(run_id):
    """The order of the tables: metrics by name."""
    return "probability" if not run_id.endswith("logits") else "logit-difference"


def test_no_regression_pools_runs(every):
    rows = regressions(every).to_pylist()
    assert len(rows) == len({row["trace_run_id"] for row in rows}) == 1 + len(OTHERS)
    assert len({tuple(row[key] for key in KEYS if not key.startswith("trace_run")) for row in rows}) == len(rows)
    assert {(row["localization"], row["metric"]) for row in rows} == {
        ("denoise", "probability"), ("denoise", "logit-difference"), ("noise", "probability"),
        ("counterfactual", "probability"), ("counterfactual", "logit-difference"),
        ("counterfactual-noise", "probability"),
    }  # fmt: skip


def test_runs_of_two_engines_are_named_by_them_and_not_pooled(tmp_path):
    store = filled(tmp_path / "s.duckdb")
    store.add(traced("t1", engine="hooked"))
    names = {row["run_id"]: row["run_name"] for row in query(store, "FROM run_names").to_pylist()}
    assert names["t1"].startswith("engine hooked")
    assert names["t0"].startswith("engine wavefront")
    assert [row["trace_run_id"] for row in regressions(store).to_pylist()] == ["t0", "t1"]
    found = query(store, "SELECT DISTINCT run_id, engine FROM trace_effects ORDER BY ALL").to_pylist()
    assert found == [{"run_id": "t0", "engine": "wavefront"}, {"run_id": "t1", "engine": "hooked"}]


def test_runs_that_differ_in_heads_are_named_by_them(tmp_path):
    store = filled(tmp_path / "s.duckdb")
    for run_id, heads, of in (("all", (0, 1, 2), "all"), ("two", (0, 2), [0, 2]), ("once", (None,), "at-once")):
        asked = {"module": "head", "heads": of, "tokens": "all"}
        store.add(made_trace(IDS, run_id=run_id, heads=heads, asked=asked))
    names = {row["run_id"]: row["run_name"] for row in query(store, "FROM run_names").to_pylist()}
    assert names == {"all": "heads all", "two": "heads 0,2", "once": "heads at-once"}
    rows = [row for row in regressions(store).to_pylist() if row["module"] == "head"]
    assert [row["trace_run"] for row in rows] == [names[row["trace_run_id"]] for row in rows]
    assert len(rows) == 3
    assert len(paper_table(store, 3, resamples=0)) == 1, "the paper's, of the MLPs"
    assert len(paper_table(store, 3, resamples=0, module="head")) == 3


def test_missing_traces_are_named_with_the_command_that_makes_them(plain):
    for choice, words in (
        ({"localization": "counterfactual"}, "fasttrace trace --pairs --corruption counterfactual --windows 5"),
        (
            {"localization": "counterfactual-noise"},
            "fasttrace trace --pairs --corruption counterfactual --method noise",
        ),
        ({"metric": "kl"}, "fasttrace trace --metric kl --windows 5"),
        ({"localization": "noise", "metric": "kl"}, "fasttrace trace --method noise --metric kl --windows 5"),
    ):
        with pytest.raises(StoreError, match=f"Table 3 .*no such tracing effects are in .*{words}"):
            paper_table(plain, 3, **choice)
    assert what_is_missing(coverage(plain), TABLES[3]) is None
    with pytest.raises(UserError, match=r"expected a localization of denoise, .*, got 'pairs'"):
        paper_table(plain, 3, localization="pairs")
    with pytest.raises(UserError, match=r"expected a metric of probability, .*, got 'p'"):
        paper_figure(plain, 1, metric="p")
    with pytest.raises(StoreError, match=r"no trace can have such effects \(trace: metric: expected probability or"):
        paper_figure(plain, 12, localization="zero", metric="kl")
    assert FIGURES[21].at(localization="counterfactual") == FIGURES[21], "the paper names zeroing"
    assert FIGURES[7].at(localization="counterfactual", metric="kl") == FIGURES[7], "nothing is traced in it"


def test_the_commands_take_a_localization_and_a_metric(every, command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    store = ("--store", str(every.path))
    text = command("tables", "3", "--localization", "counterfactual", "--resamples", "0", *store).stdout
    assert "Table 3. R² of the rewrite score, counterfactual" in text
    assert "logit-difference" in text
    one = command("tables", "--localization", "counterfactual", "--metric", "probability", "--json", *store).stdout
    assert one.count('"trace_run_id": "pairs"') == 1
    assert "pairs-logits" not in one
    words = ("figures", "1", "2", "10", "15", "--localization", "counterfactual", "--metric", "logit-difference")
    assert len(command(*words, *store).stdout.split()) == 4
    curve = (tmp_path / "figures" / "figure-10.svg").read_text()
    assert "share of the lost logit difference" in curve
    grid = (tmp_path / "figures" / "figure-2.svg").read_text()
    assert "the logit difference with" in grid, "the label of the colours has several lines"
    assert "(logits)" in grid
    assert "counterfactual" in grid
    assert "is not one of 'denoise'" in command("tables", "3", "--localization", "x", *store, code=2).stderr


def test_a_heatmap_shows_the_metric_and_of_heads_the_strongest(tmp_path):
    store = Store(tmp_path / "s.duckdb")
    result = made_trace(["f0"], run_id="h", heads=(0, 1, 2), asked={"module": "head", "heads": "all", "metric": "kl"})
    store.add(result)
    axes = heatmap(store, "f0", metric="kl", module="head").axes[0]
    image = axes.collections[0].get_array()
    cells = result.cells.to_pylist()
    for token in range(3):
        for layer in range(4):
            here = [cell for cell in cells if (cell["token_index"], cell["layer"]) == (token, layer)]
            assert image[token, layer] == max(here, key=lambda cell: cell["effect"])["kl_restored"]
    assert "strongest head of each cell" in axes.get_title(loc="left")
    assert "clean 0.000" in axes.get_title(loc="left")


def test_facts_that_a_corruption_leaves_as_they_are_have_their_own_reason(tmp_path):
    store = Store(tmp_path / "s.duckdb")
    for run_id, asked in OTHERS.items():
        store.add(traced(run_id, **asked))
    lost = traced("lost", corruption="counterfactual")
    flaw = "counterfactual 'a b': expected 3 tokens as the prompt has, got 2"
    facts = lost.facts.to_pylist()
    for place, row in enumerate(facts):
        row |= {"kept": False, "reason": flaw.replace("2", str(place)), "counterfactuals": None}
    lost.facts, lost.cells = pa.Table.from_pylist(facts, schema=lost.facts.schema), lost.cells.slice(0, 0)
    store.add(lost)
    assert {(row["step"], row["reason"]): row["facts"] for row in relation(store, "left_out").to_pylist()} == {
        ("effect", "the counterfactuals did not lower p(o_true)"): 1,
        ("effect", "the counterfactuals did not change the logit difference"): 1,
        ("effect", "the noise did not change the logit difference"): 1,
        ("effect", "the noise did not lower p(o_true)"): 1,
        ("tracing", "no counterfactual prompt fits the tokens of the prompt"): 14,
    }
    store.add(made_edit(IDS))
    rows = query(
        store, "SELECT DISTINCT localization, metric, effect_reason AS why FROM traced_edits WHERE why NOT NULL"
    )
    assert {tuple(row.values()) for row in rows.to_pylist() if row["why"].startswith("the ")} >= {
        ("noise", "probability", "the noise did not lower p(o_true)"),
        ("counterfactual", "probability", "the counterfactuals did not lower p(o_true)"),
        ("counterfactual", "logit-difference", "the denominator of the effect is about 0"),
    }


def test_the_report_has_a_panel_for_each_localization_and_metric(every):
    shown = {exhibit.key: exhibit for exhibit in exhibits(every)}
    of = {panel.of for panel in shown["r2"].panels}
    assert of == {
        "denoise · probability", "denoise · logit-difference", "noise · probability", "counterfactual · probability",
        "counterfactual · logit-difference", "counterfactual-noise · probability",
    }  # fmt: skip
    assert shown["r2"].panels[0].of == "denoise · probability", "the paper's own comes first"
    assert len(shown["curve"].panels) == 6
    axes = {panel.x.label for panel in shown["pairs"].panels}
    assert "counterfactual tracing effect (share of the lost logit difference)" in axes
    assert "tracing effect (share of p_clean − p_noised)" in axes
    assert [row["n"] for row in shown["corruptions"].table.rows if row["layer"] is None] == [13 * 4] * 3
