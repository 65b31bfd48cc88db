"""The prompt of `fasttrace sql` through pipes and on a terminal: answers, completions, and stopping a query."""

import multiprocessing
import os
import pty
import select
import sys
import threading
import time

import other_process
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from fasttrace.analysis.saved import saved_queries
from fasttrace.cli.prompt import Prompt
from fasttrace.store import Store, Stores

ARGV = [sys.executable, "-c", "from fasttrace.cli import main; main()", "sql"]
processes = multiprocessing.get_context("forkserver")


def typed(store, text, show=lambda table: f"{table.to_pylist()}\n", write=False):
    """Run a prompt with `text` typed into it through a pipe. Return the prompt."""
    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        prompt = Prompt(store, saved_queries(), write, show)
        keys.send_text(text)
        prompt.run()
    return prompt


def test_the_prompt_answers_and_continues(place, capfd):
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
    assert "edits: the scores of one edit of one fact at one layer" in done.out
    assert "scores_by_layer" in done.out
    assert "Ctrl-C" in done.out
    said = [line for line in done.err.splitlines() if line.startswith("fasttrace: ")]
    assert len(said) == 4
    for line, sentence in zip(
        said, ("nothing", "the query writes", "no relation 'edit' (did you mean 'edits'", "got .what"), strict=True
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
    assert completed(prompt, "sco")[:3] == ["scored_edits", "scores_by_kind", "scores_by_layer"]
    assert completed(prompt, ".s") == [".schema"]
    assert completed(prompt, "SELECT rew| FROM edits")[0] == "rewrite"
    assert completed(prompt, "SELECT * FROM regr")[:2] == ["regression_rows", "regressions"]
    assert completed(prompt, "SELECT * FROM edits AS e WHERE e.lay") == ["layer"]
    assert "WHERE" in completed(prompt, "SELECT layer FROM edits WHE")
    both = typed(Stores({"a": "s.duckdb"}), "\x04")
    assert "edits" in completed(both, "SELECT * FROM a.edi")


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
            time.sleep(0.1)  # as a person would wait, so that the writer can open the file
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

    def wait_for(text, seconds=90, key=b""):
        """Press `key` every five seconds until `text` is on the screen."""
        nonlocal screen
        deadline, pressed = time.monotonic() + seconds, -5.0
        while text not in screen:
            assert time.monotonic() < deadline, screen
            if key and time.monotonic() > pressed + 5:
                pressed = time.monotonic()
                os.write(terminal, key)
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
        # Ctrl-C becomes a signal only once the prompt has given the terminal back, so it is pressed repeatedly.
        wait_for(b"the query was stopped", key=b"\x03")
        wait_for(b"fasttrace>")
        os.write(terminal, b"\x04")
        deadline = time.monotonic() + 30
        while os.waitpid(process, os.WNOHANG) == (0, 0):
            assert time.monotonic() < deadline
            time.sleep(0.05)
    except BaseException:
        os.kill(process, 9)
        os.waitpid(process, 0)
        raise
    finally:
        os.close(terminal)
