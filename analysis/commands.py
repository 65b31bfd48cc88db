"""Command lines that repeat the runs of a study on the same facts, in a new store."""

import json
import os
import re
import shlex
from pathlib import Path, PurePath
from typing import Any

from fasttrace.settings.base import RUN_COLUMNS, settings_of, text_of
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.mass import MassSettings
from fasttrace.settings.methods import hyperparameters, is_shipped
from fasttrace.settings.study import StudySettings
from fasttrace.settings.trace import TraceSettings
from fasttrace.store import Readable
from fasttrace.store.quack import Address

from .naming import Row

AGAIN_STORE = "again.duckdb"
AGAIN = (
    "These commands export the facts from the store and repeat its runs in a new store. They run in the folder that "
    "holds the store. If a command is given this store instead, it resumes where it stopped and repeats nothing."
)
PLACES = "“…/” stands for a folder of the machine on which the runs were made."
EXPORT = """import json, fasttrace
from fasttrace.analysis.relation import relation
for fact in relation({opening}, "facts_of_run", {{"run_id": {run}}}).to_pylist():
    print(json.dumps(fact))"""
ADDED = "# {file}: an added method, {method}, made this {kind} run: only Python, after add_method, can repeat it"
# The kinds of runs that a command can repeat, and their settings.
KINDS = {"trace": TraceSettings, "edit": EditSettings, "mass": MassSettings}


def file_names(store: Readable) -> dict[str, str]:
    """{name: file} of the store or stores, as seen from the folder that holds them all, so that no page or command has
    a path of the machine that made it. A server's address is as it is."""
    files = {name: os.path.abspath(path) for name, path in store.files.items() if not isinstance(path, Address)}
    home = os.path.commonpath([os.path.dirname(path) for path in files.values()]) if files else ""
    return {
        name: Path(os.path.relpath(files[name], home)).as_posix() if name in files else str(path)
        for name, path in store.files.items()
    }


def portable(value: Any) -> Any:
    """A setting, or settings, as JSON values. Of a path on the machine that made the run, "…/" and the last part."""
    if isinstance(value, dict):
        return {name: portable(one) for name, one in value.items()}
    if isinstance(value, list | tuple):
        return [portable(one) for one in value]
    on_machine = isinstance(value, str) and re.match(r"(/|~|[A-Za-z]:[\\/])", value)
    return f"…/{PurePath(value).name}" if on_machine else value


def opening(store: Readable) -> str:
    """Python code that opens the store, or the stores, in the folder that holds them."""
    files = file_names(store)
    return f"fasttrace.Store({json.dumps(files[''])})" if "" in files else f"fasttrace.Stores({json.dumps(files)})"


def store_name(store: Readable) -> str:
    """The store in a command that a user is to run here and that writes to it: below the working directory its path
    from there, else its path as given. "…" for a folder of Parquet files, which is only read."""
    path = next(iter(store.files.values()))
    if path.is_dir():
        return "…"
    here = Path.cwd()
    return shlex.quote(str(path.relative_to(here) if path.is_relative_to(here) else path))


def store_options(store: Readable) -> str:
    """The options of a command that reads the store, or the stores, in the folder that holds them."""
    files = file_names(store)
    named = [file if name in ("", PurePath(file).stem) else f"{name}={file}" for name, file in files.items()]
    return " ".join(f"--store {shlex.quote(one)}" for one in named)


def run_commands(runs: list[Row], counts: dict[str, Row], opening: str) -> dict[str, list[str]]:
    """{run_id: [command that exports the run's facts from the store, command that repeats the run on them]}.

    The command line has no method that `add_method` added: in place of the second command is a comment that says so.
    """
    out = {}
    for run in runs:
        if run["kind"] not in KINDS:
            continue
        file = f"facts-{run['run_id'][:8]}.jsonl"
        script = EXPORT.format(opening=opening, run=json.dumps(run["run_id"]))
        export = f"python -c {shlex.quote(script)} > {shlex.quote(file)}"
        if run["kind"] != "trace" and not is_shipped(method := json.loads(run["settings"])["method"]):
            out[run["run_id"]] = [export, ADDED.format(method=method, file=file, kind=run["kind"])]
            continue
        words = ["fasttrace", run["kind"], *_options(run, counts[run["run_id"]]["layers"])]
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
            words += [one.option, shlex.quote(text_of(portable(value)))]
    if "continued" in named:  # the file that has this SHA-256, which the run does not keep
        words += ["--continue-from", f"{named['continued']}.safetensors"]
    if "judge_model" in named:  # whose address the run does not keep
        words += ["--judge-url", "http://ADDRESS/v1"]
    if run["kind"] != "trace":
        for name in hyperparameters():
            if name in named:
                words += ["--set", shlex.quote(f"{name}={text_of(portable(named[name]))}")]
    return words


def commands(runs: list[Row], counts: dict[str, Row], opening: str) -> list[str]:
    """Command lines that repeat every trace, edit and mass run of the store, and write the report of the new runs."""
    lines = [line for both in run_commands(runs, counts, opening).values() for line in both]
    return [*lines, f"fasttrace report --store {AGAIN_STORE} --out again.html"]
