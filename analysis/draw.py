"""Figures as pure functions of Arrow tables: no store, no global state, nothing drawn on import.

Their frame and colours are those of `fasttrace.show.style`. chart.py makes the figures of the HTML report.
"""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from fasttrace.errors import UserError
from fasttrace.show import heatmap
from fasttrace.show.grids import Heatmap, heatmap_of
from fasttrace.show.heatmap import heatmap_size
from fasttrace.show.style import (
    INK,
    LINES,
    MARKERS,
    MAX_VECTOR_POINTS,
    SERIES,
    dress,
    even_ticks,
    label_axes,
    layers_on_x,
    legend_above,
    legend_columns,
    new_figure,
    panel_grid,
    two_lines,
)
from fasttrace.show.words import count

from .naming import (
    Row,
    common_text,
    effect_label,
    group_names,
    in_group,
    method_and_corruption,
    number,
    outside_text,
    p_text,
    score_label,
)

COLUMN, PAGE = 5.5, 7.0  # inches: a column of text, and the width of a page of two


def need_rows(table: pa.Table, what: str) -> list[Row]:
    """The table's rows. Raises UserError where there are none. what: names what was expected."""
    if table.num_rows == 0:
        raise UserError(f"expected {what} to draw, got none")
    rows: list[Row] = table.to_pylist()
    return rows


def draw_heatmap(fact: Mapping[str, Any], cells: pa.Table) -> Figure:
    """One fact's grid of the metric restored, tokens down, layers across (paper, Figure 2).

    fact, cells: as for `stored_heatmap`. Raises UserError where there are no cells.
    """
    heat = stored_heatmap(fact, cells)
    # Of several traces that are alike so far, the settings in which this one differs (sql/run_names.sql).
    heat = replace(heat, part=" · ".join(filter(None, (heat.part, fact.get("trace_run")))))
    figure = new_figure(*heatmap_size(heat))
    heatmap.draw_heatmap(figure.subplots(), heat)
    return figure


def stored_heatmap(fact: Mapping[str, Any], cells: pa.Table) -> Heatmap:
    """One fact's grid as it is drawn.

    fact: a row of sql/fact_traces.sql. cells: its rows of sql/fact_cells.sql at one window size.
    Raises UserError where there are no cells.
    """
    if cells.num_rows == 0:
        raise UserError("expected traced cells of the fact to draw, got none")
    method, corruption = method_and_corruption(fact["localization"])
    return heatmap_of(
        {**fact, "tokens": fact["token_texts"]},
        cells,
        model=fact["model"],
        module=fact["module"],
        method=method,
        corruption=corruption,
        metric=fact["metric"],
        tokens=fact["tokens"],
    )


def draw_peak_histogram(peaks: pa.Table) -> Figure:
    """How many facts have their largest tracing effect at each layer (paper, Figures 1 and 11).

    peaks: the rows of sql/peak_layers.sql.
    """
    rows = need_rows(peaks, "tracing effects")
    names = group_names(rows, always=("window_size",))
    figure = new_figure(COLUMN, 0.9 + 1.5 * len(names))
    figure.suptitle(_of_any_window(rows, COLUMN), color=INK, fontsize=10, x=0.01, ha="left", parse_math=False)
    panels = panel_grid(figure, len(names), 1, sharex=len({row["n_layers"] for row in rows}) == 1)
    for axes, (group, name) in zip(panels, names.items(), strict=True):
        members = in_group(rows, group)
        n_layers = max(row["n_layers"] for row in members)
        counts = np.bincount([row["peak_layer"] for row in members], minlength=n_layers)
        label = "layer with the fact's largest tracing effect (0-based)"
        dress(axes, label if axes is panels[-1] else None, "facts", f"{name}: {count(len(members), 'fact')}")
        axes.bar(range(n_layers), counts, width=0.85, color=SERIES[0])
        even_ticks(axes.yaxis, 5)
        layers_on_x(axes, n_layers)
    return figure


def draw_mean_effect(curve: pa.Table) -> Figure:
    """Mean tracing effect at each layer, with a band of one standard error on each side (paper, Figure 10).

    curve: the rows of sql/mean_effect.sql.
    """
    rows = need_rows(curve, "tracing effects")
    names = group_names(rows, always=("window_size",))
    legend_lines = math.ceil(len(names) / legend_columns((f"{name} (9999 facts)" for name in names.values()), COLUMN))
    figure = new_figure(COLUMN, 3.2 + 0.2 * legend_lines)
    labels = {effect_label(row["localization"], metric=row["metric"]) for row in rows}
    axes = dress(
        figure.subplots(),
        "layer at the centre of the restored window (0-based)",
        f"mean {two_lines(labels.pop() if len(labels) == 1 else 'tracing effect (share of the lost metric)')} ± SE",
    )
    for place, (group, name) in enumerate(names.items()):
        members = sorted(in_group(rows, group), key=lambda row: row["layer"])
        layers = np.array([row["layer"] for row in members])
        means = np.array([row["mean_effect"] for row in members], dtype=float)
        sems = np.array([math.nan if row["sem_effect"] is None else row["sem_effect"] for row in members])
        color = SERIES[place % len(SERIES)]
        axes.fill_between(layers, means - sems, means + sems, color=color, alpha=0.22, linewidth=0)
        facts = max(row["n"] for row in members)
        axes.plot(
            layers,
            means,
            color=color,
            linestyle=LINES[place % len(LINES)],
            marker=MARKERS[place % len(MARKERS)],
            markersize=3.5,
            linewidth=1.6,
            label=f"{name} ({count(facts, 'fact')})",
        )
    layers_on_x(axes, max(row["layer"] for row in rows) + 1)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    legend_above(figure, [axes], _of_any_window(rows, COLUMN))
    return figure


def _of_any_window(rows: list[Row], width: float) -> str:
    """As `_of_what`, without the window, which is named beside each line or panel."""
    return _of_what([{**row, "window_size": None} for row in rows], width)


def _of_what(rows: list[Row], width: float) -> str:
    """What all rows of a figure are of, in lines that fit its width in inches."""
    lines: list[str] = []
    for word in common_text(rows).split(" · "):
        if lines and len(lines[-1]) + len(word) + 3 <= width / 0.085:
            lines[-1] += f" · {word}"
        else:
            lines.append(word)
    return "\n".join(lines)


def fit_and_band(x: np.ndarray, y: np.ndarray, at: np.ndarray) -> tuple[np.ndarray, np.ndarray] | None:
    """(least-squares line of y on x, half width of its 95 % confidence band), both at the points `at`.

    The band is that of the mean: t · s · √(1/n + (at − x̄)² / Σ(x − x̄)²), with Student's t of n − 2 degrees of freedom
    and s² the residuals' sum of squares over n − 2. None for fewer than 3 points, and for x that does not vary.
    """
    n = len(x)
    if n < 3 or np.ptp(x) <= 1e-9 * np.abs(x).max():
        return None
    from_mean = x - x.mean()
    spread = np.square(from_mean).sum()
    slope = (from_mean * y).sum() / spread
    line = y.mean() + slope * (at - x.mean())
    residuals = y - y.mean() - slope * from_mean
    s = math.sqrt(np.square(residuals).sum() / (n - 2))
    band = stats.t.ppf(0.975, n - 2) * s * np.sqrt(1 / n + np.square(at - x.mean()) / spread)
    return line, band


def draw_effect_vs_score(pairs: pa.Table, correlations: pa.Table, score: str) -> Figure:
    """Edit score against tracing effect, one panel per edited layer, with ρ in its title (paper, Figures 4, 14 to 22).

    A panel has the perfect relationship, the least-squares line and its 95 % band (`fit_and_band`).
    pairs: the keys of a regression, layer, effect, score; one row per edit.
    correlations: the same keys, layer, rho, p_value; one row per edited layer.
    """
    rows = need_rows(pairs, "edits with a tracing effect")
    rhos = correlations.to_pylist()
    names = group_names(rows)
    blocks = {group: sorted({row["layer"] for row in in_group(rows, group)}) for group in names}
    columns = min(4, max(map(len, blocks.values())))
    side = 3.0 if columns == 1 else 1.75
    heights = [0.9 + side * math.ceil(len(layers) / columns) for layers in blocks.values()]
    figure = new_figure(COLUMN if columns < 3 else PAGE, 0.7 + sum(heights))
    # The axes end where the perfect relationship does, but for values beyond, which are counted below.
    ranges = ([row[name] for row in rows] for name in ("effect", "score"))
    limits = [(min(0.0, *values), max(1.0, *values)) for values in ranges]
    shown: list[Axes] = []
    slices = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False).flat
    for part, (group, layers) in zip(slices, blocks.items(), strict=True):
        members = in_group(rows, group)
        part.set_facecolor("none")
        if len(names) > 1:
            part.suptitle(names[group], color=INK, fontsize=10, x=0.01, ha="left", parse_math=False)
        panels = panel_grid(part, len(layers), columns, sharex=True, sharey=True)
        shown += panels
        for axes, layer in zip(panels, layers, strict=True):
            found = [row for row in in_group(rhos, group) if row["layer"] == layer]
            _scatter_panel(axes, layer, [row for row in members if row["layer"] == layer], found, many=len(rows))
            axes.set(xlim=limits[0], ylim=limits[1])
            for axis in (axes.xaxis, axes.yaxis):
                axis.set_major_locator(MaxNLocator(nbins=8 if columns == 1 else 4, steps=[1, 2, 5, 10]))
        label = two_lines(effect_label(members[0]["localization"], members[0]["effect_at"], members[0]["metric"]))
        beyond = (outside_text((row[key] for row in members), f"{key}s") for key in ("effect", "score"))
        label_axes(part, panels, "\n".join([label, *filter(None, beyond)]), two_lines(score_label(score)))
    legend_above(figure, shown, _of_what(rows, figure.get_figwidth()))
    return figure


def _scatter_panel(axes: Axes, layer: int, points: list[Row], found: list[Row], *, many: int) -> None:
    """Draw the edits of one layer. found: the row with their correlation, if any. many: points in the whole figure."""
    rho, p = (found[0]["rho"], found[0]["p_value"]) if found else (None, None)
    dress(axes)
    title = f"layer {layer}:  ρ = {number(rho, 2)}\n{p_text(p)}, n = {len(points)}"
    axes.set_title(title, color=INK, fontsize=9, loc="left", pad=8)
    x, y = (np.array([row[name] for row in points], dtype=float) for name in ("effect", "score"))
    dots = axes.scatter(
        x,
        y,
        s=14,
        color=SERIES[0],
        alpha=0.75 if len(points) <= 100 else 0.35,
        linewidths=0,
        zorder=3,
        rasterized=many > MAX_VECTOR_POINTS,
    )
    _whole(dots)
    axes.plot([0, 1], [0, 1], color=SERIES[1], linestyle="--", linewidth=1.0, label="perfect relationship")
    at = np.linspace(x.min(), x.max(), 50)
    fit = fit_and_band(x, y, at)
    if fit is not None:
        line, band = fit
        axes.plot(at, line, color=INK, linewidth=1.4, label="least squares")
        axes.fill_between(
            at, line - band, line + band, color=INK, alpha=0.18, linewidth=0, label="95 % confidence band"
        )


def _whole(marks: Artist) -> None:
    """Let marks at the ends of an axis be whole. The layout has no need to keep room for them."""
    marks.set_clip_on(False)
    marks.set_in_layout(False)


def draw_r2_bars(regressions: pa.Table) -> Figure:
    """R² of the edit score by layer, and on top what the tracing effect adds (paper, Figures 6, 12 and 13).

    There is a panel for each problem, and a bar for each method. The upper number is R² by layer and effect together,
    the lower one R² by layer.
    regressions: the keys of a regression, score, r2_layer, r2_both.
    """
    rows = need_rows(regressions, "edits with a tracing effect")
    named = list(zip(rows, group_names(rows, always=("method",), apart=("problem",)).values(), strict=True))
    problems = {
        row["problem"]: [(name, one) for one, name in named if one["problem"] == row["problem"]] for row in rows
    }
    wide = max(map(len, problems.values()))
    longest = max(len(word) for _, name in named for word in name.split(" · "))
    panel_width = 0.25 + wide * max(0.48, 0.085 * longest)
    columns = max(1, min(len(problems), int((PAGE - 0.4) / panel_width)))
    lines = math.ceil(len(problems) / columns)
    figure = new_figure(max(COLUMN, 0.4 + panel_width * columns), 0.8 + 2.3 * lines)
    panels = panel_grid(figure, len(problems), columns, sharey=True)
    for axes, (problem, members) in zip(panels, problems.items(), strict=True):
        _r2_panel(dress(axes, title=problem), members, wide)
    label_axes(figure, panels, None, f"R² of the {score_label(rows[0]['score'])}")
    legend_above(figure, panels, _of_what(rows, figure.get_figwidth()))
    return figure


def _r2_panel(axes: Axes, named: list[tuple[str, Row]], wide: int) -> None:
    """Draw a stacked bar for each (name, regression). wide: number of bars that fit the panel."""
    places = np.arange(len(named))
    layer, both = (
        np.array([math.nan if row[column] is None else row[column] for _, row in named], dtype=float)
        for column in ("r2_layer", "r2_both")
    )
    low, high = np.nan_to_num(layer), np.nan_to_num(both)
    axes.bar(places, low, width=0.6, color=SERIES[0], label="edited layer (lower number)")
    axes.bar(
        places,
        high - low,
        bottom=low,
        width=0.6,
        color=SERIES[1],
        label="edited layer and tracing effect (upper number)",
    )
    for place, top, upper, lower in zip(places, np.maximum(low, high), both, layer, strict=True):
        for text, up, weight in ((number(lower), 3, "normal"), (number(upper), 14, "bold")):
            axes.annotate(
                text,
                (place, top),
                (0, up),
                textcoords="offset points",
                ha="center",
                va="bottom",
                fontsize=8,
                color=INK,
                fontweight=weight,
                bbox={"facecolor": "white", "edgecolor": "none", "pad": 0.5},  # hides the line behind a number
            )
    axes.set_xticks(places, [name.replace(" · ", "\n") for name, _ in named])
    spare = max(0.0, (3 - wide) / 2)  # bars are not wider than a third of a panel
    axes.set_xlim(-0.6 - spare, wide - 0.4 + spare)
    axes.set_ylim(0, 1.2)  # room for the numbers above a bar of height 1
    axes.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for label in axes.get_xticklabels():
        label.set_parse_math(False)


def draw_score_by_layer(means: pa.Table) -> Figure:
    """Mean edit scores by edited layer, one panel per score, one line per problem and method (paper, Figures 7 to 9).

    means: problem, method, protocol, model, window_size, edit_run_id, score, layer, n, mean, sem; one row per layer and
    score. The panels have the order of the rows.
    """
    rows = [row for row in need_rows(means, "edits") if row["mean"] is not None]
    scores = list(dict.fromkeys(row["score"] for row in rows))
    names = group_names(rows, always=("method",))
    columns = min(3, len(scores))
    lines = math.ceil(len(scores) / columns)
    width = COLUMN if columns < 3 else PAGE
    legend_lines = math.ceil(len(names) / legend_columns(names.values(), width))
    figure = new_figure(width, 0.8 + 2.3 * lines + 0.22 * legend_lines)
    panels = panel_grid(figure, len(scores), columns, sharex=True, sharey=True)
    for axes, score in zip(panels, scores, strict=True):
        dress(axes, title=score_label(score))
        for place, (group, name) in enumerate(names.items()):
            members = [row for row in in_group(rows, group) if row["score"] == score]
            members.sort(key=lambda row: row["layer"])
            axes.errorbar(
                [row["layer"] for row in members],
                [row["mean"] for row in members],
                yerr=[row["sem"] or 0.0 for row in members],
                color=SERIES[place % len(SERIES)],
                linestyle=LINES[place % len(LINES)],
                marker=MARKERS[place % len(MARKERS)],
                markersize=4.5,
                linewidth=1.6,
                elinewidth=1.0,
                capsize=2.5,
                label=name,
            )
        axes.set_ylim(min(0.0, min(row["mean"] for row in rows)), 1.0)
        for line in axes.lines:
            _whole(line)
        even_ticks(axes.xaxis)
    label_axes(figure, panels, "edited layer (0-based)", "mean ± SE (1 = full success)")
    legend_above(figure, panels, _of_what(rows, figure.get_figwidth()))
    return figure
