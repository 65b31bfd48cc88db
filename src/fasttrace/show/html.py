"""One HTML fragment for notebooks: a line, a small table and a small picture. Everything in it is escaped."""

import base64
import io
import math
from html import escape
from typing import TYPE_CHECKING, Any

import pyarrow as pa

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MOST_ROWS = 8
MOST_COLUMNS = 9
MOST_LETTERS = 60  # of a cell
CELL = 'style="text-align:left;padding:2px 8px"'


def fragment(line: str, table: pa.Table, picture: "Axes | None" = None) -> str:
    """line: what the object is. table: of which the first rows and columns are shown. picture: axes in a figure of
    their own, put in as a PNG image."""
    parts = [f"<p><code>{escape(line)}</code></p>"]
    if picture is not None:
        parts.append(image(picture, escape(line)))
    if table.num_rows:
        parts.append(small_table(table))
    return f"<div>{''.join(parts)}</div>"


def small_table(table: pa.Table) -> str:
    """The first rows and columns of a table."""
    names = table.column_names[:MOST_COLUMNS]
    rows = table.slice(0, MOST_ROWS).select(names).to_pylist()
    head = "".join(f"<th {CELL}>{escape(name)}</th>" for name in names)
    body = "".join(
        f"<tr>{''.join(f'<td {CELL}>{escape(_text(row[name]))}</td>' for name in names)}</tr>" for row in rows
    )
    left_out = [
        f"{size:,} {what}, {most} shown"
        for what, size, most in (("rows", len(table), MOST_ROWS), ("columns", table.num_columns, MOST_COLUMNS))
        if size > most
    ]
    note = f"<p>{'; '.join(left_out)}</p>" if left_out else ""
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>{note}"


def image(axes: "Axes", alt: str) -> str:
    """A figure as an <img> with its pixels in it. alt: its text, escaped."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    from .fonts import readable

    figure: Any = axes.figure
    FigureCanvasAgg(figure)
    with readable(figure):
        figure.savefig(png := io.BytesIO(), format="png", dpi=110)
    data = base64.b64encode(png.getvalue()).decode()
    return f'<img style="max-width:100%" alt="{alt}" src="data:image/png;base64,{data}">'


def _text(value: Any) -> str:
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return "–"
    text = f"{value:.4g}" if isinstance(value, float) else str(value)
    return text if len(text) <= MOST_LETTERS else f"{text[: MOST_LETTERS - 1]}…"
