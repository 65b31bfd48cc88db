"""--help of every verb imports nothing large. A verb that runs imports it before it begins."""

import json
import subprocess
import sys

import pytest

from fasttrace.cli import boundary

LARGE = {"torch", "transformers", "duckdb", "matplotlib", "statsmodels", "pyarrow", "numpy", "scipy", "rich"}
PROGRAM = """
import contextlib, io, json, sys
from fasttrace.cli import main
sys.argv, said, code = ["fasttrace", *json.loads(sys.argv[1])], io.StringIO(), 0
with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
    try:
        main()
    except SystemExit as end:
        code = end.code
print(json.dumps([code, said.getvalue(), sorted(sys.modules)]))
"""


def ran(*words):
    """(exit code, what it printed, the modules it imported) of a command in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, json.dumps(words)], capture_output=True, text=True, check=True, timeout=60
    )
    code, said, modules = json.loads(done.stdout)
    return code, said, set(modules)


@pytest.mark.parametrize("verb", boundary.VERBS)
def test_help_imports_nothing_large(verb):
    code, said, modules = ran(verb, "--help")
    assert code == 0
    assert said.startswith(f"Usage: fasttrace {verb}")
    assert modules & LARGE == set()


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("trace", "-h"), ("trace", "--no-such-option")])
def test_so_does_whatever_runs_no_verb(words):
    assert ran(*words)[2] & LARGE == set()


def test_help_after_other_options_is_still_only_help():
    code, said, modules = ran("trace", "--store", "no/folder/s.duckdb", "--limit", "none", "-h")
    assert code == 0
    assert said.startswith("Usage: fasttrace trace")
    assert modules & LARGE == set()


def test_a_value_named_like_help_is_no_request_for_it():
    code, said, modules = ran("trace", "--limit", "--help")
    assert code == 2
    assert "torch" in modules
    assert "expected a whole number" in said
