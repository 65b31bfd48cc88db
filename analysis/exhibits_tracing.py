"""Exhibits of tracing: mean effects by layer, and the layer of each fact's largest effect."""

from collections.abc import Mapping, Sequence

from fasttrace.show.words import count
from fasttrace.store import Readable

from . import chart
from .chart import Panel, Series
from .exhibit import COUNT, VALUE, Column, Exhibit, Source, Table, keys_of, run_ids, several
from .naming import Group, Row, effect_label, group_names, in_group, number, own_way
from .relation import relation


def curve(store: Readable) -> Exhibit | None:
    source = Source(relation, ("mean_effect",), "mean_effect")
    table = source.table(store)
    rows = table.to_pylist()
    if not rows:
        return None
    columns = [
        *keys_of(rows),
        *_window_column(rows),
        Column("layer", "layer", str, numeric=True),
        Column("n", "facts", **COUNT),
        Column("mean_effect", "mean effect", **VALUE),
        Column("sem_effect", "standard error", **VALUE),
    ]
    return Exhibit(
        key="curve",
        section="tracing",
        title="Mean tracing effect by layer",
        figures=(10,),
        caption="A fact’s effect at a layer is the largest over tokens. The line is the mean over facts, and the band "
        "is one standard error on each side.",
        source=source,
        data=table,
        runs=run_ids(rows),
        table=Table("Mean tracing effects.", columns, rows, folded=True),
        panels=_curve_panels(rows),
    )


def _curve_panels(rows: Sequence[Row]) -> list[Panel]:
    """One panel per tracing method and metric, because the effects of two have different units."""
    differ = several(rows, "localization", "metric")
    rows = sorted(rows, key=lambda row: not own_way(row))
    apart: dict[str, list[Row]] = {}
    for row in rows:
        apart.setdefault(" · ".join(row[key] for key in differ), []).append(row)
    names = dict.fromkeys(name for members in apart.values() for name in _window_names(members).values())
    colours = {name: place for place, name in enumerate(names)}
    return [_curve_panel(members, title, colours) for title, members in apart.items()]


def _window_names(rows: Sequence[Row]) -> dict[Group, str]:
    return group_names(rows, always=("window_size",))


def _curve_panel(rows: Sequence[Row], title: str, colours: Mapping[str, int]) -> Panel:
    """One line per tracing window, with standard errors as a band. colours: {name of a line: its place}."""
    highest = max(row["layer"] for row in rows)
    x = chart.across(0, highest, "layer at the window’s centre", chart.layer_ticks(range(highest + 1)))
    ends = [row["mean_effect"] + sign * (row["sem_effect"] or 0.0) for row in rows for sign in (-1, 1)]
    label = f"mean {effect_label(rows[0]['localization'], metric=rows[0]['metric'])}"
    if len(label) > chart.LABEL:  # the panel's title says of what kind of trace
        label = f"mean {label.partition(' (')[2].removesuffix(')')}"
    y = chart.upward(min(0.0, *ends), max(ends), label)
    series: list[Series] = []
    for group, name in _window_names(rows).items():
        points = [
            (
                row["layer"],
                row["mean_effect"],
                row["sem_effect"],
                f"{name}, layer {row['layer']}: mean effect {number(row['mean_effect'])} ± {number(row['sem_effect'])}"
                f", {count(row['n'], 'fact')}",
            )
            for row in in_group(rows, group)
        ]
        series.append(chart.line(name, colours[name], x, y, points, as_band=True))
    summary = ": ".join(filter(None, (title, "mean tracing effect by layer, one line per tracing window")))
    return Panel(title=title, kind="lines", x=x, y=y, series=series, summary=summary)


def _window_column(rows: Sequence[Row]) -> list[Column]:
    """The window's column, if keys_of leaves it out because all rows have the same window."""
    return [] if several(rows, "window_size") else [Column("window_size", "window", str, numeric=True)]


def peaks(store: Readable) -> Exhibit | None:
    source = Source(relation, ("peak_counts",), "peak_counts")
    table = source.table(store)
    rows = table.to_pylist()
    if not rows:
        return None
    groups = group_names(sorted(rows, key=lambda row: not own_way(row)), always=("window_size",)).items()
    columns = [
        *keys_of(rows),
        *_window_column(rows),
        Column("layer", "layer", str, numeric=True),
        Column("facts", "facts", **COUNT),
        Column("of_facts", "of", **COUNT),
    ]
    return Exhibit(
        key="peaks",
        section="tracing",
        title="Layer of each fact’s largest tracing effect",
        figures=(1, 11),
        caption="How many facts have their largest tracing effect at each layer.",
        source=source,
        data=table,
        runs=run_ids(rows),
        table=Table("Facts by peak layer.", columns, rows, folded=True),
        panels=[_peak_panel(in_group(rows, group), name) for group, name in groups],
    )


def _peak_panel(rows: Sequence[Row], name: str) -> Panel:
    """The histogram of one tracing run and window size."""
    counts = [0] * (max(row["layer"] for row in rows) + 1)
    for row in rows:
        counts[row["layer"]] = row["facts"]
    total = rows[0]["of_facts"]
    return chart.histogram(
        title=f"{name}: {count(total, 'fact')}",
        counts=counts,
        texts=[f"{name}, layer {layer}: {n:,} of {count(total, 'fact')}" for layer, n in enumerate(counts)],
        labels=("layer of the largest effect", "facts"),
        summary=f"{name}: how many facts have their largest tracing effect at each layer",
    )
