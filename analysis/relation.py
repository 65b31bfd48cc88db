"""The relations of sql/, over a store opened for reading."""

from collections.abc import Mapping, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

import pyarrow as pa

from fasttrace.errors import UserError
from fasttrace.optional import duckdb
from fasttrace.store import Readable, rows_of
from fasttrace.store.query import add_view

# Temporary views (and one small table), each after those it reads; every other file of sql/ is a query.
VIEWS = (
    "run_pairs", "traced_edits", "edit_values", "edit_scores", "concentrated_facts", "regression_rows", "layer_sums",
    "group_fits", "group_errors", "regressions", "layer_correlation", "layer_means",
)  # fmt: skip


@cache
def sql(name: str) -> str:
    """The text of sql/<name>.sql. Raises UserError where there is none."""
    file = files("fasttrace.analysis") / "sql" / f"{name}.sql"
    if not file.is_file():
        raise UserError(f"there is no relation '{name}' in the analysis")
    return file.read_text(encoding="utf-8")


def relation(
    store: Readable,
    name: str,
    params: Sequence[Any] | Mapping[str, Any] = (),
    *,
    tracing_window: int | None = None,
    pairs: Mapping[str, Any] | None = None,
) -> pa.Table:
    """The rows of sql/<name>.sql, over several stores with every row once; params: values for its `$name`.

    tracing_window, pairs: as `query` takes them.
    """
    if name in VIEWS:
        raise UserError(f"'{name}' is a view: read it with fasttrace.analysis.query")
    return query(store.once(), sql(name), params, tracing_window=tracing_window, pairs=pairs)


def query(
    store: Readable,
    text: str,
    params: Sequence[Any] | Mapping[str, Any] = (),
    *,
    tracing_window: int | None = None,
    pairs: Mapping[str, Any] | None = None,
) -> pa.Table:
    """The rows of any query, which may read the store's relations and the views of the analysis.

    tracing_window: of the effects that edits are compared with, layers; None takes each edit's own.
    pairs: values for sql/statements/keep_pairs.sql: the views then see only the runs that are named.
    """
    with store.reading() as con:
        make_views(con, tracing_window)
        if pairs is not None:
            con.execute(sql("statements/keep_pairs"), pairs).fetchall()
        return rows_of(con, text, params)


def make_views(con: duckdb.DuckDBPyConnection, tracing_window: int | None = None) -> None:
    """Make the analysis' views on a connection; temporary, so that a read-only store is enough."""
    con.execute("SET VARIABLE tracing_window = $window", {"window": tracing_window})
    for name in VIEWS:
        add_view(con, sql(name))
