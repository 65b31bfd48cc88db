"""`fasttrace sql` on the command line, with real DuckDB files: answers, writes and refusals."""

import csv
import io
import json
import multiprocessing
import subprocess
import sys
from functools import partial

import other_process
import pyarrow.parquet as pq
import pytest
from made_results import made_edit

from fasttrace.store import Store
from fasttrace.store.connect import schema_columns

IDS = [f"f{i}" for i in range(15)]
STORE = ("--store", "s.duckdb")
processes = multiprocessing.get_context("forkserver")


@pytest.fixture
def ask(run):
    """A function that runs `fasttrace sql`."""
    return partial(run, "sql")


def test_formats_of_one_answer(place, ask):
    query = ("SELECT layer, sum(layer) AS s, avg(rewrite) AS r FROM edits GROUP BY layer ORDER BY layer", *STORE)
    rows = json.loads(ask(*query, "--json").stdout)
    assert [(row["layer"], row["s"]) for row in rows] == [(layer, 15 * layer) for layer in range(4)]
    assert [float(row["r"]) for row in csv.DictReader(io.StringIO(ask(*query, "--csv").stdout))] == [
        row["r"] for row in rows
    ]
    assert f"{rows[1]['r']:.4f}" in ask(*query).stdout
    for name in ("rows.parquet", "rows.json", "rows.csv", "rows.txt"):
        done = ask(*query, "--out", name)
        assert (done.stdout, done.stderr) == ("", f"4 rows are in {name}\n")
    ask(*query, "--parquet", "again.dat")
    assert pq.read_table("rows.parquet").to_pylist() == pq.read_table("again.dat").to_pylist()
    assert json.loads((place / "rows.json").read_text()) == rows
    assert (place / "rows.csv").read_text() == ask(*query, "--csv").stdout
    assert (place / "rows.txt").read_text() == ask(*query).stdout
    assert not [path for path in place.iterdir() if path.name.endswith(".new")]


def test_sources_of_a_query(place, ask):
    wanted = [{"n": 60}]
    script = "CREATE TEMP TABLE mine AS FROM edits;\n-- all of them\nSELECT count(*) AS n FROM mine;"
    (place / "q.sql").write_text(script)
    for words, stdin in (((script,), None), (("q.sql",), None), (("-",), script), ((), script)):
        assert json.loads(ask(*words, *STORE, "--json", stdin=stdin).stdout) == wanted
    assert json.loads(ask("SELECT 1 AS x, 2 AS x", *STORE, "--json").stdout) == [{"x": 1, "x_1": 2}]
    assert ask("SET VARIABLE least = 1", *STORE).stdout == ""


def test_the_views_of_the_analysis_can_be_queried(ask):
    [row] = json.loads(
        ask(
            "FROM regressions WHERE score = 'rewrite' AND effect_at = 'max' AND subset = 'all' AND layers = 'all'",
            *STORE, "--json",
        ).stdout
    )  # fmt: skip
    assert row["n"] == 60
    fits = json.loads(ask("regressions", *STORE, "--json").stdout)
    whole = [fit for fit in fits if fit["subset"] == fit["layers"] == "all"]
    assert len(whole) == 9 * 3, "nine scores, three measures of the effect"
    assert len(json.loads(ask("edits", *STORE, "--json").stdout)) == 60


def test_every_saved_query_runs_by_name(ask):
    values = {"score": "rewrite", "effect_at": "max", "fact_ids": '["f1", "f2"]', "run_id": "t0"}
    listed = json.loads(ask("--list", "--json").stdout)
    assert {"scores_by_layer", "traced_edits", "success_rates"} <= {row["name"] for row in listed}
    for row in listed:
        assert row["answers"], f"{row['name']} does not say what it answers"
        assert row["grain"], f"{row['name']} does not say its grain"
        params = [f"--param={name}={values.get(name, 'null')}" for name in row["parameters"]]
        ask(row["name"], *STORE, *params, "--json")
    rows = json.loads(ask("fact_edits", *STORE, "--param", 'fact_ids=["f1", "f2"]', "--json").stdout)
    assert {row["fact_id"] for row in rows} == {"f1", "f2"}
    assert "scores_by_layer\n    the mean scores at each edited layer" in ask("--list").stdout


def test_parameters_for_which_null_means_all_may_be_left_out(ask):
    chosen = ("--param", "score=rewrite", "--param", "effect_at=max", "--param", "subset=all")
    words = ("regressions_of_score", *STORE, *chosen, "--json")
    [left], [given] = (json.loads(ask(*words, *more).stdout) for more in ((), ("--param", "source=null")))
    # DuckDB's threads add in no fixed order, so two queries may differ in the last bits.
    assert left == {
        name: pytest.approx(value, rel=1e-9) if isinstance(value, float) else value for name, value in given.items()
    }
    assert json.loads(ask(*words, "--param", "source=zsre").stdout) == []


def test_queries_of_the_user(place, ask):
    (place / "mine").mkdir()
    (place / "mine" / "best.sql").write_text(
        "-- best: edits above a score.\nFROM edits WHERE rewrite > $least AND layer = $layer"
    )
    own = (*STORE, "--queries", "mine")
    assert json.loads(ask("--list", "--queries", "mine", "--json").stdout)[0] == {
        "name": "best", "kind": "own", "answers": "edits above a score.", "grain": "", "parameters": ["least", "layer"],
        "about_parameters": "",
    }  # fmt: skip
    found = json.loads(ask("best", *own, "--param", "least=0.5", "--param", "layer=2", "--json").stdout)
    assert found
    assert all(row["rewrite"] > 0.5 and row["layer"] == 2 for row in found)
    assert "expected a value for layer" in ask("best", *own, "--param", "least=0.5", code=2).stderr
    assert "got 'leest' (did you mean 'least'?)" in ask("best", *own, "--param", "leest=0.5", code=2).stderr
    (place / "mine" / "edits.sql").write_text("SELECT 1")
    assert "rename the file" in ask("best", *own, code=2).stderr


def test_relations_are_described(ask):
    rows = {row["relation"]: row for row in json.loads(ask("--relations", *STORE, "--json").stdout)}
    assert (rows["edits"]["n_rows"], rows["edits"]["n_columns"]) == (60, len(schema_columns()["edits"]))
    assert rows["regressions"]["kind"] == "view"
    assert rows["regressions"]["n_columns"] == 41
    assert all(row["what"] for row in rows.values())


def test_several_stores(place, ask):
    Store(place / "t.duckdb").add(made_edit(IDS[:5]))
    both = ("--store", "s.duckdb", "--store", "other=t.duckdb", "--json")
    found = json.loads(ask("SELECT store, count(*) AS n FROM edits GROUP BY ALL ORDER BY ALL", *both).stdout)
    assert found == [{"store": "other", "n": 20}, {"store": "s", "n": 60}]
    assert json.loads(ask("SELECT count(*) AS n FROM other.edits", *both).stdout) == [{"n": 20}]
    for query in ("regressions", "scores_by_layer"):  # shared rows count once, so both agree up to the order of sums
        found, wanted = (json.loads(ask(query, *words).stdout) for words in (both, (*STORE, "--json")))
        key = ("score", "effect_at", "layer", "n")
        assert sorted([row.get(name) for name in key if name in row] for row in found) == sorted(
            [row.get(name) for name in key if name in row] for row in wanted
        )
    named = ("--store", "s.duckdb", "--store", "My lr-0.1+b=t.duckdb", "--json")
    assert json.loads(ask('SELECT count(*) AS n FROM "My lr-0.1+b".edits', *named).stdout) == [{"n": 20}]
    listed = json.loads(ask("--relations", *both).stdout)
    assert {row["store"] for row in listed} == {"s", "other", None}
    scratch = ask("CREATE TABLE mine AS FROM edits", *both, code=2).stderr
    assert "the query writes" in scratch
    assert "expected one store to write to, got several" in ask("DELETE FROM s.edits", *both, "--write", code=2).stderr


def test_writing_needs_its_option(place, ask):
    count = ("SELECT count(*) AS n FROM edits", *STORE, "--json")
    for query in (
        "DELETE FROM edits",
        "CREATE TABLE mine AS FROM edits",
        "DROP TABLE edits",
        "INSERT INTO edits FROM edits",
    ):
        assert "the query writes" in ask(query, *STORE, code=2).stderr
    assert json.loads(
        ask("CREATE TABLE mine AS FROM edits; SELECT count(*) AS n FROM mine", *STORE, "--write", "--json").stdout
    ) == [{"n": 60}]
    ask("DELETE FROM edits; SELECT nothing", *STORE, "--write", code=2)
    assert "differs from this fasttrace" in ask("ALTER TABLE edits DROP reason", *STORE, "--write", code=2).stderr
    assert json.loads(ask(*count).stdout) == [{"n": 60}]
    ask("DELETE FROM edits WHERE layer = 3", *STORE, "--write")
    assert json.loads(ask(*count).stdout) == [{"n": 45}]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("SELEC 1", *STORE), 'syntax error at or near "SELEC"'),
        (("SELECT * FROM edit", *STORE), 'Table with name edit does not exist! Did you mean "edits"?'),
        (("SELECT $a", *STORE), "expected a value for a, got none"),
        (("SELECT ?", *STORE), "expected named parameters ($name)"),
        (("SELECT 1", *STORE, "--param", "a"), "expected a parameter as NAME=VALUE, got 'a'"),
        (("SELECT $a", *STORE, "--param", "a=[x"), "expected a list such as"),
        (("scores_by_layr", *STORE), "saved query, got 'scores_by_layr' (did you mean 'scores_by_layer'"),
        (("no.sql", *STORE), "query file 'no.sql' could not be read"),
        (("latin.sql", *STORE), "is not UTF-8 text"),
        (("", *STORE), "the query: expected a statement, got an empty text"),
        (("/* nothing */", *STORE), "the query: expected a statement, got an empty text"),
        (("SELECT 1",), "expected --store FILE"),
        (("SELECT 1", "--store", "none.duckdb"), "there is no store at none.duckdb"),
        (("SELECT 1", "--store", "latin.sql"), "is not a DuckDB file"),
        (("SELECT 1", *STORE, *STORE), "two stores are named 's'"),
        (("SELECT 1", *STORE, "--store", "b=none.duckdb"), "there is no store at none.duckdb"),
        (("SELECT 1", *STORE, "--json", "--csv"), "expected one format, got --json and --csv"),
        (("SELECT 1", *STORE, "--out", "no/x.csv"), "'no/x.csv' cannot be written: there is no folder 'no'"),
        (("SELECT 1", *STORE, "--out", "."), "'.' cannot be written: expected a file, got a folder"),
        (("SELECT 1", *STORE, "--out", "s.duckdb"), "'s.duckdb' cannot be written: it is a DuckDB file"),
        (("SELECT 1", *STORE, "--queries", "no"), "expected a folder of queries, got 'no'"),
    ],
)  # fmt: skip
def test_a_bad_query_gives_one_sentence_and_exit_code_2(place, ask, words, sentence):
    (place / "latin.sql").write_bytes("SELECT 'é'".encode("latin-1") * 500)
    done = ask(*words, code=2)
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert sorted(path.name for path in place.iterdir()) == ["latin.sql", "s.duckdb"]


def test_a_file_that_cannot_be_written_stays_as_it_was(place, ask):
    (place / "rows.parquet").write_text("mine")
    done = ask("SELECT INTERVAL 1 MONTH AS m", *STORE, "--out", "rows.parquet", code=2)
    assert "cannot be written" in done.stderr
    assert (place / "rows.parquet").read_text() == "mine"
    assert len(list(place.iterdir())) == 2


def test_a_locked_store_is_reported(place, ask):
    held = processes.Event()
    holder = processes.Process(target=other_process.hold, args=(place / "s.duckdb", held, 1.5))
    holder.start()
    assert held.wait(60)
    assert "stayed locked for 0.1 s" in ask("SELECT 1", *STORE, "--wait", "0.1", code=2).stderr
    assert ask("SELECT 1 AS a", *STORE, "--csv").stdout == "a\n1\n", "as soon as it is free"
    holder.join()


def test_a_reader_may_close_the_pipe_early(place):
    program = f"{sys.executable} -c 'from fasttrace.cli import main; main()'"
    script = f"{program} sql 'FROM range(300000)' --store s.duckdb --csv | head -n 2"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("range\n0\n", "")


def test_ctrl_c_stops_a_query_and_promises_nothing(ask, monkeypatch):
    def stopped(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("fasttrace.analysis.saved.run_query", stopped)
    assert ask("FROM edits", *STORE, code=130).stderr == "fasttrace: the query was stopped\n"
