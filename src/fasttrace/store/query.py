"""What one store and several have in common: to be read, with SQL."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager
from typing import Any, Literal

import duckdb
import pyarrow as pa
from duckdb import ExpectedResultType

from fasttrace.errors import StoreError

Params = Sequence[Any] | Mapping[str, Any]

ONCE = "once"
"""The schema in which several stores' relations have each row once (see several.py)."""


class Readable(ABC):
    """A store, or several: what analysis functions take."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A read-only connection for one `with` block: several queries on one state."""

    @abstractmethod
    def relations(self) -> pa.Table:
        """What there is to read, a row a relation."""

    @abstractmethod
    def once(self) -> "Readable":
        """The same, every row of a relation taken once; itself where it is one store."""

    def query(self, sql: str, params: Params = ()) -> pa.Table:
        """The rows of a query, with the file open for reading only.

        params: values for `?` (a sequence) or `$name` (a mapping).
        """
        with self.reading() as con:
            return rows_of(con, sql, params)


def rows_of(con: duckdb.DuckDBPyConnection, sql: str, params: Params = ()) -> pa.Table:
    """The rows of one query as a pyarrow Table; a statement without rows gives an empty one.

    Raises StoreError, one sentence, where the query fails.
    """
    try:
        relation = con.sql(sql, params=params or None)
        return pa.table({}) if relation is None else relation.to_arrow_table()
    except duckdb.Error as error:
        raise StoreError(f"the query failed: {said(error)}") from error


def run_script(con: duckdb.DuckDBPyConnection, text: str, params: Mapping[str, Any]) -> pa.Table:
    """Run statements separated by `;` in the transaction that is open; the rows of the last, each column's name once.

    params: values for `$name`, each for the statements that have it. Ctrl-C stops it.
    Raises StoreError where there is no statement or one fails.
    """
    # DuckDB does not look for signals while it makes a result; a thread that waits for it does.
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(_run, con, text, params)
        try:
            return running.result()
        except KeyboardInterrupt:
            con.interrupt()
            raise


def _run(con: duckdb.DuckDBPyConnection, text: str, params: Mapping[str, Any]) -> pa.Table:
    try:
        statements = con.extract_statements(text)
        if not statements:
            raise StoreError("the query is empty: a statement was wanted")
        *first, last = [(one, {name: params[name] for name in one.named_parameters} or None) for one in statements]
        for one, taken in first:
            con.execute(one, taken).fetchall()  # DuckDB 2 wants a result read before the next
        relation = con.sql(last[0], params=last[1])
        rows = pa.table({}) if relation is None else _named_once(relation.to_arrow_table())
        # DuckDB 2 answers CREATE and SET with an empty table that says Success.
        answers = last[0].expected_result_type == [ExpectedResultType.QUERY_RESULT]
        return rows if answers or len(rows) else pa.table({})
    except duckdb.Error as error:
        if "read-only" in str(error):
            raise StoreError(
                "the query writes, and the store is open for reading only: --write on one store allows it"
            ) from error
        raise StoreError(f"the query failed: {said(error)}") from error


def parameters_of(text: str) -> set[str]:
    """Names of the `$name` in a script. Raises StoreError where it is not SQL, or has `?`."""
    con = duckdb.connect(":memory:")
    try:
        names = {name for statement in con.extract_statements(text) for name in statement.named_parameters}
    except duckdb.Error as error:
        raise StoreError(f"the query failed: {said(error)}") from error
    finally:
        con.close()
    if any(name.isdigit() for name in names):
        raise StoreError("the query has a parameter without a name: $name was wanted, not ? or $1")
    return names


def define(
    con: duckdb.DuckDBPyConnection, kind: Literal["TABLE", "VIEW"], name: str, select: str, params: Params = ()
) -> None:
    """Make a table or view of a SELECT on a connection of a `Readable`. params: for a table, values for its `$name`.

    On one store it is temporary, since the store is read-only. A temporary view looks its relations up where the query
    that reads it does; over several stores those would be the plain ones, in which a row may be twice. So there it is
    made in the schema `once`, whose relations have every row once.
    """
    [(path, schemas)] = con.execute("SELECT current_setting('search_path'), current_schemas(FALSE)").fetchall()
    if ONCE not in schemas:
        con.execute(f"CREATE OR REPLACE TEMP {kind} {name} AS\n{select}", params or None).fetchall()
        return
    con.execute("SET search_path = 'once'")
    con.execute(f"CREATE OR REPLACE {kind} {name} AS\n{select}", params or None).fetchall()
    con.execute("SET search_path = $path", {"path": path})


def said(error: duckdb.Error) -> str:
    """DuckDB's message as one sentence, with what it thinks was meant; without the line it points at."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    pointed = next((i for i, line in enumerate(lines) if line.startswith("LINE ")), len(lines))
    kept = [line for line in lines[:pointed] if line]
    if len(kept) > 2:  # a list of functions that might have been meant
        kept = kept[:1]
    return " ".join(kept).removesuffix(".") or type(error).__name__


def _named_once(table: pa.Table) -> pa.Table:
    """Columns x, x as x, x_1: rows are also printed as objects, whose names must differ."""
    names: list[str] = []
    for name in table.column_names:
        new, n = name, 0
        while new in names:
            n += 1
            new = f"{name}_{n}"
        names.append(new)
    return table.rename_columns(names)
