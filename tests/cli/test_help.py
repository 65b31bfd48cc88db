"""--help: an example that works, options by heading, nothing large imported; a mistyped word is told the nearest."""

import json
import re
import shlex
import shutil
import subprocess
import sys

import click
import pytest

from fasttrace.cli import cli
from fasttrace.cli.verbs import FIRST, GROUPS, VERBS
from fasttrace.settings.base import settings_of
from fasttrace.settings.cluster import ClusterSettings
from fasttrace.settings.study import FactSettings
from fasttrace.settings.trace import TraceSettings

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


@pytest.mark.parametrize("verb", VERBS)
def test_help_begins_with_an_example_and_imports_nothing_large(verb):
    code, said, modules = ran(verb, "--help")
    assert code == 0
    assert re.match(rf"Example: fasttrace {verb}[^\n]*\n\nUsage: fasttrace {verb}", said)
    assert modules & LARGE == set()


@pytest.mark.parametrize("words", [("--help",), ("--version",), ("trace", "-h"), ("trace", "--no-such-option")])
def test_so_does_whatever_runs_no_verb(words):
    assert ran(*words)[2] & LARGE == set()


def test_help_after_other_options_is_still_only_help():
    code, said, modules = ran("trace", "--store", "no/folder/s.duckdb", "--limit", "none", "-h")
    assert code == 0
    assert "Usage: fasttrace trace" in said
    assert modules & LARGE == set()


def test_a_value_named_like_help_is_no_request_for_it():
    code, said, modules = ran("trace", "--limit", "--help")
    assert code == 2
    assert "torch" in modules
    assert "expected a whole number" in said


def words_of(verb):
    return shlex.split(VERBS[verb].example)


@pytest.mark.parametrize("verb", VERBS)
def test_every_example_is_read_without_error(verb, place):
    shutil.copy("s.duckdb", "study.duckdb")  # what the examples before it have made
    if verb != "mass":
        (place / "many.safetensors").touch()
    name, *words = words_of(verb)
    assert name == verb
    cli.get_command(None, verb).make_context(verb, words)


def test_examples_work(run):
    """Those that need no model; tests/cli/test_examples.py runs the others."""
    assert "tokens" in run(*words_of("facts")).stdout
    assert "complete -o nosort -F" in run(*words_of("completion")).stdout
    assert "(SmolLM2-135M-Instruct, dequantised from a Q4_1 GGUF)" in run(*words_of("models")).stdout


@pytest.mark.parametrize("verb", VERBS)
def test_every_option_has_one_heading_and_says_its_default(verb):
    shown = [name for names in headings(verb).values() for name in names]
    for option in (one for one in cli.get_command(None, verb).params if isinstance(one, click.Option)):
        assert shown.count(option.opts[0]) == 1
        assert option.help
        assert option.is_flag or option.show_default or option.default in (None, *NONE)


NONE = (click.Option(["--x"]).default,)  # what click makes of an option without a default


def headings(verb):
    """{heading: names of the options below it, in order} of a verb's help."""
    command = cli.get_command(None, verb)
    found = {}
    for line in command.get_help(click.Context(command, info_name=verb)).splitlines():
        if heading := re.fullmatch(r"([A-Z][\w ]*):", line):
            found[heading[1]] = []
        elif (option := re.match(r"  (?:-\w, )?(--[\w-]+)", line)) and found:
            found[[*found][-1]].append(option[1])
    return found


def test_options_of_settings_are_under_the_heading_of_their_type():
    found = headings("trace")
    assert list(found) == ["Facts", "Model", "Intervention", "Noise", "Run", "Machines", "Output"]
    own = {one.option for one in settings_of(TraceSettings).values() if one.heading == "Intervention"}
    assert {"--module", "--windows", "--metric"} < own == set(found["Intervention"])
    assert {"--sigma", "--noise"} < set(found["Noise"])
    assert set(found["Run"]) == {"--protocol", "--seed", "--memory"}, "where they are declared first"
    assert found["Machines"] == [one.option for one in settings_of(ClusterSettings).values()]
    assert {one.heading for one in settings_of(FactSettings).values()} == {"Facts"}


def test_the_verbs_are_grouped_and_the_first_line_is_a_command(run):
    shown = run("--help").stdout
    assert shown.startswith(f"Example: fasttrace {FIRST}\n")
    verb, *words = shlex.split(FIRST)
    assert cli.get_command(None, verb).make_context(verb, words).params["prompt"] == "The {} is in the city of"
    assert re.findall(r"^([A-Z]\w+):$", shown, re.MULTILINE) == ["Options", *GROUPS]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("trase",), "No such command 'trase'. Did you mean 'trace'?"),
        (("no-such-verb",), "No such command 'no-such-verb'."),
        (("--versoin",), "No such option '--versoin'. Did you mean '--version'?"),
        (("trace", "--limt", "3"), "No such option '--limt'. Did you mean '--limit'?"),
        (("edit", "--stoer", "x"), "No such option '--stoer'. Did you mean '--store'?"),
        (("trace", "--qqq"), "No such option '--qqq'."),
        (("trace", "--method", "denois"), "trace: method: expected one of .*, got 'denois' (did you mean 'denoise'?)"),
        (("trace", "--heads", "al"), "trace: heads: expected .*, got 'al' (did you mean 'all'?)"),
        (("edit", "--method", "romm"), "edit: method: expected one of .*, got 'romm' (did you mean 'rome'?)"),
        (("facts", "--format", "counterfacts"), "facts: format: .* (did you mean 'counterfact'?)"),
        (("tables", "--format", "latx"), "Invalid value for '--format': 'latx' is not .* (did you mean 'latex'?)"),
        (("figures", "role"), "Invalid value for .*, got 'role' (did you mean 'roles'?)"),
        (("edit", "--set", "epsilom=3"), "--set: no hyperparameter has the name 'epsilom'; did you mean 'epsilon'?"),
        (("study", "smollm-135m"), "expected a .toml file .*, got 'smollm-135m' (did you mean 'smollm2-135m'?)"),
        (("facts", "--check", "--limit", "1", "--model", "smollm-135m"), "model 'smollm-135m': .* 'smollm2-135m'?)"),
        (("facts", "--relation", "city_contry"), "no usable fact .*'city_contry' (did you mean '.*'?); .*"),
        (
            ("edit", "--fact-id", "builtin/eiffel", "--store", "x.duckdb"),
            "no fact has the fact_id 'builtin/eiffel' (did you mean 'builtin/.*'?)",
        ),
        (("regress", "bot", "--store", "s.duckdb"), "expected a formula .*, got 'bot' (did you mean 'both'?).*"),
        (("bench", "rms_nrm"), "op: expected one of .*, got 'rms_nrm' (did you mean 'rms_norm'?)"),
        (("bench", "rms_norm", "--size", "row=3"), "rms_norm has no size 'row'; .* (did you mean 'rows'?)"),
    ],
)
def test_a_mistyped_word_is_told_the_nearest(run, words, sentence):
    said = run(*words, code=2).stderr
    pattern = ".*".join(re.escape(part) for part in sentence.split(".*"))
    assert re.fullmatch(f"fasttrace: {pattern}\n", said), said
