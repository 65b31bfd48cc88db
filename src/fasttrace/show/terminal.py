"""A heatmap as coloured text for a terminal, and as digits where there is no colour."""

import math
from itertools import pairwise

from rich.cells import cell_len, set_cell_size
from rich.text import Text

from .grids import Heatmap
from .words import DONE

# Of cividis, the colormap of the figures, which matplotlib would take a second to say.
RAMP = ("#00224e", "#1a386f", "#434e6c", "#61656f", "#7d7c78", "#9b9476", "#bcae6c", "#dec958", "#fee838")
LABEL = 16  # most characters of a token
EVERY = 5  # layers between two numbers below the grid


def heatmap_text(heat: Heatmap, width: int, *, color: bool = True) -> Text:
    """Tokens down, layers across, the metric as the colour behind each cell.

    width: of the terminal. color: False: a cell is a digit up to 9 at the highest value, and a dot in the lowest tenth.
    """
    low, high = heat.range
    tokens = [set_cell_size(token, min(LABEL - 1, cell_len(token))) for token in heat.tokens]  # a star stays
    labels = [f"{token}{'*' * heat.in_subject(place)}" for place, token in enumerate(tokens)]
    wide = max(map(cell_len, labels))
    n_layers = heat.values.shape[1]
    each = 2 if wide + 1 + 2 * n_layers <= width else 1
    text = Text(f"{heat.prompt} … {heat.target}\n{heat.how}\n{heat.ends}\n")
    # A model deeper than the terminal is wide continues below.
    most = max(EVERY, (width - wide - 1) // each // EVERY * EVERY)
    for first in range(0, n_layers, most):
        layers = range(first, min(first + most, n_layers))
        for place, label in enumerate(labels):
            text.append(f"{set_cell_size(label, wide)} ", "bold" if heat.in_subject(place) else "")
            for value in heat.values[place, layers.start : layers.stop]:
                share = (value - low) / (high - low)
                if math.isnan(value):
                    text.append(" " * each)
                elif color:
                    text.append(" " * each, f"on {_color(share)}")
                else:
                    text.append(f"{_digit(share):>{each}}")
            text.append("\n")
        marks = "".join(f"{layer:<{EVERY * each}}" for layer in layers[::EVERY])
        text.append(f"{set_cell_size('layer', wide)} {' ' * (each - 1) * (not color)}{marks.rstrip()}\n")
    text.append(f"{heat.name}, {DONE[heat.method]} (* subject): ")
    if not color:
        return text.append(f". is {low:.3f}, 9 is {high:.3f}\n")
    text.append(f"{low:.3f} ")
    for one in RAMP:
        text.append(" ", f"on {one}")
    return text.append(f" {high:.3f}\n")


def _digit(share: float) -> str:
    return str(min(9, int(share * 10))) if share >= 0.1 else "."


def _color(share: float) -> str:
    """The ramp's colour at a share of 0 to 1, as #rrggbb."""
    place = min(max(share, 0.0), 1.0) * (len(RAMP) - 1)
    at = min(int(place), len(RAMP) - 2)
    below, above = list(pairwise(RAMP))[at]
    pairs = ((int(below[i : i + 2], 16), int(above[i : i + 2], 16)) for i in (1, 3, 5))
    return "#" + "".join(f"{round(one + (other - one) * (place - at)):02x}" for one, other in pairs)
