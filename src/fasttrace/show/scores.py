"""Mean scores of edits on matplotlib axes, by layer or by number of edits."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes

from .style import INK, LINES, MARKERS, SERIES, dress, even_ticks

FAINT_LINE = 0.25  # opacity of one fact's line


def draw_score_lines(
    axes: Axes,
    scores: Mapping[str, Mapping[int, Sequence[float]]],
    *,
    x: str,
    title: str,
    facts: Sequence[Mapping[int, float]] = (),
) -> Axes:
    """A line of means for each score, with a band of one standard error on each side.

    scores: score → place on the x axis → its values, one per fact. x: what the places are. facts: place → value of
    each single fact, drawn faintly in the first line's colour.
    """
    dress(axes, x, "mean score (1 = full success)", title)
    for one in facts:
        at = sorted(one)
        axes.plot(at, [one[place] for place in at], color=SERIES[0], alpha=FAINT_LINE, linewidth=0.8, marker=".")
    lowest = [value for one in facts for value in one.values()]
    for number, (score, by_place) in enumerate(scores.items()):
        at = sorted(by_place)
        means = np.array([np.mean(by_place[place]) for place in at])
        errors = np.array([_standard_error(by_place[place]) for place in at])
        style: dict[str, Any] = {"color": SERIES[number], "linestyle": LINES[number], "marker": MARKERS[number]}
        if len(at) > 1:
            axes.fill_between(at, means - errors, means + errors, color=SERIES[number], alpha=0.18, linewidth=0)
            axes.plot(at, means, markersize=4.5, linewidth=1.6, label=score, **style)
        else:
            axes.errorbar(at, means, yerr=errors, markersize=6, capsize=3, label=score, **style)
        lowest += (means - errors).tolist()
    axes.set_ylim(min([0.0, *lowest]) - 0.02, 1.04)
    even_ticks(axes.xaxis)
    if len(scores) > 1:
        legend = axes.legend(fontsize=9, frameon=False, labelcolor=INK, loc="best")
        for text in legend.get_texts():
            text.set_parse_math(False)
    return axes


def _standard_error(values: Sequence[float]) -> float:
    return float(np.std(values, ddof=1) / np.sqrt(len(values))) if len(values) > 1 else 0.0
