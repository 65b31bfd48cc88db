"""A table of any size as text that fits a terminal: rows from both ends, columns from both ends, long texts cut."""

import datetime
import decimal
import io
import json
import math
from collections.abc import Sequence
from typing import Any

import pyarrow as pa
from rich import box
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

GAP = 2
NARROWEST = 8  # a text is cut down to this before a column is left out
MORE = "…"


def fit(table: pa.Table, width: int | None = None, max_rows: int | None = None, wrap: Sequence[str] = ()) -> str:
    """The table as lines that end in a newline, and a last line that says what was left out, where something was.

    width: characters a line may have; texts are cut, then columns left out of the middle. None: no limit.
    max_rows: rows to show, half from the head and half from the tail. None: all.
    wrap: columns whose text is broken into lines instead of cut.
    NULL is an en dash, and a number has four decimals, or an exponent where they would not show it.
    """
    if not table.num_columns:
        return ""
    if table.column_names == ["explain_key", "explain_value"]:  # DuckDB's drawing of a plan
        return "".join(f"{value}\n" for value in table["explain_value"].to_pylist())
    rows, cut_after = _rows(table, max_rows)
    cells = [[_shown(value) for value in column.to_pylist()] for column in rows.columns]
    numeric = [_is_number(field.type) for field in table.schema]
    natural = [max(map(cell_len, [name, *column])) for name, column in zip(table.column_names, cells, strict=True)]
    widths = natural if width is None else _cut_texts(natural, numeric, width)
    kept = list(range(len(widths))) if width is None else _kept(widths, width)
    shown = Table(box=box.SIMPLE_HEAD, pad_edge=False, padding=(0, GAP - 1, 0, 0))
    for place, i in enumerate(kept):
        if place and i != kept[place - 1] + 1:
            shown.add_column(MORE)
        name, breaks = table.column_names[i], table.column_names[i] in wrap
        shown.add_column(
            Text(name), justify="right" if numeric[i] else "left", no_wrap=not breaks, width=widths[i],
            overflow="fold" if breaks else "ellipsis",
        )  # fmt: skip
    for r in range(len(rows)):
        if r == cut_after:
            shown.add_row(*["⋮"] * len(shown.columns))
        line: list[Text] = []
        for place, i in enumerate(kept):
            if place and i != kept[place - 1] + 1:
                line.append(Text(""))
            line.append(Text(cells[i][r]))  # Text: a value like "[b]" is no markup
        shown.add_row(*line)
    console = Console(width=sum(widths) + (GAP + 1) * (len(widths) + 1), file=io.StringIO(), color_system=None)
    with console.capture() as capture:
        console.print(shown)
    lines = [line.rstrip() for line in capture.get().splitlines()]
    return "\n".join(lines).strip("\n") + "\n" + _left_out(table, len(rows), len(kept))


def _rows(table: pa.Table, max_rows: int | None) -> tuple[pa.Table, int]:
    """The rows to show, and how many of them come before the gap (-1: there is none)."""
    if max_rows is None or len(table) <= max_rows:
        return table, -1
    head, tail = -(-max_rows // 2), max_rows // 2
    return pa.concat_tables([table.slice(0, head), table.slice(len(table) - tail, tail)]), head


def _left_out(table: pa.Table, rows: int, columns: int) -> str:
    said = []
    if rows < len(table) or not len(table):
        said.append(f"{len(table)} rows" + (f", {rows} shown" if rows else ""))
    if columns < table.num_columns:
        said.append(f"{table.num_columns} columns, {columns} shown")
    return f"{'; '.join(said)}\n" if said else ""


def _total(widths: Sequence[int]) -> int:
    return sum(widths) + GAP * len(widths)


def _cut_texts(natural: list[int], numeric: list[bool], width: int) -> list[int]:
    """Widths that fit, with texts no longer than the most that lets them; numbers are never cut."""

    def at(most: int) -> list[int]:
        return [own if number else min(own, most) for own, number in zip(natural, numeric, strict=True)]

    most = max(natural)
    while most > NARROWEST and _total(at(most)) > width:
        most -= 1
    return at(most)


def _kept(widths: list[int], width: int) -> list[int]:
    """Columns that fit, from both ends; at least the first."""
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


def _is_number(kind: pa.DataType) -> bool:
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
