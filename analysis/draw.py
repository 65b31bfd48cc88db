"""Figures as pure functions of Arrow tables: no store, no global state, nothing drawn on import.

Every figure has one colour for text and the series colours below, which are Okabe and Ito's set for the colour-blind.
Series also differ in marker and line style, or in hatch. chart.py makes the figures of the HTML report.
"""

import math
from collections.abc import Iterable, Mapping
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from scipy import stats

from fasttrace.errors import UserError

from .grids import color_range, grid_of
from .naming import (
    METRICS,
    Row,
    effect_label,
    group_names,
    in_group,
    number,
    outside_text,
    p_text,
    score_label,
    visible,
)

INK = "#22272e"
FAINT = "#c9ced6"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
COLORMAP = "cividis"
PAGE = 10.0  # inches: the width that panels of bars share
MAX_VECTOR_POINTS = 4000  # above this a scatter is drawn as pixels, because its SVG would take megabytes


# -- frame ------------------------------------------------------------------------------------------------


def new_figure(width: float, height: float) -> Figure:
    """A white figure of that size in inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def dress(axes: Axes, x: str | None = None, y: str | None = None, title: str | None = None) -> Axes:
    """Apply the common style: two spines, faint horizontal lines behind the data, one text colour, 9-point ticks."""
    axes.set_facecolor("none")
    for side, spine in axes.spines.items():
        spine.set_visible(side in ("left", "bottom"))
        spine.set_color(INK)
    axes.tick_params(colors=INK, labelsize=9)
    axes.grid(axis="y", color=FAINT, linewidth=0.6)
    axes.set_axisbelow(True)
    if x:
        axes.set_xlabel(x, color=INK, fontsize=10)
    if y:
        axes.set_ylabel(y, color=INK, fontsize=10)
    if title:
        # Names come from users' data, where a "$" must not start a formula.
        axes.set_title(title, color=INK, fontsize=10, loc="left", parse_math=False)
    return axes


def _two_lines(label: str) -> str:
    """A label with its unit on a line of its own."""
    return label.replace(" (", "\n(", 1)


def layers_on_x(axes: Axes, n_layers: int) -> None:
    """Let the x axis show the layers, from 0."""
    axes.set_xlim(-0.6, n_layers - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))


def _label_axes(part: Figure | SubFigure, panels: list[Axes], x: str | None, y: str) -> None:
    """Label the axes that the panels share. A panel that stands alone has the labels itself."""
    if len(panels) == 1:
        panels[0].set_ylabel(y, color=INK, fontsize=10)
        panels[0].set_xlabel(x or "", color=INK, fontsize=10)
        return
    part.supylabel(y, color=INK, fontsize=10)
    if x:
        part.supxlabel(x, color=INK, fontsize=10)


def _legend_columns(labels: Iterable[str], width: float) -> int:
    """How many labels of 9 points fit side by side into a figure of that width in inches."""
    labels = list(labels)
    return max(1, min(len(labels), int(width / (0.55 + 0.068 * max(map(len, labels))))))


def legend_above(figure: Figure, panels: list[Axes]) -> None:
    """A legend of the whole figure, with every series that some panel has."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels, handles = list(found), list(found.values())
    ncols = _legend_columns(labels, figure.get_figwidth())
    legend = figure.legend(
        handles, labels, loc="outside upper left", ncols=ncols, fontsize=9, frameon=False, labelcolor=INK
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def need_rows(table: pa.Table, what: str) -> list[Row]:
    """The table's rows. Raises UserError where there are none. what: names what was expected."""
    if table.num_rows == 0:
        raise UserError(f"expected {what} to draw, got none")
    rows: list[Row] = table.to_pylist()
    return rows


def _panel_grid(figure: Figure | SubFigure, panels: int, columns: int, **options: Any) -> list[Axes]:
    """Return `panels` axes, row by row. Surplus cells stay empty."""
    columns = min(columns, panels)
    rows = math.ceil(panels / columns)
    grid = figure.subplots(rows, columns, squeeze=False, **options)
    axes = list(grid.flat)
    for spare in axes[panels:]:
        spare.set_visible(False)
    for place, axis in enumerate(axes[:panels]):
        if place + columns >= panels:  # only the lowest panel of a column has tick labels
            axis.tick_params(labelbottom=True)
    return axes[:panels]


# -- figures ----------------------------------------------------------------------------------------------


def draw_heatmap(fact: Mapping[str, Any], cells: pa.Table) -> Figure:
    """One fact's grid of the metric restored, tokens down, layers across (paper, Figure 2).

    fact: a row of sql/fact_traces.sql. cells: its rows of sql/fact_cells.sql at one window size.
    Raises UserError where there are no cells.
    """
    if cells.num_rows == 0:
        raise UserError("expected traced cells of the fact to draw, got none")
    metric = METRICS[fact["metric"]]
    values = grid_of(cells, f"{metric.column}_restored")
    n_tokens, n_layers = values.shape
    clean, noised = fact.get(f"{metric.column}_clean", 0.0), fact[f"{metric.column}_noised"]  # KL's clean value is 0
    low, high = color_range(values, clean, noised)
    names = list(fact["token_texts"] or [])[:n_tokens]
    names += [""] * (n_tokens - len(names))
    labels = [
        f"{visible(name)}{'*' if fact['subject_begin'] <= place < fact['subject_end'] else ''}"
        for place, name in enumerate(names)
    ]
    figure = new_figure(max(5.5, 2.6 + 0.17 * n_layers), max(2.4, 1.5 + 0.24 * n_tokens))
    axes = dress(
        figure.subplots(),
        x=f"layer at the centre of the restored window of {cells['window_size'][0]} (0-based)",
    )
    axes.grid(visible=False)
    image = axes.imshow(
        values,
        cmap=matplotlib.colormaps[COLORMAP].with_extremes(bad="none"),
        vmin=low,
        vmax=high,
        aspect="auto",
        interpolation="nearest",
    )
    axes.set_yticks(range(n_tokens), labels)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
    by_noise = noised is not None and fact["counterfactuals"] is None
    axes.set_ylabel("token (* subject, noised)" if by_noise else "token (* subject)", color=INK, fontsize=10)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=15, integer=True))
    name = metric.name.replace("o_true", visible(str(fact["target_true"])))
    ends = "" if noised is None else f", {'noised' if by_noise else 'counterfactual'} {noised:.3f}"
    heads = "; the strongest head of each cell" if cells["head"].null_count < len(cells) else ""
    axes.set_title(
        f"{name} clean {clean:.3f}{ends}{heads}",
        color=INK,
        fontsize=10,
        loc="left",
        parse_math=False,
    )
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    unit = f" ({metric.unit})" if metric.unit else ""
    bar.set_label(f"{name} restored{unit}", color=INK, fontsize=9, parse_math=False)
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.outline.set_visible(False)
    return figure


def draw_peak_histogram(peaks: pa.Table) -> Figure:
    """How many facts have their largest tracing effect at each layer (paper, Figures 1 and 11).

    peaks: the rows of sql/peak_layers.sql.
    """
    rows = need_rows(peaks, "tracing effects")
    names = group_names(rows, always=("window_size",))
    figure = new_figure(7.0, 0.6 + 2.2 * len(names))
    for axes, (group, name) in zip(_panel_grid(figure, len(names), 1), names.items(), strict=True):
        members = in_group(rows, group)
        n_layers = max(row["n_layers"] for row in members)
        counts = np.bincount([row["peak_layer"] for row in members], minlength=n_layers)
        dress(
            axes,
            "layer with the fact's largest tracing effect (0-based)",
            "facts",
            f"{name}: {len(members)} facts",
        )
        axes.bar(range(n_layers), counts, width=0.85, color=SERIES[0])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        layers_on_x(axes, n_layers)
    return figure


def draw_mean_effect(curve: pa.Table) -> Figure:
    """Mean tracing effect at each layer, with a band of one standard error on each side (paper, Figure 10).

    curve: the rows of sql/mean_effect.sql.
    """
    rows = need_rows(curve, "tracing effects")
    names = group_names(rows, always=("window_size",))
    legend_lines = math.ceil(len(names) / _legend_columns((f"{name} (9999 facts)" for name in names.values()), 7.0))
    figure = new_figure(7.0, 3.2 + 0.2 * legend_lines)
    labels = {effect_label(row["localization"], metric=row["metric"]) for row in rows}
    axes = dress(
        figure.subplots(),
        "layer at the centre of the restored window (0-based)",
        f"mean {_two_lines(labels.pop() if len(labels) == 1 else 'tracing effect (share of the lost metric)')}",
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
            label=f"{name} ({facts} facts)",
        )
    layers_on_x(axes, max(row["layer"] for row in rows) + 1)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    legend_above(figure, [axes])
    return figure


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
    side = 3.4 if columns == 1 else 1.95
    heights = [1.0 + side * math.ceil(len(layers) / columns) for layers in blocks.values()]
    figure = new_figure(max(5.8, 1.0 + 2.05 * columns), 0.3 + sum(heights))
    limits = [
        (min(0.0, *values) - 0.05, max(1.0, *values) + 0.05)
        for values in ([row[name] for row in rows] for name in ("effect", "score"))
    ]
    shown: list[Axes] = []
    slices = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False).flat
    for part, (group, layers) in zip(slices, blocks.items(), strict=True):
        members = in_group(rows, group)
        part.set_facecolor("none")
        if len(names) > 1:
            part.suptitle(names[group], color=INK, fontsize=11, x=0.01, ha="left", parse_math=False)
        panels = _panel_grid(part, len(layers), columns, sharex=True, sharey=True)
        shown += panels
        for axes, layer in zip(panels, layers, strict=True):
            found = [row for row in in_group(rhos, group) if row["layer"] == layer]
            _scatter_panel(axes, layer, [row for row in members if row["layer"] == layer], found, many=len(rows))
            axes.set(xlim=limits[0], ylim=limits[1])
        label = _two_lines(effect_label(members[0]["localization"], members[0]["effect_at"], members[0]["metric"]))
        outside = outside_text(row["effect"] for row in members)
        _label_axes(part, panels, label + (f"\n{outside}" if outside else ""), _two_lines(score_label(score)))
    legend_above(figure, shown)
    return figure


def _scatter_panel(axes: Axes, layer: int, points: list[Row], found: list[Row], *, many: int) -> None:
    """Draw the edits of one layer. found: the row with their correlation, if any. many: points in the whole figure."""
    rho, p = (found[0]["rho"], found[0]["p_value"]) if found else (None, None)
    dress(axes, title=f"layer {layer}:  ρ = {number(rho, 2)}\n{p_text(p)}, n = {len(points)}")
    x, y = (np.array([row[name] for row in points], dtype=float) for name in ("effect", "score"))
    axes.scatter(
        x,
        y,
        s=14,
        color=SERIES[0],
        alpha=0.75 if len(points) <= 100 else 0.35,
        linewidths=0,
        rasterized=many > MAX_VECTOR_POINTS,
    )
    axes.plot([0, 1], [0, 1], color=SERIES[1], linestyle="--", linewidth=1.0, label="perfect relationship")
    at = np.linspace(x.min(), x.max(), 50)
    fit = fit_and_band(x, y, at)
    if fit is not None:
        line, band = fit
        axes.plot(at, line, color=INK, linewidth=1.4, label="least squares")
        axes.fill_between(
            at, line - band, line + band, color=INK, alpha=0.18, linewidth=0, label="95 % confidence band"
        )


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
    panel_width = 0.5 + wide * max(0.62, 0.085 * longest)
    columns = max(1, min(len(problems), int(PAGE / panel_width)))
    lines = math.ceil(len(problems) / columns)
    figure = new_figure(max(5.0, 0.6 + panel_width * columns), 0.6 + 2.9 * lines)
    panels = _panel_grid(figure, len(problems), columns, sharey=True)
    for axes, (problem, members) in zip(panels, problems.items(), strict=True):
        _r2_panel(dress(axes, title=problem), members, wide)
    _label_axes(figure, panels, None, f"R² of the {score_label(rows[0]['score'])}")
    legend_above(figure, panels)
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
                fontsize=9,
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
    names = group_names(rows)
    columns = min(3, len(scores))
    lines = math.ceil(len(scores) / columns)
    width = max(5.0, 1.0 + 3.0 * columns)
    legend_lines = math.ceil(len(names) / _legend_columns(names.values(), width))
    figure = new_figure(width, 0.6 + 2.8 * lines + 0.22 * legend_lines)
    panels = _panel_grid(figure, len(scores), columns, sharex=True, sharey=True)
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
        axes.set_ylim(min(0.0, min(row["mean"] for row in rows)) - 0.02, 1.04)
        axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))
    _label_axes(figure, panels, "edited layer (0-based)", "mean score (1 = full success)")
    if len(names) > 1:
        legend_above(figure, panels)
    return figure
