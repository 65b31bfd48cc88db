"""Tables as text. `grid` lays out columns of words. `fit` shows a query's table within a width and a number of rows."""

import datetime
import decimal
import io
import json
import math
from collections.abc import Collection, Sequence
from typing import Any

import pyarrow as pa
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

from fasttrace.show.words import count

GAP = 2
NARROWEST = 8  # texts are cut to this width before columns are left out
MORE = "…"


def fit(table: pa.Table, width: int | None = None, max_rows: int | None = None, wrap: Sequence[str] = ()) -> str:
    """The table as lines that end in a newline. A last line gives the numbers of rows and columns if any are left out.

    width: largest width of a line in characters. Texts are cut first, then columns are left out of the middle. None: no
    limit.
    max_rows: rows to show, half from the head and half from the tail. None: all.
    wrap: columns whose text is broken into lines instead of cut.
    NULL is an en dash. A float has four decimals, or an exponent if it is below 0.001 or at least 10 million.
    """
    if not table.num_columns:
        return ""
    if table.column_names == ["explain_key", "explain_value"]:  # DuckDB's drawing of a plan
        return "".join(f"{value}\n" for value in table["explain_value"].to_pylist())
    rows, head = _rows(table, max_rows)
    cells = [[_shown(value) for value in column.to_pylist()] for column in rows.columns]
    numeric = [is_number(field.type) for field in table.schema]
    widths = [max(map(cell_len, [name, *column])) for name, column in zip(table.column_names, cells, strict=True)]
    kept = list(range(len(widths)))
    if width is not None:
        widths = _cut_texts(widths, numeric, width)
        kept = _kept(widths, width)
    text = grid(
        [table.column_names[i] for i in kept],
        [cells[i] for i in kept],
        [numeric[i] for i in kept],
        widths=[widths[i] for i in kept],
        wrap={place for place, i in enumerate(kept) if table.column_names[i] in wrap},
        gap_column=next((place for place, i in enumerate(kept) if i != place), None),
        gap_row=head,
    )
    return text + _left_out(table, len(rows), len(kept))


def grid(
    headings: Sequence[str],
    columns: Sequence[Sequence[str]],
    numeric: Sequence[bool],
    *,
    title: str | None = None,
    widths: Sequence[int] | None = None,
    wrap: Collection[int] = (),
    gap_column: int | None = None,
    gap_row: int | None = None,
) -> str:
    """Columns of words as lines under their headings, with a newline at the end.

    numeric: which columns are right-aligned. widths: column widths in characters; None: the widths of the words. Longer
    words are cut and end in "…", or are broken into lines in the columns `wrap`. gap_column, gap_row: the first column
    and row after the ones left out; None: none are left out.
    """
    if widths is None:
        widths = [
            max(cell_len(line) for word in (heading, *column) for line in word.split("\n"))
            for heading, column in zip(headings, columns, strict=True)
        ]
    shown = Table(
        title=Text(title) if title else None,
        box=box.SIMPLE_HEAD,
        title_justify="left",
        pad_edge=False,
        padding=(0, GAP - 1, 0, 0),
    )
    for place, heading in enumerate(headings):
        if place == gap_column:
            shown.add_column(MORE)
        shown.add_column(
            Text(heading),  # Text: a value like "[b]" is no markup
            justify="right" if numeric[place] else "left",
            no_wrap=place not in wrap,
            width=widths[place],
            overflow="fold" if place in wrap else "ellipsis",
        )
    for number, row in enumerate(zip(*columns, strict=True)):
        if number == gap_row:
            shown.add_row(*["⋮"] * len(shown.columns))
        words = [Text(word) for word in row]
        if gap_column is not None:
            words.insert(gap_column, Text(""))
        shown.add_row(*words)
    width = sum(widths) + (GAP + 1) * (len(widths) + 1)
    # In a notebook, rich would show what it writes instead of writing it.
    console = Console(width=width, file=io.StringIO(), color_system=None, force_jupyter=False)
    with console.capture() as capture:
        console.print(shown)
    return "\n".join(line.rstrip() for line in capture.get().splitlines()).strip("\n") + "\n"


def _rows(table: pa.Table, max_rows: int | None) -> tuple[pa.Table, int | None]:
    """The rows to show, and how many of them come before the gap (None: there is no gap)."""
    if max_rows is None or len(table) <= max_rows:
        return table, None
    head, tail = -(-max_rows // 2), max_rows // 2
    return pa.concat_tables([table.slice(0, head), table.slice(len(table) - tail, tail)]), head


def _left_out(table: pa.Table, rows: int, columns: int) -> str:
    parts = []
    if rows < len(table) or not len(table):
        parts.append(count(len(table), "row") + (f", {rows} shown" if rows else ""))
    if columns < table.num_columns:
        parts.append(f"{table.num_columns} columns, {columns} shown")
    return f"{'; '.join(parts)}\n" if parts else ""


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * len(widths)


def _cut_texts(natural: list[int], numeric: list[bool], width: int) -> list[int]:
    """Column widths that fit, with the widest possible limit on texts. Numbers are never cut."""

    def at(most: int) -> list[int]:
        return [own if number else min(own, most) for own, number in zip(natural, numeric, strict=True)]

    most = max(natural)
    while most > NARROWEST and _total(at(most)) > width:
        most -= 1
    return at(most)


def _kept(widths: list[int], width: int) -> list[int]:
    """Indices of the columns that fit, taken from both ends. The first always stays."""
    if _total(widths) <= width:
        return list(range(len(widths)))
    left, used = [0], widths[0] + GAP + len(MORE) + GAP
    right: list[int] = []
    first, last = 1, len(widths) - 1
    while first <= last:
        from_left = len(left) <= len(right) + 1
        i = first if from_left else last
        used += widths[i] + GAP
        if used > width:
            break
        if from_left:
            left.append(i)
            first += 1
        else:
            right.insert(0, i)
            last -= 1
    return left + right


def is_number(kind: pa.DataType) -> bool:
    return pa.types.is_integer(kind) or pa.types.is_floating(kind) or pa.types.is_decimal(kind)


def _shown(value: Any) -> str:
    if value is None:
        return "–"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        plain = value == 0 or not math.isfinite(value) or 1e-3 <= abs(value) < 1e7
        return f"{value:.4f}" if plain else f"{value:.3e}"
    if isinstance(value, decimal.Decimal):
        return f"{value:f}"
    if isinstance(value, datetime.datetime):
        return value.isoformat(" ", "seconds")
    if isinstance(value, list | dict):
        value = json.dumps(value, default=_inside, ensure_ascii=False)
    text = value.hex() if isinstance(value, bytes) else str(value)
    return "".join(letter if letter.isprintable() else letter.encode("unicode_escape").decode() for letter in text)


def _inside(value: Any) -> Any:
    return float(value) if isinstance(value, decimal.Decimal) else _shown(value)
