"""The committed store of the study is sound, and every run of it has the settings that its page states."""

import importlib.util
import json
import re
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from pyarrow.csv import read_csv
from statsmodels.formula.api import ols

from fasttrace import Store
from fasttrace.analysis.checks import failures
from fasttrace.analysis.relation import relation
from fasttrace.analysis.render import render
from fasttrace.analysis.tables import paper_table
from fasttrace.editing.tune import MOST_REWRITE, choose
from fasttrace.study import write_results

RESULTS = Path(__file__).parents[2] / "analysis/results/smollm2-135m"


@pytest.fixture(scope="module")
def store():
    return Store(RESULTS / "store")


def test_the_store_passes_every_check(store, tmp_path):
    assert failures(store).to_pylist() == []
    taken = Store(tmp_path / "study.duckdb")
    taken.add_parquet(RESULTS / "store")
    for name in ("edits", "trace_cells", "runs"):
        rows = f"SELECT * FROM {name} ORDER BY ALL"
        assert taken.query(rows).equals(store.query(rows))


def test_every_run_has_the_settings_of_the_page(store):
    runs = store.query("SELECT kind, protocol, seed, dtype, model, settings FROM runs").to_pylist()
    assert {(run["model"], run["seed"], run["dtype"]) for run in runs} == {("smollm2-135m", 0, "float32")}
    assert {run["protocol"] for run in runs if run["kind"] in ("trace", "edit")} == {"paper"}
    settings = {
        kind: [json.loads(run["settings"]) for run in runs if run["kind"] == kind] for kind in ("trace", "edit")
    }
    for trace in settings["trace"]:
        assert (trace["module"], trace["windows"]) == ("mlp", [10, 5, 3, 1])
        wanted = {"denoise": ("all", 10), "zero": ("whole-subject", None)}  # zeroing has no noise to sample
        assert (trace["tokens"], trace.get("samples")) == wanted[trace["method"]]
    for edit in settings["edit"]:
        solved = edit["method"] in ("rome", "memit")
        assert (edit["essence"], edit.get("contexts")) == (1, 2 if solved else None)
        assert edit.get("corpus_tokens") == (100_000 if solved else None)
    cells = [(edit["problem"], edit["method"]) for edit in settings["edit"]]
    assert len(cells) == len(set(cells)) > 0
    layers = store.query("SELECT DISTINCT layer FROM edits ORDER BY layer").column(0).to_pylist()
    assert layers == [0, 6, 12, 17, 23, 29]


def test_the_page_names_every_cell_above_the_cap_of_tuning(store):
    means = "SELECT problem, method, avg(rewrite) AS rewrite FROM edits WHERE layer = 6 GROUP BY ALL"
    here = {(row["problem"], row["method"]): row["rewrite"] for row in store.query(means).to_pylist()}
    above = {cell: rewrite for cell, rewrite in here.items() if rewrite > MOST_REWRITE}
    tried: dict[tuple[str, str], list] = {}
    for row in read_csv(RESULTS / "tuning.csv").to_pylist():
        tried.setdefault((row["problem"], row["method"]), []).append(row)
    page = (RESULTS / "README.md").read_text()
    said = re.findall(r"^\| ([a-z-]+) \| ([a-z0-9-]+) \| (0\.\d{3}) \| (0\.\d{3}) \|$", page, re.MULTILINE)
    assert {(problem, method): (tuned, rewrite) for problem, method, tuned, rewrite in said} == {
        cell: (f"{choose(tried[cell])['rewrite']:.3f}", f"{rewrite:.3f}") for cell, rewrite in above.items()
    }


@pytest.fixture(scope="module")
def taken(tmp_path_factory):
    """The committed rows in a DuckDB file, as someone who recomputes has them."""
    store = Store(tmp_path_factory.mktemp("taken") / "study.duckdb")
    store.add_parquet(RESULTS / "store")
    return store


def check_equal(found: Path, wanted: Path):
    """Assert that two CSV files have the same cells, and numbers to nine digits."""
    here, there = (read_csv(path).to_pylist() for path in (found, wanted))
    assert len(here) == len(there) > 0
    for one, other in zip(here, there, strict=True):
        assert one == {
            name: pytest.approx(value, rel=1e-9, abs=1e-12) if isinstance(value, float) else value
            for name, value in other.items()
        }


def test_table_3_is_remade_from_the_store(taken, tmp_path):
    (tmp_path / "table-3.csv").write_text(render(paper_table(taken, 3), "csv"))
    check_equal(tmp_path / "table-3.csv", RESULTS / "tables/table-3.csv")


@pytest.mark.slow
def test_every_table_and_figure_is_remade_from_the_store(taken, tmp_path):
    write_results(taken, tmp_path, "smollm2-135m", "paper")
    for folder, ending in (("tables", "csv"), ("tables", "md"), ("figures", "svg")):
        names = {path.name for path in (tmp_path / folder).glob(f"*.{ending}")}
        assert names == {path.name for path in (RESULTS / folder).glob(f"*.{ending}")} != set()
    for path in (RESULTS / "tables").glob("*.csv"):
        check_equal(tmp_path / "tables" / path.name, path)
    (tmp_path / "scores-by-layer.csv").write_text(render(relation(taken, "scores_by_layer"), "csv"))
    check_equal(tmp_path / "scores-by-layer.csv", RESULTS / "scores-by-layer.csv")


def gain_script():
    spec = importlib.util.spec_from_file_location("gain", RESULTS / "gain.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def rows_of(name, keys=("problem", "method")):
    return {tuple(row[key] for key in keys): row for row in read_csv(RESULTS / name).to_pylist()}


def test_the_gains_asked_about_are_those_of_the_tables():
    scores = ("rewrite", "paraphrase", "neighborhood", "overall")
    for table, score in zip(range(2, 7), ("rewrite", *scores), strict=True):
        found = read_csv(RESULTS / ("gain.csv" if table == 2 else "gain-scores.csv")).to_pylist()
        ours = {(row["problem"], row["method"]): row["gain"] for row in found if row.get("score", score) == score}
        theirs = {
            (row["problem"], row["method"]): row["diff"]
            for row in read_csv(RESULTS / f"tables/table-{table}.csv").to_pylist()
            if row.get("score", score) == score
        }
        assert theirs == {cell: pytest.approx(gain, rel=1e-5) for cell, gain in ours.items()}


def test_the_page_says_what_the_gains_are():
    """The page's numbers, each as it is rounded there."""
    page = (RESULTS / "README.md").read_text()
    [about] = re.findall(r"^## Concentrated facts\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    one = rows_of("gain.csv")["fact-amplification", "ft-5"]
    assert one["gain"] == max(row["gain"] for row in rows_of("gain.csv").values())
    assert (one["gain_floored"], one["below_0"]) == (one["gain"], 0)
    assert f"| {one['gain']:.3f}, the same" in about
    assert f"| {one['gain_without_1']:.3f}, {one['gain_without_3']:.3f} |" in about
    assert f"| {one['gain_beyond_p']:.3f} (permuted effects: p = {one['p_permuted_beyond_p']:.3f}) |" in about
    assert f"| {one['permuted_95']:.3f} at the 95 % quantile; p = {one['p_permuted']:.3f}, of 20 cells |" in about
    assert f"{one['p_permuted']:.3f}, or {20 * one['p_permuted']:.3f} for 20 cells" in about
    half, same, twice = (rows_of("gain-epsilon.csv", ["epsilon"])[epsilon,] for epsilon in (2.5e-4, 5e-4, 1e-3))
    assert same["gain"] == one["gain"]
    means = f"{half['rewrite_mean']:.3f} and {twice['rewrite_mean']:.3f} instead of {same['rewrite_mean']:.3f}"
    assert f"(mean rewrite {means}) | {half['gain']:.3f}, {twice['gain']:.3f} |" in about
    beyond = rows_of("gain-scores.csv", ["score", "problem", "method"])
    rewrite = [row["gain_beyond_p"] for (score, *_), row in beyond.items() if score == "rewrite"]
    ft = beyond["rewrite", "fact-forcing", "ft-1"]["gain_beyond_p"]
    assert f"adds {ft:.3f} in that cell and at most {max(rewrite):.3f} in all" in page.replace("\n", " ")
    [(cell, left)] = [(k, row) for k, row in beyond.items() if row["p_permuted_beyond_p"] < 0.05 / 20]
    assert cell == ("neighborhood", "fact-forcing", "rome")
    assert f"(p = {left['p_permuted_beyond_p']:.4f})" in page
    assert f"It is\n{left['gain_beyond_p']:.3f}, of" in page
    assert f"{left['gain_beyond_p_without_3']:.3f} without three facts" in page


def test_the_page_counts_the_verdicts():
    verdicts = Counter(row["verdict"] for row in read_csv(RESULTS / "tables/claims.csv").to_pylist())
    said = "{confirmed} are confirmed, {refuted} refuted and {not decided} not\ndecided"
    assert said.format_map(verdicts) in (RESULTS / "README.md").read_text()


@pytest.mark.slow
@pytest.mark.parametrize(("rows", "name"), [("concentrated", "gain.csv"), ("of_scores", "gain-scores.csv")])
def test_the_gains_are_remade_from_the_store(rows, name, store, tmp_path):
    script = gain_script()
    script.write(tmp_path / name, getattr(script, rows)(store))
    here, there = (read_csv(folder / name).to_pylist() for folder in (tmp_path, RESULTS))
    for one, other in zip(here, there, strict=True):
        assert one == {k: pytest.approx(v, rel=2e-5) if isinstance(v, float) else v for k, v in other.items()}


@pytest.mark.parametrize("seed", range(3))
def test_a_gain_beyond_other_numbers_is_that_of_statsmodels(seed):
    random, (facts, layers) = np.random.default_rng(seed), (12, 3)
    names = [f"f{i}" for i in range(facts)]
    fact, layer = (a.ravel() for a in np.meshgrid(np.arange(facts), np.arange(layers), indexing="ij"))
    known = {name: list(random.normal(size=2)) for name in names}
    z = np.array([known[names[i]] for i in fact])
    x = random.normal(size=len(fact)) + z[:, 0]
    y = x * layer + z[:, 1] + random.normal(size=len(fact))
    frame = pd.DataFrame({"x": x, "y": y, "z1": z[:, 0], "z2": z[:, 1], "layer": layer})
    script = gain_script()
    one = script.grid({"fact_id": np.array(names)[fact], "layer": layer, "x": x, "y": y})
    for plain, ours in (("C(layer)", one), ("C(layer) * (z1 + z2)", one.beyond(known))):
        theirs = ols(f"y ~ {plain} + C(layer):x", frame).fit().rsquared - ols(f"y ~ {plain}", frame).fit().rsquared
        assert script.gain(ours) == pytest.approx(theirs, rel=1e-9)
        # Permuted effects are permuted rows of x.
        order = random.permutation(facts)
        moved = ours._replace(x=one.x[order])
        if plain == "C(layer)":
            assert script.gain(ours, order[None])[0] == pytest.approx(script.gain(moved), rel=1e-9)
