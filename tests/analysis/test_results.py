"""The committed store of the study is sound, and every run of it has the settings that its page states."""

import json
import re
from pathlib import Path

import pytest
from pyarrow.csv import read_csv

from fasttrace import Store
from fasttrace.analysis.checks import failures
from fasttrace.editing.tune import MOST_REWRITE, choose

RESULTS = Path(__file__).parents[2] / "analysis/results/smollm2-135m"


@pytest.fixture(scope="module")
def store():
    return Store(RESULTS / "store")


def test_the_store_passes_every_check(store, tmp_path):
    assert failures(store).to_pylist() == []
    taken = Store(tmp_path / "study.duckdb")
    taken.add_parquet(RESULTS / "store")
    for relation in ("edits", "trace_cells", "runs"):
        rows = f"SELECT * FROM {relation} ORDER BY ALL"
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
