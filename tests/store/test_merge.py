"""Stores of several machines merged into one: as if one process had written it, or refused and left as it was."""

import dataclasses
import json
import multiprocessing
import shutil
import signal

import duckdb
import other_process
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from made_results import made_edit, made_known
from plausible import edit_result, mass_result, study_facts, trace_result

from fasttrace.errors import StoreError
from fasttrace.facts.record import Fact
from fasttrace.store import Store
from fasttrace.store.texts import RELATIONS

FACTS = study_facts(count=4)
IDS = [fact.fact_id for fact in FACTS]
processes = multiprocessing.get_context("forkserver")


def rows(store, *, timed=True):
    """{relation: rows}. timed: with the columns that say when, and for how long, a run was computed."""
    found = {}
    with store.reading() as con:
        for relation in RELATIONS[1:]:
            columns = "*" if timed or relation != "runs" else "* EXCLUDE (created_at, seconds, flops)"
            found[relation] = con.sql(f"SELECT {columns} FROM {relation} ORDER BY ALL").to_arrow_table().to_pylist()
    return found


def shard(path, facts, results):
    """A store of the facts, with what every result has of them."""
    store, ids = Store(path, timeout_s=5), [fact.fact_id for fact in facts]
    store.add_facts(facts)
    for result in results:
        changes = {}
        for name, table in vars(result).items():
            if isinstance(table, pa.Table) and "fact_id" in table.column_names:
                changes[name] = table.filter(pc.field("fact_id").isin(ids))
        store.add(dataclasses.replace(result, **changes))
    return store


def results():
    """One result of every kind that has facts."""
    known = made_known(IDS)
    return [trace_result(FACTS, windows=(5,)), edit_result(FACTS), mass_result(FACTS, (2, 4)), known]


@pytest.fixture(scope="module")
def made():
    return results()


@pytest.fixture(scope="module")
def parts(tmp_path_factory, made):
    """(the stores of two machines, the store of one that did the work of both)."""
    folder = tmp_path_factory.mktemp("parts")
    two = [shard(folder / f"{name}.duckdb", FACTS[start::2], made) for start, name in enumerate("ab")]
    return two, shard(folder / "all.duckdb", FACTS, made)


def refused(store, sentence, *others):
    """Assert that a merge fails with one sentence and leaves the store as it was. Returns the sentence."""
    before = store.path.exists() and rows(store)
    with pytest.raises(StoreError, match=sentence) as caught:
        store.merge(*others)
    assert "\n" not in str(caught.value)
    assert (store.path.exists() and rows(store)) == before
    return str(caught.value)


def test_two_shards_are_the_store_of_one_process(tmp_path, parts):
    (a, b), every = parts
    merged = Store(tmp_path / "c.duckdb")
    added = merged.merge(a, b.path)
    assert rows(merged, timed=False) == rows(every, timed=False)
    assert [row["store"] for row in added] == [str(a.path), str(b.path)]
    assert [row["facts"] for row in added] == [2, 2]
    for relation in ("traces", "edits", "known", "mass_edits"):
        assert sum(row[relation] for row in added) == len(rows(every)[relation]), relation
    assert list(tmp_path.iterdir()) == [merged.path]
    [run] = merged.query("SELECT seconds, flops FROM runs WHERE kind = 'trace'").to_pylist()
    assert run == {"seconds": 3.0, "flops": 4e9}


@pytest.mark.parametrize("again", [["b", "a"], ["ca", "cb"], ["folder"]])
def test_merging_again_changes_nothing(tmp_path, parts, again):
    (a, b), _ = parts
    merged = Store(tmp_path / "c.duckdb")
    merged.merge(a, b)
    before = rows(merged)
    (other := Store(tmp_path / "other.duckdb")).merge(b, a)
    (part := Store(tmp_path / "part.duckdb")).merge(a)
    other.to_parquet(tmp_path / "folder")
    stores = {"a": a, "b": b, "ca": part, "cb": other.path, "folder": tmp_path / "folder"}
    added = merged.merge(*(stores[name] for name in again))
    assert rows(merged) == before
    assert all(count == 0 for row in added for name, count in row.items() if name != "store")


def test_a_merged_store_that_has_more_brings_only_its_share_of_the_time(tmp_path, parts):
    (a, b), _ = parts
    Store(tmp_path / "both.duckdb").merge(a, b)
    growing = Store(tmp_path / "growing.duckdb")
    growing.merge(a)
    growing.merge(tmp_path / "both.duckdb")
    seconds = {row["kind"]: row["seconds"] for row in growing.query("FROM runs").to_pylist()}
    assert seconds["trace"] == pytest.approx(3.0)
    assert rows(growing, timed=False) == rows(Store(tmp_path / "both.duckdb"), timed=False)


@pytest.mark.slow
@settings(max_examples=4, deadline=None, suppress_health_check=list(HealthCheck))
@given(data=st.data())
def test_any_cuts_in_any_order_give_the_same_rows(tmp_path_factory, made, parts, data):
    folder = tmp_path_factory.mktemp("cuts")
    owners = data.draw(st.lists(st.sets(st.integers(0, 2), min_size=1), min_size=len(FACTS), max_size=len(FACTS)))
    used = sorted(set().union(*owners))
    stores = [
        shard(folder / f"{one}.duckdb", [fact for fact, who in zip(FACTS, owners, strict=True) if one in who], made)
        for one in used
    ]
    merged = Store(folder / "merged.duckdb")
    for one in data.draw(st.permutations(stores)):
        merged.merge(one)
    assert rows(merged, timed=False) == rows(parts[1], timed=False)


CONFLICTS = {
    "traces": ("UPDATE traces SET p_clean = 0.25 WHERE fact_id = 'place-02'", "p_clean"),
    "trace_cells": ("UPDATE trace_cells SET effect = NULL WHERE fact_id = 'place-02' AND layer = 3", "effect"),
    "edits": ("UPDATE edits SET rewrite = 'nan' WHERE fact_id = 'place-02'", "rewrite"),
    "edit_prompts": ("UPDATE edit_prompts SET answer = 'x' WHERE fact_id = 'place-02'", "answer"),
    "mass_edits": ("UPDATE mass_edits SET overall = 0 WHERE fact_id = 'place-02'", "overall"),
    "mass_tasks": ("UPDATE mass_tasks SET value = 0.75", "value"),
    "known": ("UPDATE known SET continuation = 'two\nlines' WHERE fact_id = 'place-02'", "continuation"),
    "facts": ("UPDATE facts SET relation = 'x' WHERE fact_id = 'place-02'", "relation"),
    "runs": ("UPDATE runs SET settings = '{}' WHERE kind = 'trace'", "settings"),
}


def changed(store, path, change):
    """A copy of a store with one change."""
    shutil.copy(store.path, path)
    with duckdb.connect(str(path)) as con:
        con.execute(change).fetchall()
    return Store(path)


@pytest.mark.parametrize("relation", CONFLICTS)
def test_conflicting_values_are_refused(tmp_path, parts, relation):
    (a, _), every = parts
    change, column = CONFLICTS[relation]
    other = changed(a, tmp_path / "other.duckdb", change)
    said = (
        rf"the stores {every.path} and {other.path} differ in {relation} \((run_id|fact_id) .*\): {column} is .* in the"
    )
    refused(every, said, other)


def test_of_several_stores_the_two_that_differ_are_named(tmp_path, parts):
    (a, b), _ = parts
    other, new = changed(a, tmp_path / "other.duckdb", CONFLICTS["edits"][0]), Store(tmp_path / "new.duckdb")
    refused(new, f"the stores {a.path} and {other.path} differ in edits .*: rewrite is .* and 'nan' in", b, a, other)
    assert not new.path.exists()


def test_what_may_differ_between_machines(tmp_path, parts):
    (a, _), _ = parts
    other = Store(tmp_path / "other.duckdb")
    other.merge(a)
    with other.writing() as con:
        con.execute("UPDATE runs SET device = 'cuda', torch_version = '9', model = '/here', seconds = 9").fetchall()
        con.execute("UPDATE runs SET created_at = now(), flops = 1").fetchall()
        con.execute("UPDATE mass_measures SET edit_seconds = 77").fetchall()
    merged = Store(tmp_path / "c.duckdb")
    merged.merge(a)
    before = rows(merged)
    merged.merge(other)
    assert rows(merged) == before


@pytest.mark.parametrize("order", [("none", "error", "verdict"), ("verdict", "error", "none")])
def test_a_verdict_goes_before_an_error_before_nothing(tmp_path, order):
    judged = {"none": (None, None), "error": (None, "no answer"), "verdict": (True, None)}
    stores = []
    for name in order:
        stores.append(store := Store(tmp_path / f"{name}.duckdb"))
        store.add(made_edit(["f0"], layers=(0,)))
        with store.writing() as con:
            con.execute("UPDATE edit_prompts SET judged_after = ?, judge_error = ?", judged[name]).fetchall()
    merged = Store(tmp_path / "c.duckdb")
    merged.merge(*stores)
    found = merged.query("SELECT DISTINCT judged_after, judge_error FROM edit_prompts").to_pylist()
    assert found == [{"judged_after": True, "judge_error": None}]
    with Store(tmp_path / "verdict.duckdb").writing() as con:
        con.execute("UPDATE edit_prompts SET judged_after = false").fetchall()
    refused(
        merged,
        "differ in edit_prompts .*: judged_after is 'true' in the first and 'false' in the second",
        tmp_path / "verdict.duckdb",
    )


def test_facts_complete_each_other(tmp_path):
    fact = Fact("{} is in", "s", "Rome", "Oslo", fact_id="f0")
    metas = [{"x": 1, "y": [1, 2]}, {"y": [1, 2], "z": None}, {"x": 2}]
    stores = [Store(tmp_path / f"{place}.duckdb") for place in range(3)]
    for store, meta in zip(stores, metas, strict=True):
        store.add_facts([dataclasses.replace(fact, meta=meta)])
    with stores[1].writing() as con:
        con.execute("UPDATE facts SET probes = NULL, case_edits = NULL").fetchall()
    merged = Store(tmp_path / "c.duckdb")
    merged.merge(stores[1], stores[0])
    [row] = merged.query("FROM facts").to_pylist()
    assert json.loads(row["meta"])["x"] == 1
    assert row["probes"] == []
    before = rows(merged)
    merged.merge(stores[1])
    merged.merge(stores[0])
    assert rows(merged) == before
    refused(merged, r"differ in facts \(fact_id f0\): meta is ", stores[2])


def test_bad_input_is_one_sentence(tmp_path, parts):
    (a, _), _ = parts
    new = Store(tmp_path / "new.duckdb")
    refused(new, "expected one store or more, got none")
    refused(new, "there is no store at .*gone", tmp_path / "gone.duckdb")
    refused(new, "is given twice", a, a.path)
    refused(new, "expected stores other than .*new.duckdb, which they are merged into", a, new)
    (tmp_path / "text.duckdb").write_text("hello")
    refused(new, "is not a DuckDB file", a, tmp_path / "text.duckdb")
    (tmp_path / "empty").mkdir()
    refused(new, "is not a store in Parquet", a, tmp_path / "empty")
    with duckdb.connect(str(tmp_path / "plain.duckdb")) as con:
        con.execute("CREATE TABLE t (x INTEGER)")
    refused(new, "is a DuckDB file but not a fasttrace store", tmp_path / "plain.duckdb", a)
    refused(Store(tmp_path / "no" / "c.duckdb"), "the folder .* does not exist", a)
    assert not new.path.exists()


@pytest.mark.parametrize("there", [False, True])
def test_a_killed_merge_leaves_the_store_as_it_was(tmp_path, parts, there):
    (a, b), _ = parts
    merged = Store(tmp_path / "c.duckdb")
    if there:
        merged.merge(a)
    before = there and rows(merged)
    process = processes.Process(target=other_process.killed_in_a_merge, args=(merged.path, [a.path, b.path]))
    process.start()
    process.join()
    assert process.exitcode == -signal.SIGKILL
    assert (merged.path.exists() and rows(merged)) == before
    merged.merge(a, b)
    assert list(tmp_path.iterdir()) == [merged.path]
