"""Figures as pure functions of Arrow tables: no store, no global state, nothing drawn on import.

Every figure has one colour for text and the series colours below, which are Okabe and Ito's set for the colour-blind.
Series also differ in marker and line style, or in hatch. chart.py makes the figures of the HTML report.
"""

import math
from collections.abc import Mapping
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from fasttrace.errors import UserError

from .naming import Row, group_names, in_group, number, p_text, visible

INK = "#22272e"
FAINT = "#c9ced6"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
HATCHES = ("", "///", "...")
COLORMAP = "cividis"
SCORES = ("rewrite", "paraphrase", "neighborhood", "essence", "overall")
GROUPS_ABREAST = 4  # groups of three bars that fit side by side across a page
MAX_VECTOR_POINTS = 4000  # above this a scatter is drawn as pixels, because its SVG would take megabytes


# -- frame ------------------------------------------------------------------------------------------------


def _figure(width: float, height: float) -> Figure:
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def _dress(axes: Axes, x: str | None = None, y: str | None = None, title: str | None = None) -> Axes:
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


def _layers_on_x(axes: Axes, n_layers: int) -> None:
    axes.set_xlim(-0.6, n_layers - 0.4)
    axes.xaxis.set_major_locator(MaxNLocator(nbins=10, integer=True))


def _legend(axes: Axes, **options: Any) -> None:
    legend = axes.legend(fontsize=9, frameon=False, labelcolor=INK, **options)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _need_rows(table: pa.Table, what: str) -> list[Row]:
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


def color_range(p_restored: np.ndarray, p_clean: float, p_noised: float | None) -> tuple[float, float]:
    """(low, high) probability of a heatmap's colours: from p_noised, or the lowest cell if lower, to the highest cell.

    The range is at least a tenth of p_clean − p_noised, so that a grid in which nothing is restored looks flat.
    """
    low = float(np.nanmin(p_restored))
    if p_noised is None:  # zeroing has no p_noised, and the range ends at p_clean
        return low, max(p_clean, low + 1e-6)
    low = min(p_noised, low)
    return low, max(float(np.nanmax(p_restored)), low + max(0.1 * (p_clean - p_noised), 1e-6))


def grid_of(cells: pa.Table, column: str) -> np.ndarray:
    """(tokens, layers) float64 of one fact's cells at one window size; NaN where a cell is absent or NULL."""
    tokens, layers = (np.asarray(cells[name].to_pylist(), dtype=int) for name in ("token_index", "layer"))
    grid = np.full((int(tokens.max()) + 1, int(layers.max()) + 1), np.nan)
    grid[tokens, layers] = [math.nan if value is None else value for value in cells[column].to_pylist()]
    return grid


def draw_heatmap(fact: Mapping[str, Any], cells: pa.Table) -> Figure:
    """One fact's grid of p_restored, tokens down, layers across (paper, Figure 2).

    fact: subject, target_true, tokens, subject_begin, subject_end, p_clean, p_noised of one trace.
    cells: token_index, token, layer, p_restored, window_size of that trace at one window size.
    Raises UserError where there are no cells.
    """
    if cells.num_rows == 0:
        raise UserError("expected traced cells of the fact to draw, got none")
    values = grid_of(cells, "p_restored")
    n_tokens, n_layers = values.shape
    low, high = color_range(values, fact["p_clean"], fact["p_noised"])
    names = list(fact["tokens"] or [])[:n_tokens]
    names += [""] * (n_tokens - len(names))
    labels = [
        f"{visible(name)}{'*' if fact['subject_begin'] <= place < fact['subject_end'] else ''}"
        for place, name in enumerate(names)
    ]
    figure = _figure(max(5.5, 2.6 + 0.17 * n_layers), max(2.4, 1.5 + 0.24 * n_tokens))
    axes = _dress(
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
    axes.set_ylabel(
        "token (* subject)" if fact["p_noised"] is None else "token (* subject, noised)", color=INK, fontsize=10
    )
    axes.xaxis.set_major_locator(MaxNLocator(nbins=15, integer=True))
    target, noised = visible(str(fact["target_true"])), fact["p_noised"]
    axes.set_title(
        f"p({target}) clean {fact['p_clean']:.3f}" + ("" if noised is None else f", noised {noised:.3f}"),
        color=INK,
        fontsize=10,
        loc="left",
        parse_math=False,
    )
    bar = figure.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(f"p({target}) restored", color=INK, fontsize=9, parse_math=False)
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.outline.set_visible(False)
    return figure


def draw_peak_histogram(peaks: pa.Table) -> Figure:
    """How many facts have their largest tracing effect at each layer (paper, Figures 1 and 11).

    peaks: the rows of sql/peak_layers.sql.
    """
    rows = _need_rows(peaks, "tracing effects")
    names = group_names(rows, always=("window_size",))
    figure = _figure(7.0, 0.6 + 2.2 * len(names))
    for axes, (group, name) in zip(_panel_grid(figure, len(names), 1), names.items(), strict=True):
        members = in_group(rows, group)
        n_layers = max(row["n_layers"] for row in members)
        counts = np.bincount([row["peak_layer"] for row in members], minlength=n_layers)
        _dress(
            axes,
            "layer with the fact's largest tracing effect (0-based)",
            "facts",
            f"{name}: {len(members)} facts",
        )
        axes.bar(range(n_layers), counts, width=0.85, color=SERIES[0])
        axes.yaxis.set_major_locator(MaxNLocator(nbins=5, integer=True))
        _layers_on_x(axes, n_layers)
    return figure


def draw_mean_effect(curve: pa.Table) -> Figure:
    """Mean tracing effect at each layer, with a band of one standard error on each side (paper, Figure 10).

    curve: the rows of sql/mean_effect.sql.
    """
    rows = _need_rows(curve, "tracing effects")
    names = group_names(rows, always=("window_size",))
    figure = _figure(7.0, 3.2)
    axes = _dress(
        figure.subplots(),
        "layer at the centre of the restored window (0-based)",
        "mean tracing effect\n(fraction of p_clean − p_noised)",
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
    _layers_on_x(axes, max(row["layer"] for row in rows) + 1)
    axes.set_ylim(bottom=min(0.0, axes.get_ylim()[0]))
    _legend(axes, loc="upper right")
    return figure


def draw_effect_vs_score(pairs: pa.Table, correlations: pa.Table, score: str) -> Figure:
    """Edit score against tracing effect, one panel per edited layer, with ρ in its title (paper, Figures 4 and 15).

    pairs: the keys of a regression, layer, effect, score; one row per edit (sql/edit_effects.sql).
    correlations: the same keys, layer, rho, p_value; one row per edited layer.
    """
    rows = _need_rows(pairs, "edits with a tracing effect")
    rhos = correlations.to_pylist()
    names = group_names(rows)
    blocks = {group: sorted({row["layer"] for row in in_group(rows, group)}) for group in names}
    heights = [0.75 + 1.95 * math.ceil(len(layers) / 4) for layers in blocks.values()]
    figure = _figure(9.0, sum(heights))
    x_low, x_high = (pick([0.0, 1.0, *(row["effect"] for row in rows)]) for pick in (min, max))
    y_low, y_high = (pick([0.0, 1.0, *(row["score"] for row in rows)]) for pick in (min, max))
    slices = figure.subfigures(len(blocks), 1, height_ratios=heights, squeeze=False).flat
    for part, (group, layers) in zip(slices, blocks.items(), strict=True):
        part.set_facecolor("none")
        if len(names) > 1:
            part.suptitle(names[group], color=INK, fontsize=11, x=0.01, ha="left", parse_math=False)
        panels = _panel_grid(part, len(layers), 4, sharex=True, sharey=True)
        for axes, layer in zip(panels, layers, strict=True):
            points = [row for row in in_group(rows, group) if row["layer"] == layer]
            found = [row for row in in_group(rhos, group) if row["layer"] == layer]
            rho, p = (found[0]["rho"], found[0]["p_value"]) if found else (None, None)
            _dress(axes, title=f"layer {layer}:  ρ = {number(rho, 2)}\n{p_text(p)}, n = {len(points)}")
            axes.plot([0, 1], [0, 1], color=SERIES[1], linestyle="--", linewidth=1.0)
            axes.scatter(
                [row["effect"] for row in points],
                [row["score"] for row in points],
                s=14,
                color=SERIES[0],
                alpha=0.75 if len(points) <= 100 else 0.35,
                linewidths=0,
                rasterized=len(rows) > MAX_VECTOR_POINTS,
            )
            axes.set_xlim(x_low - 0.05, x_high + 0.05)
            axes.set_ylim(y_low - 0.05, y_high + 0.05)
        part.supxlabel("tracing effect at the edited layer (fraction of p_clean − p_noised)", color=INK, fontsize=10)
        part.supylabel(f"{score} score", color=INK, fontsize=10)
    return figure


def draw_r2_bars(regressions: pa.Table) -> Figure:
    """R² of the edit score by layer, by tracing effect and by both, for each problem and method (Figure 6).

    regressions: the keys of a regression, score, r2_layer, r2_effect, r2_both.
    """
    rows = _need_rows(regressions, "edits with a tracing effect")
    named = list(zip(group_names(rows).values(), rows, strict=True))
    lines = math.ceil(len(rows) / GROUPS_ABREAST)
    abreast = math.ceil(len(rows) / lines)
    figure = _figure(max(5.0, 1.6 + 1.9 * abreast), 0.5 + 2.9 * lines)
    panels = _panel_grid(figure, lines, 1, sharey=True)
    for place, axes in enumerate(panels):
        _r2_panel(_dress(axes), named[abreast * place : abreast * (place + 1)], abreast)
    figure.supylabel(f"R² of the {rows[0]['score']} score", color=INK, fontsize=10)
    _legend(panels[0], loc="lower left", bbox_to_anchor=(0, 1.0), ncols=3, borderaxespad=0.2)
    return figure


def _r2_panel(axes: Axes, named: list[tuple[str, Row]], abreast: int) -> None:
    """Draw three bars for each (name, regression). abreast: number of groups that fit the panel."""
    places = np.arange(len(named))
    series = (("r2_layer", "edited layer"), ("r2_effect", "tracing effect"), ("r2_both", "both"))
    for offset, (column, label) in enumerate(series):
        values = [math.nan if row[column] is None else row[column] for _, row in named]
        bars = axes.bar(
            places + 0.27 * (offset - 1),
            np.nan_to_num(values),
            width=0.25,
            color=SERIES[offset],
            label=label,
            hatch=HATCHES[offset],
            edgecolor="white",
            linewidth=0,
        )
        axes.bar_label(bars, [number(value) for value in values], fontsize=9, color=INK, padding=2)
    axes.set_xticks(places, [name.replace(" · ", "\n") for name, _ in named])
    axes.set_xlim(-0.6, abreast - 0.4)
    axes.set_ylim(0, 1.08)  # room for the number above a bar of height 1
    axes.set_yticks([0.0, 0.2, 0.4, 0.6, 0.8, 1.0])
    for text in axes.get_xticklabels():
        text.set_parse_math(False)


def draw_score_by_layer(means: pa.Table) -> Figure:
    """Mean edit scores by edited layer, one panel per score, one line per problem and method (Figures 7 and 9).

    means: problem, method, protocol, model, window_size, edit_run_id, score, layer, n, mean, sem; one row per layer and
    score.
    """
    rows = [row for row in _need_rows(means, "edits") if row["mean"] is not None]
    scores = [score for score in SCORES if any(row["score"] == score for row in rows)]
    names = group_names(rows)
    figure = _figure(9.0, 0.5 + 2.6 * math.ceil(len(scores) / 2) + 0.22 * math.ceil(len(names) / 2))
    panels = _panel_grid(figure, len(scores), 2, sharex=True, sharey=True)
    for axes, score in zip(panels, scores, strict=True):
        _dress(axes, title=f"{score} score")
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
    figure.supxlabel("edited layer (0-based)", color=INK, fontsize=10)
    figure.supylabel("mean score (1 = full success)", color=INK, fontsize=10)
    if len(names) > 1:
        handles, labels = panels[0].get_legend_handles_labels()
        legend = figure.legend(
            handles, labels, loc="outside upper left", ncols=2, fontsize=9, frameon=False, labelcolor=INK
        )
        for text in legend.get_texts():
            text.set_parse_math(False)
    return figure
