"""One fact's traced cells as a grid, its colours' range, and the grid as coloured text for a terminal."""

import math
from collections.abc import Mapping
from itertools import pairwise
from typing import Any

import numpy as np
import pyarrow as pa
from rich.cells import cell_len, set_cell_size
from rich.text import Text

from .naming import visible

# Of cividis, the colormap of the figures, which matplotlib would take a second to say.
RAMP = ("#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838")
LABEL = 16  # most characters of a token


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
    """(tokens, layers) float64 of one fact's cells at one window size; NaN where a cell is absent or NULL.

    Of several heads at a token and layer, the one with the largest effect counts, as in trace_effects.
    """
    if cells["head"].null_count < len(cells):
        cells = cells.sort_by([("effect", "descending"), ("head", "ascending")])[::-1]  # the last one is kept
    tokens, layers = (np.asarray(cells[name].to_pylist(), dtype=int) for name in ("token_index", "layer"))
    grid = np.full((int(tokens.max()) + 1, int(layers.max()) + 1), np.nan)
    grid[tokens, layers] = [math.nan if value is None else value for value in cells[column].to_pylist()]
    return grid


def heatmap_text(fact: Mapping[str, Any], cells: pa.Table, width: int) -> Text:
    """The heatmap of Figure 2 as text: tokens down, layers across, p_restored as the colour behind each cell.

    fact, cells: one traced fact and its cells at one window size, as a sweep returns them. width: of the terminal.
    """
    values = grid_of(cells, "p_restored")
    low, high = color_range(values, fact["p_clean"], fact["p_noised"])
    names = [visible(name) for name in fact["tokens"][: len(values)]]
    inside = [fact["subject_begin"] <= place < fact["subject_end"] for place in range(len(names))]
    label = min(LABEL, max(map(cell_len, names)) + 1)
    wide = 2 if label + 1 + 2 * values.shape[1] <= width else 1
    target, noised = visible(fact["target_true"]), fact["p_noised"]
    text = Text(f"{visible(fact['prompt'])} … {target}: p {fact['p_clean']:.3f}")
    corrupted = "noise on the subject" if fact["counterfactuals"] is None else "the counterfactuals"
    text.append("\n" if noised is None else f", with {corrupted} {noised:.3f}\n")
    for name, marked, row in zip(names, inside, values, strict=True):
        text.append(f"{set_cell_size(name + '*' * marked, label)} ", "bold" if marked else "")
        for p in row:
            text.append(" " * wide, "" if math.isnan(p) else f"on {_color((p - low) / (high - low))}")
        text.append("\n")
    every = 5
    marks = "".join(f"{layer:<{every * wide}}" for layer in range(0, values.shape[1], every))
    text.append(f"{'layer':<{label}} {marks.rstrip()}\n")
    text.append(f"p restored by a window of {cells['window_size'][0]} layers (* subject): {low:.3f} ")
    for color in RAMP:
        text.append(" ", f"on {color}")
    return text.append(f" {high:.3f}\n")


def _color(share: float) -> str:
    """The ramp's colour at a share of 0 to 1, as #rrggbb."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    at = min(int(place), len(RAMP) - 2)
    below, above = list(pairwise(RAMP))[at]
    pairs = ((int(below[i : i + 2], 16), int(above[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(one + (other - one) * (place - at)):02x}" for one, other in pairs)
