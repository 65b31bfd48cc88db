"""Stores of schema versions 5 to 10 are read as they are, and the first write upgrades them in place and keeps every
row."""

import multiprocessing
import signal
from dataclasses import replace
from datetime import datetime
from importlib.resources import files
from pathlib import Path
from types import SimpleNamespace

import duckdb
import other_process
import pyarrow as pa
import pytest
from made_results import made_edit, made_known, made_run, made_trace
from plausible import mass_result, study_facts
from stored_rows import every_row

from fasttrace.analysis.relation import relation
from fasttrace.errors import StoreError
from fasttrace.facts import Fact, Probe
from fasttrace.store import SCHEMA_VERSION, Store, Stores
from fasttrace.store.migrate import OLDEST_VERSION, added, lacking
from fasttrace.store.texts import RELATIONS

VERSION_5 = Path(__file__).with_name("version_5.sql").read_text(encoding="utf-8")
IDS = [f"f{i}" for i in range(3)]
MOMENTS = pa.table(
    {"model_hash": ["m0"], "corpus_hash": ["c"], "n_tokens": [9], "layers": [[0, 4]], "path": ["/x"], "corpus": ["t"]}
)
LEFT_OUT = """
    INSERT INTO mass_edits BY NAME
    SELECT 'mass-1' AS run_id, 'paper' AS protocol, 12 AS n_edits, 'lost' AS fact_id, 'error-injection' AS problem,
        'memit' AS method, 6 AS layer, 5 AS window_size, 'its subject is missing' AS reason
"""
NEW = Fact("{} is in", "Somewhere", "Rome", "Oslo", fact_id="new")
processes = multiprocessing.get_context("forkserver")


@pytest.fixture(scope="module")
def current(tmp_path_factory):
    """A store of the current version with rows in every relation except benches, and nothing that version 5 lacks."""
    store = Store(tmp_path_factory.mktemp("current") / "current.duckdb")
    store.add_facts(study_facts(count=12))
    store.add(made_trace(IDS, windows=(3, 5), left_out=("f2",)))
    store.add(made_edit(IDS))
    store.add(made_known(IDS))
    store.add(mass_result(study_facts(count=12)))
    store.add(SimpleNamespace(run=made_run("m0", "moments", protocol=None), moments=MOMENTS))
    with store.writing() as con:
        con.execute(LEFT_OUT).fetchall()
        con.execute("UPDATE store_schema SET created_at = $made", {"made": datetime(2025, 5, 5)}).fetchall()
        for name in lacking(5):
            con.execute(f"DELETE FROM {name}").fetchall()
        for name in RELATIONS:
            if new := added(name, 5):
                con.execute(f"UPDATE {name} SET {', '.join(f'{column} = NULL' for column in new)}").fetchall()
    return store


@pytest.fixture
def old(current, tmp_path):
    """The same rows in a store of version 5."""
    store = Store(tmp_path / "old.duckdb", timeout_s=5)
    with duckdb.connect(str(store.path)) as con:
        con.execute(VERSION_5).fetchall()
        con.execute(f"ATTACH '{current.path}' AS current (READ_ONLY)").fetchall()
        for name in [one for one in RELATIONS if one not in lacking(5)]:
            change = {
                "mass_edits": "RENAME (n_edits AS landed)",
                "store_schema": "REPLACE (5 AS version)",
            }.get(name, f"EXCLUDE ({', '.join(added(name, 5))})" if added(name, 5) else "")
            con.execute(f"INSERT INTO {name} BY NAME FROM (SELECT * {change} FROM current.{name})").fetchall()
    return store


def in_the_file(path):
    """(schema version, third column of mass_edits, its number of rows), read without Store."""
    with duckdb.connect(str(path), read_only=True) as con:
        [(version,)] = con.execute("SELECT version FROM store_schema").fetchall()
        table = con.table("mass_edits")
        return version, table.columns[2], len(table)


def add_facts(store):
    assert store.add_facts([NEW]) == 1


def add_result(store):
    assert store.add(made_trace(["f9"], run_id="new")) == 1


def write_sql(store):
    with store.writing() as con:
        con.execute("UPDATE mass_edits SET reason = NULL WHERE n_edits = 99").fetchall()


@pytest.mark.parametrize("write", [Store.create, add_facts, add_result, write_sql])
def test_the_first_write_upgrades_and_keeps_every_row(old, current, write):
    assert in_the_file(old.path) == (5, "landed", 25)
    write(old)
    assert in_the_file(old.path) == (SCHEMA_VERSION, "n_edits", 25)
    found, wanted = every_row(old), every_row(current)
    assert sum(map(len, wanted.values())) > 150
    for name in RELATIONS:
        kept = [row for row in found[name] if "new" not in (row.get("fact_id"), row.get("run_id"))]
        assert kept == wanted[name], name
    assert list(old.path.parent.iterdir()) == [old.path]


def test_an_older_store_is_merged_as_it_is_read(old, current, tmp_path):
    merged, before = Store(tmp_path / "merged.duckdb"), old.path.read_bytes()
    merged.merge(old, current)
    found, wanted = every_row(merged), every_row(current)
    for name in set(RELATIONS) - {"store_schema"}:
        assert found[name] == wanted[name], name
    assert old.path.read_bytes() == before


# The oldest version, above, takes the steps of all. In `make test` is the newest of these besides.
@pytest.mark.parametrize(
    "version",
    [pytest.param(one, marks=pytest.mark.slow) for one in range(OLDEST_VERSION + 1, SCHEMA_VERSION - 1)]
    + [SCHEMA_VERSION - 1],
)
def test_a_store_of_each_later_version_is_read_and_upgraded(old, current, version):
    with duckdb.connect(str(old.path)) as con:
        for later in range(OLDEST_VERSION + 1, version + 1):
            con.execute((files("fasttrace.store") / "migrations" / f"{later}.sql").read_text()).fetchall()
    assert in_the_file(old.path)[0] == version
    assert every_row(old) == every_row(current)
    assert in_the_file(old.path)[0] == version
    add_facts(old)
    add_result(old)
    assert in_the_file(old.path) == (SCHEMA_VERSION, "n_edits", 25)
    found = {name: [row for row in of if "new" not in row.values()] for name, of in every_row(old).items()}
    assert found == every_row(current)


def test_an_upgraded_store_is_like_a_new_one(old, tmp_path):
    old.create()
    new = Store(tmp_path / "new.duckdb")
    new.create()
    for sql in (
        "SELECT table_name, sql FROM duckdb_tables() WHERE NOT temporary ORDER BY ALL",
        "SELECT table_name, constraint_text FROM duckdb_constraints() ORDER BY ALL",
    ):
        assert old.query(sql) == new.query(sql)
    assert old.add(mass_result(study_facts(count=12))) == 0, "it has these rows already"
    assert old.add(mass_result(study_facts(count=14), counts=(14,))) == 14
    with pytest.raises(duckdb.ConstraintException, match="Duplicate key"), old.writing() as con:
        con.execute("INSERT INTO mass_edits FROM mass_edits").fetchall()


def test_reading_leaves_an_old_store_as_it_is(old, current):
    before = old.path.read_bytes()
    assert every_row(old) == every_row(current)
    assert old.done("t0") == current.done("t0") == set(IDS)
    assert relation(old, "mass_means").equals(relation(current, "mass_means"))
    assert relation(old, "run_counts").equals(relation(current, "run_counts"))
    assert relation(old, "facts_of_run", {"run_id": "mass-1"}).num_rows == 12
    with pytest.raises(StoreError, match="the query failed"):
        old.query("DELETE FROM mass_edits")
    old.check()
    assert old.path.read_bytes() == before


def test_an_old_store_is_exported_under_the_new_names(old, current, tmp_path):
    old.to_parquet(tmp_path / "parquet")
    new = Store(tmp_path / "new.duckdb")
    new.add_parquet(tmp_path / "parquet")
    found, wanted = every_row(new), every_row(current)
    assert {**found, "store_schema": None} == {**wanted, "store_schema": None}
    assert in_the_file(old.path)[0] == 5


def test_an_old_export_is_read(old, current, tmp_path):
    (tmp_path / "parquet").mkdir()
    with duckdb.connect(str(old.path)) as con:
        for name in [one for one in RELATIONS if one not in lacking(5)]:
            con.table(name).write_parquet(str(tmp_path / "parquet" / f"{name}.parquet"))
    new = Store(tmp_path / "new.duckdb")
    new.add_parquet(tmp_path / "parquet")
    assert {**every_row(new), "store_schema": None} == {**every_row(current), "store_schema": None}
    assert every_row(Store(tmp_path / "parquet")) == every_row(current)


def test_a_fact_of_an_old_store_gets_its_probes_when_it_is_added_again(old):
    [known] = [fact for fact in study_facts(count=12) if fact.fact_id == study_facts(count=1)[0].fact_id]
    asked = replace(known, probes=(Probe("alias", "The tower is in", ("Paris",)),), meta={"split": "test"})
    assert old.add_facts([asked]) == 0
    [run_id] = {row["run_id"] for row in old.query("SELECT run_id FROM edits").to_pylist()}
    assert old.edits_without_probes(run_id) == 0
    old.add_facts([replace(asked, fact_id="f0")])
    assert old.edits_without_probes(run_id) == len(old.query("FROM edits WHERE fact_id = 'f0'")) > 0
    select = f"SELECT probes, meta->>'$.split' AS split FROM facts WHERE fact_id = '{known.fact_id}'"
    [row] = old.query(select).to_pylist()
    probe = {"kind": "alias", "prompt": "The tower is in", "answers": ["Paris"], "expect": "changed", "after": "edit"}
    assert row == {"probes": [probe], "split": "test"}
    with pytest.raises(StoreError, match="with other probes, or in another case"):
        old.add_facts([known])


def by_edits(row):
    return row["edit_run_id"], row["n_edits"]


def test_old_and_new_stores_are_read_together(old, current, tmp_path):
    other = Store(tmp_path / "other.duckdb")
    other.add(mass_result(study_facts(count=3), counts=(3,), run_id="mass-2"))
    for stores in (Stores([old.path, other.path]), Stores([other.path, old.path])):
        counted = stores.query("SELECT store, count(n_edits) AS n FROM mass_edits GROUP BY store ORDER BY n")
        assert counted.to_pylist() == [{"store": "other", "n": 3}, {"store": "old", "n": 25}]
        means = relation(stores, "mass_means").to_pylist()
        wanted = relation(current, "mass_means").to_pylist() + relation(other, "mass_means").to_pylist()
        assert sorted(means, key=by_edits) == sorted(wanted, key=by_edits)
    twice = Stores([old.path, current.path]).once()
    assert len(twice.query("FROM mass_edits")) == 25
    assert in_the_file(old.path)[0] == 5


def killed(target, path):
    process = processes.Process(target=target, args=(path,))
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL


def test_a_killed_upgrade_leaves_the_old_store_whole(old, current):
    killed(other_process.killed_in_an_upgrade, old.path)
    assert in_the_file(old.path) == (5, "landed", 25)
    assert every_row(old) == every_row(current)
    add_facts(old)
    assert in_the_file(old.path) == (SCHEMA_VERSION, "n_edits", 25)


def test_a_killed_first_write_leaves_the_upgraded_store_whole(old, current):
    killed(other_process.killed_after_an_upgrade, old.path)
    assert every_row(old) == every_row(current)
    add_facts(old)
    assert in_the_file(old.path) == (SCHEMA_VERSION, "n_edits", 25)


def test_an_upgrade_that_fails_leaves_the_old_store_whole(old, current):
    with duckdb.connect(str(old.path)) as con:
        con.execute("CREATE TABLE mass_edits_of_version_6 (a INTEGER)").fetchall()
    with pytest.raises(
        StoreError, match=rf"old\.duckdb cannot be upgraded from schema version 5 to {SCHEMA_VERSION}"
    ) as caught:
        add_facts(old)
    assert "\n" not in str(caught.value)
    assert in_the_file(old.path) == (5, "landed", 25)
    assert every_row(old) == every_row(current)


def test_two_first_writes_at_once(old, current):
    start = processes.Barrier(2)
    ids = [[f"{name}{i}" for i in range(4)] for name in "ab"]
    writers = [processes.Process(target=other_process.write_at, args=(old.path, own, start)) for own in ids]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join(60)
        assert writer.exitcode == 0
    assert in_the_file(old.path) == (SCHEMA_VERSION, "n_edits", 25)
    found = every_row(old)
    assert found["mass_edits"] == every_row(current)["mass_edits"]
    assert {row["fact_id"] for row in found["traces"]} == {*IDS, *ids[0], *ids[1]}


def test_an_altered_old_store_is_refused(old):
    with duckdb.connect(str(old.path)) as con:
        con.execute("ALTER TABLE mass_edits DROP COLUMN ppl_after").fetchall()
    for method in (lambda: add_facts(old), lambda: old.query("SELECT 1")):
        with pytest.raises(StoreError, match="relation mass_edits"):
            method()
    assert in_the_file(old.path)[0] == 5


def test_every_version_since_the_oldest_has_its_migration():
    numbers = sorted(
        int(file.name.removesuffix(".sql")) for file in (files("fasttrace.store") / "migrations").iterdir()
    )
    assert numbers == list(range(OLDEST_VERSION + 1, SCHEMA_VERSION + 1))
