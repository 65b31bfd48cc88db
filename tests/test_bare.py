"""fasttrace without duckdb, gguf and prompt_toolkit, as on a machine lent for its GPU.

The tests start processes from which bench/bare hides these packages.
"""

import json
import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest

import fasttrace as ft
from fasttrace.cli import cli
from fasttrace.optional import NEEDED_BY

ROOT = Path(__file__).parents[1]
BARE = {"PYTHONPATH": str(ROOT / "bench" / "bare"), "OMP_NUM_THREADS": "1"}
GPU_TESTS = ("tests/ops", "tests/tracing/test_wavefront.py", "-m", "gpu", "--collect-only")

# Runs the commands given on stdin and prints a line of JSON, [exit code, stdout, stderr], for each.
SEVERAL = """
import contextlib, importlib.util, io, json, sys
import fasttrace, fasttrace.benchmarks
from fasttrace.cli import main

assert not any(map(importlib.util.find_spec, ("duckdb", "gguf", "prompt_toolkit")))
for words in json.load(sys.stdin):
    sys.argv, code, out, err = ["fasttrace", *words], 0, io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        try:
            main()
        except SystemExit as stopped:
            code = stopped.code
    print(json.dumps([code, out.getvalue(), err.getvalue()]))
"""


def started(*arguments, cwd=ROOT, env=BARE):
    pipes = dict.fromkeys(("stdin", "stdout", "stderr"), subprocess.PIPE)
    return subprocess.Popen([sys.executable, *arguments], cwd=cwd, env={**os.environ, **env}, text=True, **pipes)


def finished(process, text=""):
    """Return what the process printed. Fail with its output if its exit code is not 0."""
    out, err = process.communicate(text, timeout=300)
    assert process.returncode == 0, out + err
    return out


@pytest.fixture
def run_bare(workplace):
    """A function that runs commands in the workplace, in one bare process: [(exit code, stdout, stderr)]."""

    def call(commands):
        place = {**BARE, "XDG_CACHE_HOME": str(workplace / "cache")}
        out = finished(started("-c", SEVERAL, cwd=workplace, env=place), json.dumps(commands))
        return [tuple(json.loads(line)) for line in out.splitlines()]

    return call


@pytest.mark.slow  # .ci/run collects them by bench/device.sh
def test_every_gpu_test_is_collected():
    words = ("-m", "pytest", "-o", "addopts=--import-mode=importlib", "-p", "no:cacheprovider", "-q", *GPU_TESTS)
    both = [started(*words, env=env) for env in (BARE, {**BARE, "PYTHONPATH": ""})]
    bare, whole = ([line for line in finished(one).splitlines() if "::" in line] for one in both)
    assert bare == whole
    assert {line.partition("::")[0] for line in whole} > {"tests/ops/test_tiles.py", "tests/tracing/test_wavefront.py"}


def test_verbs_that_need_no_store_work(workplace, run_bare):
    fact = ft.load_facts(workplace / "facts.jsonl")[0].fact_id
    facts = ("--model", "model", "--facts", "facts.jsonl")
    corpus = ("--corpus", "text.txt", "--corpus-tokens", "1500", "--contexts", "2")
    quick = (*facts, *corpus, "--set", "steps=2")
    wanted = [
        (("--help",), "Trace facts in a language model"),
        *(((verb, "--help"), f"Example: fasttrace {verb}") for verb in cli.list_commands(None)),
        (("env", "--json"), '"not installed"'),
        (("study", "--list"), "demo"),
        (("study", "demo", "--show"), "[[edit]]"),
        (("bench", "--list"), "rms_norm"),
        (("facts", *facts, "--check"), "4 facts are known to model"),
        (("trace", *facts, "--keep", "all", "--sigma", "0.4", "--dry-run"), "expected time"),
        (("stats", "--model", "model", *corpus[:4]), "1500"),
        (("edit", *quick, "--layers", "2", "--fact-id", fact, "--essence", "0", "--delta", "one"), "rewrite"),
        (("mass", *quick, "--layer", "2", "--export", "all"), "n edits"),
        (("tune", *facts, "--layer", "2", "--method", "ft-1", "--set", "steps=2", "--values", "0.01"), "epsilon"),
        (("export", "--model", "model", "one", "again"), "the edited model is in again"),
    ]
    for (words, text), (code, out, err) in zip(wanted, run_bare([words for words, _ in wanted]), strict=True):
        assert code == 0, (words, err)
        assert text in out, words


def test_verbs_that_need_a_missing_package_name_it(workplace, run_bare):
    (workplace / "model.gguf").touch()
    facts, store = ("--model", "model", "--facts", "facts.jsonl"), ("--store", "x.duckdb")
    wanted = [
        *(((verb, *facts, *store), "duckdb") for verb in ("facts", "trace", "edit", "mass", "tune")),
        (("stats", "--model", "model", *store), "duckdb"),
        (("bench", *store), "duckdb"),
        (("study", "demo"), "duckdb"),
        (("demo", "--model", "model"), "duckdb"),
        (("sql", "FROM edits", *store), "duckdb"),
        (("sql", "--list"), "duckdb"),
        *(((verb, *store), "duckdb") for verb in ("tables", "figures", "report")),
        (("trace", "--dry-run"), "gguf"),
        (("stats", "--model", "model.gguf"), "gguf"),
    ]
    for (words, package), done in zip(wanted, run_bare([words for words, _ in wanted]), strict=True):
        said = f"{NEEDED_BY[package]} needs {package}, which is not installed here: pip install {package}"
        assert done == (2, "", f"fasttrace: {said}\n"), words
    assert not [path for path in workplace.iterdir() if path.name in ("x.duckdb", "demo", "figures", "report.html")]


def test_the_prompt_names_the_package_it_needs(workplace):
    """Run on a terminal, in a process from which only prompt_toolkit is hidden."""
    ft.Store(workplace / "empty.duckdb").create()
    alone = (
        "import sitecustomize as bare; bare.LACKING = bare.UNINSTALLED = {'prompt_toolkit'}; "
        "from fasttrace.cli import main; main()"
    )
    command = [sys.executable, "-c", alone, "sql", "--store", "empty.duckdb"]
    ours, terminal = pty.openpty()
    try:
        done = subprocess.run(
            command, cwd=workplace, env={**os.environ, **BARE}, stdin=terminal, stdout=terminal, stderr=subprocess.PIPE,
            text=True, timeout=300,
        )  # fmt: skip
    finally:
        os.close(ours)
        os.close(terminal)
    what = "the prompt of `fasttrace sql` or `fasttrace chat`"
    said = f"{what} needs prompt_toolkit, which is not installed here: pip install prompt_toolkit"
    assert (done.returncode, done.stderr) == (2, f"fasttrace: {said}\n")


def test_a_missing_package_is_an_import_error_in_python(workplace):
    script = """
import fasttrace as ft
for name in ("fasttrace.store", "fasttrace.store.query", "fasttrace.analysis.saved", "fasttrace.analysis.checks"):
    try:
        __import__(name)
    except ft.PackageError as error:
        assert isinstance(error, ImportError) and error.name == "duckdb", error
    else:
        raise AssertionError(name)
"""
    finished(started("-c", script, cwd=workplace))
