"""fasttrace status: what a running command does, and what its store has."""

import json
import os
import shutil
import subprocess
import sys
import time

import pytest
from made_results import made_edit, made_known, made_trace

import fasttrace as ft
from fasttrace.analysis.relation import relation
from fasttrace.show.running import Doing, Status, StatusFile

TRACE = ("trace", "--model", "model", "--facts", "facts.jsonl", "--keep", "all", "--windows", "2", "--samples", "3")
TRACE += ("--memory", "3MB", "--store", "s.duckdb")  # a wave for each fact
# The second wave never begins.
WAITS = """
import sys, time
from fasttrace.cli import main
from fasttrace.show import watch
from fasttrace.tracing import engine
begin, waves = engine.start_wave, []
def waiting(*given, **named):
    waves.append(1)
    time.sleep(600 * (len(waves) == 2))
    return begin(*given, **named)
engine.start_wave = waiting
watch.BEAT_SECONDS = watch.STATUS_SECONDS = 0.1
main()
"""


def until(found, seconds=60.0):
    """The first value of found() that is true."""
    deadline = time.monotonic() + seconds
    while not (value := found()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return value


def test_a_command_that_runs_and_one_that_was_killed(workplace, tmp_path, command, monkeypatch):
    for name in ("model", "facts.jsonl"):
        (tmp_path / name).symlink_to(workplace / name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))

    def status():
        return json.loads(command("status", "--store", "s.duckdb", "--json").stdout)

    def running():
        there = (tmp_path / "s.duckdb.status.json").exists()
        return there and (said := status())["command"]["done"] and said

    process = subprocess.Popen([sys.executable, "-c", WAITS, *TRACE], stdout=subprocess.DEVNULL)
    try:
        found = until(running)
        assert (found["command"]["running"], found["command"]["pid"]) == (True, process.pid)
        assert (found["command"]["done"], found["command"]["total"], found["command"]["unit"]) == (1, 4, "facts")
        [run] = found["runs"]
        assert (run["kind"], run["module"], run["method"], run["problem"]) == ("trace", "mlp", "denoise", None)
        assert (run["finished"], run["unit"]) == (1, "facts")
        said = command("status", "--store", "s.duckdb").stdout.splitlines()
        assert said[0].startswith(f"trace is running: process {process.pid} on ")
        assert said[1].startswith("Tracing: 1 of 4 facts")
    finally:
        process.kill()
        process.wait()
    said = command("status", "--store", "s.duckdb").stdout.splitlines()
    assert said[0].startswith(f"trace has stopped: process {process.pid} on ")
    assert said[1:3] == ["Tracing: 1 of 4 facts", "the same command continues"]
    assert status()["command"]["running"] is False


# A mass edit, scored after 3 and 5 edits, and second moments.
MORE = """
INSERT INTO runs BY NAME SELECT * REPLACE ('m0' AS run_id, 'mass' AS kind) FROM runs WHERE kind = 'edit';
INSERT INTO mass_edits BY NAME
SELECT 'm0' AS run_id, protocol, unnest([3, 5]) AS n_edits, fact_id, 1 AS position, problem, method, layer, window_size
FROM edits WHERE layer = 0;
INSERT INTO runs BY NAME SELECT * REPLACE ('n0' AS run_id, 'moments' AS kind) FROM runs WHERE kind = 'edit';
INSERT INTO moments VALUES ('n0', 'm0', 'c0', 4096, [0, 2], 'folder', 'text.txt');
"""


@pytest.fixture(scope="module")
def filled(tmp_path_factory):
    """A store with runs of every kind."""
    store = ft.Store(tmp_path_factory.mktemp("filled") / "s.duckdb")
    ids = [f"f{i}" for i in range(5)]
    for result in (made_trace(ids), made_edit(ids, layers=(0, 2)), made_known(ids)):
        store.add(result)
    with store.writing() as con:
        con.execute(MORE)
    return store


def test_what_the_store_has(filled, command, monkeypatch):
    monkeypatch.chdir(filled.path.parent)
    said = json.loads(command("status", "--store", "s.duckdb", "--json").stdout)
    assert said["command"] is None
    assert {row["kind"]: (row["finished"], row["unit"]) for row in said["runs"]} == {
        "trace": (5, "facts"), "edit": (10, "edits"), "facts": (5, "facts"), "mass": (5, "facts"),
        "moments": (4096, "tokens"),
    }  # fmt: skip
    text = command("status", "--store", "s.duckdb").stdout
    assert text.startswith("no command is at work on s.duckdb\n\nRuns in s.duckdb\n")
    assert "10 edits" in text
    assert relation(filled, "run_progress").num_rows == 5


def test_a_store_that_another_process_has_open(filled, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(filled.path, "s.duckdb")
    holds = "import duckdb, time; con = duckdb.connect('s.duckdb'); print(flush=True); time.sleep(0.5); con.close()"
    process = subprocess.Popen([sys.executable, "-c", holds], stdout=subprocess.PIPE)
    process.stdout.readline()
    assert len(json.loads(command("status", "--store", "s.duckdb", "--json").stdout)["runs"]) == 5
    assert process.wait() == 0


def test_a_command_with_workers(filled, tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copy(filled.path, "s.duckdb")
    doing = [Doing(f"worker {n + 1}", "node-\x1b[0m", 7, "computes 8", 90 + n, n) for n in range(20)]
    begun = Status(verb="", begun="2025-01-01T00:00:00+00:00").updated
    status = Status(
        verb="edit", pid=os.getppid(), begun=begun, title="Editing", unit="edits", done=120, total=2000,
        seconds_left=600, retries=1, said=["worker 2 ended"], dashboard="node:8265", workers=doing,
    )  # fmt: skip
    StatusFile.of("s.duckdb").write(status)
    said = command("status", "--store", "s.duckdb").stdout.splitlines()
    assert said[1] == "Editing: 120 of 2,000 edits, 10 min left, 20 workers, 1 retry"
    assert said[2] == "20 workers on 1 machine (computes: 20)"
    assert said[3] == r"worker 20  node-\x1b[0m  computes 8, for 2 min  19 done"
    assert said[6:8] == ["worker 2 ended", "Ray's dashboard: http://node:8265"]
    assert len(said) < 20
    elsewhere = json.loads((tmp_path / "s.duckdb.status.json").read_text())
    old = {"host": "another", "updated": "2025-01-01T00:00:00+00:00"}
    (tmp_path / "s.duckdb.status.json").write_text(json.dumps(elsewhere | old))
    assert "edit has stopped: process" in command("status", "--store", "s.duckdb").stdout


def test_a_store_that_a_command_is_about_to_make(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    status = Status(verb="trace", begun="2025-01-01T00:00:00+00:00", pid=os.getppid())
    StatusFile.of("s.duckdb").write(status)
    assert command("status", "--store", "s.duckdb").stdout.startswith("trace is running: ")
    assert json.loads(command("status", "--store", "s.duckdb", "--json").stdout)["runs"] == []


def test_what_is_no_store(tmp_path, command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "text.duckdb").write_text("hello " * 3000)
    for words, sentence in {
        (): "expected --store FILE, got no store",
        ("--store", "no.duckdb"): "there is no store at no.duckdb",
        ("--store", "text.duckdb"): "is not a DuckDB file",
        ("--store", ""): "expected the name of a path, got an empty one",
        ("--store", "a", "--store", "b"): "expected one store, got 2",
    }.items():
        said = command("status", *words, code=2).stderr
        assert sentence in said
        assert len(said.splitlines()) == 1
    assert [path.name for path in tmp_path.iterdir()] == ["text.duckdb"]
