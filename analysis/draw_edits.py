"""The figure "what N edits do": scores of the facts and measures of the model by number of edits, one line a run."""

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import pyarrow as pa
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from fasttrace.show.style import INK, LINES, MARKERS, SERIES, dress, even_ticks, legend_above, new_figure

from .draw import need_rows
from .naming import Row, common_text, group_names, in_group

LOG_FROM = 20.0  # a measure whose largest value is so many times its smallest has a logarithmic axis


class Measure(NamedTuple):
    """A column of sql/edits_by_number.sql as it is shown. title: above its panel. unedited: the column of the unedited
    model's value, "" for none. share: whether it is at most 1, where 1 is full success."""

    column: str
    title: str
    unedited: str = ""
    share: bool = False


MEASURES = (
    Measure("rewrite", "rewrite score", share=True),
    Measure("match", "greedy matches (share)", share=True),
    Measure("prefix", "texts that give the answer (share)", share=True),
    Measure("neighborhood", "neighborhood score", share=True),
    Measure("neighbors_kept", "neighbors still answered (share)", share=True),
    Measure("perplexity", "perplexity of held-out text", "perplexity_unedited"),
    Measure("entropy", "n-gram entropy (bits)", "entropy_unedited"),
    Measure("relative_change", "largest ‖ΔW‖/‖W‖ of a layer"),
)


def measured(rows: Sequence[Row]) -> list[Measure]:
    """The measures of which some row has a number."""
    return [one for one in MEASURES if any(_known(row[one.column]) for row in rows)]


def line_names(rows: Sequence[Row]) -> dict[Any, str]:
    """{group of rows: the name of its line}: the method, and what else tells the runs apart."""
    words = {"past keys ignore": "without past keys", "past keys keep": "with past keys", " · edit ": " · "}
    names = group_names(rows, always=("method",))
    for old, new in words.items():
        names = {group: name.replace(old, new) for group, name in names.items()}
    return names


def points(rows: Sequence[Row], column: str) -> list[Row]:
    """The rows of a line that have a number in the column, by number of edits."""
    return sorted((row for row in rows if _known(row[column])), key=lambda row: int(row["n_edits"]))


def _known(value: float | None) -> bool:
    return value is not None and math.isfinite(value)


def draw_edits(table: pa.Table) -> Figure:
    """What N edits do: a panel for each measure that there is, one line per run, and a thin line at the unedited value.

    table: the rows of sql/edits_by_number.sql.
    """
    rows = need_rows(table, "facts edited into one model")
    shown, names = measured(rows), line_names(rows)
    columns = min(3, len(shown))
    lines = math.ceil(len(shown) / columns)
    figure = new_figure(max(5.0, 3.1 * columns), 0.8 + 2.5 * lines)
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for spare in grid[len(shown) :]:
        spare.set_visible(False)
    for axes, measure in zip(grid, shown, strict=False):
        dress(axes, "edits in the model", title=measure.title)
        for place, (group, name) in enumerate(names.items()):
            _line(axes, points(in_group(rows, group), measure.column), measure, place, name)
        _scale(axes, rows, measure)
    if len(names) > 1:
        legend_above(figure, grid[: len(shown)], common_text(rows))
    else:
        figure.suptitle(*names.values(), color=INK, fontsize=11, x=0.01, ha="left", parse_math=False)
    return figure


def _line(axes: Axes, rows: Sequence[Row], measure: Measure, place: int, name: str) -> None:
    axes.plot(
        [row["n_edits"] for row in rows],
        [row[measure.column] for row in rows],
        color=SERIES[place % len(SERIES)],
        # Shifted whenever the colours repeat, so that 36 lines all look different.
        linestyle=LINES[(place + place // len(SERIES)) % len(LINES)],
        marker=MARKERS[(place + place // len(SERIES)) % len(MARKERS)],
        markersize=4.5,
        linewidth=1.6,
        label=name,
    )


def _scale(axes: Axes, rows: Sequence[Row], measure: Measure) -> None:
    """The axes of a panel: from 0, where a share has room to 1, and a wide range of other numbers is logarithmic."""
    values = [row[measure.column] for row in rows if _known(row[measure.column])]
    if measure.unedited:
        unedited = sorted({round(row[measure.unedited], 9) for row in rows if _known(row[measure.unedited])})
        for value in unedited:
            axes.axhline(value, color=INK, linewidth=0.7, label="unedited" if value == unedited[0] else None)
        values += unedited
    even_ticks(axes.xaxis, 6)
    axes.set_xlim(left=0)
    if measure.share:
        axes.set_ylim(min(0.0, *values) - 0.02, max(1.0, *values) + 0.04)
    elif min(values) > 0 and max(values) > LOG_FROM * min(values):
        axes.set_yscale("log")
    else:
        axes.set_ylim(bottom=0, top=1.08 * max(values) or None)
