"""Every table and figure of the report, in one list, each with where its numbers come from.

To add one: write a function Store -> Exhibit | None and name it in EXHIBITS. The page lays out whatever is in the list,
section by section: the table, the panels, the CSV of the source, and how to reproduce it.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pyarrow as pa

from fasttrace.store import Store

from . import chart
from .chart import Axis, Panel, Series
from .draw import SCORES
from .exhibit import (
    COUNT,
    P_VALUE,
    VALUE,
    Column,
    Exhibit,
    Facet,
    Source,
    Table,
    keys_of,
    named,
    places,
    run_ids,
    several,
    two,
)
from .naming import GROUP, RUNS, Row, group_names, in_group, number, p_text
from .regression import layer_correlations, layer_means
from .relation import relation
from .tables import fits_with_certainty

AT_ONCE = 12  # panels; where a figure has more, the page lets the reader choose


def _asked(score: str) -> dict[str, Any]:
    """The parameters of regressions_of_score and layer_correlations_of_score."""
    return {"score": score, "effect_at": "max", "subset": "all", "source": None}


def r2(store: Store) -> Exhibit | None:
    note = "intervals and p values are computed from regression_input, in certainty.py and regression.py"
    source = Source(fits_with_certainty, ("rewrite",), "regressions_of_score", _asked("rewrite"), note)
    table = source.table(store)
    rows = [row | {"f_text": _f_and_df(row), "gain": _gain(row)} for row in table.to_pylist() if row["n"]]
    if not rows:
        return None
    models = (("r2_layer", "edited layer"), ("r2_effect", "tracing effect"), ("r2_both", "both"))
    panels = []
    labelled = named(rows)
    for traced, problem in dict.fromkeys((row["traced"], row["problem"]) for row in labelled):
        members = [row for row in labelled if (row["traced"], row["problem"]) == (traced, problem)]
        words = " · ".join(filter(None, (problem, traced)))
        groups = [
            (
                row["series_name"],
                [
                    (
                        name,
                        row[key],
                        f"{words} · {row['series_name']}, {name}: R² = {_spread(row, key)}, n = {row['n']:,}",
                    )
                    for key, name in models
                ],
            )
            for row in members
        ]
        summary = f"{words}: R² of the rewrite score by layer, tracing effect and both, a group of bars a method"
        panel = chart.bars_across(problem, groups, "R²", summary)
        panels.append(replace(panel, of=traced, facets={"localization": traced}))
    columns = [
        *keys_of(rows), Column("n", "edits", **COUNT),
        Column("r2_layer", "R² layer", **VALUE), Column("r2_effect", "R² effect", **VALUE),
        Column("r2_both", "R² both", **VALUE), Column("gain", "gain [95 %]", numeric=True),
        Column("p_value", "p", **P_VALUE), Column("p_clustered", "p clustered", **P_VALUE),
        Column("f_text", "F (df)", numeric=True), Column("n_facts", "facts", **COUNT),
        Column("n_left_out", "left out", **COUNT),
    ]  # fmt: skip
    return Exhibit(
        "r2", "r2", "R² of the rewrite score", (1, 3), (6,),
        "Share of the variance of the rewrite score explained by the choice of layer, by the tracing effect, and by "
        "both together (bars from the top).",
        source, table, run_ids(rows), Table("R² by layer, tracing effect and both.", columns, rows),
        panels, facets(panels, ("localization",), at_once=1),
    )  # fmt: skip


def _spread(row: Row, key: str) -> str:
    """A number with the ends of its 95 % interval over facts, where it has one."""
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return number(row[key]) + ("" if low is None else f" [{number(low)}, {number(high)}]")


def _gain(row: Row) -> str:
    return _spread(row, "diff")


def _f_and_df(row: Row) -> str:
    if row["f_value"] is None:
        return "–"
    return f"{number(row['f_value'], 2)} ({row['df_num']:.0f}, {row['df_den']:.0f})"


def pairs(store: Store) -> Exhibit | None:
    points = relation(store, "edit_effects", {"score": "rewrite"})
    if not points.num_rows:
        return None
    source = Source(layer_correlations, ("rewrite",), "layer_correlations_of_score", _asked("rewrite"))
    table = source.table(store)
    rows = [row for row in table.to_pylist() if row["trace_run_id"] is not None]
    identity = [key for key in (*GROUP, *RUNS, "layer") if key in rows[0]]
    found: dict[tuple[Any, ...], list[int]] = {}
    columns = {name: points[name].to_pylist() for name in (*identity, "fact_id", "effect", "score")}
    for place, key in enumerate(zip(*(columns[name] for name in identity), strict=True)):
        found.setdefault(key, []).append(place)
    effects, scores = columns["effect"], columns["score"]
    x = chart.across(min(0.0, *effects), max(1.0, *effects), "tracing effect at the layer", ())
    x = replace(x, ticks=chart.ticks(min(0.0, *effects), max(1.0, *effects)))
    panels: list[Panel] = []
    lists: list[Row] = []
    labelled = named(rows)
    ranges: dict[str, list[float]] = {}  # what is shown at once has one scale
    for row in labelled:
        row["name"] = " · ".join(filter(None, (row["problem"], row["series_name"], row["traced"])))
        values = [scores[place] for place in found.get(tuple(row[key] for key in identity), [])]
        ranges.setdefault(row["name"], [0.0, 1.0]).extend(values)
    for row in labelled:
        places_here = found.get(tuple(row[key] for key in identity), [])
        if not places_here:
            continue
        here = [(effects[place], scores[place]) for place in places_here]
        there = ranges[row["name"]]
        y = chart.upward(min(there), max(there), "rewrite score")
        rho = f"ρ = {number(row['rho'], 2)}, {p_text(row['p_value'])}, n = {len(here):,}"
        name = f"{row['name']}, layer {row['layer']}"
        panels.append(
            Panel(
                f"layer {row['layer']}: {rho}", "points", x, y, [Series("", 0, line=chart.dots(x, y, here))],
                f"{name}: rewrite score against tracing effect, {rho}",
                {"localization": row["traced"], "problem": row["problem"], "method": row["series_name"]},
                of=row["name"] if len(ranges) > 1 else "", points=len(lists),
            )
        )  # fmt: skip
        lists.append(
            {
                "name": name,
                "fact_ids": [columns["fact_id"][place] for place in places_here],
                "effects": [effects[place] for place in places_here],
                "scores": [scores[place] for place in places_here],
            }
        )
    shown = [
        *keys_of(rows), Column("layer", "layer", str, numeric=True, choose=True), Column("n", "edits", **COUNT),
        Column("rho", "ρ", two, numeric=True), Column("p_value", "p of ρ", **P_VALUE),
    ]  # fmt: skip
    return Exhibit(
        "pairs", "r2", "Rewrite score against tracing effect", (), (4, 15),
        "Each point is one edit, at the layer named. Were localization a guide to editing, the points would follow the "
        "dashed line.",
        source, table, run_ids(rows),
        Table("Pearson’s ρ of tracing effect and rewrite score at each edited layer.", shown, rows, folded=True),
        panels, facets(panels, ("localization", "problem", "method")), lists,
    )  # fmt: skip


def facets(
    panels: list[Panel], keys: Sequence[str], start_all: Sequence[str] = (), at_once: int = AT_ONCE
) -> list[Facet]:
    """What to choose panels by, where there are too many to show at once."""
    if len(panels) <= at_once:
        return []
    names = {"localization": "traced by"}
    out = []
    for key in keys:
        values = list(dict.fromkeys(panel.facets[key] for panel in panels))
        if len(values) > 1:
            start = "" if key in start_all else values[0]
            out.append(Facet(key, names.get(key, key), values, start, all=key in start_all))
    return out


def layer_scores(store: Store) -> pa.Table:
    """Mean of every score at every edited layer, with standard errors (paper, Figures 7 to 9), one row a score."""
    return pa.concat_tables([layer_means(store, score) for score in SCORES])


def layers(store: Store) -> Exhibit | None:
    note = "for the rewrite score; the others take their names instead"
    source = Source(layer_scores, (), "layer_means_of_score", {"score": "rewrite"}, note)
    table = source.table(store)
    rows = [row for row in table.to_pylist() if row["mean"] is not None]
    if not rows:
        return None
    scores = [score for score in SCORES if any(row["score"] == score for row in rows)]
    labelled = named(rows)
    colour = places(labelled, "series_name")
    problems = list(dict.fromkeys(row["problem"] for row in labelled))
    edited = sorted({row["layer"] for row in rows})
    x = chart.across(edited[0], edited[-1], "edited layer", chart.layer_ticks(edited), margin=0.05)
    ends = [0.0, 1.0, *(row["mean"] for row in rows)]
    panels = []
    for score in scores:
        y = chart.upward(min(ends), max(ends), f"mean {score} score")
        for problem in problems:
            members = [row for row in labelled if row["problem"] == problem and row["score"] == score]
            if not members:
                continue
            series = [
                _line(
                    name, colour[name], x, y,
                    [
                        (
                            row["layer"], row["mean"], row["sem"],
                            f"{problem} · {name}, layer {row['layer']}: mean {score} score {number(row['mean'])} ± "
                            f"{number(row['sem'])}, n = {row['n']:,}",
                        )
                        for row in sorted(members, key=lambda row: row["layer"])
                        if row["series_name"] == name
                    ],
                )
                for name in dict.fromkeys(row["series_name"] for row in members)
            ]  # fmt: skip
            title = f"{score} score" if len(problems) == 1 else f"{problem}: {score}"
            panels.append(
                Panel(
                    title, "lines", x, y, series, f"{problem}: mean {score} score by edited layer, a line a method",
                    {"score": score, "problem": problem},
                )
            )  # fmt: skip
    return Exhibit(
        "layers", "layers", "Mean edit scores by edited layer", (), (7, 8, 9),
        "Means over facts; the bars are one standard error on each side. 1 is wholly successful.",
        source, table, run_ids(rows), _layer_table(rows, scores), panels,
        facets(panels, ("score", "problem"), start_all=("problem",)),
    )  # fmt: skip


def _line(
    name: str, place: int, x: Axis, y: Axis, points: list[tuple[float, float, float | None, str]], band: bool = False
) -> Series:
    marks = [chart.Mark(x.at(a), y.at(b), text) for a, b, _, text in points]
    three_each = [(a, b, error) for a, b, error, _ in points]
    return Series(
        name, place, marks, chart.path(x, y, ((a, b) for a, b, _ in three_each)),
        errors="" if band else chart.errors(x, y, three_each), band=chart.band(x, y, three_each) if band else "",
    )  # fmt: skip


def _layer_table(rows: list[Row], scores: list[str]) -> Table:
    """The means side by side, one row an edited layer."""
    wide: dict[tuple[Any, ...], Row] = {}
    keys = [key for key in (*GROUP, *RUNS, "layer") if key in rows[0]]
    for row in rows:
        line = wide.setdefault(tuple(row[key] for key in keys), {key: row[key] for key in keys} | {"n": 0})
        line["n"] = max(line["n"], row["n"])
        line[row["score"]] = (row["mean"], row["sem"])
    lines = sorted(
        ({**dict.fromkeys(scores), **line} for line in wide.values()),
        key=lambda line: [str(line[key]) if key != "layer" else f"{line[key]:06d}" for key in keys],
    )
    columns = [
        *keys_of(lines), Column("layer", "layer", str, numeric=True, choose=True), Column("n", "edits", **COUNT),
        *(Column(score, score, _mean_and_error, numeric=True) for score in scores),
    ]  # fmt: skip
    return Table("Mean scores over facts ± standard error.", columns, lines)


def _mean_and_error(value: tuple[float, float | None] | None) -> str:
    return "–" if value is None else f"{number(value[0])} ± {number(value[1])}"


def curve(store: Store) -> Exhibit | None:
    source = Source(relation, ("mean_effect",), "mean_effect")
    table = source.table(store)
    rows = table.to_pylist()
    if not rows:
        return None
    names = group_names(rows, always=("window_size",))
    highest = max(row["layer"] for row in rows)
    x = chart.across(0, highest, "layer at the window’s centre", chart.layer_ticks(range(highest + 1)))
    ends = [row["mean_effect"] + sign * (row["sem_effect"] or 0.0) for row in rows for sign in (-1, 1)]
    y = chart.upward(min(0.0, *ends), max(ends), "mean tracing effect")
    series = [
        _line(
            name, place, x, y,
            [
                (
                    row["layer"], row["mean_effect"], row["sem_effect"],
                    f"{name}, layer {row['layer']}: mean effect {number(row['mean_effect'])} ± "
                    f"{number(row['sem_effect'])}, {row['n']:,} facts",
                )
                for row in in_group(rows, group)
            ],
            band=True,
        )
        for place, (group, name) in enumerate(names.items())
    ]  # fmt: skip
    columns = [
        *keys_of(rows), *_window_column(rows), Column("layer", "layer", str, numeric=True),
        Column("n", "facts", **COUNT), Column("mean_effect", "mean effect", **VALUE),
        Column("sem_effect", "standard error", **VALUE),
    ]  # fmt: skip
    return Exhibit(
        "curve", "tracing", "Mean tracing effect by layer", (), (10,),
        "Mean over facts of the largest tracing effect over tokens, as a fraction of p_clean − p_noised; the band is "
        "one standard error on each side.",
        source, table, run_ids(rows), Table("Mean tracing effects.", columns, rows, folded=True),
        [Panel("", "lines", x, y, series, "Mean tracing effect by layer, a line a tracing window")],
    )  # fmt: skip


def _window_column(rows: list[Row]) -> list[Column]:
    """The window where keys_of does not name it, since it does not differ."""
    return [] if several(rows, "window_size") else [Column("window_size", "window", str, numeric=True)]


def peaks(store: Store) -> Exhibit | None:
    source = Source(relation, ("peak_counts",), "peak_counts")
    table = source.table(store)
    rows = table.to_pylist()
    if not rows:
        return None
    panels = []
    for group, name in group_names(rows, always=("window_size",)).items():
        members = in_group(rows, group)
        counts = [0] * (max(row["layer"] for row in members) + 1)
        for row in members:
            counts[row["layer"]] = row["facts"]
        there = members[0]["of_facts"]
        texts = [f"{name}, layer {layer}: {count:,} of {there:,} facts" for layer, count in enumerate(counts)]
        panels.append(
            chart.histogram(
                f"{name}: {there:,} facts", counts, texts, ("layer of the largest effect", "facts"),
                f"{name}: how many facts have their largest tracing effect at each layer",
            )
        )  # fmt: skip
    columns = [
        *keys_of(rows), *_window_column(rows), Column("layer", "layer", str, numeric=True),
        Column("facts", "facts", **COUNT), Column("of_facts", "of", **COUNT),
    ]  # fmt: skip
    return Exhibit(
        "peaks", "tracing", "Layer of each fact’s largest tracing effect", (), (1, 11),
        "How many facts have their largest tracing effect at each layer.",
        source, table, run_ids(rows), Table("Facts by peak layer.", columns, rows, folded=True), panels,
    )  # fmt: skip


def mass(store: Store) -> Exhibit | None:
    source = Source(relation, ("mass_means",), "mass_means")
    table = source.table(store)
    rows = table.to_pylist()
    if not rows:
        return None
    scores = [score for score in (*SCORES, "success") if any(row[score] is not None for row in rows)]
    most = max(row["landed"] for row in rows)
    x = chart.across(0, most, "facts landed", chart.ticks(0, most))
    lowest = min(row[score] for row in rows for score in scores if row[score] is not None)
    y = chart.upward(min(0.0, lowest), 1.0, "mean over the facts landed")
    panels = []
    for group, name in group_names(rows).items():
        members = in_group(rows, group)
        series = [
            _line(
                score, place, x, y,
                [
                    (
                        row["landed"], row[score], None,
                        f"{name}, {row['landed']:,} facts landed: mean {score} {number(row[score])}",
                    )
                    for row in members
                    if row[score] is not None
                ],
            )
            for place, score in enumerate(scores)
        ]  # fmt: skip
        at = " and ".join(sorted({str(row["layer"]) for row in members}))
        panels.append(
            Panel(
                f"{name}, layer {at}", "lines", x, y, [one for one in series if one.marks],
                f"{name}: mean scores by facts landed, a line a score",
            )
        )  # fmt: skip
    columns = [
        *keys_of(rows), Column("layer", "layer", str, numeric=True), Column("landed", "landed", **COUNT),
        *(Column(score, score, **VALUE) for score in scores),
    ]  # fmt: skip
    return Exhibit(
        "mass", "mass", "Mean scores by facts landed", (), (),
        "Mean scores of the facts that have landed, after so many of them were edited into one model; success is the "
        "share of them whose new target is the likelier one.",
        source, table, run_ids(rows), Table("Mean scores by facts landed.", columns, rows), panels,
    )  # fmt: skip


EXHIBITS: tuple[Callable[[Store], Exhibit | None], ...] = (r2, pairs, layers, curve, peaks, mass)


def exhibits(store: Store) -> list[Exhibit]:
    """The store's exhibits, in the order of the page; those it has no numbers for are absent."""
    return [found for make in EXHIBITS if (found := make(store)) is not None]
