"""Write a study as one HTML file that needs no network, no other files and no fasttrace."""

import json
from datetime import UTC, datetime
from importlib.resources import files
from pathlib import Path
from typing import Annotated, Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from fasttrace.errors import StoreError
from fasttrace.places import check_replaceable, replacing
from fasttrace.settings.arguments import checked
from fasttrace.settings.kinds import Bounds, Count
from fasttrace.show.words import title_of
from fasttrace.store import Stored
from fasttrace.version import VERSION

from .commands import AGAIN, PLACES, commands, file_names, opening, portable, run_commands, store_options
from .embed import embedded
from .exhibit import COUNT, Column, Exhibit, Table, or_dash, paper_commands
from .exhibits import exhibits
from .naming import Row
from .relation import definition, one_reading, relation
from .sentences import R2_NOTE, answer, byline, pick_note
from .verdict import verdict

SCRIPTS = ("figures.js", "pictures.js", "tables.js", "facts.js")
SECTIONS = {
    "answer": "The answer",
    "r2": "What predicts an edit’s success",
    "layers": "Scores by edited layer",
    "tracing": "Where tracing locates facts",
    "mass": "Many facts in one model",
    "pick": "Pick a fact",
    "run": "What was run",
    "again": "How to repeat the study",
}
NOTES = {"r2": R2_NOTE}


@checked
def write_report(
    store: Stored, path: str | Path, max_facts: Count = 1000, max_bytes: Annotated[int, Bounds(0)] = 20_000_000
) -> Path:
    """Write the store's study into one HTML file (`report_page`). Return its path.

    Raises StoreError where the store has no trace and no edit, and UserError where the file cannot be written.
    """
    path = Path(path)
    check_replaceable(path)
    page = report_page(store, max_facts, max_bytes)
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as draft:
        draft.write_text(page, encoding="utf-8")
    return path


@checked
@one_reading()
def report_page(store: Stored, max_facts: Count = 1000, max_bytes: Annotated[int, Bounds(0)] = 20_000_000) -> str:
    """The store's study as one HTML page, which loads nothing else. `<file>#fact=<fact_id>` opens it at that fact.

    max_facts: largest number of facts that are embedded to pick from. max_bytes: limit of the uncompressed JSON of
    their grids and edits, which compresses to a third or less. The report notes if facts are left out.
    Raises StoreError where the store has no trace and no edit.
    """
    runs = relation(store, "all_runs").to_pylist()
    counts = {row["run_id"]: row for row in relation(store, "run_counts").to_pylist()}
    names = relation(store, "fact_names").to_pylist()
    if not names and not any(run["kind"] == "mass" for run in runs):
        raise StoreError(f"{store.where} holds no trace and no edit, so there is nothing to report")

    shown = exhibits(store)
    found = {exhibit.key: exhibit.data.to_pylist() for exhibit in shown}
    means = [row for row in found.get("layers", []) if row["mean"] is not None]
    left_out = relation(store, "left_out").to_pylist()
    models = sorted({title_of(run["model"]) for run in runs if run["kind"] in ("trace", "edit", "mass")})
    data, n_embedded = embedded(store, names[:max_facts], shown, max_bytes)
    there = {exhibit.section for exhibit in shown} | {"answer", "run", "again"} | ({"pick"} if n_embedded else set())
    opened = opening(store)
    by_run, repeated = run_commands(runs, counts, opened), commands(runs, counts, opened)
    return (
        _environment()
        .get_template("report.html.j2")
        .render(
            title=f"Does localization inform editing? {', '.join(models)}",
            byline=byline(runs, names),
            sections={key: name for key, name in SECTIONS.items() if key in there},
            notes=NOTES,
            verdict=verdict(found.get("r2", []), means, found.get("curve", [])),
            answer=answer(found.get("r2", []), means, found.get("curve", []), found.get("mass", [])),
            exhibits=shown,
            paper_commands={exhibit.key: paper_commands(store, exhibit) for exhibit in shown},
            views=views(shown),
            n_embedded=n_embedded,
            pick_note=pick_note(n_embedded, len(names)),
            data=data,
            count_table=count_table(names, runs, counts, means),
            left_out_table=left_out_table(left_out) if left_out else None,
            run_table=run_table(runs, counts),
            again_note=f"{AGAIN} {PLACES}" if any("…/" in line for line in repeated) else AGAIN,
            commands=repeated,
            runs=[
                {
                    **run,
                    "settings": json.dumps(portable(json.loads(run["settings"])), indent=2, ensure_ascii=False),
                    "about": about(run),
                    "commands": by_run.get(run["run_id"], []),
                }
                for run in runs
            ],
            version=VERSION,
            written=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            opening=opened,
            store_names=list(file_names(store).values()),
            store_options=store_options(store),
            style=_own("style.css"),
            script=Markup("\n").join(map(_own, SCRIPTS)),
        )
    )


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("fasttrace.analysis", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _own(name: str) -> Markup:
    """The text of a style or script file. It is not a template, so its braces are kept."""
    return Markup((files("fasttrace.analysis") / "templates" / name).read_text(encoding="utf-8"))


def views(shown: list[Exhibit]) -> dict[str, str]:
    """{name: SQL that creates it} of every view that the exhibits' queries read."""
    return {name: definition(name) for exhibit in shown for name in exhibit.source.views()}


def about(run: Row) -> str:
    """A short description of a run: problem, method, module and windows."""
    settings = json.loads(run["settings"])
    words = [settings.get(key) for key in ("problem", "method", "module")]
    windows = settings.get("windows")
    words.append(f"windows {', '.join(map(str, windows))}" if windows else None)
    return " · ".join(str(word) for word in words if word)


# -- tables of what was run -------------------------------------------------------------------------------


def count_table(names: list[Row], runs: list[Row], counts: dict[str, Row], means: list[Row]) -> Table:
    def total(kind: str, column: str) -> int:
        return sum(counts[run["run_id"]][column] or 0 for run in runs if run["kind"] == kind)

    edited = sorted({row["layer"] for row in means})
    sources = sorted({row["source"] for row in names if row["source"]})
    # (label, count, kind of run without which the line is left out)
    lines = [
        ("Facts traced or edited", f"{len(names):,}", None),
        ("Sources of the facts", ", ".join(sources) or "not recorded", None),
        ("Facts tested for knowledge", f"{total('facts', 'facts'):,}, known {total('facts', 'kept'):,}", "facts"),
        ("Facts traced", f"{total('trace', 'facts'):,}, kept {total('trace', 'kept'):,}", "trace"),
        ("Cells of tracing grids", f"{total('trace', 'cells'):,}", "trace"),
        ("Edits", f"{total('edit', 'edits'):,}", "edit"),
        ("Layers edited", ", ".join(map(str, edited)) or "none", "edit"),
        ("Facts edited into one model", f"{total('mass', 'facts'):,}", "mass"),
    ]
    kinds = {None, *(run["kind"] for run in runs)}
    rows = [{"what": what, "many": many} for what, many, kind in lines if kind in kinds]
    return Table("Contents of the store.", [Column("what", "what"), Column("many", "how many", wrap=True)], rows)


def left_out_table(left_out: list[Row]) -> Table:
    columns = [
        Column("step", "step"),
        Column("reason", "reason", wrap=True),
        Column("model", "model", title_of),
        Column("protocol", "protocol", or_dash),
        Column("facts", "facts", **COUNT),
    ]
    return Table("Facts left out, and why.", columns, left_out)


def run_table(runs: list[Row], counts: dict[str, Row]) -> Table:
    names = {
        "run_id": "run",
        "model_hash": "model hash",
        "created_at": "begun",
        "fasttrace_version": "fasttrace",
        "torch_version": "torch",
    }
    numeric = ("seed", "facts", "kept", "cells", "edits", "seconds")
    order = (
        "run_id",
        "kind",
        "model",
        "model_hash",
        "dtype",
        "device",
        "protocol",
        *numeric,
        "created_at",
        "fasttrace_version",
        "torch_version",
    )
    columns = [Column(key, names.get(key, key), _run_text(key), key in numeric) for key in order]
    rows = [run | {key: counts[run["run_id"]][key] for key in ("facts", "kept", "cells", "edits")} for run in runs]
    return Table("Runs, oldest first; times in UTC.", columns, rows)


def _run_text(key: str) -> Any:
    if key == "model":
        return title_of
    if key == "seconds":
        return lambda value: f"{value:,.1f}"
    if key == "created_at":
        return lambda value: value.strftime("%Y-%m-%d %H:%M")
    if key in ("facts", "kept", "cells", "edits"):
        return lambda value: f"{value:,}" if value else "–"
    return or_dash
