"""The figure of mean indirect effects by token role: layers across, one line or one heatmap a role."""

import math
from typing import Any

import matplotlib
import numpy as np
import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator
from scipy.optimize import isotonic_regression

from fasttrace.tracing.roles import ROLES

from .draw import INK, LINES, MARKERS, SERIES, dress, layers_on_x, need_rows, new_figure
from .naming import METRICS, Row, group_names, in_group

WORDS = {
    "first-subject": "first subject token",
    "middle-subject": "middle subject tokens",
    "last-subject": "last subject token",
    "first-after": "first token after it",
    "further": "further tokens",
    "last-prompt": "last prompt token",
}
LABEL_HEIGHT = 0.085  # of a line's label, as a share of the panel's height
MODULES = ("block", "mlp", "attn", "head", "expert")


def draw_roles(averages: pa.Table) -> Figure:
    """Mean indirect effects by token role, layer and head, or expert (Meng et al. 2022, Figures 2 and 3).

    A run of heads or experts is a heatmap per role, these down and layers across. Every other run is one panel with a
    line per role, labelled at its end with the number of facts that have such a token. Its band is the 95 % confidence
    interval of the mean over facts.
    averages: the rows of sql/effects_by_role.sql, with the bands of `tracing.roles.with_bands`.
    """
    rows = need_rows(averages, "traces at single tokens")
    names = group_names(rows, always=("module", "localization", "metric", "window_size"))
    order = sorted(names, key=lambda group: (MODULES.index(dict(group)["module"]), names[group]))
    heights = [4.6 if _has_heads(in_group(rows, group)) else 3.0 for group in order]
    figure = new_figure(9.0, 0.5 + sum(heights))
    parts = figure.subfigures(len(order), 1, height_ratios=heights, squeeze=False).flat
    for part, group in zip(parts, order, strict=True):
        members = in_group(rows, group)
        part.set_facecolor("none")
        facts = max(row["n"] for row in members)
        title = f"{names[group]}: {facts} facts, {members[0]['model']}"
        if _has_heads(members):
            _heatmaps(part, members, title)
        else:
            _lines(part, members, title)
    return figure


def _has_heads(rows: list[Row]) -> bool:
    return any(row["head"] is not None for row in rows)


def effect_label(row: Row) -> str:
    """What an axis of the row's indirect effects shows, with its unit in parentheses."""
    metric = METRICS[row["metric"]]
    return f"mean indirect effect on {metric.name} ({metric.unit or 'probability'})"


def _two_lines(label: str) -> str:
    return label.replace(" on ", "\non ", 1)


def _lines(part: Figure | SubFigure, rows: list[Row], title: str) -> None:
    axes = dress(
        part.subplots(), "layer at the centre of the window (0-based)", _two_lines(effect_label(rows[0])), title
    )
    ends = []
    for place, role in enumerate(ROLES):
        members = sorted((row for row in rows if row["role"] == role), key=lambda row: int(row["layer"]))
        if not members:
            continue
        layers, means, low, high = (
            np.array([math.nan if row[name] is None else row[name] for row in members], dtype=float)
            for name in ("layer", "mean_effect", "low", "high")
        )
        axes.fill_between(layers, low, high, color=SERIES[place], alpha=0.18, linewidth=0)
        style: dict[str, Any] = {
            "color": SERIES[place],
            "linestyle": LINES[place],
            "marker": MARKERS[place],
            "markersize": 3.5,
        }
        axes.plot(layers, means, linewidth=1.6, **style)
        ends.append((float(means[-1]), f"{WORDS[role]}, n = {max(row['n'] for row in members)}", style))
    axes.axhline(0.0, color=INK, linewidth=0.6)
    layers_on_x(axes, max(row["layer"] for row in rows) + 1)
    _label_ends(axes, ends)


def _label_ends(axes: Axes, ends: list[tuple[float, str, dict[str, Any]]]) -> None:
    """Label lines beside the right edge, where each ends. ends: (value, text, style) of each line.

    Labels that would overlap are moved apart, and a stroke with the line's marker joins each to its line.
    """
    low, high = axes.get_ylim()
    axes.set_ylim(low, high)  # labels must not change what they are placed by
    ends = sorted(ends, key=lambda end: end[0])
    places = np.array([(value - low) / (high - low) for value, _, _ in ends])
    spaced = np.arange(len(ends)) * LABEL_HEIGHT
    # Least squares under the order's spacing: where labels crowd, each block is centred on its lines.
    at = isotonic_regression(places - spaced).x + spaced
    at -= max(0.0, at[-1] - 1.0)
    at += max(0.0, -at[0])
    for (_, text, style), line_end, place in zip(ends, places, at, strict=True):
        joined: dict[str, Any] = {"transform": axes.transAxes, "clip_on": False, "markevery": [1]}
        axes.plot((1.0, 1.025), (line_end, place), linewidth=1.2, **style | {"linestyle": "-"}, **joined)
        axes.text(1.04, place, text, transform=axes.transAxes, va="center", fontsize=9, color=INK, parse_math=False)


def _heatmaps(part: Figure | SubFigure, rows: list[Row], title: str) -> None:
    part.suptitle(title, color=INK, fontsize=10, x=0.01, ha="left", parse_math=False)
    roles = [role for role in ROLES if any(row["role"] == role for row in rows)]
    heads = sorted({row["head"] for row in rows})
    n_layers = max(row["layer"] for row in rows) + 1
    most = max(abs(row["mean_effect"]) for row in rows) or 1.0
    columns = min(3, len(roles))
    panels = part.subplots(math.ceil(len(roles) / columns), columns, squeeze=False, sharex=True, sharey=True)
    image = None
    for place, axes in enumerate(panels.flat):
        if place >= len(roles):
            axes.set_visible(False)
            continue
        grid = np.full((len(heads), n_layers), np.nan)
        for row in rows:
            if row["role"] == roles[place]:
                grid[heads.index(row["head"]), row["layer"]] = row["mean_effect"]
        dress(axes, title=WORDS[roles[place]])
        axes.grid(visible=False)
        # Both signs matter: a head may work against the answer.
        image = axes.imshow(
            grid,
            cmap=matplotlib.colormaps["RdBu_r"].with_extremes(bad="none"),
            vmin=-most,
            vmax=most,
            aspect="auto",
            interpolation="nearest",
        )
        axes.xaxis.set_major_locator(MaxNLocator(nbins=8, integer=True))
        axes.set_yticks(range(len(heads)), heads)
    part.supxlabel("layer at the centre of the window (0-based)", color=INK, fontsize=10)
    part.supylabel(rows[0]["module"], color=INK, fontsize=10)
    if image is not None:
        bar = part.colorbar(image, ax=list(panels.flat), pad=0.02)
        bar.set_label(_two_lines(effect_label(rows[0])), color=INK, fontsize=9, parse_math=False)
        bar.ax.tick_params(colors=INK, labelsize=9)
        bar.outline.set_visible(False)
