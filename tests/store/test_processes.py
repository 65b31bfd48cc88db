"""The store with several processes: killed, waiting, and without permissions."""

import multiprocessing
import os
import random
import shutil
import signal
import stat
import tempfile
import threading
import time
from pathlib import Path

import duckdb
import other_process
import pytest

from fasttrace.errors import StoreError
from fasttrace.store import Store

CELLS = other_process.LAYERS * other_process.TOKENS
processes = multiprocessing.get_context("forkserver")
processes.set_forkserver_preload(["fasttrace.store"])  # imported once, not in every process


def whole_facts(store):
    """{fact_id: number of cells} in one state of the store."""
    sql = """
        SELECT traces.fact_id, count(trace_cells.layer) AS cells
        FROM traces LEFT JOIN trace_cells USING (run_id, fact_id) GROUP BY traces.fact_id
    """
    return {row["fact_id"]: row["cells"] for row in store.query(sql).to_pylist()}


def test_a_killed_writer_loses_at_most_the_batch_in_flight(tmp_path):
    path, ids = tmp_path / "study.duckdb", [f"f{i}" for i in range(24)]
    chance, kept, kills = random.Random(5), set(), 0
    while True:
        ours, theirs = processes.Pipe(duplex=False)
        writer = processes.Process(target=other_process.write_batches, args=(path, ids, theirs))
        writer.start()
        theirs.close()
        heard, finished = 0, False
        stop_after = chance.randint(0, 2) if kills < 10 else len(ids)
        while not finished and heard < stop_after and ours.poll(60):
            fact_id = ours.recv()
            finished = fact_id is None
            if not finished:
                assert fact_id not in kept, "a finished fact was computed again"
                kept.add(fact_id)
                heard += 1
        if finished:
            writer.join()
            break
        time.sleep(chance.uniform(0, 0.12))
        os.kill(writer.pid, signal.SIGKILL)
        writer.join()
        kills += 1
        while ours.poll():  # commits acknowledged before it died
            try:
                kept.add(ours.recv())
            except EOFError:
                break
        kept.discard(None)
        if path.exists():
            found = whole_facts(Store(path))
            assert set(found.values()) <= {CELLS}, "half a fact was kept"
            assert kept <= set(found), "an acknowledged fact was lost"
            assert len(found) <= len(kept) + 1, "more than the batch in flight is unaccounted for"
            kept = set(found)
    assert kills >= 8
    assert whole_facts(Store(path)) == dict.fromkeys(ids, CELLS)
    assert Store(path).query("SELECT count(*) AS n, sum(seconds) AS s FROM runs").to_pylist() == [{"n": 1, "s": 24.0}]


def test_readers_see_whole_batches_while_a_writer_commits(tmp_path):
    store, ids = Store(tmp_path / "study.duckdb"), [f"f{i}" for i in range(14)]
    store.create()
    half_seen, seen = processes.Event(), []
    writer = processes.Process(target=other_process.write_in_halves, args=(store.path, ids, half_seen))
    writer.start()
    while writer.is_alive():
        found = whole_facts(store)
        assert set(found.values()) <= {CELLS}
        seen.append(len(found))
        if found:
            half_seen.set()
    writer.join()
    assert writer.exitcode == 0
    assert seen == sorted(seen)
    assert any(0 < count < len(ids) for count in seen), "the reader never looked in between"
    assert len(whole_facts(store)) == 14


def test_two_writers_of_the_same_facts(tmp_path):
    path, ids = tmp_path / "study.duckdb", [f"f{i}" for i in range(15)]
    writers = [processes.Process(target=other_process.write_all, args=(path, order)) for order in (ids, ids[::-1])]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert whole_facts(Store(path)) == dict.fromkeys(ids, CELLS)
    assert list(tmp_path.iterdir()) == [path]


def test_threads_of_one_process_take_turns(tmp_path):
    store, errors = Store(tmp_path / "study.duckdb"), []
    store.create()

    def work(number):
        try:
            for i in range(4):
                store.add(other_process.batch([f"f{number}-{i}"]))
                store.query("SELECT count(*) FROM trace_cells")
        except Exception as error:
            errors.append(error)

    threads = [threading.Thread(target=work, args=(number,)) for number in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert errors == []
    assert len(whole_facts(store)) == 12


@pytest.mark.parametrize("what", ["add", "query"])
def test_a_locked_file_is_waited_for_until_the_timeout(tmp_path, what):
    path = tmp_path / "study.duckdb"
    Store(path).create()
    argument = other_process.batch(["f0"]) if what == "add" else "SELECT 1"
    held = processes.Event()
    holder = processes.Process(target=other_process.hold, args=(path, held, 1.5))
    holder.start()
    assert held.wait(60)
    began = time.monotonic()
    with pytest.raises(StoreError, match=r"stayed locked for 0\.3 s") as caught:
        getattr(Store(path, timeout_s=0.3), what)(argument)
    assert time.monotonic() - began < 1.2
    assert "\n" not in str(caught.value)
    getattr(Store(path, timeout_s=30), what)(argument)  # as soon as the holder closes the file
    assert time.monotonic() - began > 1.0
    holder.join()


def test_a_connection_in_the_same_process_counts_as_a_lock(tmp_path):
    path = tmp_path / "study.duckdb"
    Store(path).create()
    con = duckdb.connect(str(path))
    with pytest.raises(StoreError, match="stayed locked"):
        Store(path, timeout_s=0.1).query("SELECT 1")
    con.close()


@pytest.mark.parametrize(
    ("what", "folder_mode", "file_mode", "sentence"),
    [
        ("add", 0o555, None, "the store study.duckdb cannot be created: no file can be created in"),
        ("add", 0o777, 0o444, "expected a file and a folder that can be written"),
        ("add", 0o555, 0o666, "expected a file and a folder that can be written"),
        ("query", 0o755, 0o200, "cannot be read: permission denied"),
        ("query", 0o555, 0o444, None),
    ],
)
def test_permissions(what, folder_mode, file_mode, sentence):
    folder = Path(tempfile.mkdtemp())  # not tmp_path: other users cannot enter its parents
    try:
        path = folder / "study.duckdb"
        if file_mode is not None:
            Store(path).create()
            path.chmod(file_mode)
        folder.chmod(folder_mode)
        ours, theirs = processes.Pipe(duplex=False)
        process = processes.Process(target=other_process.as_nobody, args=(path, what, theirs))
        process.start()
        assert ours.poll(60)
        kind, text = ours.recv()
        process.join()
        if sentence is None:
            assert kind == "nothing"
        else:
            assert kind == "StoreError"
            assert sentence in text
    finally:
        folder.chmod(stat.S_IRWXU)
        shutil.rmtree(folder)
