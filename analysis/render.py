"""Any table as text, Markdown, CSV, JSON or LaTeX. Needs no store, so that commands without a store can print too."""

import csv
import io
import json
import math
import textwrap
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

import pyarrow as pa
from rich.cells import cell_len
from rich.console import Console

from fasttrace.errors import UserError
from fasttrace.show.words import title_of

from .naming import heading, p_cell
from .terminal import grid, is_number

P_VALUES = ("p_value", "p_clustered", "p_hotelling", "p_acting", "p_working")
COEFFICIENTS = ("estimate", "std_error")  # in the units of their term, so of any size
FORMATS = ("text", "markdown", "csv", "json", "latex")


def render(
    table: pa.Table,
    format: str = "text",
    *,
    title: str | None = None,
    digits: int = 3,
    width: int | None = None,
) -> str:
    """A table as a string that ends in a newline.

    format: 'text' (headings wrapped to the terminal, or to `width` characters), 'markdown', 'csv', 'json' (a
    list of objects) or 'latex' (a tabular with booktabs rules). csv and json keep every digit, the columns' names, and
    NULL as an empty field or null. The others have words as headings (naming.HEADINGS), `digits` decimals (an exponent
    where they do not show a coefficient), an en dash for NULL, and the table's notes (`noted`) below it.
    Raises UserError for another format.
    """
    if format not in FORMATS:
        raise UserError(f"expected a table format of {', '.join(FORMATS)}, got {format!r}")
    if format == "text":
        return _text(table, title, digits, width)
    if format == "csv":
        return _csv(table)
    if format == "json":
        return json.dumps(json_rows(table), ensure_ascii=False, indent=2) + "\n"
    return (_markdown if format == "markdown" else _latex)(table, title, digits)


def noted(table: pa.Table, notes: Sequence[str]) -> pa.Table:
    """The table with sentences to print below it, which its schema's metadata keep."""
    return table.replace_schema_metadata({"notes": json.dumps(list(notes))}) if notes else table


def _notes(table: pa.Table) -> list[str]:
    found: list[str] = json.loads((table.schema.metadata or {}).get(b"notes", b"[]"))
    return found


def _cells(table: pa.Table, digits: int) -> tuple[list[str], list[list[str]]]:
    """(names, rows as text). An interval X_low, X_high is written in the column of X, after the number."""
    ends = {f"{name}{end}" for name in table.column_names for end in ("_low", "_high")}
    names = [name for name in table.column_names if name not in ends]
    spread = {name for name in names if f"{name}_low" in table.column_names}

    def text(row: dict[str, Any], name: str) -> str:
        value = _shown(name, row[name], digits)
        if name not in spread or row[f"{name}_low"] is None:
            return value
        return f"{value} [{_shown(name, row[f'{name}_low'], digits)}, {_shown(name, row[f'{name}_high'], digits)}]"

    return names, [[text(row, name) for name in names] for row in table.to_pylist()]


def _shown(name: str, value: Any, digits: int) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    if isinstance(value, float):
        if name in P_VALUES:
            return p_cell(value, digits)
        if name in COEFFICIENTS and 0 < abs(value) < 10.0**-digits:
            return f"{value:.{digits - 1}e}"
        text = f"{value:.{digits}f}"
        return text.lstrip("-") if float(text) == 0 else text
    if name == "model":
        return title_of(value)
    return str(value).replace("_", " ") if name in ("score", "edit_metric") else str(value)


def _text(table: pa.Table, title: str | None, digits: int, width: int | None) -> str:
    names, rows = _cells(table, digits)
    headings = list(map(heading, names))
    widths = [max(map(cell_len, column)) + 2 for column in zip(headings, *rows, strict=True)]
    width = Console().width if width is None else width
    if sum(widths) > width:
        headings = [words.replace(" ", "\n") for words in headings]  # only headings wrap
    numeric = [is_number(table.schema.field(name).type) for name in names]
    columns = [list(column) for column in zip(*rows, strict=True)] or [[] for _ in names]
    notes = [
        textwrap.fill(note, max(width - 1, 40), initial_indent=" ", subsequent_indent=" ") for note in _notes(table)
    ]
    return grid(headings, columns, numeric, title=title) + "".join(f"\n{note}\n" for note in notes)


def _markdown(table: pa.Table, title: str | None, digits: int) -> str:
    def line(cells: Sequence[str]) -> str:
        return "| " + " | ".join(cell.replace("|", "\\|").replace("\n", " ") for cell in cells) + " |"

    names, rows = _cells(table, digits)
    rules = ["---:" if is_number(table.schema.field(name).type) else ":---" for name in names]
    lines = [line(list(map(heading, names))), "|" + "|".join(rules) + "|", *map(line, rows)]
    notes = [line for note in _notes(table) for line in ("", note)]
    return "\n".join(([f"**{title}**", ""] if title else []) + lines + notes) + "\n"


def _latex(table: pa.Table, title: str | None, digits: int) -> str:
    def line(cells: Sequence[str]) -> str:
        return " & ".join(map(_escape_latex, cells)) + r" \\"

    names, rows = _cells(table, digits)
    columns = "".join("r" if is_number(table.schema.field(name).type) else "l" for name in names)
    lines = [
        *([f"% {title}"] if title else []),
        rf"\begin{{tabular}}{{{columns}}}",
        r"\toprule",
        line(list(map(heading, names))),
        r"\midrule",
        *map(line, rows),
        r"\bottomrule",
        r"\end{tabular}",
        *(f"% {note}" for note in _notes(table)),
    ]
    return "\n".join(lines) + "\n"


_LATEX = str.maketrans(
    {
        "\\": r"\textbackslash{}",
        "&": r"\&",
        "%": r"\%",
        "$": r"\$",
        "#": r"\#",
        "_": r"\_",
        "{": r"\{",
        "}": r"\}",
        "~": r"\textasciitilde{}",
        "^": r"\textasciicircum{}",
        "<": r"$<$",
        ">": r"$>$",
        "–": "--",
    }
)


def _escape_latex(text: str) -> str:
    return text.translate(_LATEX)


def _csv(table: pa.Table) -> str:
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(table.column_names)

    writer.writerows(row.values() for row in table.to_pylist())
    return out.getvalue()


def json_rows(table: pa.Table) -> list[dict[str, Any]]:
    """The rows as JSON values: null for a number that is not finite, numbers for decimals, text for other types."""
    return [_json_row(row) for row in table.to_pylist()]


def _json_row(row: dict[str, Any]) -> dict[str, Any]:
    return {name: _json_value(value) for name, value in row.items()}


def _json_value(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None  # JSON has no NaN
    if isinstance(value, Decimal):  # such as DuckDB's sum of integers
        return int(value) if value == value.to_integral_value() else float(value)
    if isinstance(value, list):
        return [_json_value(part) for part in value]
    if isinstance(value, dict):
        return _json_row(value)
    return value if value is None or isinstance(value, bool | int | float | str) else str(value)
