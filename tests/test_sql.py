"""`fasttrace sql` through the command line, on real DuckDB files: what it answers, writes, refuses; and its prompt."""

import csv
import io
import json
import multiprocessing
import os
import pty
import re
import select
import shutil
import subprocess
import sys
import threading
import time
from typing import NamedTuple

import other_process
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_results import made_edit, made_known, made_trace
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from fasttrace.analysis.saved import saved_queries
from fasttrace.cli import main
from fasttrace.cli.fit import fit
from fasttrace.cli.prompt import Prompt
from fasttrace.store import Store, Stores

IDS = [f"f{i}" for i in range(15)]
ARGV = [sys.executable, "-c", "from fasttrace.cli import main; main()", "sql"]
processes = multiprocessing.get_context("forkserver")


class Done(NamedTuple):
    """What a command left."""

    stdout: str
    stderr: str


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
    """Runs `fasttrace sql` in the place, in this process, and holds it to its exit code."""

    def call(*words, code=0, stdin=None):
        monkeypatch.setattr(sys, "argv", ["fasttrace", "sql", *words])
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


STORE = ("--store", "s.duckdb")


def test_forms_of_one_answer(place, run):
    query = ("SELECT layer, sum(layer) AS s, avg(rewrite) AS r FROM edits GROUP BY layer ORDER BY layer", *STORE)
    rows = json.loads(run(*query, "--json").stdout)
    assert [(row["layer"], row["s"]) for row in rows] == [(layer, 15 * layer) for layer in range(4)]
    assert [float(row["r"]) for row in csv.DictReader(io.StringIO(run(*query, "--csv").stdout))] == [
        row["r"] for row in rows
    ]
    assert f"{rows[1]['r']:.4f}" in run(*query).stdout
    for name in ("rows.parquet", "rows.json", "rows.csv", "rows.txt"):
        done = run(*query, "--out", name)
        assert (done.stdout, done.stderr) == ("", f"4 rows are in {name}\n")
    run(*query, "--parquet", "again.dat")
    assert pq.read_table("rows.parquet").to_pylist() == pq.read_table("again.dat").to_pylist()
    assert json.loads((place / "rows.json").read_text()) == rows
    assert (place / "rows.csv").read_text() == run(*query, "--csv").stdout
    assert (place / "rows.txt").read_text() == run(*query).stdout
    assert not [path for path in place.iterdir() if path.name.endswith(".new")]


def test_where_a_query_comes_from(place, run):
    wanted = [{"n": 60}]
    script = "CREATE TEMP TABLE mine AS FROM edits;\n-- all of them\nSELECT count(*) AS n FROM mine;"
    (place / "q.sql").write_text(script)
    for words, stdin in (((script,), None), (("q.sql",), None), (("-",), script), ((), script)):
        assert json.loads(run(*words, *STORE, "--json", stdin=stdin).stdout) == wanted
    assert json.loads(run("SELECT 1 AS x, 2 AS x", *STORE, "--json").stdout) == [{"x": 1, "x_1": 2}]
    assert run("SET threads = 1", *STORE).stdout == ""


def test_the_views_of_the_analysis_are_there(run):
    [row] = json.loads(
        run(
            "SELECT * FROM regressions WHERE score = 'rewrite' AND effect_at = 'max' AND subset = 'all'",
            *STORE, "--json",
        ).stdout
    )  # fmt: skip
    assert row["n"] == 60
    fits = json.loads(run("regressions", *STORE, "--json").stdout)
    assert len([fit for fit in fits if fit["subset"] == "all"]) == 6 * 3, "six scores, three ways of taking the effect"
    assert len(json.loads(run("edits", *STORE, "--json").stdout)) == 60


def test_every_saved_query_runs_by_name(run):
    values = {"score": "rewrite", "effect_at": "max", "fact_ids": '["f1", "f2"]', "run_id": "t0"}
    listed = json.loads(run("--list", "--json").stdout)
    assert {"scores_by_layer", "edit_scores", "success_rates"} <= {row["name"] for row in listed}
    for row in listed:
        assert row["answers"], f"{row['name']} does not say what it answers"
        assert row["grain"], f"{row['name']} does not say its grain"
        params = [f"--param={name}={values.get(name, 'null')}" for name in row["parameters"]]
        run(row["name"], *STORE, *params, "--json")
    rows = json.loads(run("fact_edits", *STORE, "--param", 'fact_ids=["f1", "f2"]', "--json").stdout)
    assert {row["fact_id"] for row in rows} == {"f1", "f2"}
    assert "scores_by_layer\n    the mean scores side by side" in run("--list").stdout


def test_parameters_said_to_be_null_for_all_may_be_left_out(run):
    chosen = ("--param", "score=rewrite", "--param", "effect_at=max", "--param", "subset=all")
    words = ("regressions_of_score", *STORE, *chosen, "--json")
    [left], [given] = (
        json.loads(run(*words, *more).stdout)
        for more in ((), ("--param", "source=null"))
    )
    # DuckDB's threads add in no fixed order, so two queries may differ in the last bits.
    assert left == {
        name: pytest.approx(value, rel=1e-9) if isinstance(value, float) else value for name, value in given.items()
    }
    assert json.loads(run(*words, "--param", "source=zsre").stdout) == []


def test_queries_of_ones_own(place, run):
    (place / "mine").mkdir()
    (place / "mine" / "best.sql").write_text(
        "-- best: edits above a score.\nFROM edits WHERE rewrite > $least AND layer = $layer"
    )
    own = (*STORE, "--queries", "mine")
    assert json.loads(run("--list", "--queries", "mine", "--json").stdout)[0] == {
        "name": "best", "kind": "own", "answers": "edits above a score.", "grain": "", "parameters": ["least", "layer"],
        "about_parameters": "",
    }  # fmt: skip
    found = json.loads(run("best", *own, "--param", "least=0.5", "--param", "layer=2", "--json").stdout)
    assert found
    assert all(row["rewrite"] > 0.5 and row["layer"] == 2 for row in found)
    assert "wants a value for layer" in run("best", *own, "--param", "least=0.5", code=2).stderr
    assert "no parameter 'leest'" in run("best", *own, "--param", "leest=0.5", code=2).stderr
    (place / "mine" / "edits.sql").write_text("SELECT 1")
    assert "rename the file" in run("best", *own, code=2).stderr


def test_relations_say_what_they_are(run):
    rows = {row["relation"]: row for row in json.loads(run("--relations", *STORE, "--json").stdout)}
    assert (rows["edits"]["n_rows"], rows["edits"]["n_columns"]) == (60, 26)
    assert rows["regressions"]["kind"] == "view"
    assert rows["regressions"]["n_columns"] == 31
    assert all(row["what"] for row in rows.values())


def test_several_stores(place, run):
    Store(place / "t.duckdb").add(made_edit(IDS[:5]))
    both = ("--store", "s.duckdb", "--store", "other=t.duckdb", "--json")
    found = json.loads(run("SELECT store, count(*) AS n FROM edits GROUP BY ALL ORDER BY ALL", *both).stdout)
    assert found == [{"store": "other", "n": 20}, {"store": "s", "n": 60}]
    assert json.loads(run("SELECT count(*) AS n FROM other.edits", *both).stdout) == [{"n": 20}]
    for query in ("regressions", "scores_by_layer"):  # the shared rows once, so the same up to the order of sums
        found, wanted = (json.loads(run(query, *words).stdout) for words in (both, (*STORE, "--json")))
        key = ("score", "effect_at", "layer", "n")
        assert sorted([row.get(name) for name in key if name in row] for row in found) == sorted(
            [row.get(name) for name in key if name in row] for row in wanted
        )
    listed = json.loads(run("--relations", *both).stdout)
    assert {row["store"] for row in listed} == {"s", "other", None}
    scratch = run("CREATE TABLE mine AS FROM edits", *both, code=2).stderr
    assert "the query writes" in scratch
    assert "several stores can only be read" in run("DELETE FROM s.edits", *both, "--write", code=2).stderr


def test_writing_is_asked_for_by_name(place, run):
    count = ("SELECT count(*) AS n FROM edits", *STORE, "--json")
    for query in (
        "DELETE FROM edits",
        "CREATE TABLE mine AS FROM edits",
        "DROP TABLE edits",
        "INSERT INTO edits FROM edits",
    ):
        assert "the query writes" in run(query, *STORE, code=2).stderr
    assert json.loads(
        run("CREATE TABLE mine AS FROM edits; SELECT count(*) AS n FROM mine", *STORE, "--write", "--json").stdout
    ) == [{"n": 60}]
    run("DELETE FROM edits; SELECT nothing", *STORE, "--write", code=2)
    assert "differs from this fasttrace" in run("ALTER TABLE edits DROP reason", *STORE, "--write", code=2).stderr
    assert json.loads(run(*count).stdout) == [{"n": 60}]
    run("DELETE FROM edits WHERE layer = 3", *STORE, "--write")
    assert json.loads(run(*count).stdout) == [{"n": 45}]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("SELEC 1", *STORE), 'syntax error at or near "SELEC"'),
        (("SELECT * FROM edit", *STORE), 'Table with name edit does not exist! Did you mean "edits"?'),
        (("SELECT $a", *STORE), "the query wants a value for a"),
        (("SELECT ?", *STORE), "expected named parameters ($name)"),
        (("SELECT 1", *STORE, "--param", "a"), "is not NAME=VALUE"),
        (("SELECT $a", *STORE, "--param", "a=[x"), "is not a list"),
        (("scores_by_layr", *STORE), "no saved query 'scores_by_layr': scores_by_layer"),
        (("no.sql", *STORE), "query file 'no.sql' could not be read"),
        (("latin.sql", *STORE), "is not UTF-8 text"),
        (("", *STORE), "the query: expected a statement, got an empty text"),
        (("/* nothing */", *STORE), "the query: expected a statement, got an empty text"),
        (("SELECT 1",), "no store was named"),
        (("SELECT 1", "--store", "none.duckdb"), "there is no store at none.duckdb"),
        (("SELECT 1", "--store", "latin.sql"), "is not a DuckDB file"),
        (("SELECT 1", *STORE, *STORE), "two stores are named 's'"),
        (("SELECT 1", *STORE, "--store", "b=none.duckdb"), "there is no store at none.duckdb"),
        (("SELECT 1", *STORE, "--json", "--csv"), "one of them was wanted"),
        (("SELECT 1", *STORE, "--out", "no/x.csv"), "'no/x.csv' cannot be written: there is no folder 'no'"),
        (("SELECT 1", *STORE, "--out", "."), "'.' cannot be written: expected a file, got a folder"),
        (("SELECT 1", *STORE, "--out", "s.duckdb"), "--store and --out are both 's.duckdb'"),
        (("SELECT 1", *STORE, "--queries", "no"), "there is no folder 'no'"),
    ],
)  # fmt: skip
def test_a_bad_question_is_one_sentence_and_exit_2(place, run, words, sentence):
    (place / "latin.sql").write_bytes("SELECT 'é'".encode("latin-1") * 500)
    done = run(*words, code=2)
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert sorted(path.name for path in place.iterdir()) == ["latin.sql", "s.duckdb"]


def test_a_file_that_cannot_be_written_stays_as_it_was(place, run):
    (place / "rows.parquet").write_text("mine")
    done = run("SELECT INTERVAL 1 MONTH AS m", *STORE, "--out", "rows.parquet", code=2)
    assert "could not be written" in done.stderr
    assert (place / "rows.parquet").read_text() == "mine"
    assert len(list(place.iterdir())) == 2


def test_a_locked_store_is_said(place, run):
    held = processes.Event()
    holder = processes.Process(target=other_process.hold, args=(place / "s.duckdb", held, 1.5))
    holder.start()
    assert held.wait(60)
    assert "stayed locked for 0.1 s" in run("SELECT 1", *STORE, "--wait", "0.1", code=2).stderr
    assert run("SELECT 1 AS a", *STORE, "--csv").stdout == "a\n1\n", "as soon as it is free"
    holder.join()


def test_whoever_reads_may_stop_reading(place):
    command = f"{sys.executable} -c '{ARGV[2]}' sql 'FROM range(300000)' --store s.duckdb --csv"
    script = f"{command} | head -n 2"
    done = subprocess.run(["sh", "-c", script], capture_output=True, text=True, timeout=120)
    assert (done.stdout, done.stderr) == ("range\n0\n", "")


def wide(rows=3):
    text = ["a long text that goes on and on", None, "b\n\x1b[31m[bold]"]
    return pa.table(
        {"name": text[:rows], "p": [1e-7, 0.25, None][:rows], **{f"column_{i}": [i] * rows for i in range(12)}}
    )


def test_a_table_fits_and_says_what_it_leaves_out():
    table = wide()
    lines = fit(table, 60).splitlines()
    assert max(map(len, lines)) <= 60
    assert re.fullmatch(r"14 columns, \d+ shown", lines[-1])
    assert "column_0" in lines[0]
    assert "column_11" in lines[0]
    assert "1.000e-07" in lines[2]
    whole = fit(table)
    assert "a long text that goes on and on" in whole
    assert "b\\n\\x1b[31m[bold]" in whole
    assert "shown" not in whole
    long = fit(pa.table({"x": list(range(1000))}), 80, 5).splitlines()
    assert [line.strip() for line in long[2:]] == ["0", "1", "2", "⋮", "998", "999", "1000 rows, 5 shown"]
    assert fit(pa.table({"x": pa.array([], pa.int32())})).endswith("0 rows\n")


def typed(store, text, show=lambda table: f"{table.to_pylist()}\n", write=False):
    """What a prompt is told, key by key, by a pipe."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        prompt = Prompt(store, saved_queries(), write, show)
        keys.send_text(text)
        prompt.run()
    return prompt


def test_the_prompt_answers_and_goes_on(place, capfd):
    typed(
        Store("s.duckdb"),
        "SELECT count(*) AS n\rFROM edits;\r"  # over two lines
        "SELECT nothing FROM edits;\r"
        "DELETE FROM edits;\r"
        "never run\x03"
        "SELECT 7 AS seven\r\r"  # ended by an empty line
        'fact_edits fact_ids=["f1"]\r'
        ".schema edits\r.schema edit\r.queries\r.tables\r.what\r.help\r"
        "\x04",
        show=lambda table: f"{table.slice(0, 1).to_pylist()}\n",
    )
    done = capfd.readouterr()
    assert "[{'n': 60}]" in done.out
    assert "[{'seven': 7}]" in done.out
    assert "{'fact_id': 'f1'" in done.out
    assert "edits: how one edit of one fact at one layer came out" in done.out
    assert "scores_by_layer" in done.out
    assert "Ctrl-C" in done.out
    said = [line for line in done.err.splitlines() if line.startswith("fasttrace: ")]
    assert len(said) == 4
    for line, sentence in zip(
        said, ("nothing", "the query writes", "no relation 'edit': edits", "no command .what"), strict=True
    ):
        assert sentence in line
    history = (place / "state" / "fasttrace" / "sql_history").read_text()
    assert "+SELECT count(*) AS n\n+FROM edits;" in history
    assert "never run" not in history


def completed(prompt, text):
    before, _, after = text.partition("|")
    document = Document(before + after, len(before))
    return [found.text for found in prompt.session.completer.get_completions(document, CompleteEvent())]


def test_the_prompt_completes(place):
    prompt = typed(Store("s.duckdb"), ".quit\r")
    assert completed(prompt, "sco")[0] == "scores_by_layer"
    assert completed(prompt, ".s") == [".schema"]
    assert completed(prompt, "SELECT rew| FROM edits")[0] == "rewrite"
    assert completed(prompt, "SELECT * FROM regr")[:2] == ["regression_rows", "regressions"]
    assert completed(prompt, "SELECT * FROM edits AS e WHERE e.lay") == ["layer"]
    assert "WHERE" in completed(prompt, "SELECT layer FROM edits WHE")
    both = typed(Stores({"a": "s.duckdb"}), "\x04")
    assert completed(both, "SELECT * FROM a.edi") == ["edits", "edit_prompts"] or "edits" in completed(
        both, "SELECT * FROM a.edi"
    )


def test_the_prompt_works_while_a_sweep_writes(tmp_path, monkeypatch, capfd):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    store, seen, counts = Store(tmp_path / "study.duckdb"), processes.Event(), []
    store.create()
    answered, ids = threading.Event(), [f"f{i}" for i in range(10)]
    writer = processes.Process(target=other_process.write_in_halves, args=(store.path, ids, seen))

    def show(table):
        counts.append(table["n"][0].as_py())
        if counts[-1]:
            seen.set()
        answered.set()
        return ""

    def keep_asking(keys):
        while writer.is_alive():
            answered.clear()
            keys.send_text("SELECT count(*) AS n FROM traces;\r")
            answered.wait(30)
            time.sleep(0.1)  # as a person does; the writer wants its turn
        keys.send_text("SELECT count(*) AS n FROM traces;\r\x04")

    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        prompt = Prompt(store, saved_queries(), False, show)
        writer.start()
        asking = threading.Thread(target=keep_asking, args=(keys,))
        asking.start()
        prompt.run()
        asking.join()
    writer.join()
    assert writer.exitcode == 0
    assert counts == sorted(counts)
    assert counts[-1] == 10
    assert any(0 < count < 10 for count in counts), "the prompt never looked in between"
    assert "fasttrace: " not in capfd.readouterr().err


def test_the_prompt_on_a_real_terminal(place):
    process, terminal = pty.fork()
    if process == 0:
        os.execve(ARGV[0], [*ARGV, "--store", "s.duckdb"], {**os.environ, "TERM": "xterm", "COLUMNS": "100"})
    screen = b""

    def wait_for(text, seconds=90):
        nonlocal screen
        deadline = time.monotonic() + seconds
        while text not in screen:
            assert time.monotonic() < deadline, screen
            if select.select([terminal], [], [], 0.1)[0]:
                new = os.read(terminal, 65536)
                if b"\x1b[6n" in new:  # it asks where the cursor is
                    os.write(terminal, b"\x1b[1;1R")
                screen += new
        screen = screen.partition(text)[2]

    try:
        wait_for(b"fasttrace>")
        os.write(terminal, b"SELECT 40 + 2 AS answer;\r")
        wait_for(b"42")
        os.write(terminal, b"SELECT wrong;\r")
        wait_for(b"fasttrace: the query failed: ")
        wait_for(b"fasttrace>")
        os.write(terminal, b"SELECT sum(a.range * b.range) FROM range(10000000) a, range(10000) b;\r")
        time.sleep(2)
        os.write(terminal, b"\x03")
        wait_for(b"the query was stopped")
        wait_for(b"fasttrace>")
        os.write(terminal, b"\x04")
        deadline = time.monotonic() + 30
        while os.waitpid(process, os.WNOHANG) == (0, 0):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    except BaseException:
        os.kill(process, 9)
        raise
    finally:
        os.close(terminal)
