"""Every setting of every type is in the function's signature and help, the command line, the study file, the run's name
and the command that repeats the run."""

import inspect
import json
import shlex
from pathlib import Path

import pytest

import fasttrace as ft
from fasttrace.analysis.commands import KINDS, run_commands
from fasttrace.cli import cli
from fasttrace.editing import EditResult
from fasttrace.settings.base import RUN_COLUMNS, run_settings, settings_of, text_of
from fasttrace.settings.cluster import ClusterSettings, WorkerSettings
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.export import ExportSettings
from fasttrace.settings.generate import GenerateSettings
from fasttrace.settings.mass import MassSettings, TuneSettings
from fasttrace.settings.methods import METHODS, hyperparameters, method_settings
from fasttrace.settings.moments import MomentSettings
from fasttrace.settings.study import TABLES, keys
from fasttrace.settings.trace import TraceSettings
from fasttrace.studies.load import load_study

FUNCTIONS = {
    TraceSettings: ft.trace, EditSettings: ft.edit, MassSettings: ft.mass_edit, MomentSettings: ft.second_moments,
    GenerateSettings: ft.generate, ExportSettings: EditResult.export,
}  # fmt: skip
VERBS = {
    "trace": TraceSettings, "edit": EditSettings, "mass": MassSettings, "stats": MomentSettings, "tune": TuneSettings,
    "chat": GenerateSettings, "export": ExportSettings,
}  # fmt: skip
ARGUMENTS = {"export": [__file__, "a-new-folder"]}  # that a verb needs
# Settings that a study file names otherwise or has in another table. None: it follows from other keys.
ELSEWHERE = {
    "trace": {"keep": None},
    "moments": {"layers": None},
    "edit": {
        "method": ("edit", "methods"), "problem": ("edit", "problems"), "hyperparameters": ("edit", "set"),
        "corpus": ("moments", "corpus"), "corpus_tokens": ("moments", "tokens"), "ridge": ("moments", "ridge"),
    },
}  # fmt: skip
# Settings that a run has otherwise: σ as a number, a file as its hash, and a judge by the name of its model.
ELSEWHERE_IN_RUNS = {"memory", "sigma_facts", "continue_from", "judge_url", "judge_model", "judge_timeout"}
# Setting → the settings that it requires.
COMPANIONS = {
    "verify_top": {"method": "attribution"}, "heads": {"module": "head"}, "trace.experts": {"module": "expert"},
    "rect_share": {"after": "rect"}, "prune_base": {"after": "prune"}, "held_out_tokens": {"held_out": __file__},
    "lm_eval_limit": {"lm_eval": ["a"]}, "lm_eval_tasks": {"lm_eval": ["a"]},
    "stop": {"generate": 1}, "gpus_per_worker": {"workers": 2},
    "judge_url": {"judge_model": "m", "generate": 1},
    "judge_model": {"judge_url": "http://u/v1", "generate": 1},
}  # fmt: skip


def companions(verb, name):
    """The settings without which a verb's setting is refused."""
    return COMPANIONS.get(f"{verb}.{name}", COMPANIONS.get(name, {}))


def every(kinds):
    """Parametrize a test with every (type, setting)."""
    found = [(kind, one) for kind in kinds for one in settings_of(kind).values()]
    return pytest.mark.parametrize(("kind", "one"), found, ids=[f"{k.__name__}-{one.name}" for k, one in found])


def another(kind, one):
    """Return a value of a setting that is not its default."""
    if one.name == "hyperparameters":
        return method_settings(settings_of(kind)["method"].default, {"steps": 7})
    if one.kind.is_path:
        return __file__
    for value in (
        True,
        7,
        0.25,
        "7MB",
        *one.kind.choices,
        "http://localhost/v1",
        "2/3",
        [7],
        [0.25],
        ["memit"],
        ["fact-erasure"],
        {"a": "b"},
    ):
        try:
            if one.convert(value) != one.default:
                return one.convert(value)
        except ft.UserError:
            continue
    raise AssertionError(f"no value of {one.name} was found")


@every(FUNCTIONS)
def test_a_setting_is_in_the_signature_and_the_help(kind, one):
    parameter = inspect.signature(FUNCTIONS[kind]).parameters[one.name]
    assert (parameter.default, parameter.annotation) == (one.default, one.annotation)
    words = " ".join(inspect.getdoc(FUNCTIONS[kind]).split())
    assert f"{one.name}: {one.description}" in words


@pytest.mark.parametrize("function", [ft.edit, ft.mass_edit], ids=lambda function: function.__name__)
@pytest.mark.parametrize("one", hyperparameters().values(), ids=lambda one: one.name)
def test_the_signature_has_every_methods_hyperparameters(function, one):
    assert inspect.signature(function).parameters[one.name].annotation == one.annotation
    assert f"{one.name}: " in inspect.getdoc(function)


@pytest.mark.parametrize("verb", VERBS)
def test_the_command_line_has_every_setting(verb):
    options = {option.opts[0]: option for option in cli.get_command(None, verb).params}
    for one in settings_of(VERBS[verb]).values():
        option = options[one.option]
        if one.name == "hyperparameters":
            assert all(name in option.help for name in hyperparameters())
            continue
        assert option.help == one.description
        context = cli.get_command(None, verb).make_context(verb, [*ARGUMENTS.get(verb, ())])
        assert context.params[one.name] == one.default


@pytest.mark.parametrize("function", [ft.trace, ft.edit, ft.second_moments], ids=lambda function: function.__name__)
def test_the_signature_says_who_computes(function):
    for one in settings_of(WorkerSettings).values():
        assert inspect.signature(function).parameters[one.name].annotation == one.annotation
        assert f"{one.name}: {one.description}" in " ".join(inspect.getdoc(function).split())


@pytest.mark.parametrize("verb", ["facts", "trace", "edit", "stats", "study"])
def test_the_command_line_says_who_computes(verb):
    options = {option.opts[0]: option for option in cli.get_command(None, verb).params}
    assert all(options[one.option].help == one.description for one in settings_of(ClusterSettings).values())


@every([TraceSettings, MomentSettings, EditSettings])
def test_a_setting_is_in_the_study_file(kind, one):
    table = {TraceSettings: "trace", MomentSettings: "moments", EditSettings: "edit"}[kind]
    place = ELSEWHERE[table].get(one.name, (table, one.name))
    if place is not None:
        assert place[1] in [*keys(place[0]), *(keys("study") if place[0] == table else [])]


@pytest.mark.parametrize("table", TABLES)
def test_a_study_file_with_every_key_is_read(table, tmp_path):
    for key in keys(table):
        kind = TABLES[table][0]
        one = settings_of(kind)[key]
        value = {"steps": 7} if key == "set" else another(kind, one)
        table_of = {"set": "{ steps = 7 }", "map": '{ a = "b" }'}
        line = f"{key} = {table_of.get(key) or json.dumps(value)}"
        more = "".join(f"{name} = {json.dumps(needed)}\n" for name, needed in companions(table, key).items())
        head = {"study": "", "trace": "[[trace]]\n", "edit": "[[edit]]\n"}.get(table, f"[{table}]\n")
        path = tmp_path / f"{key}.toml"
        tail = '[[trace]]\ncorruption = "counterfactual"\n' if key == "pairs" else ""  # which pairs are for
        path.write_text(f"{head}{line}\n{more}{tail}")
        study = load_study(str(path))
        read = {"study": [study.settings], "facts": [study.facts], "moments": [study.moments]}
        [found] = {**read, "trace": study.traces, "edit": study.edits}[table]
        assert getattr(found, key) == value


@every(KINDS.values())
def test_a_setting_is_in_the_run_and_in_the_command_that_repeats_it(kind, one):
    """Parsing the command gives the same settings, once "…/" is the folder that it stands for."""
    [verb] = [verb for verb, settings in KINDS.items() if settings is kind]
    made = kind(**{one.name: another(kind, one)}, **companions(verb, one.name))
    named = run_settings(made)
    assert (one.stored in named) == (one.names_run != "never" and one.name not in RUN_COLUMNS)
    own = getattr(made, "hyperparameters", None)
    columns = {name: getattr(made, name) for name in RUN_COLUMNS}
    run = {"run_id": "0123456789", "kind": verb, "model": "llama", "dtype": "float32", **columns}
    run["settings"] = json.dumps(named | (run_settings(own) if own is not None else {}))
    layers = None if verb != "edit" or made.layers is None else list(made.layers)
    [_, line] = run_commands([run], {"0123456789": {"layers": layers}}, 'fasttrace.Store("study.duckdb")')["0123456789"]
    _, told, *words = shlex.split(line.replace("…/", f"{Path(__file__).parent}/"))
    assert told == verb
    given = cli.get_command(None, verb).make_context(verb, words).params
    if one.name == "hyperparameters":
        assert method_settings(made.method, given["own"]) == made.hyperparameters
    elif one.name not in ELSEWHERE_IN_RUNS:
        assert given[one.name] == getattr(made, one.name)


@pytest.mark.parametrize("method", METHODS)
def test_the_command_repeats_every_methods_hyperparameters(method):
    kind = METHODS[method].settings
    own = kind(**{name: another(kind, one) for name, one in settings_of(kind).items() if one.names_run != "never"})
    run = {"run_id": "0", "kind": "edit", "model": "m", "dtype": "float32", "protocol": "paper", "seed": 0}
    run["settings"] = json.dumps({"method": method, **run_settings(own)})
    [_, line] = run_commands([run], {"0": {"layers": [1]}}, 'fasttrace.Store("study.duckdb")')["0"]
    given = cli.get_command(None, "edit").make_context("edit", shlex.split(line)[2:]).params
    assert method_settings(method, given["own"]) == own
    assert given["own"] == {name: text_of(getattr(own, name)) for name in own.given}


def test_of_an_added_method_a_comment_says_who_can_repeat_the_run():
    """The method's code is in no store, and the command line does not have it."""
    run = {"run_id": "0", "kind": "mass", "model": "m", "dtype": "float32", "protocol": "paper", "seed": 0}
    run["settings"] = json.dumps({"method": "mine"})
    [export, line] = run_commands([run], {"0": {"layers": None}}, 'fasttrace.Store("study.duckdb")')["0"]
    assert export.endswith(" > facts-0.jsonl")
    assert line.startswith("# facts-0.jsonl: an added method, mine, made this mass run: only Python, ")
