"""`write_report`: a study as one HTML file that needs no network, no other file and no fasttrace to be read."""

import io
import json
import math
import re
import shlex
from collections import defaultdict
from collections.abc import Iterable
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

import matplotlib
import pyarrow as pa
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from matplotlib.figure import Figure

from fasttrace.errors import StoreError
from fasttrace.store import Store

from . import draw, figures
from .draw import Row, number, p_text
from .regression import layer_correlations, layer_means, regressions
from .relation import relation

MEAN_KEYS = ("problem", "method", "edit_run_id", "window_size", "layer")
VERBS = {"trace": "trace", "edit": "edit", "facts": "facts", "moments": "stats", "bench": "bench"}


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
    means = pa.concat_tables([layer_means(store, score) for score in draw.SCORES]).to_pylist()
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
            figures=_drawings(store, fits, means, curve),
            n_embedded=len(shown),
            pick_note=pick_note(len(shown), len(names)),
            data=embedded(store, shown),
            count_table=count_table(names, runs, counts, means),
            left_out_table=left_out_table(left_out) if left_out else None,
            run_table=run_table(runs, counts),
            again_note="These commands, with the settings of the stored runs, do the work again; a finished run costs nothing the second time.",
            commands=commands(runs, str(store.path), str(path)),
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
    path.write_text(page, encoding="utf-8")
    return path


def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("fasttrace.analysis", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=False,
        lstrip_blocks=False,
    )


# -- words ------------------------------------------------------------------------------------------------


def percent(share: float) -> str:
    return f"{number(100 * share, 1)}\u00a0%"


def points(share: float) -> str:
    """A difference of two shares in percentage points; small gains keep their first digit."""
    value = 100 * share
    return f"{number(value, 1 if abs(value) >= 0.1 or value == 0 else 3)} points"


def f_text(row: Row) -> str:
    if row["f_value"] is None:
        return "no F-test possible"
    text = (
        f"F({row['df_num']:.0f}, {row['df_den']:.0f}) = {number(row['f_value'], 2)}, {p_text(row['p_value'])}"
    )
    return text.replace(", ", ",\u00a0", 1).replace(" = ", "\u00a0=\u00a0")


def p_cell(p: float | None) -> str:
    return p_text(p).removeprefix("p ").removeprefix("= ")


def _plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"


def answer(fits: list[Row], means: list[Row], curve: list[Row]) -> list[str]:
    """The study's question answered in sentences whose every number comes from the store."""
    whole = [row for row in fits if row["r2_both"] is not None and row["r2_layer"] is not None]
    said: list[str] = []
    if not whole:
        said.append(
            "The store does not yet hold edits together with tracing effects in numbers that a regression could be fitted to, "
            "so it does not say whether localization informs editing."
        )
    elif len(whole) == 1:
        said.append(_one_answer(whole[0]))
    else:
        names = list(draw.group_names(whole).values())
        layer = [row["r2_layer"] for row in whole]
        top = max(range(len(whole)), key=lambda place: whole[place]["diff"])
        said.append(
            f"Over {len(whole)} combinations of problem and method, choosing the layer explains {percent(sum(layer) / len(layer))} of the "
            f"variance of the rewrite score on average ({percent(min(layer))} to {percent(max(layer))}); adding the tracing effect raises "
            f"that by at most {points(whole[top]['diff'])} ({names[top]}; {f_text(whole[top])})."
        )
        sure = sum(row["p_value"] is not None and row["p_value"] < 0.05 for row in whole)
        said.append(
            f"In {sure} of the {len(whole)} that gain is more than chance at the 5\u00a0% level; the table below has each."
        )
    best = _best_layer(means, curve)
    if best:
        said.append(best)
    return said


def _one_answer(row: Row) -> str:
    gain = (
        f"Choosing the layer explains {percent(row['r2_layer'])} of the variance of the {row['score']} score; adding the tracing effect "
        f"raises that by {points(row['diff'])}, to {percent(row['r2_both'])} (F-test: {f_text(row)}). "
        f"The tracing effect alone explains {percent(row['r2_effect'])}."
    )
    if row["p_value"] is None:
        return gain
    if row["p_value"] >= 0.05:
        return gain + " At the 5 % level that gain cannot be told from chance."
    return gain + " At the 5 % level that gain is more than chance."


def _best_layer(means: list[Row], curve: list[Row]) -> str | None:
    rewrite = [row for row in means if row["score"] == "rewrite" and row["mean"] is not None]
    groups = draw.group_names(rewrite)
    if len(groups) != 1 or len(rewrite) < 2:
        return None
    best, worst = (pick(rewrite, key=lambda row: row["mean"]) for pick in (max, min))
    said = (
        f"Of the {len(rewrite)} layers edited, rewriting works best at layer {best['layer']} (mean score {number(best['mean'])}) "
        f"and worst at layer {worst['layer']} ({number(worst['mean'])})"
    )
    traced = [
        row for row in curve if all(row[key] == best[key] for key in ("model", "protocol", "window_size"))
    ]
    if len(draw.group_names(traced)) == 1:
        peak = max(traced, key=lambda row: row["mean_effect"])
        said += f"; tracing finds most at layer {peak['layer']} (mean effect {number(peak['mean_effect'])}, window {peak['window_size']})"
    return said + "."


def byline(runs: list[Row], names: list[Row]) -> str:
    main = [run for run in runs if run["kind"] in ("trace", "edit")]
    protocols = sorted({run["protocol"] for run in main})
    days = sorted({run["created_at"].strftime("%Y-%m-%d") for run in main})
    when = days[0] if len(days) == 1 else f"{days[0]} to {days[-1]}"
    return f"{_plural(len(names), 'fact')} · {' and '.join(protocols)} protocol · {_plural(len(main), 'run')}, {when}"


R2_NOTE = (
    "Layer is a category; in “both” the tracing effect enters as one straight line a layer. The F-test compares “both” with the layer alone "
    "and takes every edit as independent, although each fact is edited at several layers. Left out: edits without a tracing effect or a score."
)


def pick_note(shown: int, there: int) -> str:
    text = (
        "Colour is p_restored, the probability of the true target after restoring a window of layers at one token. Hover over a cell, "
        "or move with the arrow keys, to read it. Add #fact= and a fact’s id to this file’s address to open it there."
    )
    return (
        text
        if shown == there
        else f"{text} The first {shown} of {there} facts by subject are embedded here; all are in the store."
    )


# -- tables -----------------------------------------------------------------------------------------------


def _columns(*names: str) -> list[Row]:
    """Column heads; a leading '#' marks numbers (right-aligned), '~' text that may wrap."""
    return [
        {"name": name.lstrip("#~"), "numeric": name.startswith("#"), "wrap": name.startswith("~")}
        for name in names
    ]


def r2_table(fits: list[Row]) -> Row:
    names = list(draw.group_names(fits).values())
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
    """One row an edited layer of each regression: tracing effect, the scores' means, correlation of effect and rewrite."""
    effects = {(row["trace_run_id"], row["window_size"], row["layer"]): row["mean_effect"] for row in curve}
    found = {(*(row[key] for key in MEAN_KEYS), row["score"]): row for row in means}
    scores = [
        score
        for score in draw.SCORES
        if any(row["score"] == score and row["mean"] is not None for row in means)
    ]
    names = draw.group_names(rhos)
    rows = []
    for group, name in names.items():
        for rho in sorted(draw.in_group(rhos, group), key=lambda row: row["layer"]):
            here = [found[(*(rho[key] for key in MEAN_KEYS), score)] for score in scores]
            rows.append([
                *([name] if len(names) > 1 else []), str(rho["layer"]), f"{max(mean['n'] for mean in here):,}",
                number(effects.get((rho["trace_run_id"], rho["window_size"], rho["layer"]))),
                *(f"{number(mean['mean'])} ± {number(mean['sem'])}" for mean in here),
                number(rho["rho"], 2), p_cell(rho["p_value"]),
            ])  # fmt: skip
    lead = ["problem · method", "#layer"] if len(names) > 1 else ["#layer"]
    return {
        "caption": "Means over facts ± standard error; ρ is the correlation of tracing effect and rewrite score at the layer.",
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


def commands(runs: list[Row], store_path: str, report_path: str) -> list[str]:
    """The command line of each run, oldest first, and of the report."""
    lines = []
    for run in runs:
        settings = {
            "model": run["model"],
            "dtype": run["dtype"],
            "seed": run["seed"],
            "protocol": run["protocol"],
            **json.loads(run["settings"]),
        }
        words = ["fasttrace", VERBS[run["kind"]]]
        for key, value in settings.items():
            if isinstance(value, list):
                value = ",".join(map(str, value))
            if value is None or isinstance(value, dict) or key.endswith("hash"):
                continue
            words += [
                f"--{key.replace('_', '-')}",
                shlex.quote(str(value).lower() if isinstance(value, bool) else str(value)),
            ]
        lines.append(" ".join([*words, "--store", shlex.quote(store_path)]))
    return [
        *dict.fromkeys(lines),
        f"fasttrace report --store {shlex.quote(store_path)} --out {shlex.quote(report_path)}",
    ]


# -- drawings ---------------------------------------------------------------------------------------------

THEME = {
    draw.INK: "currentColor",
    draw.FAINT: "var(--line)",
    **{color: f"var(--s{place})" for place, color in enumerate(draw.SERIES, 1)},
}


def page_svg(figure: Figure, name: str) -> Markup:
    """A figure as inline SVG with text as text, in the page's own colours, so that it follows light and dark."""
    out = io.StringIO()
    figure.set_facecolor("none")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    head, body = svg.split(">", 1)
    box = re.search(r'viewBox="([^"]+)"', head)
    assert box is not None
    width = float(box.group(1).split()[2]) * 4 / 3
    body = re.sub(r"#[0-9a-f]{6}", lambda found: THEME.get(found.group(), found.group()), body)
    body = re.sub(r"font: ([^;\"]*?)'?DejaVu Sans'?[^;\"]*", r"font: \1inherit", body)
    # Ids repeat from figure to figure (matplotlib names them by content); a page wants them once.
    body = re.sub(r'(id="|url\(#|href="#)', lambda found: f"{found.group()}{_slug(name)}-", body)
    label = Markup.escape(name)
    style = f"max-width:{width:.0f}px;--readable:{min(width, 640):.0f}px"
    return Markup(f'<svg viewBox="{box.group(1)}" role="img" aria-label="{label}" style="{style}">{body}')


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def _drawings(store: Store, fits: list[Row], means: list[Row], curve: list[Row]) -> dict[str, Row]:
    def drawing(figure: Figure, name: str, caption: str) -> Row:
        return {"svg": page_svg(figure, name), "name": name, "caption": caption}

    made: dict[str, Row] = {key: {} for key in ("r2", "pairs", "scores", "curve", "peaks")}
    if fits:
        made["r2"] = drawing(
            figures.r2_bars(store),
            "Bars: R² by layer, tracing effect and both",
            "Share of the variance of the rewrite score explained by the choice of layer, by the tracing effect, and by both together.",
        )
        made["pairs"] = drawing(
            figures.effect_vs_score(store),
            "Scatter plots: rewrite score against tracing effect at each edited layer",
            "Each point is one edit. Were localization a guide to editing, points would follow the dashed line.",
        )
    if means:
        made["scores"] = drawing(
            figures.score_by_layer(store),
            "Lines: mean edit scores by edited layer",
            "Mean edit scores with standard errors over facts.",
        )
    if curve:
        made["curve"] = drawing(
            figures.mean_effect_curve(store),
            "Line: mean tracing effect by layer",
            "Mean over facts of the largest tracing effect over tokens; the band is one standard error on each side.",
        )
        made["peaks"] = drawing(
            figures.peak_histogram(store),
            "Histogram: layer of each fact’s largest tracing effect",
            "How many facts have their largest tracing effect at each layer.",
        )
    return made


# -- the facts to pick from -------------------------------------------------------------------------------


def embedded(store: Store, names: list[Row]) -> Markup:
    """The JSON the page draws facts from; safe inside <script>, whatever the facts say."""
    wanted = [row["fact_id"] for row in names]
    grids: dict[tuple[str, str, int], pa.Table] = {}
    cells = relation(store, "fact_cells", [wanted])
    for key, begin, end in _stretches(cells, ("run_id", "fact_id", "window_size")):
        grids[key] = cells.slice(begin, end - begin)
    traces, edits = defaultdict(list), defaultdict(list)
    all_traces = relation(store, "fact_traces").to_pylist()
    labels = draw.group_names(all_traces, always=("model", "window_size"))
    for group, label in labels.items():
        for row in draw.in_group(all_traces, group):
            grid = grids.get((row["trace_run_id"], row["fact_id"], row["window_size"]))
            traces[row["fact_id"]].append({"name": label, **_trace(row, grid)})
    for row in relation(store, "fact_edits", [wanted]).to_pylist():
        edits[row.pop("fact_id")].append({key: _short(value) for key, value in row.items()})
    facts = [
        {
            "id": row["fact_id"],
            "traces": traces[row["fact_id"]],
            "edits": edits[row["fact_id"]],
            **{
                key: row[key] or ""
                for key in ("subject", "relation", "target_true", "target_false", "prompt")
            },
        }
        for row in names
    ]
    return script_json({"colors": colors(), "facts": facts})


def script_json(value: Any) -> Markup:
    """JSON in which no byte can end a <script> element or open a comment."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for character in "<>&\u2028\u2029":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)


def colors(steps: int = 32) -> list[str]:
    """The heatmaps' colours, low to high, as #rrggbb."""
    from matplotlib.colors import to_hex

    ramp = matplotlib.colormaps[draw.COLORMAP]
    return [to_hex(ramp(step / (steps - 1))) for step in range(steps)]


def _trace(row: Row, cells: pa.Table | None) -> Row:
    kept = (
        "trace_run_id",
        "model",
        "protocol",
        "window_size",
        "p_clean",
        "p_noised",
        "sigma",
        "kept",
        "reason",
    )
    grid = {
        name: []
        if cells is None
        else [[_short(value) for value in line] for line in draw.grid_of(cells, column).tolist()]
        for name, column in (("p", "p_restored"), ("sem", "p_restored_sem"), ("effect", "effect"))
    }
    place = {"tokens": row["tokens"] or [], "begin": row["subject_begin"], "end": row["subject_end"]}
    return {**{key: _short(row[key]) for key in kept}, **place, **grid}


def _short(value: Any) -> Any:
    """Four significant digits are more than a screen shows; NaN has no JSON."""
    if isinstance(value, float):
        return float(f"{value:.4g}") if math.isfinite(value) else None
    return value


def _stretches(table: pa.Table, keys: Iterable[str]) -> Iterable[tuple[tuple[Any, ...], int, int]]:
    """(key, begin, end) of each run of equal keys in a table sorted by them."""
    columns = [table[key].to_pylist() for key in keys]
    begin = 0
    rows = list(zip(*columns, strict=True))
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place] != rows[begin]:
            yield rows[begin], begin, place
            begin = place
