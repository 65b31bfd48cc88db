"""`fasttrace merge`: what was added from each store, and one sentence where nothing is merged."""

import json

from plausible import edit_result, study_facts, trace_result

from fasttrace.store import Store

FACTS = study_facts(count=2)


def filled(path, facts):
    store = Store(path)
    store.add_facts(facts)
    store.add(trace_result(facts))
    store.add(edit_result(facts))
    return store


def test_what_was_added_is_printed(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filled("a.duckdb", FACTS[:1])
    filled("b.duckdb", FACTS[1:]).to_parquet("b")
    done = command("merge", "a.duckdb", "b", "--into", "c.duckdb", "--json")
    others = dict.fromkeys(("known", "mass_edits", "moments", "benches", "judgements"), 0)
    each = {"facts": 1, "traces": 1, "edits": 8} | others
    assert json.loads(done.stdout) == [{"store": name} | each for name in ("a.duckdb", "b")]
    assert Store("c.duckdb").query("SELECT count(*) AS n FROM edits").to_pylist() == [{"n": 16}]
    header, *lines = command("merge", "b", "--into", "c.duckdb").stdout.splitlines()
    assert header.split()[:2] == ["store", "facts"]
    assert lines[-1].split() == ["b", *["0"] * 8]


def test_bad_input_is_one_sentence(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    filled("a.duckdb", FACTS[:1])
    filled("b.duckdb", FACTS[1:])
    for words, said in {
        ("--into", "a.duckdb"): "expected one store or more, got none",
        ("a.duckdb",): "expected --into FILE, got no store to merge into",
        ("b.duckdb", "a.duckdb", "--into", "a.duckdb"): "which they are merged into",
        ("a.duckdb", "gone.duckdb", "--into", "d.duckdb"): "there is no store at gone.duckdb",
    }.items():
        done = command("merge", *words, code=2)
        assert said in done.stderr
        assert done.stderr.count("\n") == 1
    assert not (tmp_path / "d.duckdb").exists()
