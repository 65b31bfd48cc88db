"""The verb sql: queries a store."""

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fasttrace.errors import UserError
from fasttrace.optional import require
from fasttrace.settings.base import Setting
from fasttrace.settings.kinds import MOST_SECONDS, Bounds, kind_of

from . import signals
from .catalogue import listed, relations_of, rendered
from .deliver import FILE, STDOUT, check_apart, deliver, format_of
from .help import command, completing, names_in, option
from .options import SettingType, named_store, open_stores, options, read_stdin

if TYPE_CHECKING:
    import pyarrow as pa

ON_A_TERMINAL = 40
WAIT = Setting(owner="sql", name="wait", annotation=float, kind=kind_of(float, Bounds(0, most=MOST_SECONDS)))


def _queries() -> list[str]:
    """Names that a query may have: those of saved queries, views and relations."""
    return sorted({*names_in("analysis/sql", ".sql"), *names_in("store/schema", ".sql")})


@command()
@options("stores", "json")
@click.argument("query", required=False, shell_complete=completing(_queries, files=".sql"))
@option("--csv", "as_csv", heading="Output", is_flag=True, help="Print CSV.")
@option("--parquet", heading="Output", type=FILE, metavar="FILE", help="Write the rows to FILE as Parquet.")
@option(
    "--out",
    heading="Output",
    type=FILE,
    metavar="FILE",
    help="Write to FILE instead (- is stdout), as --json or --csv, else by its ending (.json, .csv, .parquet), else as "
    "text.",
)
@option(
    "--max-rows",
    heading="Output",
    type=click.IntRange(1),
    help=f"Most rows to show as text, from head and tail; by default {ON_A_TERMINAL} on a terminal, else all.",
)
@option(
    "--param",
    "params",
    multiple=True,
    metavar="NAME=VALUE",
    help='Value of $NAME in the query: text, null, or a list such as ["a", "b"]; repeatable.',
)
@option("--queries", "folder", type=click.Path(), metavar="DIR", help="Folder with your own .sql files.")
@option("--list", "listing", is_flag=True, help="List the saved queries.")
@option("--relations", is_flag=True, help="List the relations of the store and the views of the analysis.")
@option("--write", is_flag=True, help="Let the query change the store, which stays as it was on an error.")
@option(
    "--files",
    "folders",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    multiple=True,
    metavar="DIR",
    help="Let the query read the files of this folder, and with --write also COPY rows to new files there; repeatable.",
)
@option(
    "--wait",
    type=SettingType(WAIT),
    default="60",
    show_default=True,
    metavar="SECONDS",
    help="How long to wait for a store that another process has open.",
)
def sql(
    stores: tuple[str, ...],
    as_json: bool,
    query: str | None,
    as_csv: bool,
    parquet: str | None,
    out: str | None,
    max_rows: int | None,
    params: tuple[str, ...],
    folder: str | None,
    listing: bool,
    relations: bool,
    write: bool,
    folders: tuple[Path, ...],
    wait: float,
) -> None:
    """Query a store with SQL. The store is opened read-only, unless --write is given.

    A query can reach the store and the folders given with --files, but no other file, no network and no extension.

    QUERY is SQL, the name of a saved query, a file ending in .sql, or - for stdin. If it has several statements, the
    rows of the last one are shown. Without QUERY, fasttrace opens a prompt on a terminal, and otherwise reads stdin.
    """
    from fasttrace.analysis.saved import run_query, saved_queries

    form = format_of(as_json, as_csv, parquet, out)
    read = [("--store", named_store(text)[1]) for text in stores]
    script = query if query is not None and query.endswith(".sql") else None
    check_apart(*read, ("the query", script), ("--out", out), ("--parquet", parquet))
    saved = saved_queries(folder)
    if listing:
        table = listed(saved)
        deliver(table, form, parquet or out, lambda: rendered(table))
        return
    store = open_stores(stores, wait)
    if relations:
        deliver(relations_of(store, saved), form, parquet or out, lambda: shown(relations_of(store, saved), max_rows))
        return
    if query is None and sys.stdin.isatty():
        if form != "text" or out not in (None, STDOUT) or not sys.stdout.isatty():
            raise UserError("expected a query (SQL, a saved query's name, a file ending in .sql, or -), got none")
        require("prompt_toolkit")
        from .prompt import Prompt

        Prompt(store, saved, write, lambda table: shown(table, max_rows), folders).run()
        return
    try:
        table = run_query(store, _resolved(query, saved), _values(params), write=write, folders=folders)
    except KeyboardInterrupt as stop:
        click.echo("fasttrace: the query was stopped", err=True)
        sys.exit(signals.exit_code(stop))
    deliver(table, form, parquet or out, lambda: shown(table, max_rows, screen=out in (None, STDOUT)))


def shown(table: "pa.Table", max_rows: int | None, *, screen: bool = True) -> str:
    """A table as text, on a terminal no wider than that and by default at most 40 rows long."""
    from rich.console import Console

    from fasttrace.analysis.terminal import fit

    screen = screen and sys.stdout.isatty()
    if max_rows is None and screen:
        max_rows = ON_A_TERMINAL
    return fit(table, Console().width if screen else None, max_rows, wrap=("what",))


def _resolved(query: str | None, saved: Mapping[str, Any]) -> Any:
    """The query to run: a saved query, or SQL from the argument, a file or stdin."""
    from fasttrace.analysis.saved import find, is_name, read_query

    if query is None or query == "-":
        return read_stdin("the query")
    if query.endswith(".sql"):
        return read_query(Path(query))
    return find(saved, query) if is_name(query) else query


def _values(params: tuple[str, ...]) -> dict[str, Any]:
    from fasttrace.analysis.saved import value_of

    return dict(value_of(text) for text in params)
