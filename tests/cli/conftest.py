"""A folder with a store of made results, and commands run in it."""

import io
import shutil
import sys

import pytest
from command_line import Done
from made_results import made_edit, made_known, made_trace

from fasttrace.cli import main
from fasttrace.store import Store

IDS = [f"f{i}" for i in range(15)]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    store = Store(folder / "s.duckdb")
    for result in (made_trace(IDS), made_edit(IDS), made_known(IDS)):
        store.add(result)
    return store.path


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """A folder with a store of its own, s.duckdb."""
    shutil.copy(made, tmp_path / "s.duckdb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def run(place, monkeypatch, capfd):
    """Runs a fasttrace command in the place, in this process, and holds it to its exit code."""

    def call(*words, code=0, stdin=None):
        monkeypatch.setattr(sys, "argv", ["fasttrace", *words])
        monkeypatch.setattr(sys, "stdin", io.StringIO(stdin or ""))
        found = 0
        try:
            main()
        except SystemExit as error:
            found = error.code
        done = Done(*capfd.readouterr())
        assert found == code, done.stderr
        return done

    return call
