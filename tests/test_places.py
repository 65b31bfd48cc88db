"""Every verb checks where it will write before it reads, loads or computes. Files appear whole or not at all."""

import errno
import os
import shutil
import tempfile
from pathlib import Path

import duckdb
import pytest

import fasttrace as ft
from fasttrace.cli.deliver import check_cache
from fasttrace.errors import UserError
from fasttrace.places import check_file, check_folder, replacing

# With a good path, each verb fails at its first input: the facts, model, delta, store or device does not exist.
MODEL = ("--model", "nowhere/model.gguf")
FACTS = ("--facts", "nowhere.jsonl")
UNREAD = ("--store", "nowhere.duckdb")
STUDY = ("study", "absent.toml")
ABSENT = (
    "nowhere.jsonl",
    "nowhere/model.gguf",
    "expected a complete safetensors file",
    "no store at nowhere.duckdb",
    "device 'nowhere'",
    "device 'cuda'",
)

# Paths that cannot be written to, and their error messages.
NOT_A_FILE = {
    "model": "'model' cannot be written: expected a file, got a folder",
    "/dev/null": "'/dev/null' cannot be written: expected a file, got a device",
    "text.txt/new": "'text.txt/new' cannot be written: 'text.txt' is not a folder",
    "/proc/new": "'/proc/new' cannot be written: no file can be created in '/proc'",
}
NOT_A_FILE_THERE = {**NOT_A_FILE, "none/new": "'none/new' cannot be written: there is no folder 'none'"}
NOT_A_FOLDER = {
    "text.txt": "the folder 'text.txt' cannot be written to: 'text.txt' is not a folder",
    "text.txt/a/b": "the folder 'text.txt/a/b' cannot be written to: 'text.txt' is not a folder",
    "/proc/a/b": "the folder '/proc/a/b' cannot be written to: no file can be created in '/proc'",
}
NOT_A_STORE = {
    "text.txt": "the store text.txt is not a DuckDB file",
    "old.duckdb": "the store old.duckdb has schema version 1, made by an older fasttrace",
    "other.duckdb": "other.duckdb is a DuckDB file but not a fasttrace store",
    "model": "the store model: expected a file, got a folder",
    "none/new": "the folder none of the store new does not exist: create it first",
    "text.txt/new": "the folder text.txt of the store new is not a folder: choose another",
    "/proc/new": "the store new cannot be created: no file can be created in '/proc'",
}
NOT_A_NEW_FILE = {
    "text.txt": "delta file: expected a new file, got 'text.txt', which exists",
    "text.txt/new": NOT_A_FILE["text.txt/new"],
    "/proc/new": NOT_A_FILE["/proc/new"],
}
NOT_A_NEW_FOLDER = {
    "model": "export: expected a new folder, got 'model', which exists and is not an empty folder",
    "text.txt": "export: expected a new folder, got 'text.txt', which exists and is not an empty folder",
    "text.txt/new": "the folder 'text.txt' cannot be written to: 'text.txt' is not a folder",
    "/proc/a/b": "the folder '/proc/a' cannot be written to: no file can be created in '/proc'",
}
NOT_A_STUDY = {
    **NOT_A_FOLDER,
    "tables-taken": "the folder 'tables-taken/tables' cannot be written to: 'tables-taken/tables' is not a folder",
    "figures-taken": "the folder 'figures-taken/figures' cannot be written to: 'figures-taken/figures' is not a folder",
    "report-taken": "'report-taken/report.html' cannot be written: expected a file, got a folder",
}
NOT_A_STUDYS_STORE = {
    **{place: sentence for place, sentence in NOT_A_STORE.items() if place != "none/new"},
    "/proc/a/b": "the folder '/proc/a' cannot be written to: no file can be created in '/proc'",
}
NOT_A_CACHE = {
    "text.txt": "cache folder 'text.txt/fasttrace' cannot be made",
    "/proc": "cache folder '/proc/fasttrace' cannot be made",
}
NOT_A_RECORD = {
    "text.txt": "'text.txt/fasttrace/tiles.json' cannot be written: 'text.txt' is not a folder",
    "/proc": "'/proc/fasttrace/tiles.json' cannot be written: no file can be created in '/proc'",
}

CACHE = "XDG_CACHE_HOME"
EDITS = [
    (("edit", *MODEL, *FACTS), ("--delta", "new")),
    (("mass", *MODEL, *FACTS), ("--delta", "new")),
    (("tune", *MODEL, *FACTS), ()),
]
# (verb and its other arguments; option, "" for a positional argument, or CACHE; bad paths and their messages)
PLACES = [
    (("facts", *FACTS), "--store", NOT_A_STORE),
    (("facts", "--check", *MODEL, *FACTS), "--store", NOT_A_STORE),
    (("trace", *MODEL, *FACTS), "--store", NOT_A_STORE),
    (("stats", *MODEL), "--store", NOT_A_STORE),
    (("stats", *MODEL), "--export", NOT_A_FOLDER),
    (("stats", *MODEL), CACHE, NOT_A_CACHE),
    *((verb, "--store", NOT_A_STORE) for verb, _ in EDITS),
    *(((*verb, *to), CACHE, NOT_A_CACHE) for verb, to in EDITS),
    *(((*verb, *to, "--method", "ft-1", "--essence", "1"), CACHE, NOT_A_CACHE) for verb, to in EDITS),
    *((verb, "--export", NOT_A_NEW_FOLDER) for verb, _ in EDITS[:2]),
    *((verb, "--delta", NOT_A_NEW_FILE) for verb, _ in EDITS[:2]),
    (("export", *MODEL, "text.txt"), "", NOT_A_NEW_FOLDER),
    (STUDY, "--out", NOT_A_STUDY),
    (STUDY, "--store", NOT_A_STUDYS_STORE),
    (STUDY, CACHE, NOT_A_CACHE),
    (("demo", *MODEL), "--out", NOT_A_STUDY),
    (("demo", *MODEL), CACHE, NOT_A_CACHE),
    (("sql", "FROM edits", *UNREAD), "--out", NOT_A_FILE_THERE),
    (("sql", "FROM edits", *UNREAD), "--parquet", NOT_A_FILE_THERE),
    (("tables", *UNREAD), "--out", NOT_A_FOLDER),
    (("figures", *UNREAD), "--out", NOT_A_FOLDER),
    (("report", *UNREAD), "--out", NOT_A_FILE),
    (("bench", "rms_norm", "--device", "nowhere"), "--store", NOT_A_STORE),
    (("bench", "window_restore", "--tune"), CACHE, NOT_A_RECORD),
]
named = pytest.mark.parametrize(
    ("words", "option", "bad"), PLACES, ids=[" ".join((words[0], option)).strip() for words, option, _ in PLACES]
)


@pytest.fixture(scope="module")
def workplace(workplace):
    """The workplace with every kind of bad path, and a study of a model that does not exist."""
    for folder in ("tables-taken", "figures-taken", "report-taken/report.html", "cache"):
        (workplace / folder).mkdir(parents=True)
    (workplace / "tables-taken" / "tables").touch()
    (workplace / "figures-taken" / "figures").touch()
    (workplace / "absent.toml").write_text('model = "nowhere/model.gguf"\n[[edit]]\nlayers = [1]\n')
    ft.Store(workplace / "old.duckdb").create()
    for name, change in (("old", "UPDATE store_schema SET version = 1"), ("other", "CREATE TABLE t (a INT)")):
        with duckdb.connect(str(workplace / f"{name}.duckdb")) as con:
            con.execute(change)
    return workplace


def given(words, option, place, monkeypatch):
    """Return the command with `place` as the value of `option`."""
    if option == CACHE:
        monkeypatch.setenv(CACHE, place)
        return words
    return (*words, *filter(None, [option]), place)


def all_of(folder):
    """{path: time of the last change, None for a folder}."""
    return {path: path.stat().st_mtime_ns if path.is_file() else None for path in folder.rglob("*")}


@named
def test_a_bad_path_is_refused_before_any_work(workplace, run, monkeypatch, words, option, bad):
    before = all_of(workplace)
    for place, sentence in bad.items():
        done = run(*given(words, option, place, monkeypatch), code=2)
        assert sentence in done.stderr
        assert len(done.stderr.splitlines()) == 1, "one sentence, and no bar or spinner before it"
        assert done.stdout == ""
    assert all_of(workplace) == before


@named
def test_with_a_good_path_the_missing_input_fails(workplace, run, monkeypatch, words, option, bad):
    place = str(workplace / "cache") if option == CACHE else "good"
    done = run(*given(words, option, place, monkeypatch), code=2)
    assert any(sentence in done.stderr for sentence in ABSENT), done.stderr
    assert not (workplace / "good").exists()


def test_results_never_overwrite_the_store(workplace, run):
    ft.Store(workplace / "kept.duckdb").create()
    done = run("report", "--store", "kept.duckdb", "--out", "./kept.duckdb", code=2)
    assert "'./kept.duckdb' cannot be written: it is a DuckDB file, such as a store" in done.stderr
    done = run(*STUDY, "--store", "good", "--out", "./good", code=2)
    assert "expected --out and --store to name two paths, got 'good'" in done.stderr


def test_a_folder_without_the_right_to_write():
    """Run as nobody, since root may write anywhere. A filled cache passes, as it may already hold all it needs."""
    folder = Path(tempfile.mkdtemp())  # not tmp_path: other users cannot enter its parents
    try:
        for name in ("empty", "full"):
            (folder / name / "fasttrace").mkdir(parents=True)
        (folder / "full" / "fasttrace" / "contexts").mkdir()
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o555)
        tried = [
            lambda: check_folder(folder / "a" / "b"),
            lambda: check_file(folder / "a"),
            lambda: check_cache_at(folder / "empty"),
            lambda: check_cache_at(folder / "full"),
        ]
        said = [as_nobody(one) for one in tried]
    finally:
        for path in (folder, *folder.rglob("*")):
            path.chmod(0o755)
        shutil.rmtree(folder)
    assert said == [
        f"the folder '{folder}/a/b' cannot be written to: no file can be created in '{folder}' (Permission denied)",
        f"'{folder}/a' cannot be written: no file can be created in '{folder}' (Permission denied)",
        f"the folder '{folder}/empty/fasttrace' cannot be written to: no file can be created in "
        f"'{folder}/empty/fasttrace' (Permission denied)",
        "",
    ]


def check_cache_at(home):
    os.environ[CACHE] = str(home)
    check_cache()


def as_nobody(call):
    """Return the message of the UserError that `call` raises in a child process of user nobody, or "" without one."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        code = 1
        try:
            if os.getuid() == 0:
                os.setuid(65534)
            try:
                call()
            except UserError as error:
                os.write(writer, str(error).encode())
            code = 0
        finally:
            os._exit(code)
    os.close(writer)
    with os.fdopen(reader) as said:
        text = said.read()
    assert os.waitpid(child, 0)[1] == 0
    return text


def contents(folder):
    """{path relative to the folder: text} of every file in it."""
    return {str(path.relative_to(folder)): path.read_text() for path in folder.rglob("*") if path.is_file()}


def write_and_fail(path, write, **how):
    with replacing(path, **how) as draft:
        write(draft)
        raise ZeroDivisionError


@pytest.mark.parametrize("keep", [False, True])
def test_a_failed_write_leaves_the_old_file(tmp_path, keep):
    old = tmp_path / "results.csv"
    old.write_text("old")
    for place in (old, tmp_path / "new.csv"):
        with pytest.raises(ZeroDivisionError):
            write_and_fail(place, lambda draft: draft.write_text("half a fi"), keep=keep)
        assert place.exists() == (place == old)
    assert contents(tmp_path) == {"results.csv": "old"}
    assert list(tmp_path.iterdir()) == [old]


def test_a_write_appears_only_when_it_is_complete(tmp_path):
    path = tmp_path / "results.csv"
    for text in ("first", "second"):
        before = contents(tmp_path).get("results.csv")
        with replacing(path) as draft:
            assert draft.name == path.name, "some writers choose their format by the suffix"
            draft.write_text(text)
            assert contents(tmp_path).get("results.csv") == before
        assert contents(tmp_path) == {"results.csv": text}
    assert list(tmp_path.iterdir()) == [path]


def test_a_file_keeps_its_permissions(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.write_text("")
    old.chmod(0o604)
    before = os.umask(0o027)
    try:
        for path in (old, new):
            with replacing(path) as draft:
                draft.write_text("text")
    finally:
        os.umask(before)
    assert [path.stat().st_mode & 0o777 for path in (old, new)] == [0o604, 0o640]


def test_a_link_stays_a_link(tmp_path):
    elsewhere, link = tmp_path / "elsewhere" / "results.csv", tmp_path / "link.csv"
    elsewhere.parent.mkdir()
    link.symlink_to(elsewhere)
    for text in ("through a link that leads to nothing yet", "again"):
        check_file(link)
        with replacing(link) as draft:
            draft.write_text(text)
        assert link.is_symlink()
        assert contents(elsewhere.parent) == {"results.csv": text}
    link.unlink()
    link.symlink_to(tmp_path / "missing" / "results.csv")
    with pytest.raises(UserError, match=r"there is no folder '.*missing'"):
        check_file(link)


def test_a_folder_is_whole_or_absent(tmp_path):
    def write(draft):
        (draft / "below").mkdir(parents=True)
        (draft / "below" / "a").write_text("a")
        assert not path.exists()

    path = tmp_path / "export"
    with pytest.raises(ZeroDivisionError):
        write_and_fail(path, write)
    assert list(tmp_path.iterdir()) == []
    with replacing(path) as draft:
        write(draft)
    assert contents(tmp_path) == {"export/below/a": "a"}


@pytest.mark.parametrize("refusal", [None, errno.EPERM, errno.EOPNOTSUPP, errno.EMLINK])
def test_keep_leaves_a_file_that_another_process_wrote_first(tmp_path, monkeypatch, refusal):
    def no_links(*paths):
        raise OSError(refusal, os.strerror(refusal))

    if refusal is not None:
        monkeypatch.setattr(os, "link", no_links)
    path = tmp_path / "study.duckdb"
    with replacing(path, keep=True) as draft:
        draft.write_text("ours")
        path.write_text("theirs")
    assert contents(tmp_path) == {"study.duckdb": "theirs"}
    path.unlink()
    with replacing(path, keep=True) as draft:
        draft.write_text("ours")
    assert contents(tmp_path) == {"study.duckdb": "ours"}


def test_a_missing_folder_or_a_folder_at_the_path_is_an_error(tmp_path):
    (tmp_path / "folder").mkdir()
    with (
        pytest.raises(UserError, match="file' cannot be written: No such file"),
        replacing(tmp_path / "no/file") as draft,
    ):
        draft.write_text("")
    with pytest.raises(UserError, match="expected a file, got a folder"), replacing(tmp_path / "folder") as draft:
        draft.write_text("")
    assert [path.name for path in tmp_path.iterdir()] == ["folder"]
