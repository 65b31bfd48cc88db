"""A store behind DuckDB's own server: many drivers at once make what one process makes, and nobody sees half a batch.

The server's extension is of another version of DuckDB, in .venv/quack, so what uses it runs in processes of its own.
"""

import json
import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import other_process
import pytest

from fasttrace.errors import StoreError
from fasttrace.store import Store, Stores
from fasttrace.store.quack import PACKAGES, filled
from fasttrace.store.texts import RELATIONS

QUACK = Path(sys.prefix) / "quack"
SUPPORT = Path(other_process.__file__).parent
MAIN = "from fasttrace.cli import main; main()"
needs_server = pytest.mark.skipif(not QUACK.exists(), reason=f"no {QUACK}, which `make setup` installs")


def started(*words, token="token-of-tests"):
    """A process of Python with the DuckDB that has a server."""
    path = os.pathsep.join(map(str, (QUACK, *filter(None, [os.environ.get("PYTHONPATH")]), SUPPORT)))
    environment = os.environ | {"PYTHONPATH": path, "FASTTRACE_QUACK_TOKEN": token}
    return subprocess.Popen(
        [sys.executable, *map(str, words)], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def driver(*words):
    return started(SUPPORT / "quack_driver.py", *words)


def finished(process, code=0):
    """(stdout, stderr) of a process, which must end with this exit code."""
    try:
        out, err = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == code, err
    return out, err


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


@pytest.fixture
def served(tmp_path):
    """(the served file, its address), by the verb."""
    path, port = tmp_path / "served.duckdb", free_port()
    process = started("-c", MAIN, "serve", "--store", path, "--address", f"localhost:{port}")
    assert process.stdout.readline() == f"serving {path} at quack:localhost:{port}\n", process.stderr.read()
    assert process.stdout.readline() == "token:  that of FASTTRACE_QUACK_TOKEN\n"
    yield path, f"quack:localhost:{port}"
    process.send_signal(signal.SIGINT)
    _, err = finished(process, 130)
    assert err == f"fasttrace: stopped; what was committed is in {path}\n"


def rows(store):
    with store.reading() as con:
        return {
            name: con.sql(f"SELECT * FROM {name} ORDER BY ALL").to_arrow_table().to_pylist() for name in RELATIONS[1:]
        }


@pytest.mark.slow
@needs_server
def test_two_drivers_and_a_reader(tmp_path):
    path, port, ids = tmp_path / "served.duckdb", free_port(), [f"f{i}" for i in range(10)]
    server = started("-c", MAIN, "serve", "--store", path, "--address", f"localhost:{port}", "--json")
    said = {"store": str(path), "address": f"quack:localhost:{port}", "token": None}  # the environment has the token
    assert json.loads(server.stdout.readline()) == said
    address, end = f"quack:localhost:{port}", tmp_path / "end"
    reader = driver("read", address, end)
    writers = [driver("write", address, *order) for order in (ids[:7], ids[:2:-1])]
    for writer in writers:
        finished(writer)
    end.touch()
    states = [json.loads(line) for line in finished(reader)[0].splitlines()]
    cells = other_process.LAYERS * other_process.TOKENS
    assert all(set(state.values()) <= {cells} for state in states), "the reader saw half a batch"
    assert [len(state) for state in states] == sorted(len(state) for state in states)
    assert any(0 < len(state) < len(ids) for state in states), "the reader never looked in between"
    server.send_signal(signal.SIGINT)
    finished(server, 130)
    other_process.write_all(alone := tmp_path / "alone.duckdb", ids)
    assert rows(Store(path)) == rows(Store(alone))
    assert not path.with_name(f"{path.name}.wal").exists()


@needs_server
def test_a_served_store_does_all_that_a_file_does(served, tmp_path):
    finished(driver("life", served[1], tmp_path / "alone.duckdb", tmp_path))


@needs_server
@pytest.mark.slow
def test_a_killed_driver_stops_no_other(tmp_path):
    path, address = tmp_path / "served.duckdb", f"quack:localhost:{free_port()}"
    server = driver("serve", path, address)
    assert server.stdout.readline() == "serving\n", server.stderr.read()
    finished(driver("write", address, "f0"))
    finished(driver("die", address), -signal.SIGKILL)
    finished(driver("write", address, "f1"))
    server.send_signal(signal.SIGINT)
    server.communicate(timeout=60)
    assert Store(path).done("t0") == {"f0", "f1"}


@pytest.mark.slow
@needs_server
def test_refusals_are_one_sentence(served, tmp_path):
    path, address = served
    (tmp_path / "a.duckdb").write_bytes(b"")
    sql = ("-c", MAIN, "sql", "FROM runs", "--store")
    asked = {
        "does not accept the token in FASTTRACE_QUACK_TOKEN": started(*sql, address, token="wrong-token"),
        "needs the token of its server in the environment variable": started(*sql, address, token=""),
        f"nobody answers at quack:localhost:{(free := free_port())}": started(*sql, f"quack:localhost:{free}"),
        "beside other stores, got a server": started(*sql, f"b={address}", "--store", tmp_path / "a.duckdb"),
        "stayed locked for 1 s": started(*sql, path, "--wait", "1"),
        f"cannot listen at {address}": started(
            "-c", MAIN, "serve", "--store", tmp_path / "b.duckdb", "--address", address.removeprefix("quack:")
        ),
    }
    for sentence, process in asked.items():
        out, err = finished(process, 2)
        assert out == ""
        assert sentence in err
        assert err.startswith("fasttrace: ")
        assert err.count("\n") == 1


def test_another_duckdb_has_no_server(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fasttrace.store.quack.find_spec", lambda name: None)
    for words in (("sql", "FROM runs", "--store", "quack:localhost"), ("serve", "--store", "s.duckdb")):
        assert f"without it: pip install {PACKAGES}\n" in command(*words, code=2).stderr


def test_addresses(tmp_path):
    for address in ("quack:localhost", "quack:10.0.0.1:9494", "quack:[::1]:9494"):
        assert str(Store(address).path) == address
        assert Store(address).path.exists()
        assert Store(address).folder is None
    for address in ("quack:", "quack:a/b", "quack:a:port", "quack:a'b"):
        with pytest.raises(StoreError, match="expected an address such as quack:localhost:9494"):
            Store(address)
    with pytest.raises(StoreError, match="expected a file or a folder beside other stores, got a server"):
        Stores({"a": "quack:localhost"}).query("FROM runs")


@pytest.mark.parametrize(
    ("text", "params", "whole"),
    [
        ("SELECT $a + 1 -- $a", {"a": -1}, "SELECT (-1) + 1 -- $a"),
        ("FROM t WHERE $source = 'it''s $a'", {"source": "o'x"}, "FROM t WHERE ('o''x') = 'it''s $a'"),
        ("SELECT x->>'$.a', é, $kind", {"kind": None}, "SELECT x->>'$.a', é, (NULL)"),
        ("SELECT $a, $ab", {"a": [1, "b"], "ab": float("nan")}, "SELECT ([1, 'b']), ('nan'::DOUBLE)"),
        ("SELECT ?, '?' || ? -- ?", (1, "?"), "SELECT (1), '?' || ('?') -- ?"),
    ],
)
def test_values_in_a_statement(text, params, whole):
    assert filled(text, params) == whole
