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

from .naming import Row

AGAIN_STORE = "again.duckdb"
AGAIN = (
    "These commands export the facts from the store and repeat its runs in a new store. If a command is given this "
    "store instead, it resumes where it stopped and repeats nothing."
)
EXPORT = """import json, fasttrace
from fasttrace.analysis.relation import relation
for fact in relation(fasttrace.Store({store}), "facts_of_run", {{"run_id": {run}}}).to_pylist():
    print(json.dumps(fact))"""
# The kinds of runs that a command can repeat, and their settings.
KINDS = {"trace": TraceSettings, "edit": EditSettings, "mass": MassSettings}


def run_commands(runs: list[Row], counts: dict[str, Row], store_path: str) -> dict[str, list[str]]:
    """{run_id: [command that exports the run's facts from the store, command that repeats the run on them]}."""
    out = {}
    for run in runs:
        if run["kind"] not in KINDS:
            continue
        file = f"facts-{run['run_id'][:8]}.jsonl"
        script = EXPORT.format(store=json.dumps(store_path), run=json.dumps(run["run_id"]))
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
    for name, one in asked.items():
        value = values.get(name)
        if one.kind is not None and one.kind.is_flag:
            words += [one.option] if value else []
        elif value is not None:
            words += [one.option, shlex.quote(text_of(value))]
    if run["kind"] != "trace":
        for name in hyperparameters():
            if name in named:
                words += ["--set", shlex.quote(f"{name}={text_of(named[name])}")]
    return words


def commands(runs: list[Row], counts: dict[str, Row], store_path: str) -> list[str]:
    """Command lines that repeat every trace, edit and mass run of the store, and write the report of the new runs."""
    lines = [line for both in run_commands(runs, counts, store_path).values() for line in both]
    return [*lines, f"fasttrace report --store {AGAIN_STORE} --out again.html"]
