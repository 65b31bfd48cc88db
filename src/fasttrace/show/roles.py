"""Mean indirect effects by token role on matplotlib axes: a line a role, or for one role the heads × layers."""

import math
from collections.abc import Sequence
from typing import Any

import matplotlib
import numpy as np
from matplotlib.axes import Axes
from scipy.optimize import isotonic_regression

from .style import INK, LINES, MARKERS, SERIES, dress, even_ticks, layers_on_x, two_lines
from .words import METRICS, ROLE_WORDS

Row = dict[str, Any]
LABEL_HEIGHT = 0.085  # of a line's label, as a share of the panel's height
LAYER_LABEL = "layer at the centre of the window (0-based)"


def effect_label(metric: str) -> str:
    """What an axis of indirect effects shows, with its unit in parentheses."""
    one = METRICS[metric]
    return f"mean indirect effect on {one.name} ({one.unit or 'probability'})"


def draw_role_lines(axes: Axes, rows: Sequence[Row], metric: str, title: str) -> Axes:
    """A line for each role, labelled at its end with the number of facts that have such a token (Meng et al. 2022,
    Figure 3). Its band is the 95 % confidence interval of the mean over facts.

    rows: of tracing.roles.AVERAGES, at one window size and without heads.
    """
    dress(axes, LAYER_LABEL, two_lines(effect_label(metric), " on "), title)
    ends = []
    for place, (role, words) in enumerate(ROLE_WORDS.items()):
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
        ends.append((float(means[-1]), f"{words}, n = {max(row['n'] for row in members)}", style))
    axes.axhline(0.0, color=INK, linewidth=0.6)
    layers_on_x(axes, max(row["layer"] for row in rows) + 1)
    _show_the_means(axes, rows)
    _label_ends(axes, ends)
    return axes


def _show_the_means(axes: Axes, rows: Sequence[Row]) -> None:
    """Cut bands that would flatten the lines: of two facts, a 95 % band may be ten times as wide as all effects."""
    means = [0.0, *(row["mean_effect"] for row in rows)]
    spare = 1.05 * (max(means) - min(means)) or 1.0
    low, high = axes.get_ylim()
    axes.set_ylim(max(low, min(means) - spare), min(high, max(means) + spare))


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


def draw_role_heads(axes: Axes, rows: Sequence[Row], role: str, title: str) -> Any:
    """The heads, or experts, down and the layers across at one role. Returns the image, for a colour bar.

    rows: of tracing.roles.AVERAGES with heads, at one window size. All roles have one range of colours.
    """
    heads = sorted({row["head"] for row in rows})
    most = max(abs(row["mean_effect"]) for row in rows) or 1.0
    grid = np.full((len(heads), max(row["layer"] for row in rows) + 1), np.nan)
    for row in rows:
        if row["role"] == role:
            grid[heads.index(row["head"]), row["layer"]] = row["mean_effect"]
    dress(axes, title=title)
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
    even_ticks(axes.xaxis, 8)
    axes.set_yticks(range(len(heads)), heads)
    return image
