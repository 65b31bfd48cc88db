"""How to do a study again: the command lines of its runs, on the same facts, into a store of their own."""

import json
import shlex
from typing import Any

from .naming import Row

AGAIN_STORE = "again.duckdb"
AGAIN = (
    "These commands take the facts out of the store and do its runs again, into a store of their own. The same command "
    "on this store goes on where it stopped, and repeats nothing."
)
EXPORT = """import json, fasttrace
from fasttrace.analysis.relation import relation
for fact in relation(fasttrace.Store({store}), "facts_of_run", {{"run_id": {run}}}).to_pylist():
    print(json.dumps(fact))"""
COMMON = ("model", "dtype", "protocol", "seed")
_EDITING = (
    "method",
    "problem",
    "window_size",
    "contexts",
    "essence",
    "noise",
    "noise_sample",
    "sigma",
    "corpus",
    "ridge",
)
OPTIONS = {
    "trace": (
        "windows", "samples", "noise", "sigma", "module", "method", "verify_top", "tokens", "target", "keep",
    ),
    "edit": (*_EDITING, "corpus_tokens", "layers"),
    "mass": (*_EDITING, "corpus_tokens", "layer", "at_once", "score_every"),
}  # fmt: skip
# Hyperparameters of the editing methods, which `--set` takes (fasttrace.editing.hyperparameters, not imported here:
# a report needs no torch; tests compare the two).
SETTINGS = (
    "steps", "lr", "kl_factor", "weight_decay", "clamp", "key_mode", "early_stop", "covariance_weight", "epsilon",
    "bias",
)  # fmt: skip


def run_commands(runs: list[Row], counts: dict[str, Row], store_path: str) -> dict[str, list[str]]:
    """run_id → its two command lines: the facts out of the store, the run on them."""
    out = {}
    for run in runs:
        if run["kind"] not in OPTIONS:
            continue
        described = json.loads(run["settings"])
        settings = {key: run[key] for key in COMMON} | described
        settings["layers"] = counts[run["run_id"]]["layers"]
        file = f"facts-{run['run_id'][:8]}.jsonl"
        script = EXPORT.format(store=json.dumps(store_path), run=json.dumps(run["run_id"]))
        words = ["fasttrace", run["kind"]]
        for key in (*COMMON, *OPTIONS[run["kind"]]):
            if settings.get(key) is not None:
                words += [f"--{key.replace('_', '-')}", shlex.quote(_text(settings[key]))]
        if described.get("keep_samples"):
            words.append("--keep-samples")
        for name in SETTINGS:
            if run["kind"] != "trace" and name in described:
                words += ["--set", shlex.quote(f"{name}={_text(described[name])}")]
        export = f"python -c {shlex.quote(script)} > {shlex.quote(file)}"
        out[run["run_id"]] = [export, " ".join([*words, "--facts", shlex.quote(file), "--store", AGAIN_STORE])]
    return out


def commands(runs: list[Row], counts: dict[str, Row], store_path: str) -> list[str]:
    """Command lines that do every run of the store again, and the report of them."""
    lines = [line for both in run_commands(runs, counts, store_path).values() for line in both]
    return [*lines, f"fasttrace report --store {AGAIN_STORE} --out again.html"]


def _text(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    return ",".join(map(str, value)) if isinstance(value, list) else str(value)
