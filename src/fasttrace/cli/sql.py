"""The verb that asks a store: sql."""

import sys
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
from rich.console import Console

from fasttrace.errors import UserError
from fasttrace.optional import require

from .deliver import FILE, check_apart, deliver, format_of
from .options import named_store, open_stores, options

ON_A_TERMINAL = 40


@click.command()
@options("stores", "json")
@click.argument("query", required=False)
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV.")
@click.option("--parquet", type=FILE, metavar="FILE", help="Write the rows as Parquet.")
@click.option(
    "--out",
    type=FILE,
    metavar="FILE",
    help="Write to FILE instead: as --json or --csv say, else by its ending (.json, .csv, .parquet), else as text.",
)
@click.option(
    "--max-rows",
    type=click.IntRange(1),
    help=f"Rows a table of text shows, from head and tail; default: {ON_A_TERMINAL} on a terminal, else all.",
)
@click.option(
    "--param", "params", multiple=True, metavar="NAME=VALUE", help='A $NAME of the query; null, or ["a", "b"].'
)
@click.option("--queries", "folder", type=click.Path(), metavar="DIR", help="A folder with .sql files of your own.")
@click.option("--list", "listing", is_flag=True, help="List the saved queries.")
@click.option("--relations", is_flag=True, help="List what the store and the analysis have to read.")
@click.option("--write", is_flag=True, help="Let the query change the store: all of it, or nothing on an error.")
@click.option(
    "--wait",
    type=click.FloatRange(0),
    default=60.0,
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a store that another process has open.",
)
def sql(
    stores: tuple[str, ...], as_json: bool, query: str | None, as_csv: bool, parquet: str | None, out: str | None,
    max_rows: int | None, params: tuple[str, ...], folder: str | None, listing: bool, relations: bool, write: bool,
    wait: float,
) -> None:  # fmt: skip
    """Ask a store, read-only. QUERY: SQL, the name of a saved query, a file ending in .sql, or - for stdin.

    Of several statements the last one's rows are shown. Without a QUERY: a prompt, on a terminal.
    """
    from fasttrace.analysis.saved import ask, saved_queries

    form = format_of(as_json, as_csv, parquet, out)
    read = [("--store", named_store(text)[1]) for text in stores]
    check_apart(*read, ("--out", out), ("--parquet", parquet))
    saved = saved_queries(folder)
    if listing:
        table = listed(saved)
        deliver(table, form, parquet or out, lambda: told(table))
        return
    store = open_stores(stores, wait)
    if relations:
        deliver(relations_of(store, saved), form, parquet or out, lambda: shown(relations_of(store, saved), max_rows))
        return
    if query is None and sys.stdin.isatty():
        if form != "text" or out or not sys.stdout.isatty():
            raise UserError("no query was given: SQL, a saved query's name, a file ending in .sql, or - was wanted")
        require("prompt_toolkit")
        from .prompt import Prompt

        Prompt(store, saved, write, lambda table: shown(table, max_rows)).run()
        return
    table = ask(store, _resolved(query, saved), _values(params), write=write)
    deliver(table, form, parquet or out, lambda: shown(table, max_rows, screen=out is None))


def shown(table: pa.Table, max_rows: int | None, *, screen: bool = True) -> str:
    """A table of text: for a terminal no wider than it and no longer than 40 rows, else whole."""
    from fasttrace.analysis.terminal import fit

    screen = screen and sys.stdout.isatty()
    if max_rows is None and screen:
        max_rows = ON_A_TERMINAL
    return fit(table, Console().width if screen else None, max_rows, wrap=("what",))


def listed(saved: Mapping[str, Any]) -> pa.Table:
    """name, kind, answers, grain, parameters of the saved queries, one's own first."""
    rows = [
        {
            "name": one.name,
            "kind": one.kind,
            "answers": one.header.what,
            "grain": one.header.grain,
            "parameters": one.parameters,
            "about_parameters": one.header.parameters,
        }
        for one in sorted(saved.values(), key=lambda one: (one.kind != "own", one.kind != "query", one.name))
        if one.name not in _tables()
    ]
    return pa.Table.from_pylist(rows)


def told(table: pa.Table) -> str:
    """`listed` as paragraphs: sentences are not for columns."""
    width = min(Console().width, 100)
    lines = []
    for row in table.to_pylist():
        kind = {"own": "  (yours)", "view": "  (view)"}.get(row["kind"], "")
        lines.append(" ".join([row["name"], *(f"{name}=…" for name in row["parameters"])]) + kind)
        parameters = f"Parameters: {row['about_parameters']}" if row["about_parameters"] else ""
        for text in (row["answers"], row["grain"] and f"Grain: {row['grain']}", parameters):
            lines += textwrap.wrap(text, width, initial_indent="    ", subsequent_indent="    ")
    return "\n".join(lines) + "\n"


def relations_of(store: Any, saved: Mapping[str, Any]) -> pa.Table:
    """Every relation of the store and view of the analysis: kind, rows (NULL for a view), columns, what it is."""
    from fasttrace.analysis.relation import CHAIN
    from fasttrace.analysis.saved import columns_of

    table = store.relations()
    rows = table.to_pylist()
    columns = columns_of(store)
    rows += [{"relation": name, "kind": "view", "n_columns": len(columns[name])} for name in CHAIN]
    kinds = {field.name: field.type for field in table.schema} | {"what": pa.string()}
    for row in rows:
        row["what"] = saved[row["relation"]].header.what if row["relation"] in saved else None
    return pa.Table.from_pylist(rows, schema=pa.schema(list(kinds.items())))


def _tables() -> tuple[str, ...]:
    from fasttrace.store.connect import RELATIONS

    return RELATIONS


def _resolved(query: str | None, saved: Mapping[str, Any]) -> Any:
    """What to ask: a saved query, or SQL from wherever it is."""
    from fasttrace.analysis.saved import find, is_name, read_query

    if query is None or query == "-":
        try:
            return sys.stdin.read()
        except UnicodeDecodeError as error:
            raise UserError("the query on stdin is not UTF-8 text") from error
    if query.endswith(".sql"):
        return read_query(Path(query))
    return find(saved, query) if is_name(query) else query


def _values(params: tuple[str, ...]) -> dict[str, Any]:
    from fasttrace.analysis.saved import value_of

    return dict(value_of(text) for text in params)
