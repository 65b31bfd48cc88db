"""What cannot compute is refused in one sentence, before a model is loaded or anything is written."""

import os
import re
import shutil
import socket
import subprocess
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from importlib.metadata import version
from pathlib import Path

import pytest
from ray_nodes import Nodes, Running, environment, free_port

from fasttrace.version import VERSION

SRC = Path(__file__).parents[2] / "src"
TRACE = ("trace", "--facts", "facts.jsonl", "--model", "model", "--keep", "all", "--store", "none.duckdb")
HIDDEN = """
import sys
class Finder:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == {name!r}:
            raise ModuleNotFoundError(f"No module named {{name!r}}", name=name)
sys.meta_path.insert(0, Finder())
"""
OTHER_TORCH = """
import importlib.metadata as metadata
found = metadata.version
metadata.version = lambda name: "1.0" if name == "torch" else found(name)
"""


@pytest.fixture(scope="module")
def nodes():
    """A cluster of one node with one CPU."""
    pytest.importorskip("ray")
    with Nodes() as some:
        yield some


@pytest.fixture
def refused(workplace):
    """A function that runs a command, which is refused, and returns its sentence."""

    def written():
        return {path: path.stat().st_mtime_ns for path in workplace.rglob("*") if "cache" not in path.parts}

    before = written()

    def call(*words, **env):
        running = Running(*words, cwd=workplace, env=environment(XDG_CACHE_HOME=str(workplace / "cache"), **env))
        done = running.ended(100)
        running.stop()
        assert done.code == 2, done.stderr
        assert done.stdout == ""
        assert written() == before
        [*before_it, sentence] = done.stderr.splitlines()
        assert all(line.startswith("Ray cluster: ") for line in before_it), done.stderr
        assert sentence.startswith("fasttrace: ")
        return sentence.removeprefix("fasttrace: ")

    return call


def token(nodes):
    return {name: nodes.env[name] for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN_PATH")}


def test_nobody_answers(refused):
    address = f"127.0.0.1:{free_port()}"
    for one in (address, f"ray://{address}"):
        assert refused(*TRACE, "--workers", one) == (
            f"workers: expected a Ray cluster at {one}, but nobody answers there (Connection refused)"
        )


def test_no_host_of_this_name(refused):
    said = refused(*TRACE, "--workers", "no-such-host.invalid:6379")
    assert said.startswith("workers: expected a Ray cluster at no-such-host.invalid:6379, but nobody answers there (")


@pytest.mark.slow
def test_another_program_answers(refused):
    server = ThreadingHTTPServer(("127.0.0.1", 0), BaseHTTPRequestHandler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address = f"127.0.0.1:{server.server_port}"
    for one in (address, f"ray://{address}"):
        assert (
            refused(*TRACE, "--workers", one) == f"workers: expected a Ray cluster at {one}, got another program's port"
        )
    server.shutdown()


@pytest.mark.slow
def test_a_program_that_says_nothing(refused):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"127.0.0.1:{silent.getsockname()[1]}"
        assert refused(*TRACE, "--workers", address) == (
            f"workers: expected a Ray cluster at {address}, got another program's port"
        )


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--workers", "0"), r"trace: workers: expected .*, got '0'"),
        (("--workers", "-1"), r"trace: workers: expected .*, got '-1'"),
        (("--workers", "x"), r"trace: workers: expected .*, got '?x'?"),
        (("--workers", "host:x"), r"trace: workers: expected .*, got '?host:x'?"),
        (("--workers", "2", "--gpus-per-worker", "1.5"), r"workers: gpus_per_worker: expected .*, got 1.5"),
        (("--gpus-per-worker", "1"), r".*expected a value only with workers, got one without them"),
        (("--shard", "3/2"), r"trace: shard: expected i/n .*, got '?3/2'?"),
    ],
)
def test_settings(run, words, said):
    done = run(*TRACE, *words, code=2)
    assert re.fullmatch(rf"fasttrace: {said}\n", done.stderr), done.stderr


def test_workers_and_what_they_cannot_do(run, workplace):
    edit = ("edit", "--facts", "facts.jsonl", "--model", "model", "--layers", "1", "--method", "ft-1", "--workers", "2")
    done = run(*edit, "--export", "exported", code=2)
    assert done.stderr.splitlines()[-1] == (
        "fasttrace: --export, --delta: expected one fact, which one process edits, got --workers or --shard"
    )
    (workplace / "study.toml").write_text('model = "model"\n[facts]\nfile = "facts.jsonl"\n[[trace]]\nwindows = [1]\n')
    done = run("study", "study.toml", "--out", "out", "--workers", "auto", "--dry-run", code=2)
    assert done.stderr.splitlines()[-1] == "fasttrace: --workers: expected a number with --dry-run, got auto"
    assert not (workplace / "exported").exists()


def test_ray_is_not_installed(refused, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDDEN.format(name="ray"))
    said = refused(*TRACE, "--workers", "2", PYTHONPATH=os.pathsep.join([str(tmp_path), environment()["PYTHONPATH"]]))
    assert said == "computing with several workers needs ray, which is not installed here: pip install ray"


@pytest.mark.slow
def test_more_than_there_is(refused, nodes):
    env = token(nodes) | {"RAY_ADDRESS": nodes.address}
    assert refused(*TRACE, "--workers", "3", **env) == "workers: expected at most 1 on 1 machine with 1 CPUs, got 3"
    assert refused(*TRACE, "--workers", "1", "--gpus-per-worker", "2", **env) == (
        "gpus_per_worker: expected at most 0, the GPUs of a machine, got 2"
    )


@pytest.mark.slow
def test_another_token(refused, nodes):
    said = refused(*TRACE, "--workers", nodes.address, RAY_AUTH_TOKEN="of another cluster")
    assert said.startswith(f"workers: the Ray cluster at {nodes.address} cannot be used: ")
    assert said.endswith("; its token may be another")


@pytest.fixture
def second(nodes):
    """A function that starts a second node, which ends with the test."""
    some = []

    def call(*path, **more):
        env = {"PYTHONPATH": os.pathsep.join([*map(str, path), environment()["PYTHONPATH"]])} if path else {}
        some.append(nodes.add(**env, **more))

    yield call
    for node in some:
        node.stop()


def both(refused, nodes):
    return refused(*TRACE, "--workers", "2", **token(nodes), RAY_ADDRESS=nodes.address)


@pytest.mark.slow
def test_another_version_of_fasttrace(refused, nodes, second, tmp_path):
    shutil.copytree(SRC / "fasttrace", tmp_path / "fasttrace", ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "fasttrace" / "version.py").write_text('VERSION = "0.0.1"\n')
    second(tmp_path)
    assert re.fullmatch(
        rf"workers: expected the same versions on every machine, got fasttrace {VERSION} here and 0.0.1 there on \S+",
        both(refused, nodes),
    )


@pytest.mark.slow
def test_another_version_of_torch(refused, nodes, second, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(OTHER_TORCH)
    second(tmp_path)
    here = re.escape(version("torch"))
    assert re.fullmatch(
        rf"workers: expected the same versions on every machine, got torch {here} here and 1.0 there on \S+",
        both(refused, nodes),
    )


@pytest.mark.slow
def test_a_node_without_fasttrace(refused, nodes, second, tmp_path):
    (tmp_path / "sitecustomize.py").write_text(HIDDEN.format(name="fasttrace"))
    second(tmp_path)
    assert re.fullmatch(
        r"workers: worker \d on \S.* cannot run fasttrace: ModuleNotFoundError: No module named 'fasttrace'",
        both(refused, nodes),
    )


@pytest.mark.slow
def test_a_model_that_a_worker_cannot_see(refused, nodes, second, workplace):
    """The node has an empty disk in place of the workplace."""
    hidden = ("unshare", "-m", "sh", "-c", 'mount -t tmpfs none "$0" && exec "$@"', str(workplace))
    if subprocess.run([*hidden, "true"], capture_output=True).returncode:
        pytest.skip("needs the right to mount")
    second(prefix=hidden)
    assert re.fullmatch(r"workers: expected 'model' on every machine, got none on \S+", both(refused, nodes))
