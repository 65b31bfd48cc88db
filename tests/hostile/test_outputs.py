"""No output destroys anything: each verb refuses what it must not replace, and says what it overwrites."""

import io
import os
import signal
import socket
import sys
import time

import duckdb
import pyarrow.parquet
import pytest
from plausible import edit_result, study_facts, trace_result

import fasttrace as ft
from fasttrace import places
from fasttrace.cli import main
from fasttrace.editing.delta import LowRank, save_delta
from fasttrace.editing.export import export_model
from fasttrace.errors import UserError
from fasttrace.places import check_file, replacing, sweep, why_refused

STORE = ("--store", "s.duckdb")
# Every verb and option that writes one file. The store has what each needs.
WRITERS = {
    "sql --out": ("sql", "SELECT 1 AS a", *STORE, "--out"),
    "sql --parquet": ("sql", "SELECT 1 AS a", *STORE, "--parquet"),
    "sql --list": ("sql", "--list", "--out"),
    "sql --relations": ("sql", "--relations", *STORE, "--out"),
    "regress": ("regress", "layer", *STORE, "--out"),
    "report": ("report", *STORE, "--out"),
}
DATABASE = "it is a DuckDB file, such as a store"
REFUSED = {
    "s.duckdb": DATABASE,
    "./s.duckdb": DATABASE,
    "sub/../s.duckdb": DATABASE,
    "hard.csv": DATABASE,
    "link.csv": DATABASE,
    "link-to-link.csv": DATABASE,
    "linked/s.duckdb": DATABASE,
    "unread.duckdb": DATABASE,
    "other.db": DATABASE,
    "named.html": DATABASE,
    "s.duckdb.wal": "it is the log of the DuckDB file 's.duckdb'",
    "s.duckdb.wal.checkpoint": "it is the log of the DuckDB file 's.duckdb'",
    "sub": "expected a file, got a folder",
    "pipe": "expected a file, got a pipe",
    "link-to-pipe": "expected a file, got a pipe",
    "socket": "expected a file, got a socket",
    "/dev/null": "expected a file, got a device",
    "/dev/full": "expected a file, got a device",
    "link-to-device": "expected a file, got a device",
    "new/": "expected a file, got the name of a folder",
    "loop": "Too many levels of symbolic links",
    "protected.csv": "it is write-protected",
    "": "expected the name of a file, got an empty one",
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A store with 8 facts, traced and edited."""
    store = ft.Store(tmp_path_factory.mktemp("made") / "s.duckdb")
    facts = study_facts(count=8)
    store.add_facts(facts)
    store.add(trace_result(facts))
    store.add(edit_result(facts))
    return store.path.read_bytes()


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """The current folder: the store, and one of everything that must not be replaced."""
    monkeypatch.chdir(tmp_path)
    for name in ("s.duckdb", "unread.duckdb", "named.html"):
        (tmp_path / name).write_bytes(made)
    duckdb.connect("other.db").execute("CREATE TABLE t (a INT)").close()
    (tmp_path / "sub").mkdir()
    os.link("s.duckdb", "hard.csv")
    for link, target in (
        ("link.csv", "s.duckdb"),
        ("link-to-link.csv", "link.csv"),
        ("linked", "."),
        ("link-to-pipe", "pipe"),
        ("link-to-device", "/dev/null"),
        ("loop", "loop"),
    ):
        os.symlink(target, link)
    os.mkfifo("pipe")
    with socket.socket(socket.AF_UNIX) as one:
        one.bind("socket")
    (tmp_path / "protected.csv").write_text("mine")
    (tmp_path / "protected.csv").chmod(0o444)
    return tmp_path


def all_of(folder):
    """{path: (file number, link's target, contents)} of everything in a folder."""
    return {
        path: (path.lstat().st_ino, os.path.islink(path) and os.readlink(path), path.is_file() and path.read_bytes())
        for path in folder.rglob("*")
    }


@pytest.mark.parametrize("name", REFUSED)
def test_nothing_is_written_there(place, command, name):
    before = all_of(place)
    for writer in WRITERS.values():
        done = command(*writer, name, code=2)
        assert REFUSED[name] in done.stderr
        assert len(done.stderr.splitlines()) == 1
        assert done.stdout == ""
    assert all_of(place) == before


@pytest.mark.parametrize("name", [name for name, reason in REFUSED.items() if name and reason != REFUSED["new/"]])
def test_the_functions_refuse_the_same(place, name):
    """What the command line checks early is checked again by whatever writes."""
    before = all_of(place)
    with pytest.raises(UserError, match="cannot be written"), replacing(name) as draft:
        draft.write_text("new")
    with pytest.raises(UserError, match="cannot be written"):
        check_file(name)
    assert all_of(place) == before


@pytest.mark.parametrize("verb", ["tables", "figures"])
@pytest.mark.parametrize("way", ["a store", "a pipe"])
def test_files_in_a_folder_are_checked_before_the_first_is_written(place, command, made, verb, way):
    taken = place / "sub" / {"tables": "table-4.md", "figures": "figure-6.svg"}[verb]
    if way == "a store":
        taken.write_bytes(made)
    else:
        os.mkfifo(taken)
    before = all_of(place)
    words = ("tables", "1", "4", "--format", "markdown") if verb == "tables" else ("figures", "2", "6")
    done = command(*words, *STORE, "--out", "sub", code=2)
    assert f"'sub/{taken.name}' cannot be written" in done.stderr
    assert all_of(place) == before


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("tables", *STORE, "--out", ""), "--out: expected the name of a directory, got an empty one"),
        (("figures", *STORE, "--out", "-"), "--out: expected a directory, got -, which is stdout"),
        (("study", "demo", "--out", ""), "--out: expected the name of a path, got an empty one"),
        (("study", "demo", "--store", ""), "--store: expected the name of a path, got an empty one"),
        (("study", "demo", "--out", "sub", "--store", "sub/report.html"), "expected --store and the report to name"),
        (("study", "demo", "--out", "sub", "--store", "sub/tables/s"), "--store: expected a path apart from the"),
        (("demo", "--out", ""), "--out: expected the name of a path, got an empty one"),
        (("facts", "--store", ""), "--store: expected the name of a file, got an empty one"),
        (("trace", "--store", "-"), "--store: expected a file, got -, which is stdout"),
        (("edit", "--delta", "-"), "--delta: expected a file, got -, which is stdout"),
        (("mass", "--export", ""), "--export: expected the name of a directory, got an empty one"),
        (("edit", "--delta", "new/d.safetensors", "--export", "new"), "--delta: expected a path outside the folder of"),
        (("edit", "--delta", "n.duckdb.wal", "--store", "n.duckdb"), "--delta: 'n.duckdb.wal' is the log of the store"),
        (("edit", "--export", "loose"), "which is a link that leads to nothing"),
        (("mass", "--export", "/proc"), "export: expected a new folder, got '/proc'"),
        (("sql", "q.sql", *STORE, "--out", "./q.sql"), "expected the query and --out to name two paths"),
        (("sql", "q.sql", *STORE, "--out", "hard.sql"), "expected the query and --out to name two paths"),
        (("sql", "SELECT 1", "--store", "new", "--out", "./new"), "expected --store and --out to name two paths"),
        (("sql", "SELECT 1", "--store", "sub", "--out", "sub/edits.parquet"), "'sub/edits.parquet' is in the store"),
        (("report", *STORE, "--out", "-", "--json"), "expected --json or --out -, got both"),
    ],
)  # fmt: skip
def test_names_that_cannot_be_meant(place, command, words, sentence):
    (place / "q.sql").write_text("SELECT 1")
    os.link("q.sql", "hard.sql")
    os.symlink("nothing", "loose")
    before = all_of(place)
    done = command(*words, code=2)
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert all_of(place) == before


def test_what_is_overwritten_is_said(place, command):
    assert "overwritten" not in command(*WRITERS["sql --out"], "new.csv").stderr
    for writer in WRITERS.values():
        first = (place / "new.csv").stat().st_ino
        assert "'new.csv' was overwritten\n" in command(*writer, "new.csv").stderr
        assert (place / "new.csv").stat().st_ino != first
    tables = ("--resamples", "0", *STORE, "--out", "sub")
    assert command("tables", "4", "5", *tables).stderr == ""
    assert command("tables", "4", "5", *tables).stderr == "2 files in 'sub' were overwritten\n"
    assert command("tables", "4", *tables).stderr == "'sub/table-4.txt' was overwritten\n"
    (place / "sub/figure-2.svg").touch()
    assert command("figures", "2", *STORE, "--out", "sub").stderr == "'sub/figure-2.svg' was overwritten\n"


def test_a_link_is_written_through_and_that_is_said(place, command):
    os.symlink("sub/rows.csv", "rows.csv")
    for verb in ("written", "overwritten"):
        done = command(*WRITERS["sql --out"], "rows.csv")
        assert f"'rows.csv' is a link: '{place / 'sub/rows.csv'}' was {verb}\n" in done.stderr
        assert (place / "sub/rows.csv").read_text() == "a\n1\n"
        assert os.readlink("rows.csv") == "sub/rows.csv"


def test_a_failed_write_says_that_nothing_was_overwritten(place, command):
    (place / "rows.parquet").write_text("mine")
    done = command("sql", "SELECT INTERVAL 1 MONTH AS m", *STORE, "--out", "rows.parquet", code=2)
    assert "'rows.parquet' cannot be written" in done.stderr
    assert "overwritten" not in done.stderr


def test_a_hyphen_is_stdout(place, command, monkeypatch):
    before = all_of(place)
    assert command(*WRITERS["sql --out"], "-", "--csv").stdout == "a\n1\n"
    done = command(*WRITERS["report"], "-")
    assert done.stdout.lstrip().lower().startswith("<!doctype html>")
    assert done.stdout.rstrip().endswith("</html>")
    assert done.stderr == ""
    regress = ("regress", "layer", *STORE, "--format", "csv")
    assert command(*regress, "--out", "-").stdout == command(*regress).stdout
    stdout = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(stdout))
    monkeypatch.setattr(sys, "argv", ["fasttrace", *WRITERS["sql --parquet"], "-"])
    main()
    assert pyarrow.parquet.read_table(io.BytesIO(stdout.getvalue())).to_pylist() == [{"a": 1}]
    assert all_of(place) == before


@pytest.mark.parametrize(("number", "name"), [(0, "stdin"), (1, "stdout"), (2, "stderr")])
def test_a_file_that_the_shell_has_opened(tmp_path, number, name):
    """`fasttrace sql --out rows.csv > rows.csv` would print into a file that has no name any more."""
    path = tmp_path / "rows.csv"
    path.touch()
    before = os.dup(number)
    with path.open("r+") as opened:
        os.dup2(opened.fileno(), number)
        try:
            reasons = why_refused(path), why_refused(f"/dev/fd/{number}")
        finally:
            os.dup2(before, number)
            os.close(before)
    assert reasons == (f"it is this command's {name}",) * 2
    assert why_refused(path) is None


def test_a_file_that_becomes_a_store_while_the_output_is_made(tmp_path, made):
    path = tmp_path / "rows.csv"

    def write_while_it_appears():
        with replacing(path) as draft:
            draft.write_text("new")
            path.write_bytes(made)

    with pytest.raises(UserError, match=DATABASE):
        write_while_it_appears()
    assert path.read_bytes() == made
    assert list(tmp_path.iterdir()) == [path]


def test_exports_and_deltas_do_not_replace(place, small_tokenizer):
    import torch
    from small_models import small_model

    model = small_model("llama", small_tokenizer, torch.float32)
    update = {1: LowRank(torch.ones(1, 48), torch.ones(1, 80))}
    before = all_of(place)
    for name in ("s.duckdb", "hard.csv", "link.csv", "sub/../s.duckdb"):
        with pytest.raises(UserError, match="exist"):
            export_model(model, update, name)
        with pytest.raises(UserError, match=r"exist|DuckDB"):
            save_delta(name, model, update)
    assert all_of(place) == before


def writer(folder):
    """(process, draft) of a process that is about to write folder/report.html."""
    reader, telling = os.pipe()
    process = os.fork()
    if process == 0:
        try:
            with replacing(folder / "report.html") as draft:
                draft.write_text("half")
                os.write(telling, b"x")
                time.sleep(60)
        finally:
            os._exit(0)
    os.close(telling)
    assert os.read(reader, 1) == b"x"
    os.close(reader)
    [draft] = folder.glob(f".fasttrace-{process}-*")
    return process, draft


def test_drafts_of_the_dead_are_swept_and_those_of_the_living_kept(tmp_path):
    own = [tmp_path / name for name in (".fasttrace-notes", ".fasttrace-1-short", "fasttrace-1-abcdefgh", "elsewhere")]
    for folder in own:
        folder.mkdir()
        (folder / "mine").touch()
    link = tmp_path / ".fasttrace-1-abcdefgh"
    link.symlink_to(tmp_path / "elsewhere")
    link_before = set(tmp_path.iterdir())
    link.rename(tmp_path.parent / "aside")
    process, draft = writer(tmp_path)
    try:
        (tmp_path.parent / "aside").rename(link)
        sweep(tmp_path)
        check_file(tmp_path / "other.html")
        assert (draft / "report.html").read_text() == "half", "its writer lives"
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    assert draft.exists()
    check_file(tmp_path / "other.html")
    assert set(tmp_path.iterdir()) == link_before
    assert all((folder / "mine").exists() for folder in own)


@pytest.mark.parametrize("how", ["a check", "another file", "a store", "an existing store"])
def test_whoever_writes_next_sweeps(tmp_path, how):
    if how == "an existing store":
        ft.Store(tmp_path / "s.duckdb").create()
    process, draft = writer(tmp_path)
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)
    if how == "a check":
        check_file(tmp_path / "report.html")
    elif how == "another file":
        with replacing(tmp_path / "new") as new:
            new.touch()
    else:
        ft.Store(tmp_path / "s.duckdb").create()
    assert not draft.exists()


def test_a_draft_that_is_swept_before_it_is_locked_is_made_again(tmp_path, monkeypatch):
    made_by, made = places.mkdtemp, []

    def mkdtemp(**how):
        made.append(made_by(**how))
        if len(made) == 1:
            sweep(tmp_path)
            assert not os.path.exists(made[0])
        return made[-1]

    monkeypatch.setattr(places, "mkdtemp", mkdtemp)
    with replacing(tmp_path / "new") as draft:
        draft.write_text("new")
    assert len(made) == 2
    assert (tmp_path / "new").read_text() == "new"
