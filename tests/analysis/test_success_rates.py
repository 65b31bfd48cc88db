"""Success rates are computed separately for each run and window."""

from made_results import made_edit

from fasttrace.analysis.relation import relation
from fasttrace.store import Store


def test_runs_and_windows_are_not_pooled(tmp_path):
    store = Store(tmp_path / "s.duckdb")
    for run_id, window_size, facts in (("one", 5, ["a"]), ("two", 5, ["a", "b"]), ("three", 10, ["a"])):
        store.add(made_edit(facts, run_id=run_id, window_size=window_size, layers=(0,)))
    rates = relation(store, "success_rates").to_pylist()
    found = [
        (row["window_size"], row["edit_run_id"], row["prompts"], row["after"])
        for row in rates
        if row["kind"] == "paraphrase"
    ]
    assert found == [(5, "one", 2, 1.0), (5, "two", 4, 1.0), (10, "three", 2, 1.0)]
