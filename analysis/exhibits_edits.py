"""Exhibit of what N edits do: scores of the edited facts and measures of the model, by number of edits."""

from collections.abc import Sequence

from fasttrace.show.words import count
from fasttrace.store import Readable

from . import chart
from .chart import Panel
from .draw_edits import Measure, line_names, measured, points
from .exhibit import COUNT, VALUE, Column, Exhibit, Source, Table, keys_of, or_dash, run_ids, several
from .naming import Row, in_group, number
from .relation import relation


def edits(store: Readable) -> Exhibit | None:
    source = Source(relation, ("edits_by_number",), "edits_by_number")
    table = source.table(store)
    rows = table.to_pylist()
    if len({(row["edit_run_id"], row["n_edits"]) for row in rows}) == len({row["edit_run_id"] for row in rows}):
        return None
    names = line_names(rows)
    lines = [(name, in_group(rows, group)) for group, name in names.items()]
    shown = measured(rows)
    told = several(rows, "at_once", "past_keys")
    columns = [
        *keys_of(rows),
        Column("layer", "layer", str, numeric=True),
        *(Column(key, key.replace("_", " "), or_dash, numeric=key == "at_once") for key in told),
        Column("n_edits", "edits", **COUNT),
        *(Column(one.column, one.title, **VALUE) for one in shown if one.column != "rewrite"),
        Column("rewrite", "rewrite score", **VALUE),
        Column("rewrite_newest", "of the newest", **VALUE),
        Column("rewrite_earlier", "of earlier ones", **VALUE),
    ]
    return Exhibit(
        key="sequence",
        section="mass",
        title="What N edits do",
        caption="Scores are means over the facts edited so far, the newest being those solved last. A greedy match is "
        "a prompt that greedy decoding continues with the edit’s target. A neighbor is still answered where greedy "
        "decoding gives o_true with the edits as it did without. Perplexity, entropy and the change of the "
        "weights are the edited model’s own (docs/how-to/mass-edits.md).",
        source=source,
        data=table,
        runs=run_ids(rows),
        table=Table("What N edits do.", columns, rows),
        panels=[_panel(rows, lines, one) for one in shown],
    )


def _panel(rows: Sequence[Row], lines: Sequence[tuple[str, list[Row]]], measure: Measure) -> Panel:
    """One measure, one line per run."""
    values = [row[measure.column] for row in points(rows, measure.column)]
    most = max(row["n_edits"] for row in rows)
    x = chart.across(0, most, "edits in the model", chart.ticks(0, most))
    y = chart.upward(min(0.0, *values), max(1.0 if measure.share else 1e-6, *values), measure.title)
    series = [
        chart.line(name, place, x, y, _texts(name, points(mine, measure.column), measure))
        for place, (name, mine) in enumerate(lines)
    ]
    return Panel(
        title=measure.title,
        kind="lines",
        x=x,
        y=y,
        series=[one for one in series if one.marks],
        summary=f"{measure.title} by number of edits, one line per run",
    )


def _texts(name: str, rows: Sequence[Row], measure: Measure) -> list[tuple[float, float, float | None, str]]:
    """(number of edits, value, None for the error, text) of one line."""
    found: list[tuple[float, float, float | None, str]] = []
    for row in rows:
        text = f"{name}, {count(row['n_edits'], 'edit')}: {measure.title} {number(row[measure.column])}"
        if measure.unedited:
            text += f", unedited {number(row[measure.unedited])}"
        found.append((row["n_edits"], row[measure.column], None, text))
    return found
