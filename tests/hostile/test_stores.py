"""Damaged stores: one sentence that names the store, exit code 2, and not a byte is written, on every verb."""

import json
import os
import re
import shutil

import duckdb
import pytest
from command_line import FACTS
from made_results import made_edit, made_known, made_trace
from stored_rows import every_row

from fasttrace.errors import StoreError, UserError
from fasttrace.store import Store, Stores

IDS = [f"f{i}" for i in range(4)]
HEADERS, BLOCK = 3 * 4096, 262_144  # of a DuckDB file


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A store with traces, edits and verdicts."""
    folder = tmp_path_factory.mktemp("whole")
    store = Store(folder / "s.duckdb")
    for result in (made_trace(IDS), made_edit(IDS), made_known(IDS)):
        store.add(result)
    return store.path


@pytest.fixture(scope="module")
def logged(whole, tmp_path_factory):
    """A copy of the store with a log, as a killed process leaves them."""
    path = shutil.copy(whole, tmp_path_factory.mktemp("logged") / "s.duckdb")
    if (child := os.fork()) == 0:
        con = duckdb.connect(str(path))
        for word in ("changed", "again"):
            con.execute("UPDATE known SET reason = $word", {"word": word}).fetchall()
        os._exit(0)
    os.waitpid(child, 0)
    return path


@pytest.fixture
def place(tmp_path, monkeypatch):
    (tmp_path / "facts.jsonl").write_text("\n".join(map(json.dumps, FACTS)))
    (tmp_path / "study.toml").write_text('model = "smollm2-135m"\n[facts]\nlimit = 1\n[[trace]]\n')
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path


def flipped(data, offset):
    return data[:offset] + bytes([data[offset] ^ 4]) + data[offset + 1 :]


def rows(path):
    return {name: sorted(map(str, found)) for name, found in every_row(Store(path, timeout_s=0)).items()}


def refusal(call):
    """The sentence with which a call is refused, or None where it is not."""
    try:
        call()
    except StoreError as error:
        return str(error)
    return None


def test_a_damaged_store_gives_its_rows_or_a_sentence_and_is_never_written(whole, place):
    good, wanted = whole.read_bytes(), rows(whole)
    blocks = (len(good) - HEADERS) // BLOCK
    damaged = {f"cut at {size}": good[:size] for size in (1, 4096, HEADERS + BLOCK, len(good) // 2)}
    damaged |= {f"cut by {size}": good[:-size] for size in (8, BLOCK)}
    damaged |= {f"bit {offset}": flipped(good, offset) for offset in (0, 9, 12, 4140, 8240)}
    damaged |= {f"block {number}": flipped(good, HEADERS + number * BLOCK + 900) for number in range(0, blocks, 2)}
    seen = set()
    for number, (name, data) in enumerate(damaged.items()):
        path = place / f"{number}.duckdb"
        path.write_bytes(data)
        found = []
        read = refusal(lambda path=path, found=found: found.append(rows(path)))
        assert read is not None or found == [wanted], name
        written = refusal(lambda path=path: Store(path, timeout_s=0).add(made_known(["new"], run_id="k1")))
        assert not path.with_name(f"{path.name}.wal").exists(), name
        seen.add((read is None, written is None))
        for sentence in (read, written):
            assert sentence is None or (str(path) in sentence and "\n" not in sentence), sentence
        if written is not None:
            assert path.read_bytes() == data, name
        else:  # the bit is in a block that holds nothing
            assert read is None, name
            assert rows(path)["known"] == sorted([*wanted["known"], *set(rows(path)["known"]) - set(wanted["known"])])
    assert (False, False) in seen
    assert (False, True) not in seen


def test_a_damaged_log_is_named_and_nothing_is_written(logged, place):
    good, log = logged.read_bytes(), logged.with_name("s.duckdb.wal").read_bytes()
    # A bit in an entry's length looks like a commit that a kill has cut off, so these are in the rows.
    for number, offset in enumerate([log.index(b"changed"), log.index(b"changed") + 6, log.index(b"again")]):
        path = place / f"{number}.duckdb"
        path.write_bytes(good)
        path.with_name(f"{path.name}.wal").write_bytes(damaged := flipped(log, offset))
        for call in (lambda path=path: rows(path), lambda path=path: Store(path).add(made_known(["new"]))):
            assert f"the log {path}.wal of the store is damaged" in refusal(call)
        assert (path.read_bytes(), path.with_name(f"{path.name}.wal").read_bytes()) == (good, damaged)


def _altered(path):
    with duckdb.connect(str(path)) as con:
        con.execute("ALTER TABLE edits DROP COLUMN rewrite")


def _newer(path):
    data = bytearray(path.read_bytes())
    data[12:20] = (10_000).to_bytes(8, "little")
    path.write_bytes(data)


NOT_STORES = {
    "half": (lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]), "is damaged"),
    "text": (lambda path: path.write_text("hello " * 3000), "is not a DuckDB file"),
    "empty": (lambda path: path.write_bytes(b""), "is not a DuckDB file"),
    "folder": (lambda path: (path.unlink(), path.mkdir()), "expected a file, got a folder|is not a store in Parquet"),
    "pipe": (lambda path: (path.unlink(), os.mkfifo(path)), "expected a file, got neither file nor folder"),
    "altered": (_altered, "altered or dropped by hand"),
    "newer": (_newer, "the store s.duckdb "),
}
VERBS = {
    "status": ("status",),
    "sql": ("sql", "SELECT (SELECT count(COLUMNS(*)) FROM edits e), (SELECT max(p_restored) FROM trace_cells)"),
    "sql --write": ("sql", "DELETE FROM edits", "--write"),
    "tables": ("tables", "--resamples", "0"),
    "tables --out": ("tables", "--resamples", "0", "--out", "out"),
    "figures": ("figures", "--out", "out"),
    "report": ("report", "--out", "out.html"),
    "regress": ("regress", "rewrite ~ C(layer)"),
    "facts": ("facts", "--facts", "facts.jsonl"),
    "trace": ("trace", "--facts", "facts.jsonl"),
    "edit": ("edit", "--facts", "facts.jsonl", "--layers", "0"),
    "mass": ("mass", "--facts", "facts.jsonl", "--layer", "0"),
    "stats": ("stats", "--corpus", "facts.jsonl"),
    "bench": ("bench", "rotary"),
    "study": ("study", "study.toml"),
}


def contents(folder):
    """Every file, without the cache, in which matplotlib lists its fonts."""
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file() and "cache" not in path.parts}


@pytest.mark.parametrize("kind", NOT_STORES)
def test_every_verb_refuses_what_is_no_store_in_one_sentence(whole, place, command, kind):
    shutil.copy(whole, "s.duckdb")
    make, sentence = NOT_STORES[kind]
    make(place / "s.duckdb")
    before = contents(place)
    for verb, words in VERBS.items():
        done = command(*words, "--store", "s.duckdb", code=2)
        *_, last = done.stderr.splitlines()
        assert last.startswith("fasttrace: "), verb
        assert re.search(sentence, last), (verb, last)
        assert "s.duckdb" in last, (verb, last)
        assert "Traceback" not in done.stderr, verb
        assert contents(place) == before, verb


def test_of_several_stores_the_damaged_one_is_named(whole, place):
    good = whole.read_bytes()
    (place / "good.duckdb").write_bytes(good)
    (place / "half.duckdb").write_bytes(good[: len(good) // 2])
    with pytest.raises(StoreError, match=r"the store half\.duckdb is damaged"):
        Stores(["good.duckdb", "half.duckdb"]).query("SELECT max(p_restored), max(token) FROM trace_cells")


def test_a_store_is_read_as_a_whole_once(whole, place, monkeypatch):
    from fasttrace.store import connect

    read = []
    monkeypatch.setattr(connect, "_read_whole", lambda con: read.append(con))
    shutil.copy(whole, "s.duckdb")
    for number in range(3):
        Store("s.duckdb").add(made_known([f"n{number}"], run_id="k1"))
    assert len(read) == 1


@pytest.mark.parametrize("stores", ["a.duckdb", 3, None, [3], [("a",)], {"a": 3}, [(1, "a.duckdb")]])
def test_stores_are_files_or_pairs(stores):
    with pytest.raises(UserError, match=r"stores: expected \{name: file\}, \(name, file\) pairs or files, got"):
        Stores(stores)
