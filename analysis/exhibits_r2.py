"""Exhibits of the main question: R² by layer and tracing effect, and the score of each edit against its effect."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

import pyarrow as pa

from fasttrace.store import Readable

from . import chart
from .chart import Axis, Panel, Series
from .exhibit import COUNT, P_VALUE, VALUE, Column, Exhibit, Source, Table, facets, keys_of, named, run_ids, two
from .naming import GROUP, RUNS, Row, effect_label, heading, number, outside_text, p_text
from .regression import layer_correlations
from .relation import relation
from .tables import fits_with_floor

PREDICTORS = {"r2_layer": "edited layer", "r2_effect": "tracing effect", "r2_both": "both"}
OF_REWRITE: dict[str, Any] = {"score": "rewrite", "effect_at": "max", "subset": "all", "layers": "all", "source": None}
"""The parameters of regressions_of_score and layer_correlations_of_score."""


def r2(store: Readable) -> Exhibit | None:
    note = "certainty.py computes intervals, p_clustered and p_hotelling; regression.py computes p_value"
    source = Source(fits_with_floor, ("rewrite",), "regressions_of_score", OF_REWRITE, note)
    table = source.table(store)
    rows = [row | {"f_text": _f_and_df(row), "gain": _gain(row)} for row in table.to_pylist() if row["n"]]
    if not rows:
        return None
    panels = _r2_panels([row for row in rows if row["score"] == "rewrite"])
    notable = [name for name in ("n_below_0", "n_outside") if any(row[name] for row in rows)]
    idle = any(row["n_layers_acting"] != row["n_layers"] for row in rows)
    columns = [
        *keys_of(rows),
        *([Column("score", "score", _score)] if any(row["score"] != "rewrite" for row in rows) else []),
        Column("n", "edits", **COUNT),
        Column("r2_layer", "R² layer", **VALUE),
        Column("r2_effect", "R² effect", **VALUE),
        Column("r2_both", "R² both", **VALUE),
        Column("gain", "gain [95 %]", numeric=True),
        Column("p_value", "p", **P_VALUE),
        Column("p_clustered", "p clustered", **P_VALUE),
        Column("p_hotelling", "p Hotelling", **P_VALUE),
        *([Column("r2_layer_acting", heading("r2_layer_acting"), **VALUE)] if idle else []),
        Column("r2_layer_working", heading("r2_layer_working"), **VALUE),
        Column("diff_working", heading("diff_working"), **VALUE),
        Column("p_working", heading("p_working"), **P_VALUE),
        *(Column(name, heading(name), **COUNT) for name in notable),
        Column("f_text", "F (df)", numeric=True),
        Column("n_facts", "facts", **COUNT),
        Column("n_left_out", "left out", **COUNT),
    ]
    return Exhibit(
        key="r2",
        section="r2",
        title="R² of the rewrite score",
        tables=(1, 3),
        figures=(6,),
        caption="Share of the variance of the rewrite score that is explained by the choice of layer, by the tracing "
        "effect and by both together, in this order from the top. The paper’s figure stacks the layer and both.",
        source=source,
        data=table,
        runs=run_ids(rows),
        table=Table(
            "R² by layer, tracing effect and both. Where a score is below 0, also of the score with a floor at 0.",
            columns,
            rows,
        ),
        panels=panels,
        facets=facets(panels, ("localization",), at_once=1),
    )


def _r2_panels(rows: Sequence[Row]) -> list[Panel]:
    """One panel per problem and tracing method, with a group of bars for each editing method."""
    panels = []
    labelled = named(rows)
    for traced, problem in dict.fromkeys((row["traced"], row["problem"]) for row in labelled):
        members = [row for row in labelled if (row["traced"], row["problem"]) == (traced, problem)]
        words = " · ".join(filter(None, (problem, traced)))
        groups = [(row["series_name"], _r2_bars(row, words)) for row in members]
        summary = f"{words}: R² of the rewrite score by layer, tracing effect and both, a group of bars per method"
        panel = chart.bars_across(problem, groups, "R²", summary)
        panels.append(replace(panel, of=traced, facets={"localization": traced}))
    return panels


def _r2_bars(row: Row, words: str) -> list[tuple[str, float | None, str]]:
    """(predictor, R², text) of one regression."""
    return [
        (name, row[key], f"{words} · {row['series_name']}, {name}: R² = {_spread(row, key)}, n = {row['n']:,}")
        for key, name in PREDICTORS.items()
    ]


def _spread(row: Row, key: str) -> str:
    """A number with the ends of its 95 % interval over facts, where it has one."""
    low, high = row[f"{key}_low"], row[f"{key}_high"]
    return number(row[key]) + ("" if low is None else f" [{number(low)}, {number(high)}]")


def _gain(row: Row) -> str:
    return _spread(row, "diff")


def _score(name: str) -> str:
    return name.replace("_", " ")


def _f_and_df(row: Row) -> str:
    if row["f_value"] is None:
        return "–"
    return f"{number(row['f_value'], 2)} ({row['df_num']:.0f}, {row['df_den']:.0f})"


class Edits(NamedTuple):
    """The edits of one panel: facts, tracing effects and rewrite scores, in the same order."""

    fact_ids: list[str]
    effects: list[float]
    scores: list[float]


def pairs(store: Readable) -> Exhibit | None:
    edits = relation(store, "edit_effects", {"score": "rewrite"})
    if not edits.num_rows:
        return None
    source = Source(layer_correlations, ("rewrite",), "layer_correlations_of_score", OF_REWRITE)
    table = source.table(store)
    rows = [row for row in table.to_pylist() if row["trace_run_id"] is not None]
    panels, lists = _pair_panels(rows, edits)
    columns = [
        *keys_of(rows),
        Column("layer", "layer", str, numeric=True, choose=True),
        Column("n", "edits", **COUNT),
        Column("rho", "ρ", two, numeric=True),
        Column("p_value", "p of ρ", **P_VALUE),
    ]
    outside = outside_text(edits["effect"].to_pylist())
    caption = "Pearson’s ρ of tracing effect and rewrite score at each edited layer."
    return Exhibit(
        key="pairs",
        section="r2",
        title="Rewrite score against tracing effect",
        figures=(4, 15),
        caption="Each point is one edit at the layer in the panel’s title. If localization informed editing, the "
        "points would follow the dashed line. A click on a point, or Enter, opens its fact’s heatmap. The paper’s "
        "figures also have a fitted line with its band."
        f"{f' {outside}.' if outside else ''}",
        source=source,
        data=table,
        runs=run_ids(rows),
        table=Table(caption, columns, rows, folded=True),
        panels=panels,
        facets=facets(panels, ("localization", "problem", "method")),
        points=lists,
    )


def _pair_panels(rows: Sequence[Row], edits: pa.Table) -> tuple[list[Panel], list[Row]]:
    """(a panel for each row that has edits, the panels' lists of points). A row is a layer of a regression."""
    identity = [key for key in (*GROUP, *RUNS, "layer") if key in rows[0]]
    found = _edits_by_panel(edits, identity)
    shown = []
    for row in named(rows):
        name = " · ".join(filter(None, (row["problem"], row["series_name"], row["traced"])))
        here = found.get(tuple(row[key] for key in identity))
        if here is not None:
            shown.append((row, name, here))
    scales: dict[str, list[float]] = {}  # panels that are shown at once share a scale
    for _, name, here in shown:
        scales.setdefault(name, [0.0, 1.0]).extend(here.scores)
    effects: dict[tuple[str, str], list[float]] = {}  # by tracing method and metric, because the units differ
    for row, _, here in shown:
        effects.setdefault((row["localization"], row["metric"]), []).extend(here.effects)
    axes = {how: _effect_axis(*how, values) for how, values in effects.items()}
    panels: list[Panel] = []
    lists: list[Row] = []
    for row, name, here in shown:
        y = chart.upward(min(scales[name]), max(scales[name]), "rewrite score")
        of = name if len(scales) > 1 else ""
        x = axes[row["localization"], row["metric"]]
        panels.append(_pair_panel(row, name, here, x, y, of=of, points=len(lists)))
        trace = {"run": row["trace_run_id"], "window": row["window_size"]}
        lists.append({"name": f"{name}, layer {row['layer']}", **trace, **here._asdict()})
    return panels, lists


def _edits_by_panel(edits: pa.Table, identity: Sequence[str]) -> Mapping[tuple[Any, ...], Edits]:
    """{values of `identity`: its edits}."""
    found: dict[tuple[Any, ...], Edits] = {}
    names = (*identity, "fact_id", "effect", "score")
    for *key, fact_id, effect, score in zip(*(edits[name].to_pylist() for name in names), strict=True):
        here = found.setdefault(tuple(key), Edits([], [], []))
        here.fact_ids.append(fact_id)
        here.effects.append(effect)
        here.scores.append(score)
    return found


def _effect_axis(localization: str, metric: str, effects: Sequence[float]) -> Axis:
    low, high = min(0.0, *effects), max(1.0, *effects)
    return chart.across(low, high, effect_label(localization, metric=metric), chart.ticks(low, high))


def _pair_panel(row: Row, name: str, edits: Edits, x: Axis, y: Axis, *, of: str, points: int) -> Panel:
    rho = f"ρ = {number(row['rho'], 2)}, {p_text(row['p_value'])}, n = {len(edits.scores):,}"
    dots = chart.dots(x, y, zip(edits.effects, edits.scores, strict=True))
    return Panel(
        title=f"layer {row['layer']}: {rho}",
        kind="points",
        x=x,
        y=y,
        series=[Series("", 0, line=dots)],
        summary=f"{name}, layer {row['layer']}: rewrite score against tracing effect, {rho}",
        facets={"localization": row["traced"], "problem": row["problem"], "method": row["series_name"]},
        of=of,
        points=points,
    )
