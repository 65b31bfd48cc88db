"""The committed store of the study is sound, and every run of it has the settings that its page states."""

import json
from pathlib import Path

import pytest

from fasttrace import Store
from fasttrace.analysis.checks import failures

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
        assert (trace["module"], trace["samples"], trace["windows"]) == ("mlp", 10, [10, 5, 3, 1])
        assert trace["tokens"] == {"denoise": "all", "zero": "whole-subject"}[trace["method"]]
    for edit in settings["edit"]:
        solved = edit["method"] in ("rome", "memit")
        assert (edit["essence"], edit.get("contexts")) == (1, 2 if solved else None)
        assert edit.get("corpus_tokens") == (100_000 if solved else None)
    cells = [(edit["problem"], edit["method"]) for edit in settings["edit"]]
    assert len(cells) == len(set(cells)) > 0
    layers = store.query("SELECT DISTINCT layer FROM edits ORDER BY layer").column(0).to_pylist()
    assert layers == [0, 6, 12, 17, 23, 29]
