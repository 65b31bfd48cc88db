"""A full disk ends every write in a sentence that names the file. Nothing half-written stays, no row is lost, and once
there is room the same command goes on."""

import json
import os
import re
import resource
import shutil
import subprocess
import sys

import pytest
from plausible import edit_result, study_facts, trace_result

import fasttrace as ft
from fasttrace.analysis.figures import paper_figure
from fasttrace.analysis.report import report_page
from fasttrace.errors import StoreError, UserError
from fasttrace.places import check_file, check_folder

MODEL = ("--model", "model", "--facts", "facts.jsonl")
TRACE = ("trace", *MODEL, "--samples", "2", "--windows", "1,3", "--keep", "all", "--keep-samples")
MOMENTS = ("--corpus", "text.txt", "--corpus-tokens", "1500")
EDIT = ("edit", *MODEL, "--method", "ft-1", "--set", "steps=2", "--layers", "2", "--essence", "0")


class Mounted:
    """A disk of 32 MiB, filled by a file. Only root may mount one."""

    words = "no space is left"

    def __init__(self, folder):
        self.folder, self.fill = folder, folder / "fill"
        done = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=32m", "none", str(folder)], capture_output=True)
        if done.returncode:
            pytest.skip(f"no disk can be mounted here: {done.stderr.decode().strip()}")

    def leave(self, room):
        free = os.statvfs(self.folder).f_bavail * os.statvfs(self.folder).f_frsize
        self.fill.write_bytes(bytes(free - room))

    def empty(self):
        self.fill.unlink(missing_ok=True)

    def close(self):
        subprocess.run(["umount", "--lazy", str(self.folder)], check=True)


class Limited:
    """A limit on the size of a file, which anyone may set. The system reports it as it does a full disk."""

    words = "it would be larger than the disk or a limit allows"

    def __init__(self, folder):
        self.folder, self.before = folder, resource.getrlimit(resource.RLIMIT_FSIZE)

    def leave(self, room):
        resource.setrlimit(resource.RLIMIT_FSIZE, (room, self.before[1]))

    def empty(self):
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)

    close = empty


@pytest.fixture(params=[Mounted, Limited])
def disk(request, tmp_path):
    made = request.param(tmp_path)
    yield made
    made.close()


@pytest.fixture
def run(workplace, monkeypatch, command):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    return command


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with 6 facts, traced and edited."""
    store = ft.Store(tmp_path_factory.mktemp("made") / "s.duckdb")
    facts = study_facts(count=6)
    store.add_facts(facts)
    store.add(trace_result(facts))
    store.add(edit_result(facts))
    return store.path


@pytest.fixture(scope="module")
def page(made):
    return report_page(ft.Store(made))


@pytest.fixture(scope="module")
def figure(made):
    return paper_figure(ft.Store(made), 2)


def names(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.name != "fill")


def refused(disk, path, done):
    """Whether a command has ended in one sentence that names the path and what is missing."""
    [sentence] = [line for line in done.stderr.splitlines() if line.startswith("fasttrace: ")]
    return str(path) in sentence and disk.words in sentence


def rows(path, relation):
    columns = "* EXCLUDE (seconds, created_at)" if relation == "runs" else "*"
    return ft.Store(path).query(f"SELECT {columns} FROM {relation} ORDER BY ALL").to_pylist()


def test_a_trace(disk, run, workplace):
    """It fails where the store is created, then in a commit, and in the end has the rows of an undisturbed trace."""
    if not (workplace / "whole.duckdb").exists():
        run(*TRACE, "--store", "whole.duckdb")
    store = disk.folder / "s.duckdb"
    disk.leave(60_000)
    assert refused(disk, store, run(*TRACE, "--store", str(store), code=2))
    disk.empty()
    assert names(disk.folder) == [], "neither a store that is none, nor its draft"
    run(*TRACE, "--limit", "1", "--store", str(store))
    disk.leave(8192)
    assert refused(disk, store, run(*TRACE, "--store", str(store), code=2))
    disk.empty()
    assert len(rows(store, "traces")) == 1
    run(*TRACE, "--store", str(store))
    assert names(disk.folder) == ["s.duckdb"]
    for relation in ("facts", "traces", "trace_cells", "trace_samples"):
        assert rows(store, relation) == rows(workplace / "whole.duckdb", relation)


def test_moments_an_edit_a_delta_and_an_export(disk, run, workplace, monkeypatch):
    fact = ft.load_facts(workplace / "facts.jsonl")[0].fact_id
    cache, delta, export = disk.folder / "cache", disk.folder / "d.safetensors", disk.folder / "export"
    monkeypatch.setenv("XDG_CACHE_HOME", str(cache))
    (cache / "fasttrace").mkdir(parents=True)
    disk.leave(20_000)
    stats = ("stats", "--model", "model", *MOMENTS)
    assert refused(disk, cache, run(*stats, code=2))
    disk.empty()
    assert [name for name in names(cache) if name.endswith(".safetensors") or "/." in name] == []
    run(*stats)
    edit = (*EDIT, "--fact-id", fact)
    run(*edit, "--store", str(disk.folder / "s.duckdb"))
    before = names(disk.folder)
    disk.leave(8192)
    assert refused(disk, delta, run(*edit, "--delta", str(delta), code=2))
    disk.empty()
    run(*edit, "--delta", str(delta))
    disk.leave(30_000)
    assert refused(disk, export, run("export", "--model", "model", str(delta), str(export), code=2))
    disk.empty()
    assert names(disk.folder) == sorted([*before, "d.safetensors"]), "no part of the export"
    run("export", "--model", "model", str(delta), str(export))


@pytest.mark.parametrize(
    ("words", "name", "room"),
    [
        (("report", "--out", "page.html"), "page.html", 8192),
        (("figures", "2", "--format", "png", "--out", "."), "figure-2.png", 4500),
        (("figures", "2", "--format", "svg", "--out", "."), "figure-2.svg", 4500),
        (("figures", "2", "--format", "pdf", "--out", "."), "figure-2.pdf", 4500),
        (("sql", "FROM trace_cells", "--out", "rows.csv"), "rows.csv", 8192),
        (("sql", "FROM trace_cells", "--parquet", "rows.parquet"), "rows.parquet", 4500),
        (("sql", "SELECT repeat('x', 9000) AS x", "--out", "rows.txt"), "rows.txt", 4500),
    ],
)
def test_outputs(disk, command, made, page, figure, monkeypatch, words, name, room):
    # How they are computed does not matter here, and takes seconds.
    monkeypatch.setattr("fasttrace.analysis.report.report_page", lambda *_: page)
    monkeypatch.setattr("fasttrace.analysis.figures.paper_figure", lambda *_, **__: figure)
    monkeypatch.chdir(disk.folder)
    (disk.folder / name).write_text("mine")
    disk.leave(room)
    done = command(*words, "--store", str(made), code=2)
    assert refused(disk, name, done)
    assert "overwritten" not in done.stderr
    disk.empty()
    assert names(disk.folder) == [name]
    assert (disk.folder / name).read_text() == "mine"
    command(*words, "--store", str(made))
    assert (disk.folder / name).stat().st_size > 4096
    assert names(disk.folder) == [name]


def test_a_commit_of_many_rows(disk, made):
    """The rows of a batch are committed together or not at all."""
    store = ft.Store(disk.folder / "s.duckdb")
    shutil.copy(made, store.path)
    facts = study_facts("other", count=12)
    disk.leave(8192)
    with pytest.raises(StoreError, match=f"the store {store.path} cannot be written: {disk.words}"):
        store.add(trace_result(facts, run_id="more"))
    with store.reading() as con:
        assert con.execute("SELECT count(*) FROM traces WHERE run_id = 'more'").fetchall() == [(0,)]
    disk.empty()
    assert store.add(trace_result(facts, run_id="more")) == 12
    assert rows(store.path, "edits") == rows(made, "edits")


def test_a_store_in_parquet(disk, made, tmp_path_factory):
    disk.leave(8192)
    with pytest.raises(UserError, match=f"parquet' cannot be written: {disk.words}"):
        ft.Store(made).to_parquet(disk.folder / "parquet")
    disk.empty()
    assert names(disk.folder) == []
    whole = tmp_path_factory.mktemp("whole") / "parquet"
    ft.Store(made).to_parquet(whole)
    store = ft.Store(disk.folder / "s.duckdb")
    store.create()
    disk.leave(8192)
    with pytest.raises(StoreError, match=f"the store {store.path} cannot be written: {disk.words}"):
        store.add_parquet(whole)
    disk.empty()
    assert store.query("SELECT * FROM runs").to_pylist() == []
    assert store.add_parquet(whole)
    assert rows(store.path, "trace_cells") == rows(made, "trace_cells")


def test_no_work_starts_on_a_disk_without_room(tmp_path, run):
    disk = Mounted(tmp_path)
    try:
        store = tmp_path / "s.duckdb"
        ft.Store(store).create()
        disk.leave(0)
        for path in (store, tmp_path / "new.duckdb"):
            done = run(*TRACE, "--store", str(path), code=2)
            assert "No space left on device" in done.stderr
            assert str(tmp_path) in done.stderr
            assert len(done.stderr.splitlines()) == 1, "no bar before it"
        for check in (check_folder, check_file):
            with pytest.raises(UserError, match="No space left on device"):
                check(tmp_path / "new")
        assert names(tmp_path) == ["s.duckdb"]
    finally:
        disk.close()


@pytest.mark.parametrize(
    "words",
    [
        ("sql", "SELECT 1", "--store", "s.duckdb"),
        ("sql", "FROM traces", "--store", "s.duckdb", "--parquet", "-"),
        ("report", "--store", "s.duckdb", "--out", "-"),
        ("tables", "4", "--store", "s.duckdb", "--resamples", "0"),
        ("facts", "--limit", "1"),
        ("env",),
        ("--help",),
        ("trace", "--help"),
        ("--version",),
    ],
)
@pytest.mark.parametrize("buffering", ["a line", "a block"])
def test_a_full_stdout(made, page, monkeypatch, command, words, buffering):
    monkeypatch.setattr("fasttrace.analysis.report.report_page", lambda *_: page)
    monkeypatch.chdir(made.parent)
    with open("/dev/full", "w", buffering=1 if buffering == "a line" else -1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        done = command(*words, code=2)
        monkeypatch.undo()
    assert done.stderr == "fasttrace: stdout cannot be written: no space is left\n"


def test_a_full_stderr(made, monkeypatch, command):
    monkeypatch.chdir(made.parent)
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stderr", full)
        command("sql", "nonsense", "--store", "s.duckdb", code=2)  # the assertion is the code
        monkeypatch.undo()


def test_closed_streams(made, tmp_path):
    """What is meant for a closed stdout or stderr is not written into the file that was opened next."""
    shutil.copy(made, tmp_path / "s.duckdb")
    script = "import os; [os.close(n) for n in range(3)]; import fasttrace.cli as c; c.main()"
    words = ("sql", "SELECT count(*) AS n FROM traces", "--store", "s.duckdb", "--out", "n.json")
    done = subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True)
    assert done.returncode == 0
    assert json.loads((tmp_path / "n.json").read_text()) == [{"n": 6}]
    assert rows(tmp_path / "s.duckdb", "traces") == rows(made, "traces")
    script = "import os; os.close(1); import fasttrace.cli as c; c.main()"
    lost = subprocess.run([sys.executable, "-c", script, *words[:-2]], cwd=tmp_path, capture_output=True, text=True)
    assert (lost.returncode, lost.stderr) == (2, "fasttrace: stdout cannot be written: Bad file descriptor\n")


def test_a_full_disk_in_a_users_query(made, tmp_path):
    shutil.copy(made, tmp_path / "s.duckdb")
    script = (
        "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN); "
        "resource.setrlimit(resource.RLIMIT_FSIZE, (4_000_000, 4_000_000)); import fasttrace.cli as c; c.main()"
    )
    for query in (
        "CREATE TABLE big AS SELECT i, hash(i) AS h FROM range(3000000) AS t(i)",
        "COPY (SELECT i, hash(i) AS h FROM range(3000000) AS t(i)) TO 'big.csv'",
    ):
        words = ("sql", query, "--store", "s.duckdb", "--write", "--files", ".")
        done = subprocess.run([sys.executable, "-c", script, *words], cwd=tmp_path, capture_output=True, text=True)
        assert done.returncode == 2
        assert re.fullmatch(
            r"fasttrace: .* cannot .*it would be larger than the disk or a limit allows.*\n", done.stderr
        )
        assert rows(tmp_path / "s.duckdb", "traces") == rows(made, "traces")
