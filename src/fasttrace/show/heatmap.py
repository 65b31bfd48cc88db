"""A heatmap on matplotlib axes."""

import textwrap

import matplotlib
import numpy as np
from matplotlib.axes import Axes

from .fonts import fit_fonts
from .grids import Heatmap
from .style import COLORMAP, INK, MAX_VECTOR_POINTS, color_bar, dress, even_ticks


def heatmap_size(heat: Heatmap) -> tuple[float, float]:
    """Width and height in inches of a figure with this heatmap alone."""
    n_tokens, n_layers = heat.values.shape
    return max(6.0, 2.6 + 0.17 * n_layers), max(2.6, 1.7 + 0.24 * n_tokens)


def draw_heatmap(axes: Axes, heat: Heatmap) -> Axes:
    """Tokens down, layers across, the metric as colour, with a colour bar beside the axes (paper, Figure 2).

    Cells are vectors up to MAX_VECTOR_POINTS of them. A heatmap that the axes have already is replaced. Returns the
    axes.
    """
    for earlier in list(axes.collections):
        if (bar := earlier.colorbar) is not None:
            bar.remove()
            earlier.remove()
    n_tokens, n_layers = heat.values.shape
    low, high = heat.range
    dress(axes, x=heat.layer_label, y=heat.token_label, title=heat.title)
    axes.grid(visible=False)
    cells = axes.pcolormesh(
        np.arange(n_layers + 1) - 0.5,
        np.arange(n_tokens + 1) - 0.5,
        np.ma.masked_invalid(heat.values),
        cmap=matplotlib.colormaps[COLORMAP],
        vmin=low,
        vmax=high,
        edgecolors="face",  # else viewers show white seams between vectors
        linewidth=0.2,
        rasterized=heat.values.size > MAX_VECTOR_POINTS,
    )
    axes.set_xlim(-0.5, n_layers - 0.5)
    axes.set_ylim(n_tokens - 0.5, -0.5)
    even_ticks(axes.xaxis)
    axes.set_yticks(range(n_tokens), heat.labels)
    for text in axes.get_yticklabels():
        text.set_parse_math(False)
        text.set_color(INK)
    # A row has about four letters of 9 points, and the margins as many as eight rows.
    color_bar(axes.figure, cells, axes, textwrap.fill(heat.value_label, max(24, 4 * (n_tokens + 4))))
    fit_fonts(axes)
    return axes
