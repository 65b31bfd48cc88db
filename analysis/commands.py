"""Command lines that repeat the runs of a study on the same facts, in a new store."""

import json
import shlex
from typing import Any

from fasttrace.settings.base import RUN_COLUMNS, settings_of, text_of
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.mass import MassSettings
from fasttrace.settings.methods import hyperparameters
from fasttrace.settings.study import StudySettings
from fasttrace.settings.trace import TraceSettings
from fasttrace.store import Readable

from .naming import Row

AGAIN_STORE = "again.duckdb"
AGAIN = (
    "These commands export the facts from the store and repeat its runs in a new store. If a command is given this "
    "store instead, it resumes where it stopped and repeats nothing."
)
EXPORT = """import json, fasttrace
from fasttrace.analysis.relation import relation
for fact in relation({opening}, "facts_of_run", {{"run_id": {run}}}).to_pylist():
    print(json.dumps(fact))"""
# The kinds of runs that a command can repeat, and their settings.
KINDS = {"trace": TraceSettings, "edit": EditSettings, "mass": MassSettings}


def opening(store: Readable) -> str:
    """Python code that opens the store, or the stores."""
    files = {name: str(path.resolve()) for name, path in store.files.items()}
    return f"fasttrace.Store({json.dumps(files[''])})" if "" in files else f"fasttrace.Stores({json.dumps(files)})"


def store_options(store: Readable) -> str:
    """The options of a command that reads the store, or the stores."""
    files = {name: path.resolve() for name, path in store.files.items()}
    named = [str(path) if name in ("", path.stem) else f"{name}={path}" for name, path in files.items()]
    return " ".join(f"--store {shlex.quote(one)}" for one in named)


def run_commands(runs: list[Row], counts: dict[str, Row], opening: str) -> dict[str, list[str]]:
    """{run_id: [command that exports the run's facts from the store, command that repeats the run on them]}."""
    out = {}
    for run in runs:
        if run["kind"] not in KINDS:
            continue
        file = f"facts-{run['run_id'][:8]}.jsonl"
        script = EXPORT.format(opening=opening, run=json.dumps(run["run_id"]))
        words = ["fasttrace", run["kind"], *_options(run, counts[run["run_id"]]["layers"])]
        export = f"python -c {shlex.quote(script)} > {shlex.quote(file)}"
        out[run["run_id"]] = [export, " ".join([*words, "--facts", shlex.quote(file), "--store", AGAIN_STORE])]
    return out


def _options(run: Row, layers: Any) -> list[str]:
    """The command-line options that reproduce the settings of a run."""
    named = json.loads(run["settings"])
    columns = ("model", "dtype", *RUN_COLUMNS)
    values = {name: run[name] for name in columns} | named | {"layers": layers}
    asked = {name: settings_of(StudySettings)[name] for name in columns} | settings_of(KINDS[run["kind"]])
    words: list[str] = []
    for one in asked.values():
        value = values.get(one.stored)
        if one.kind.is_flag:
            words += [one.option] if value else []
        elif value is not None:
            words += [one.option, shlex.quote(text_of(value))]
    if "continued" in named:  # the file that has this SHA-256, which the run does not keep
        words += ["--continue-from", f"{named['continued']}.safetensors"]
    if "judge_model" in named:  # whose address the run does not keep
        words += ["--judge-url", "http://ADDRESS/v1"]
    if run["kind"] != "trace":
        for name in hyperparameters():
            if name in named:
                words += ["--set", shlex.quote(f"{name}={text_of(named[name])}")]
    return words


def commands(runs: list[Row], counts: dict[str, Row], opening: str) -> list[str]:
    """Command lines that repeat every trace, edit and mass run of the store, and write the report of the new runs."""
    lines = [line for both in run_commands(runs, counts, opening).values() for line in both]
    return [*lines, f"fasttrace report --store {AGAIN_STORE} --out again.html"]
