"""A folder with a store of made results, and commands run in it."""

import shutil

import pytest
from made_results import made_edit, made_known, made_trace

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
    """The current folder, which has only a copy of the store, s.duckdb."""
    shutil.copy(made, tmp_path / "s.duckdb")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    return tmp_path


@pytest.fixture
def run(place, command):
    """`command`, run in `place` with an empty standard input by default."""

    def call(*words, code=0, stdin=""):
        return command(*words, code=code, stdin=stdin)

    return call
