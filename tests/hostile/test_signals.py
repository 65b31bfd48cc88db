"""What ends a command from outside, and too little memory: one sentence, the right exit code, finished work kept."""

import errno
import os
import re
import signal
import subprocess
import sys
import threading
import time

import duckdb
import pytest
import torch
from fork_server import ForkServer

import fasttrace as ft
from fasttrace.cli import boundary, signals
from fasttrace.errors import StoreError
from fasttrace.store import query

STOPPED = "fasttrace: stopped; finished work is in the store"
CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}
TRACE = ("trace", "--model", "model", "--facts", "facts.jsonl", "--keep", "all", "--windows", "2", "--samples", "3")
TRACE += ("--memory", "3MB")  # a wave for each fact
# The second wave does not begin before the file "go" is there.
WAITS = """
import os, time
from fasttrace.tracing import engine
begin, waves = engine.start_wave, []
def waiting(*given, **named):
    waves.append(1)
    while len(waves) == 2 and not os.path.exists("go"):
        open("waiting", "w").close()
        time.sleep(0.02)
    return begin(*given, **named)
engine.start_wave = waiting
"""


@pytest.fixture(scope="module")
def server():
    with ForkServer() as running:
        yield running


def until(found, seconds=60.0):
    """Wait until found() is true."""
    deadline = time.monotonic() + seconds
    while not found():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def traced(folder):
    path = folder / "s.duckdb"
    return len(ft.Store(path).query("SELECT * FROM traces")) if path.exists() else 0


def drafts(folder):
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("number", CODES)
def test_a_signal_keeps_finished_work_and_says_so(server, workplace, tmp_path, number):
    for name in ("model", "facts.jsonl"):
        (tmp_path / name).symlink_to(workplace / name)
    words = (*TRACE, "--store", "s.duckdb")
    pid = server.start(*words, cwd=tmp_path, prepare=WAITS)
    until((tmp_path / "waiting").exists)
    os.kill(pid, number)
    time.sleep(0.05)
    os.kill(pid, signal.SIGINT)  # a second one, while it cleans up
    assert server.wait(pid) == CODES[number]
    assert 0 < traced(tmp_path) < 4
    said = (tmp_path / "stderr").read_text()
    assert said.count(STOPPED) == 1
    assert "Traceback" not in said
    assert "Exception ignored" not in said
    assert drafts(tmp_path) == []
    assert server.wait(server.start(*words, cwd=tmp_path)) == 0
    assert traced(tmp_path) == 4


def test_a_signal_ignored_from_the_start_stays_ignored(server, workplace, tmp_path):
    for name in ("model", "facts.jsonl"):
        (tmp_path / name).symlink_to(workplace / name)
    ignored = (signal.SIGHUP, signal.SIGINT)
    pid = server.start(*TRACE, "--store", "s.duckdb", cwd=tmp_path, ignored=ignored, prepare=WAITS)
    until((tmp_path / "waiting").exists)
    for number in ignored:
        os.kill(pid, number)
    (tmp_path / "go").touch()
    assert server.wait(pid) == 0
    assert traced(tmp_path) == 4


@pytest.mark.parametrize("number", CODES)
def test_a_signal_during_the_imports_is_quiet(number):
    """The process sends the signal to itself when it imports torch."""
    program = f"""
import os, sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            os.kill(os.getpid(), {int(number)})
sys.meta_path.insert(0, Finder())
from fasttrace.cli import main
assert "torch" not in sys.modules and "click" not in sys.modules
sys.argv = ["fasttrace", "trace"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == CODES[number]
    assert done.stderr == "fasttrace: stopped before it began\n"


@pytest.mark.parametrize("number", CODES)
def test_a_stopped_query_and_a_draft(server, tmp_path, number):
    """The signal comes in the middle of a write, whose draft is removed, and a second one during that."""
    prepare = f"""
import os, shutil
from fasttrace.store import connect
rmtree, execute = shutil.rmtree, connect.schema_sql
def cut(relation):
    os.kill(os.getpid(), {int(number)})
    return execute(relation)
def removed(*a, **k):
    os.kill(os.getpid(), {int(signal.SIGINT)})
    rmtree(*a, **k)
connect.schema_columns()
connect.schema_sql, shutil.rmtree = cut, removed
"""
    (tmp_path / "facts.jsonl").write_text('{"prompt": "{} is in", "subject": "Rome", "target_true": "Italy"}')
    words = ("facts", "--facts", "facts.jsonl", "--store", "s.duckdb")
    assert server.wait(server.start(*words, cwd=tmp_path, prepare=prepare)) == CODES[number]
    said = (tmp_path / "stderr").read_text()
    assert said.strip().splitlines()[-1].startswith(STOPPED)
    assert "Traceback" not in said
    assert sorted(path.name for path in tmp_path.iterdir()) == ["facts.jsonl", "stderr", "stdout"]


@pytest.mark.parametrize("number", CODES)
def test_a_signal_in_a_finaliser_and_one_at_the_end(number):
    """Python cannot raise out of a finaliser. When it ends, it gives up the handlers."""
    program = f"""
import atexit, os, sys, time
from fasttrace.cli import boundary, main
class Dying:
    def __del__(self):
        os.kill(os.getpid(), {int(number)})
        sum(range(10))
def verb(**given):
    one = Dying()
    del one
    time.sleep(10)
    print("lost", flush=True)
boundary.cli.get_command(None, "env").callback = verb
atexit.register(os.kill, os.getpid(), {int(number)})
class Last:
    def __del__(self, kill=os.kill, pid=os.getpid()):
        kill(pid, {int(number)})
sys.modules["last"] = Last()
sys.argv = ["fasttrace", "env"]
main()
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert done.returncode == CODES[number]
    assert done.stderr.strip().startswith(STOPPED)
    assert "Traceback" not in done.stderr
    assert "lost" not in done.stdout


def gone(error):
    def fail(*_, **__):
        raise error

    return fail


def duckdbs_error():
    with duckdb.connect(config={"memory_limit": "1MB", "temp_directory": ""}) as con:
        try:
            con.execute("SELECT list(range) FROM range(10000000)").fetchall()
        except duckdb.Error as error:
            return error


def torchs_error():
    try:
        torch.empty(2**62, dtype=torch.uint8)
    except RuntimeError as error:
        return error


def as_store_error():
    try:
        raise StoreError("the query failed") from duckdbs_error()
    except StoreError as error:
        return error


MEMORY = {
    "python": lambda: MemoryError(),
    "system": lambda: OSError(errno.ENOMEM, "Cannot allocate memory"),
    "torch": torchs_error,
    "gpu": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.\nMore words."),
    "duckdb": duckdbs_error,
    "store": as_store_error,
}


@pytest.mark.parametrize("kind", MEMORY)
def test_too_little_memory_names_the_option(monkeypatch, command, workplace, kind):
    monkeypatch.setattr(ft, "load_model", gone(MEMORY[kind]()), raising=False)
    monkeypatch.chdir(workplace)
    said = command(*TRACE, "--store", "m.duckdb", code=2).stderr.strip().splitlines()
    assert len(said) == 1
    sentence = "fasttrace: the memory does not suffice \\(.+\\): run the same command with a smaller --memory, .+"
    assert re.fullmatch(sentence, said[0]), said
    assert len(said[0]) < 400


def test_a_verb_without_the_option_says_so(monkeypatch, command):
    monkeypatch.setattr(boundary.cli.get_command(None, "env"), "callback", gone(MemoryError()))
    assert "(MemoryError): this command has no --memory to lower" in command("env", code=2).stderr


def test_an_error_of_fasttrace_itself_is_not_hidden(monkeypatch, command):
    monkeypatch.setattr(boundary.cli.get_command(None, "env"), "callback", gone(RuntimeError("a mistake")))
    with pytest.raises(RuntimeError, match="a mistake"):
        command("env")


HOURS = "SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000000) b"


@pytest.mark.parametrize("moment", ["before the thread is started", "before it has begun", "when it has begun"])
def test_ctrl_c_while_the_query_is_being_started_is_not_lost(monkeypatch, moment):
    began = []

    class Interrupted(threading.Thread):
        def start(self):
            if moment == "when it has begun":
                super().start()
            elif moment == "before it has begun":
                late.append(threading.Timer(0.2, super().start))
                late[0].start()
            raise KeyboardInterrupt

    late = []
    run = query._run
    monkeypatch.setattr(query, "_run", lambda *a: (began.append(1), run(*a))[1])
    monkeypatch.setattr(query, "Thread", Interrupted)
    with duckdb.connect() as con:
        give_up = threading.Timer(30, con.interrupt)
        give_up.start()
        with pytest.raises(KeyboardInterrupt):
            query.run_script(con, HOURS, {})
        for timer in late:
            timer.join()
            time.sleep(0.1)
        assert give_up.is_alive()
        give_up.cancel()
    assert bool(began) == (moment == "when it has begun")


def test_a_stop_that_duckdb_swallowed(monkeypatch):
    """A signal inside a query comes out of DuckDB as an error of its own."""
    error = RuntimeError("Query interrupted")
    assert boundary._ended_by(error) == (2, None), "no signal arrived"
    monkeypatch.setattr(signals, "_stopped_by", signal.SIGTERM)
    assert boundary._ended_by(error) == (128 + signal.SIGTERM, boundary.STOPPED)
    assert boundary._ended_by(RuntimeError("a mistake")) == (2, None)
