"""What the report carries inside itself: figures as inline SVG, facts as JSON."""

import io
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable
from typing import Any

import matplotlib
import pyarrow as pa
from markupsafe import Markup
from matplotlib.colors import to_hex
from matplotlib.figure import Figure

from fasttrace.store import Store

from . import draw, figures
from .naming import Row, group_names, in_group
from .relation import relation

THEME = {
    draw.INK: "currentColor",
    draw.FAINT: "var(--line)",
    **{color: f"var(--s{place})" for place, color in enumerate(draw.SERIES, 1)},
}


def page_svg(figure: Figure, name: str) -> Markup:
    """A figure as inline SVG, text as text, in the page's own colours: it follows light and dark."""
    out = io.StringIO()
    figure.set_facecolor("none")
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": name}):
        figure.savefig(
            out, format="svg", metadata={"Date": None, "Creator": None, "Format": None, "Type": None}
        )
    svg = out.getvalue()
    svg = svg[svg.index("<svg") :]
    svg = re.sub(r"<metadata>.*?</metadata>", "", svg, flags=re.DOTALL)
    body = svg.split(">", 1)[1]
    width, height = figure.get_size_inches()
    body = re.sub(r"#[0-9a-f]{6}", lambda found: THEME.get(found.group(), found.group()), body)
    body = re.sub(r"font-family: [^;\"]*", "font-family: inherit", body)
    # Ids repeat from figure to figure (matplotlib names them by content); a page wants them once.
    body = re.sub(r'(id="|url\(#|href="#)', lambda found: f"{found.group()}{_slug(name)}-", body)
    label = Markup.escape(name)
    box = f"0 0 {72 * width:g} {72 * height:g}"
    style = f"max-width:{96 * width:.0f}px;--readable:{min(96 * width, 640):.0f}px"
    return Markup(f'<svg viewBox="{box}" role="img" aria-label="{label}" style="{style}">{body}')


def _slug(name: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-")


def drawings(store: Store, fits: list[Row], means: list[Row], curve: list[Row]) -> dict[str, Row]:
    def drawing(figure: Figure, name: str, caption: str) -> Row:
        return {"svg": page_svg(figure, name), "name": name, "caption": caption}

    made: dict[str, Row] = {key: {} for key in ("r2", "pairs", "scores", "curve", "peaks")}
    if any(row["n"] for row in fits):
        made["r2"] = drawing(
            figures.r2_bars(store),
            "Bars: R² by layer, tracing effect and both",
            "Share of the variance of the rewrite score explained by the choice of layer, by the tracing "
            "effect, and by both together.",
        )
        made["pairs"] = drawing(
            figures.effect_vs_score(store),
            "Scatter plots: rewrite score against tracing effect at each edited layer",
            "Each point is one edit. Were localization a guide to editing, the points would follow the "
            "dashed line.",
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
            "Mean over facts of the largest tracing effect over tokens; the band is one standard error on "
            "each side.",
        )
        made["peaks"] = drawing(
            figures.peak_histogram(store),
            "Histogram: layer of each fact’s largest tracing effect",
            "How many facts have their largest tracing effect at each layer.",
        )
    return made


def embedded(store: Store, names: list[Row]) -> Markup:
    """The JSON the page draws facts from; safe inside <script>, whatever the facts say."""
    wanted = [row["fact_id"] for row in names]
    grids: dict[tuple[str, str, int], pa.Table] = {}
    cells = relation(store, "fact_cells", {"fact_ids": wanted})
    for key, begin, end in _stretches(cells, ("run_id", "fact_id", "window_size")):
        grids[key] = cells.slice(begin, end - begin)
    traces, edits = defaultdict(list), defaultdict(list)
    all_traces = relation(store, "fact_traces").to_pylist()
    labels = group_names(all_traces, always=("model", "window_size"))
    for group, label in labels.items():
        for row in in_group(all_traces, group):
            grid = grids.get((row["trace_run_id"], row["fact_id"], row["window_size"]))
            traces[row["fact_id"]].append({"name": label, **_trace(row, grid)})
    for row in relation(store, "fact_edits", {"fact_ids": wanted}).to_pylist():
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
    """Six significant digits, so that three decimals on the page are the store's; NaN has no JSON."""
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
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
