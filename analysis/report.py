"""`write_report`: a study as one HTML file, to be read without network, other files or fasttrace."""

import json
import os
import shlex
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path

import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined

from fasttrace.errors import StoreError
from fasttrace.store import Store

from .draw import SCORES
from .embed import drawings, embedded
from .naming import Row, group_names, in_group, number, p_cell
from .regression import layer_correlations, layer_means, regressions
from .relation import relation
from .sentences import R2_NOTE, answer, byline, pick_note

AGAIN_STORE = "again.duckdb"
AGAIN = (
    "These commands take the facts out of the store and do its traces and edits again, into a store of their "
    "own. The same command on this store goes on where it stopped, and repeats nothing."
)
EXPORT = """import json, fasttrace
from fasttrace.analysis.relation import relation
for fact in relation(fasttrace.Store({store}), "facts_of_run", {{"run_id": {run}}}).to_pylist():
    print(json.dumps(fact))"""
MEAN_KEYS = ("problem", "method", "edit_run_id", "window_size", "layer")
COMMON = ("model", "dtype", "protocol", "seed")
OPTIONS = {
    "trace": ("windows", "samples", "noise", "sigma", "tokens", "keep"),
    "edit": ("method", "problem", "window_size", "layers", "contexts", "corpus", "corpus_tokens"),
}


def write_report(store: Store, path: str | Path, max_facts: int = 500) -> Path:
    """Write everything the store holds about a study into one HTML file; returns its path.

    The file loads nothing; `<file>#fact=<fact_id>` opens it with that fact picked.
    max_facts: how many facts' grids are embedded to pick from; the report says so where there are more.
    Raises StoreError where the store has no trace and no edit.
    """
    path = Path(path)
    runs = relation(store, "all_runs").to_pylist()
    counts = {row["run_id"]: row for row in relation(store, "run_counts").to_pylist()}
    names = relation(store, "fact_names").to_pylist()
    if not names:
        raise StoreError(f"{store.path} holds no trace and no edit, so there is nothing to report")

    fits = regressions(store, score="rewrite").to_pylist()
    means = pa.concat_tables([layer_means(store, score) for score in SCORES]).to_pylist()
    rhos = layer_correlations(store, "rewrite").to_pylist()
    curve = relation(store, "mean_effect").to_pylist()
    left_out = relation(store, "left_out").to_pylist()
    models = sorted({run["model"] for run in runs if run["kind"] in ("trace", "edit")})
    shown = names[:max_facts]

    sections = [
        ("answer", "Answer", True),
        ("r2", "What predicts success", bool(fits)),
        ("layers", "Scores by layer", bool(means)),
        ("tracing", "Tracing", bool(curve)),
        ("pick", "Pick a fact", True),
        ("run", "What was run", True),
        ("again", "How to do it again", True),
    ]
    page = (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=f"Does localization inform editing? {', '.join(models)}",
            byline=byline(runs, names),
            sections=[{"id": key, "name": name} for key, name, there in sections if there],
            answer=answer(fits, means, curve),
            r2_table=r2_table(fits) if fits else None,
            r2_note=R2_NOTE,
            layer_table=layer_table(means, curve, rhos) if means else None,
            figures=drawings(store, fits, means, curve),
            n_embedded=len(shown),
            pick_note=pick_note(len(shown), len(names)),
            data=embedded(store, shown),
            count_table=count_table(names, runs, counts, means),
            left_out_table=left_out_table(left_out) if left_out else None,
            run_table=run_table(runs, counts),
            again_note=AGAIN,
            commands=commands(runs, counts, str(store.path.resolve())),
            settings=[
                {**run, "settings": json.dumps(json.loads(run["settings"]), indent=2, ensure_ascii=False)}
                for run in runs
            ],
            version=version("fasttrace"),
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            store_path=str(store.path),
        )
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    # Written beside its place and renamed: a reader finds the whole report or none.
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        draft.write_text(page, encoding="utf-8")
        draft.replace(path)
    finally:
        draft.unlink(missing_ok=True)
    return path


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("fasttrace.analysis", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
        lstrip_blocks=False,
    )


# -- tables -----------------------------------------------------------------------------------------------


def _columns(*names: str) -> list[Row]:
    """Column heads; a leading '#' marks numbers (right-aligned), '~' text that may wrap."""
    return [
        {"name": name.lstrip("#~"), "numeric": name.startswith("#"), "wrap": name.startswith("~")}
        for name in names
    ]


def r2_table(fits: list[Row]) -> Row:
    names = list(group_names(fits).values())
    return {
        "caption": "Share of the variance of the rewrite score explained (R²).",
        "columns": _columns(
            "problem · method",
            "#edits",
            "#facts",
            "#left out",
            "#R² layer",
            "#R² effect",
            "#R² both",
            "#gain",
            "#F (df)",
            "#p",
        ),
        "rows": [
            [
                name,
                f"{row['n']:,}",
                f"{row['n_facts']:,}",
                f"{row['n_left_out']:,}",
                number(row["r2_layer"]),
                number(row["r2_effect"]),
                number(row["r2_both"]),
                number(row["diff"]),
                "–"
                if row["f_value"] is None
                else f"{number(row['f_value'], 2)} ({row['df_num']:.0f}, {row['df_den']:.0f})",
                p_cell(row["p_value"]),
            ]
            for name, row in zip(names, fits, strict=True)
        ],
    }


def layer_table(means: list[Row], curve: list[Row], rhos: list[Row]) -> Row:
    """One row an edited layer of each regression: mean effect, mean scores, ρ of effect and rewrite score."""
    effects = {(row["trace_run_id"], row["window_size"], row["layer"]): row["mean_effect"] for row in curve}
    found = {(*(row[key] for key in MEAN_KEYS), row["score"]): row for row in means}
    scores = [
        score for score in SCORES if any(row["score"] == score and row["mean"] is not None for row in means)
    ]
    names = group_names(rhos)
    rows = []
    for group, name in names.items():
        for rho in sorted(in_group(rhos, group), key=lambda row: row["layer"]):
            here = [found[(*(rho[key] for key in MEAN_KEYS), score)] for score in scores]
            effect = effects.get((rho["trace_run_id"], rho["window_size"], rho["layer"]))
            count = max(mean["n"] for mean in here)
            cells = [f"{number(mean['mean'])} ± {number(mean['sem'])}" for mean in here]
            correlation = [number(rho["rho"], 2), p_cell(rho["p_value"])]
            lead_cells = [name] if len(names) > 1 else []
            rows.append([*lead_cells, str(rho["layer"]), f"{count:,}", number(effect), *cells, *correlation])
    lead = ["problem · method", "#layer"] if len(names) > 1 else ["#layer"]
    return {
        "caption": "Means over facts ± standard error; ρ is the correlation of tracing effect and rewrite "
        "score at the layer.",
        "columns": _columns(
            *lead, "#edits", "#mean effect", *(f"#{score}" for score in scores), "#ρ", "#p of ρ"
        ),
        "rows": rows,
    }


def count_table(names: list[Row], runs: list[Row], counts: dict[str, Row], means: list[Row]) -> Row:
    def total(kind: str, column: str) -> int:
        return sum(counts[run["run_id"]][column] or 0 for run in runs if run["kind"] == kind)

    layers = sorted({row["layer"] for row in means})
    tested = [
        ["Facts tested for knowledge", f"{total('facts', 'facts'):,}, known {total('facts', 'kept'):,}"]
    ]
    rows = [
        ["Facts traced or edited", f"{len(names):,}"],
        [
            "Facts come from",
            ", ".join(sorted({row["source"] for row in names if row["source"]})) or "not recorded",
        ],
        *(tested if total("facts", "facts") else []),
        ["Facts traced", f"{total('trace', 'facts'):,}, kept {total('trace', 'kept'):,}"],
        ["Cells of tracing grids", f"{total('trace', 'cells'):,}"],
        ["Edits scored", f"{total('edit', 'edits'):,}"],
        ["Layers edited", ", ".join(map(str, layers)) or "none"],
    ]
    return {"caption": "How much there is.", "columns": _columns("what", "~how many"), "rows": rows}


def left_out_table(left_out: list[Row]) -> Row:
    return {
        "caption": "Facts left out, and why.",
        "columns": _columns("step", "~reason", "model", "protocol", "#facts"),
        "rows": [
            [row["step"], row["reason"], row["model"], row["protocol"], f"{row['facts']:,}"]
            for row in left_out
        ],
    }


def run_table(runs: list[Row], counts: dict[str, Row]) -> Row:
    return {
        "caption": "Runs, oldest first; times in UTC.",
        "columns": _columns(
            "run",
            "kind",
            "model",
            "model hash",
            "dtype",
            "device",
            "protocol",
            "#seed",
            "#facts",
            "#kept",
            "#cells",
            "#edits",
            "#seconds",
            "begun",
            "fasttrace",
            "torch",
        ),
        "rows": [
            [
                run["run_id"],
                run["kind"],
                run["model"],
                run["model_hash"],
                run["dtype"],
                run["device"],
                run["protocol"],
                str(run["seed"]),
                *(_count(counts[run["run_id"]][column]) for column in ("facts", "kept", "cells", "edits")),
                f"{run['seconds']:,.1f}",
                run["created_at"].strftime("%Y-%m-%d %H:%M"),
                run["fasttrace_version"],
                run["torch_version"],
            ]
            for run in runs
        ],
    }


def _count(value: int | None) -> str:
    return "–" if not value else f"{value:,}"


def commands(runs: list[Row], counts: dict[str, Row], store_path: str) -> list[str]:
    """Command lines that do every trace and edit of the store again, on the same facts, into another store.

    Settings without an option (ROME's own, say) are in the list of all settings that the page prints below.
    """
    lines = []
    described = {run["run_id"]: json.loads(run["settings"]) for run in runs}
    for run in runs:
        if run["kind"] not in OPTIONS:
            continue
        settings = {key: run[key] for key in COMMON} | described[run["run_id"]]
        settings["layers"] = counts[run["run_id"]]["layers"]
        file = f"facts-{run['run_id'][:8]}.jsonl"
        script = EXPORT.format(store=json.dumps(store_path), run=json.dumps(run["run_id"]))
        words = ["fasttrace", run["kind"]]
        for key in (*COMMON, *OPTIONS[run["kind"]]):
            value = settings.get(key)
            if value is not None:
                text = ",".join(map(str, value)) if isinstance(value, list) else str(value)
                words += [f"--{key.replace('_', '-')}", shlex.quote(text)]
        lines.append(f"python -c {shlex.quote(script)} > {shlex.quote(file)}")
        lines.append(" ".join([*words, "--facts", shlex.quote(file), "--store", AGAIN_STORE]))
    return [*lines, f"fasttrace report --store {AGAIN_STORE} --out again.html"]
