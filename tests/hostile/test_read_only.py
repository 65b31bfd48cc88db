"""What a query may reach: the store and the folders given with --files. No other file, no network, no extension."""

import hashlib
import json
import re
import shutil

import pytest
from made_results import made_edit

from fasttrace.analysis.saved import run_query
from fasttrace.errors import StoreError
from fasttrace.store import Store, Stores
from fasttrace.store.connect import connection, schema_columns

REACH = "can reach only the store and the folders that --files DIR names"
WRITES = "which can write files: `fasttrace sql --write --files DIR` allows COPY alone"
EXTENSION = "needs an extension of DuckDB, and fasttrace loads none"
FIXED = "DuckDB's settings are fixed"
ABSENT = "the query failed: Catalog Error"
HOSTILE = [
    ("FROM read_csv('other/rows.csv')", REACH),
    ("FROM 'other/rows.csv'", REACH),
    ("FROM read_text('{place}/other/rows.csv')", REACH),
    ("FROM read_blob('mine/../other/rows.csv')", REACH),
    ("FROM glob('other/*')", REACH),
    ("FROM query_table('other/rows.csv')", REACH),
    ("FROM sniff_csv('other/rows.csv')", REACH),
    ("FROM read_text('/proc/self/environ')", REACH),
    ("FROM read_csv('http://127.0.0.1:9/rows.csv')", REACH),
    ("FROM 's3://bucket/rows.parquet'", REACH),
    ("FROM 'other/rows.xlsx'", ABSENT),
    ("FROM hidden_from_sql", ABSENT),
    ("FROM read_xlsx('other/rows.xlsx')", EXTENSION),
    ("INSTALL httpfs", EXTENSION),
    ("LOAD httpfs", EXTENSION),
    ("COPY edits TO 'new.csv'", WRITES),
    ("COPY (SELECT 1) TO 's.duckdb' (FORMAT csv, USE_TMP_FILE false)", WRITES),
    ("COPY (SELECT 1) TO 's.duckdb.wal' (FORMAT csv, USE_TMP_FILE false)", WRITES),
    ("EXPLAIN ANALYZE COPY (SELECT 1) TO 's.duckdb' (FORMAT csv, USE_TMP_FILE false)", WRITES),
    ("PREPARE p AS COPY (SELECT 1) TO 's.duckdb' (FORMAT csv, USE_TMP_FILE false); EXECUTE p", WRITES),
    ("/* é */ cOpY (SELECT 1) TO 'new.csv'", WRITES),
    ("PREPARE \"select\" AS COPY (SELECT 1) TO 'new.csv'", WRITES),
    ("PREPARE insert AS COPY (SELECT 1) TO 'new.csv'", WRITES),
    ("SELECT " + "(" * 5000 + "1" + ")" * 5000, "nested too deeply"),
    ("UPDATE EXTENSIONS", "the query failed"),
    ("SELECT '\udcff'", "expected UTF-8 text"),
    ("EXPORT DATABASE 'new'", WRITES),
    ("IMPORT DATABASE 'other'", WRITES),
    ("ATTACH 'other/t.duckdb' AS t", WRITES),
    ("ATTACH 'md:x'", WRITES),
    ("SET temp_directory = 'new'", FIXED),
    ("SET enable_external_access = true", FIXED),
    ("SET lock_configuration = false", FIXED),
    ("RESET allowed_directories", FIXED),
    ("SET log_query_path = 'new.log'", FIXED),
    ("PRAGMA profiling_output = 'new.json'", FIXED),
    ("COMMIT", "one transaction already"),
]
ALLOWED = [
    ('SELECT \'COPY\', "copy" FROM (SELECT 1 AS "copy") -- ATTACH', 1),
    ("WITH attach AS (SELECT 1 AS export, 2 AS import) SELECT export AS copy FROM attach", 1),
    ("SET VARIABLE n = 2; SELECT getvariable('n')", 1),
    ("SET search_path = 'main'; FROM edits", 8),
    ("CREATE TEMP TABLE mine AS FROM edits; FROM mine", 8),
    ("EXPLAIN FROM edits", 1),
    ("EXPLAIN ANALYZE FROM edits", 1),
    ("DESCRIBE edits", len(schema_columns()["edits"])),
    ("PREPARE p AS FROM edits; EXECUTE p", 8),
    ("PREPARE p AS SELECT 1 AS attach; EXECUTE p", 1),
    ("EXPLAIN ANALYZE SELECT export FROM (SELECT 1 AS export)", 1),
]
hidden_from_sql = [1]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made")
    for name in ("s", "t"):
        Store(folder / f"{name}.duckdb").add(made_edit(["f0", "f1"]))
    return folder


@pytest.fixture
def place(made, tmp_path, monkeypatch):
    """The current folder: stores s and t, a folder mine/ to name with --files, and a folder other/."""
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)
    for name in ("mine", "other"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.csv").write_text("a\n1\n2\n")
    (tmp_path / "mine" / "out.csv").symlink_to("../other/rows.csv")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    return tmp_path


def contents(folder):
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest() if path.is_file() else ""
        for path in sorted(folder.rglob("*"))
    }


@pytest.mark.parametrize(("query", "sentence"), HOSTILE)
@pytest.mark.parametrize("write", [False, True], ids=["read", "write"])
def test_a_query_reaches_nothing_but_the_store(place, query, sentence, write):
    before, query = contents(place), query.format(place=place)
    with pytest.raises(StoreError) as caught:
        run_query(Store("s.duckdb"), query, write=write)
    assert sentence in str(caught.value)
    assert "\n" not in str(caught.value)
    assert contents(place) == before


def test_nor_does_a_query_over_several_stores(place):
    before, stores = contents(place), Stores(["s.duckdb", "t.duckdb"])
    for query in (
        "FROM 'other/rows.csv'",
        "COPY edits TO 'new.csv'",
        "ATTACH 'new.duckdb'",
        "SET temp_directory = 'x'",
    ):
        sentence = dict(HOSTILE).get(query, WRITES if query[0] in "CA" else FIXED)
        with pytest.raises(StoreError, match=re.escape(sentence)):
            run_query(stores, query)
    assert contents(place) == before


@pytest.mark.parametrize(("query", "n_rows"), ALLOWED)
def test_what_needs_no_file_still_works(place, query, n_rows):
    assert len(run_query(Store("s.duckdb"), query)) == n_rows


def test_files_opens_the_folders_that_it_names(place, command):
    words = ("--store", "s.duckdb", "--files", "mine", "--json")
    for file in ("mine/rows.csv", f"{place}/mine/rows.csv", "other/../mine/rows.csv"):
        assert json.loads(command("sql", f"SELECT sum(a)::INT AS s FROM '{file}'", *words).stdout) == [{"s": 3}]
    before = contents(place)
    for file in ("other/rows.csv", "mine/../other/rows.csv", "mine/out.csv"):
        assert REACH in command("sql", f"FROM '{file}'", *words, code=2).stderr
    assert WRITES in command("sql", "COPY edits TO 'mine/new.csv'", *words, code=2).stderr
    assert contents(place) == before
    both = ("--store", "s.duckdb", "--store", "t.duckdb", "--files", "mine", "--files", "other", "--csv")
    assert command("sql", "SELECT count(*) AS n FROM 'other/rows.csv', 'mine/rows.csv'", *both).stdout == "n\n4\n"


def test_write_and_files_write_there_and_over_no_store(place, command, monkeypatch):
    (place / "link").symlink_to("t.duckdb")
    words = ("--store", "s.duckdb", "--write", "--files", ".")
    command("sql", "COPY (SELECT count(*) AS n FROM edits) TO 'mine/new.csv'", *words)
    assert (place / "mine" / "new.csv").read_text() == "n\n8\n"
    command("sql", "CREATE TABLE mine AS FROM 'mine/rows.csv'", *words)
    command("sql", "COPY (SELECT n.to FROM (SELECT 1 AS to) n) TO /* here */ 'mine/one.csv'", *words)
    assert (place / "mine" / "one.csv").read_text() == "to\n1\n"
    before = contents(place)
    for file in ("s.duckdb", "./s.duckdb", f"{place}/s.duckdb.wal", "mine/../s.duckdb", "t.duckdb.wal"):
        query = f"COPY (SELECT 1) TO '{file}' (FORMAT csv, USE_TMP_FILE false)"
        assert "cannot be written: it is " in command("sql", query, *words, code=2).stderr
    assert "a file other than the store" in command("sql", "FROM read_blob('./s.duckdb')", *words, code=2).stderr
    monkeypatch.setenv("HOME", str(place))
    for taken in ("mine/new.csv", "tmp_one.csv"):
        (place / taken).write_text("precious")
    for file in ("mine/new.csv", "one.csv"):
        query = f"COPY (SELECT 1) TO '{file}' (USE_TMP_FILE true)"
        assert "expected COPY … TO a new file" in command("sql", query, *words, code=2).stderr
    before = contents(place)
    for file in ("'t.duckdb'", "'mine/../t.duckdb'", "'~/t.duckdb'", "'link'"):
        for query in (f"COPY (SELECT 1) TO {file}", f"EXPLAIN ANALYZE COPY (SELECT 1) TO {file}"):
            assert "it is a DuckDB file" in command("sql", query, *words, code=2).stderr
    for file in ("('t.' || 'duckdb')", "$f", "$$t.duckdb$$", "e't\\x2educkdb'", "'file:t.duckdb'", '"t.duckdb"'):
        given = ("--param", "f=t.duckdb") if file == "$f" else ()
        sentence = command("sql", f"COPY (SELECT 1) TO {file} (FORMAT csv)", *given, *words, code=2).stderr
        assert "the path of one file in quotes" in sentence
    by_value = "COPY (SELECT 1 AS a, 2 AS b) TO '{}' (FORMAT csv, PARTITION_BY (a), {})"
    for option in ("FILENAME_PATTERN '../../t'", "\"filename_pattern\" '../../t'", "FILE_EXTENSION 'duckdb'"):
        assert "expected COPY without FILE" in command("sql", by_value.format("new", option), *words, code=2).stderr
    for option in ("OVERWRITE", "APPEND", "OVERWRITE_OR_IGNORE"):
        assert "got a folder" in command("sql", by_value.format("mine", option), *words, code=2).stderr
    for query in ("EXPORT DATABASE '.'", "IMPORT DATABASE '.'", "ATTACH 't.duckdb'"):
        assert WRITES in command("sql", query, *words, code=2).stderr
    assert contents(place) == before


def test_no_query_of_a_python_store_writes_a_file(place):
    before = contents(place)
    for query in ("COPY edits TO 'new.csv'", "FROM 'other/rows.csv'", "FROM hidden_from_sql", "UPDATE EXTENSIONS"):
        with pytest.raises(StoreError):
            Store("s.duckdb").query(query)
    assert contents(place) == before


def test_every_connection_is_closed_to_the_machine(place):
    for con in (connection(), connection(place / "s.duckdb"), connection(stores={"t": place / "t.duckdb"})):
        settings = dict(con.execute("SELECT name, value FROM duckdb_settings()").fetchall())
        assert settings["lock_configuration"] == "true"
        for name in (
            "enable_external_access",
            "autoinstall_known_extensions",
            "autoload_known_extensions",
            "allow_community_extensions",
            "allow_unsigned_extensions",
            "python_enable_replacements",
        ):
            assert settings[name] == "false", name
        con.close()


def test_a_query_larger_than_its_memory_is_spilled_beside_the_store(place):
    before = contents(place)
    store = Store("s.duckdb", memory="60MB")
    inner = "SELECT hash(range) AS r, row_number() OVER (ORDER BY hash(range)) FROM range(6000000)"
    assert len(run_query(store, f"SELECT max(r) AS r FROM ({inner})")) == 1
    assert contents(place) == before, "nothing is left"


@pytest.mark.parametrize("seconds", ["nan", "inf", "-1", "1e300", "soon", ""])
def test_a_wait_is_a_bounded_number(place, command, seconds):
    done = command("sql", "SELECT 1", "--store", "s.duckdb", "--wait", seconds, code=2)
    assert "wait: expected a number from 0 to 86400" in done.stderr
    if seconds in ("nan", "inf", "-1", "1e300"):
        with pytest.raises(Exception, match="timeout_s: expected a number from 0 to 86400"):
            Store("s.duckdb", timeout_s=float(seconds))
        with pytest.raises(Exception, match="timeout_s: expected a number from 0 to 86400"):
            Stores(["s.duckdb"], timeout_s=float(seconds))


@pytest.mark.parametrize(
    "words",
    ["Corrupt database file", "replaying WAL file", "read-only", "INSTALL x", "has been locked", "File too large"],
)
def test_a_users_text_in_an_error_is_not_taken_for_the_error(place, words):
    for query in (
        f"SELECT '{words}'::INT",
        f"SELECT error('{words}')",
        f'FROM "{words}"',
        f'SELECT "{words}" FROM edits',
    ):
        with pytest.raises(StoreError, match=f"the query failed: .*{words}"):
            run_query(Store("s.duckdb"), query)
