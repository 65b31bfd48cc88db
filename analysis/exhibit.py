"""An exhibit of the report: its numbers, their source, and how its rows are named and shown."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import pyarrow as pa

from fasttrace.show.words import short_name, title_of
from fasttrace.store import Readable

from .chart import Panel, Series
from .commands import store_options
from .naming import GROUP, RUNS, Row, group_names, heading, in_group, number, own_way, p_cell
from .paper import FIGURES, TABLES, coverage, what_is_missing
from .relation import CHAIN, read_by, sql, written
from .render import render

AT_ONCE = 12  # panels; if a figure has more, the page lets the reader choose


@dataclass(frozen=True)
class Source:
    """The call that reads an exhibit's numbers. The page prints it.

    function: called with the store and `args`. relation: name of the sql/ file that it reads. params: values of that
    file's parameters.
    """

    function: Callable[..., pa.Table]
    args: tuple[Any, ...]
    relation: str
    params: dict[str, Any] = field(default_factory=dict)
    note: str = ""  # what the query does not show

    def table(self, store: Readable) -> pa.Table:
        return self.function(store, *self.args)

    def code(self, opening: str) -> str:
        """Python code that prints the numbers as CSV with every digit. opening: Python code that opens the store."""
        name, module = self.function.__name__, self.function.__module__
        call = ", ".join([opening, *map(repr, self.args)])
        return (
            f"import fasttrace\nfrom {module} import {name}\nfrom fasttrace.analysis.render import render\n"
            f'print(render({name}({call}), "csv"), end="")'
        )

    def query(self) -> str:
        """SQL of the relation, with the values of its parameters inserted."""
        return written(sql(self.relation), self.params)

    def views(self) -> list[str]:
        """Relations of CHAIN that the relation reads, directly or through others."""
        return [name for name in CHAIN if name in read_by(self.relation)]


@dataclass(frozen=True)
class Column:
    """key: of the rows. text: formats a value. numeric: right-aligned and sorted as numbers."""

    key: str
    name: str
    text: Callable[[Any], str] = str
    numeric: bool = False
    wrap: bool = False
    choose: bool = False  # the page offers its values as a filter


@dataclass(frozen=True)
class Table:
    caption: str
    columns: list[Column]
    rows: list[Row]
    folded: bool = False  # collapsed, because a figure shows the same numbers

    @property
    def cells(self) -> list[list[str]]:
        return [[column.text(row[column.key]) for column in self.columns] for row in self.rows]


@dataclass(frozen=True)
class Prompt:
    """A prompt as a row of tokens. tokens: (text, whether it is the subject's). target: the text that follows it."""

    name: str
    tokens: list[tuple[str, bool]]
    target: str


@dataclass(frozen=True)
class Facet:
    """A choice that the page offers. start: the value shown first, "" for all. all: whether it offers "all"."""

    key: str
    name: str
    values: list[str]
    start: str
    all: bool


@dataclass(frozen=True, kw_only=True)
class Exhibit:
    """Numbers of the study as a table, as a figure or as both, or prompts with their tokens.

    tables, figures: the numbers of the corresponding tables and figures in the paper.
    """

    key: str
    section: str
    title: str
    tables: tuple[int, ...] = ()
    figures: tuple[int, ...] = ()
    caption: str
    source: Source
    data: pa.Table  # the whole table that the source returned
    runs: list[str]
    table: Table | None = None
    panels: list[Panel] = field(default_factory=list)
    facets: list[Facet] = field(default_factory=list)
    prompts: list[Prompt] = field(default_factory=list)
    points: list[Row] = field(default_factory=list)  # lists of points, indexed by Panel.points

    @cached_property
    def legend(self) -> list[Series]:
        """One series of each name in the panels. Empty unless there are several names."""
        found = {one.name: one for panel in self.panels for one in panel.series if one.name}
        return list(found.values()) if len(found) > 1 else []

    @property
    def paper(self) -> str:
        """Names of the corresponding tables and figures in the paper, "" for none."""
        both = (("Table", self.tables), ("Figure", self.figures))
        return ", ".join(f"{word}{'s' * (len(n) > 1)} {_and(n)}" for word, n in both if n)

    @cached_property
    def csv(self) -> str:
        data, models = self.data, self.data.schema.get_field_index("model")
        if models >= 0:  # which may be a path
            names = [name and short_name(name) for name in data["model"].to_pylist()]
            data = data.set_column(models, "model", pa.array(names, pa.string()))
        return render(data, "csv")

    @property
    def kind(self) -> str:
        return self.panels[0].kind if self.panels else ""


def facets(
    panels: Sequence[Panel], keys: Sequence[str], start_all: Sequence[str] = (), at_once: int = AT_ONCE
) -> list[Facet]:
    """The choices between panels. Empty if at most `at_once` panels exist."""
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


def _and(numbers: Sequence[int]) -> str:
    *most, last = map(str, numbers)
    return f"{', '.join(most)} and {last}" if most else last


def paper_commands(store: Readable, exhibit: Exhibit) -> list[str]:
    """Commands that print and draw the corresponding tables and figures of the paper for which the store has data."""
    lines, there_is = [], coverage(store)
    for verb, catalogue, numbers in (("tables", TABLES, exhibit.tables), ("figures", FIGURES, exhibit.figures)):
        there = [str(number) for number in numbers if what_is_missing(there_is, catalogue[number]) is None]
        if there:
            lines.append(f"fasttrace {verb} {' '.join(there)} {store_options(store)}")
    return lines


def named(rows: Iterable[Row]) -> list[Row]:
    """The rows, ordered by tracing method and problem, with `series_name` and `traced`.

    A panel shows one problem and one tracing method: a localization and a metric. `series_name` distinguishes the rows
    of a panel. `traced` names the tracing method if there are several, else it is empty.
    """
    rows = list(rows)
    apart = [key for key in ("problem", "localization", "metric") if rows and key in rows[0]]
    differ = several(rows, *(key for key in ("localization", "metric") if key in apart))
    ways = {tuple(row[key] for key in (*differ, "tokens")) for row in rows} if differ else set()
    # Where each tracing method has one choice of tokens, its name tells them too.
    told = ["tokens"] if differ and len(ways) == len({way[:-1] for way in ways}) else []
    names = group_names(rows, always=("method",), apart=[*apart, *told])
    labelled = [
        row | {"series_name": name, "traced": " · ".join(row[key] for key in differ)}
        for group, name in names.items()
        for row in in_group(rows, group)
    ]
    problems = list(dict.fromkeys(row["problem"] for row in labelled))
    return sorted(labelled, key=lambda row: (not own_way(row), row["traced"], problems.index(row["problem"])))


def places(rows: Iterable[Row], key: str) -> dict[str, int]:
    """{name: index of its colour and shape}, the same in every panel."""
    return {name: place for place, name in enumerate(dict.fromkeys(row[key] for row in rows))}


def run_ids(rows: Iterable[Row]) -> list[str]:
    """Ids of the rows' runs, tracing runs first."""
    rows = list(rows)
    return list(
        dict.fromkeys(row[key] for key in reversed(RUNS) for row in rows if key in row and row[key] is not None)
    )


def several(rows: Sequence[Row], *keys: str) -> list[str]:
    """The keys in which the rows differ."""
    return [key for key in keys if len({row[key] for row in rows}) > 1]


def whole(value: Any) -> str:
    return "–" if value is None else f"{value:,}"


def three(value: Any) -> str:
    return number(value)


def two(value: Any) -> str:
    return number(value, 2)


def _model(name: str | None) -> str:
    return or_dash(name and title_of(name))


def or_dash(value: Any) -> str:
    return "–" if value is None else str(value)


TEXTS: dict[str, Callable[[Any], str]] = {"model": _model}
"""Formats of the values that identify a row, where they are not written as they are."""
COUNT: dict[str, Any] = {"text": whole, "numeric": True}
VALUE: dict[str, Any] = {"text": three, "numeric": True}
P_VALUE: dict[str, Any] = {"text": p_cell, "numeric": True}


def keys_of(rows: Sequence[Row]) -> list[Column]:
    """Columns that identify a row: problem, method, and the keys in which the rows differ."""
    lead = [key for key in ("problem", "method") if key in rows[0]]
    labels = [key for key in ("layer", "n_edits", "kind", "expect", "score") if key in rows[0]]
    rest: list[str] = []
    # A run is named only where nothing else tells the rows apart, by its id only where its settings do not.
    for more in (GROUP, RUNS.values(), RUNS):
        rest += several(rows, *(key for key in more if key in rows[0] and key not in lead))
        if len({tuple(row[key] for key in (*lead, *rest, *labels)) for row in rows}) == len(rows):
            break
    return [
        Column(key, heading(key), TEXTS.get(key, or_dash), key == "window_size", choose=bool(several(rows, key)))
        for key in (*lead, *rest)
    ]
