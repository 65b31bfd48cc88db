"""Exhibits of edit scores: by edited layer, by kind of probe, and by number of facts edited into one model."""

from collections.abc import Sequence
from typing import Any

import pyarrow as pa

from fasttrace.show.words import count
from fasttrace.store import Readable

from . import chart
from .chart import Axis, Panel
from .exhibit import COUNT, VALUE, Column, Exhibit, Source, Table, facets, keys_of, named, or_dash, places, run_ids
from .naming import GROUP, RUNS, Row, group_names, heading, in_group, number, score_label
from .paper import WITH_ESSENCE
from .regression import FLOORED, layer_means
from .relation import relation

SCORES = ("rewrite", "paraphrase", "neighborhood", "essence", "overall")


def layer_scores(store: Readable) -> pa.Table:
    """Mean and standard error of every score at every edited layer, one row per layer and score (Figures 7 to 9).

    Where a score is below 0, also of the scores with a floor at 0.
    """
    means = [layer_means(store, score) for score in SCORES]
    means.append(relation(store, "layer_means_with_essence"))
    if any(any(table["n_below_0"].to_pylist()) for table in means):
        means += [layer_means(store, score) for score in FLOORED.values()]
    return pa.concat_tables(means)


def layers(store: Readable) -> Exhibit | None:
    note = "for the rewrite score; for another score, replace the name"
    source = Source(layer_scores, (), "layer_means_of_score", {"score": "rewrite"}, note)
    table = source.table(store)
    rows = [row for row in table.to_pylist() if row["mean"] is not None]
    if not rows:
        return None
    scores = list(dict.fromkeys(row["score"] for row in rows))
    panels = _layer_panels(rows, [score for score in scores if score not in FLOORED.values()])
    return Exhibit(
        key="layers",
        section="layers",
        title="Mean edit scores by edited layer",
        figures=(7, 8, 9),
        caption="Means over facts. Error bars are one standard error on each side. A score of 1 is full success.",
        source=source,
        data=table,
        runs=run_ids(rows),
        table=_layer_table(rows, scores),
        panels=panels,
        facets=facets(panels, ("score", "problem"), start_all=("problem",)),
    )


def _layer_panels(rows: Sequence[Row], scores: Sequence[str]) -> list[Panel]:
    """One panel per score and problem, with a line for each method."""
    labelled = named(rows)
    colour = places(labelled, "series_name")
    problems = list(dict.fromkeys(row["problem"] for row in labelled))
    edited = sorted({row["layer"] for row in rows})
    x = chart.across(edited[0], edited[-1], "edited layer", chart.layer_ticks(edited), margin=0.05)
    ends = [0.0, 1.0, *(row["mean"] for row in rows)]
    panels = []
    for score in scores:
        y = chart.upward(min(ends), max(ends), f"mean {score_label(score)}")
        for problem in problems:
            members = [row for row in labelled if row["problem"] == problem and row["score"] == score]
            if not members:
                continue
            names = dict.fromkeys(row["series_name"] for row in members)
            panel = Panel(
                title=score_label(score) if len(problems) == 1 else f"{problem}: {score}",
                kind="lines",
                x=x,
                y=y,
                series=[chart.line(name, colour[name], x, y, _layer_points(members, name)) for name in names],
                summary=f"{problem}: mean {score_label(score)} by edited layer, one line per method",
                facets={"score": score, "problem": problem},
            )
            panels.append(panel)
    return panels


def _layer_points(rows: Sequence[Row], name: str) -> list[tuple[float, float, float | None, str]]:
    """(layer, mean, standard error, text) of one method's line."""
    here = sorted((row for row in rows if row["series_name"] == name), key=lambda row: row["layer"])
    return [
        (
            row["layer"],
            row["mean"],
            row["sem"],
            f"{row['problem']} · {name}, layer {row['layer']}: mean {score_label(row['score'])} "
            f"{number(row['mean'])} ± {number(row['sem'])}, n = {row['n']:,}",
        )
        for row in here
    ]


def _layer_table(rows: Sequence[Row], scores: Sequence[str]) -> Table:
    """The means side by side, one row per edited layer."""
    wide: dict[tuple[Any, ...], Row] = {}
    keys = [key for key in (*GROUP, *RUNS.values(), *RUNS, "layer") if key in rows[0]]
    for row in rows:
        line = wide.setdefault(tuple(row[key] for key in keys), {key: row[key] for key in keys} | {"n": 0})
        line["n"] = max(line["n"], row["n"])
        line[row["score"]] = (row["mean"], row["sem"])
        line[f"{row['score']}_below_0"] = row["n_below_0"]
    lines = sorted(
        ({**dict.fromkeys(scores), **line} for line in wide.values()),
        key=lambda line: [str(line[key]) if key != "layer" else f"{line[key]:06d}" for key in keys],
    )
    columns = [
        *keys_of(lines),
        Column("layer", "layer", str, numeric=True, choose=True),
        Column("n", "edits", **COUNT),
        *(Column(score, heading(score), _mean_and_error, numeric=True) for score in scores),
        *(Column(name, heading(name), **COUNT) for name in _below(lines)),
    ]
    return Table("Mean scores over facts ± standard error.", columns, lines)


def _below(rows: Sequence[Row]) -> list[str]:
    """The counts of scores below 0, of the scores that have any."""
    return [name for score in (*SCORES, WITH_ESSENCE) if any(row.get(name := f"{score}_below_0") for row in rows)]


def _mean_and_error(value: tuple[float, float | None] | None) -> str:
    return "–" if value is None else f"{number(value[0])} ± {number(value[1])}"


OF_THE_PAPER = {"rewrite", "paraphrase", "neighborhood"}  # kinds of prompts that the other exhibits show


def _by_kind(rows: Sequence[Row]) -> list[Column]:
    """The columns that say of which edits and prompts a row is."""
    counted = any(row["n_edits"] is not None for row in rows)
    return [
        *keys_of(rows),
        Column("layer", "layer", str, numeric=True),
        *([Column("n_edits", "edits in the model", **COUNT)] if counted else []),
        Column("kind", "kind", choose=True),
        Column("expect", "expected to be", or_dash),
        Column("prompts", "prompts", **COUNT),
    ]


def kinds(store: Readable) -> Exhibit | None:
    source = Source(relation, ("scores_by_kind",), "scores_by_kind")
    table = source.table(store)
    rows = table.to_pylist()
    if not {row["kind"] for row in rows} - OF_THE_PAPER:
        return None
    columns = [
        *_by_kind(rows),
        Column("score", "score", **VALUE),
        Column("p_before", "p before", **VALUE),
        Column("p_after", "p after", **VALUE),
        Column("match_before", "match before", **VALUE),
        Column("match_after", "match after", **VALUE),
    ]
    if any(row["exact_after"] is not None for row in rows):
        columns += [Column("exact_after", "exact text", **VALUE), Column("prefix_after", "text begins", **VALUE)]
    return Exhibit(
        key="kinds",
        section="layers" if any(row["n_edits"] is None for row in rows) else "mass",
        title="Mean scores by kind of prompt",
        caption="Means over prompts. p is the probability of the prompt’s target, or of the likeliest answer of a "
        "probe that has its own. A match is a prompt whose greedy continuation is one of the answers. Answers that "
        "should change follow from the false target; they have no score in other problems than error injection.",
        source=source,
        data=table,
        runs=run_ids(rows),
        table=Table("Mean scores by kind of prompt.", columns, rows),
    )


def generated(store: Readable) -> Exhibit | None:
    source = Source(relation, ("teacher_forcing_gap",), "teacher_forcing_gap")
    table = source.table(store)
    rows = table.to_pylist()
    if not rows:
        return None
    shares = ["p_after", "forced", "exact", "prefix"]
    if any(row["judged"] is not None for row in rows):
        shares.append("judged")
    names = {"p_after": "p", "exact": "exact text", "prefix": "text begins"}
    columns = [
        *_by_kind(rows),
        *(Column(name, names.get(name, name), **VALUE) for name in shares),
        Column("gap_exact", "forced − exact", **VALUE),
        Column("gap_prefix", "forced − begins", **VALUE),
    ]
    return Exhibit(
        key="generated",
        section="layers" if any(row["n_edits"] is None for row in rows) else "mass",
        title="What the model says by itself after an edit",
        caption="Shares of prompts. Forced: every token of the answer is the likeliest after the tokens before it. "
        "Exact, begins: the model’s own greedy text is the answer, or begins with it, once case, accents, articles and "
        "punctuation are taken away. p is the mean probability of the answer. Where nothing should change, the answer "
        "is the true one.",
        source=source,
        data=table,
        runs=run_ids(rows),
        table=Table("What the model says by itself after an edit.", columns, rows),
    )


def mass(store: Readable) -> Exhibit | None:
    source = Source(relation, ("mass_means",), "mass_means")
    table = source.table(store)
    rows = table.to_pylist()
    if not rows:
        return None
    scores = [score for score in (*SCORES, "success") if any(row[score] is not None for row in rows)]
    most = max(row["n_edits"] for row in rows)
    x = chart.across(0, most, "edits in the model", chart.ticks(0, most))
    lowest = min(row[score] for row in rows for score in scores if row[score] is not None)
    y = chart.upward(min(0.0, lowest), 1.0, "mean over the edited facts")
    groups, below = group_names(rows).items(), _below(rows)
    columns = [
        *keys_of(rows),
        Column("layer", "layer", str, numeric=True),
        Column("n_edits", "edits", **COUNT),
        *(Column(score, score, **VALUE) for score in scores),
        *(Column(name, heading(name), **COUNT) for name in below),
        *(Column(name, heading(name), **VALUE) for name in (FLOORED.values() if below else ())),
    ]
    return Exhibit(
        key="mass",
        section="mass",
        title="Mean scores by number of edits",
        caption="Mean scores of the facts edited so far, by the number of edits that the model holds. Success is the "
        "share of these facts whose wanted target is the likelier one.",
        source=source,
        data=table,
        runs=run_ids(rows),
        table=Table("Mean scores by number of edits.", columns, rows),
        panels=[_mass_panel(in_group(rows, group), name, scores, x, y) for group, name in groups],
    )


def _mass_panel(rows: Sequence[Row], name: str, scores: Sequence[str], x: Axis, y: Axis) -> Panel:
    """The mean scores of one run, one line per score."""
    lines = [chart.line(score, place, x, y, _mass_points(rows, name, score)) for place, score in enumerate(scores)]
    at = " and ".join(sorted({str(row["layer"]) for row in rows}))
    return Panel(
        title=f"{name}, layer {at}",
        kind="lines",
        x=x,
        y=y,
        series=[one for one in lines if one.marks],
        summary=f"{name}: mean scores by number of edits, one line per score",
    )


def _mass_points(rows: Sequence[Row], name: str, score: str) -> list[tuple[float, float, float | None, str]]:
    """(number of edits, mean, None for the error, text) of one score."""
    return [
        (
            row["n_edits"],
            row[score],
            None,
            f"{name}, {count(row['n_edits'], 'edit')}: mean {score} {number(row[score])}",
        )
        for row in rows
        if row[score] is not None
    ]
