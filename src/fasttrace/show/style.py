"""The common frame of all figures: size, colours, spines, ticks and legends.

Every figure has one colour for text and the series colours below, which are Okabe and Ito's set for the colour-blind.
Series also differ in marker and line style, or in hatch.
"""

import math
from collections.abc import Iterable
from typing import Any

from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure, SubFigure
from matplotlib.ticker import MaxNLocator

from fasttrace.errors import UserError

INK = "#22272e"
FAINT = "#c9ced6"
SERIES = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9")
MARKERS = ("o", "s", "^", "D", "v", "P")
LINES = ("-", "--", "-.", ":", (0, (5, 1)), (0, (1, 1)))
COLORMAP = "cividis"
MAX_VECTOR_POINTS = 4000  # above this, points or cells are drawn as pixels, because their SVG would take megabytes


def new_figure(width: float, height: float) -> Figure:
    """A white figure of that size in inches."""
    return Figure(figsize=(width, height), layout="constrained", facecolor="white")


def axes_to_draw_on(ax: Any, width: float, height: float) -> Axes:
    """The caller's axes, or without any those of a new figure of that size in inches, which pyplot and notebooks show.

    Raises UserError where `ax` is something else.
    """
    if ax is None:
        from matplotlib import pyplot  # only here: it keeps every figure, and drawing for a file needs none of it

        axes: Axes = pyplot.figure(figsize=(width, height), layout="constrained", facecolor="white").subplots()
        return axes
    if not isinstance(ax, Axes):
        raise UserError(f"plot: ax: expected matplotlib axes, got {type(ax).__name__}")
    return ax


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


def even_ticks(axis: Axis, most: int = 10) -> None:
    """Ticks at whole numbers in even steps of 1, 2, 5, 10, …, at most about `most` of them."""
    axis.set_major_locator(MaxNLocator(nbins=most, integer=True, steps=[1, 2, 5, 10]))


def layers_on_x(axes: Axes, n_layers: int) -> None:
    """Let the x axis show the layers, from 0."""
    axes.set_xlim(-0.6, n_layers - 0.4)
    even_ticks(axes.xaxis)


def two_lines(label: str, before: str = " (") -> str:
    """A label with its unit on a line of its own, or whatever begins with `before`."""
    return label.replace(before, f"\n{before.lstrip(' ')}", 1)


def label_axes(part: Figure | SubFigure, panels: list[Axes], x: str | None, y: str) -> None:
    """Label the axes that the panels share. A panel that stands alone has the labels itself."""
    if len(panels) == 1:
        panels[0].set_ylabel(y, color=INK, fontsize=10)
        panels[0].set_xlabel(x or "", color=INK, fontsize=10)
        return
    part.supylabel(y, color=INK, fontsize=10)
    if x:
        part.supxlabel(x, color=INK, fontsize=10)


def color_bar(part: Figure | SubFigure, image: Any, axes: Axes | list[Axes], label: str) -> None:
    """The bar that says what the colours of an image mean."""
    bar: Any = part.colorbar(image, ax=axes, pad=0.02)
    bar.set_label(label, color=INK, fontsize=9, parse_math=False)
    bar.ax.tick_params(colors=INK, labelsize=9)
    bar.outline.set_visible(False)
    bar.solids.set(rasterized=False, edgecolor="face")  # vectors, as the cells are


def legend_columns(labels: Iterable[str], width: float) -> int:
    """How many labels of 9 points fit side by side into a figure of that width in inches."""
    labels = list(labels)
    return max(1, min(len(labels), int(width / (0.65 + 0.068 * max(map(len, labels))))))


def legend_above(figure: Figure, panels: list[Axes], title: str = "") -> None:
    """A legend of the whole figure, with every series that some panel has, under a title."""
    found: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            found.setdefault(label, handle)
    labels, handles = list(found), list(found.values())
    ncols = legend_columns(labels, figure.get_figwidth())
    legend = figure.legend(
        handles,
        labels,
        loc="outside upper left",
        ncols=ncols,
        fontsize=9,
        frameon=False,
        labelcolor=INK,
        handlelength=2.8,  # shows a whole period of every line style
        title=title or None,
        title_fontsize=10,
        alignment="left",
    )
    legend.get_title().set_color(INK)
    for text in (legend.get_title(), *legend.get_texts()):
        text.set_parse_math(False)


def panel_grid(figure: Figure | SubFigure, panels: int, columns: int, **options: Any) -> list[Axes]:
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
