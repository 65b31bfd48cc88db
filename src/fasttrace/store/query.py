"""The common base of one store and several stores: reading them with SQL."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from typing import Any, Literal

import duckdb
import pyarrow as pa
from duckdb import ExpectedResultType

from fasttrace.errors import StoreError

Params = Sequence[Any] | Mapping[str, Any]

ONCE = "once"
"""The schema in which the relations of several stores have each row once (see several.py)."""


class Readable(ABC):
    """One store or several stores. The analysis functions accept either."""

    @abstractmethod
    def reading(self) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A read-only connection. All queries in the `with` block see the same state."""

    @abstractmethod
    def relations(self) -> pa.Table:
        """The relations that can be read, one row per relation."""

    @abstractmethod
    def once(self) -> "Readable":
        """The same data with every row of a relation once. One store returns itself."""

    def query(self, sql: str, params: Params = ()) -> pa.Table:
        """Return the rows of a query. The file is opened read-only.

        params: values for `?` (a sequence) or `$name` (a mapping).
        """
        with self.reading() as con:
            return rows_of(con, sql, params)


def rows_of(con: duckdb.DuckDBPyConnection, sql: str, params: Params = ()) -> pa.Table:
    """The rows of one query as a pyarrow Table, empty for a statement without rows.

    Raises StoreError where the query fails.
    """
    try:
        relation = con.sql(sql, params=params or None)
        return pa.table({}) if relation is None else relation.to_arrow_table()
    except duckdb.Error as error:
        raise StoreError(f"the query failed: {message_of(error)}") from error


def run_script(con: duckdb.DuckDBPyConnection, text: str, params: Mapping[str, Any]) -> pa.Table:
    """Run statements separated by `;` in the open transaction. Returns the rows of the last, with unique column names.

    params: values for `$name`, passed to the statements that contain it. Ctrl-C stops the script.
    Raises StoreError where there is no statement or one fails.
    """
    # DuckDB does not check for signals while it computes a result, but a thread that waits for it does.
    with ThreadPoolExecutor(1) as thread:
        running = thread.submit(_run, con, text, params)
        try:
            return running.result()
        except KeyboardInterrupt:
            # An interrupt that arrives before a statement starts, or between two, is lost.
            while not running.done():
                con.interrupt()
                wait([running], timeout=0.05)
            raise


def _run(con: duckdb.DuckDBPyConnection, text: str, params: Mapping[str, Any]) -> pa.Table:
    try:
        statements = con.extract_statements(text)
        if not statements:
            raise StoreError("the query: expected a statement, got an empty text")
        *first, last = [(one, {name: params[name] for name in one.named_parameters} or None) for one in statements]
        for one, values in first:
            con.execute(one, values).fetchall()  # DuckDB 2 requires a result to be read before the next statement
        relation = con.sql(last[0], params=last[1])
        rows = pa.table({}) if relation is None else _named_once(relation.to_arrow_table())
        # DuckDB 2 answers CREATE and SET with an empty table that says Success.
        answers = last[0].expected_result_type == [ExpectedResultType.QUERY_RESULT]
        return rows if answers or len(rows) else pa.table({})
    except duckdb.Error as error:
        if "read-only" in str(error):
            raise StoreError(
                "the query writes, but the store is open read-only: --write on one store allows it"
            ) from error
        raise StoreError(f"the query failed: {message_of(error)}") from error


def parameters_of(text: str) -> set[str]:
    """The names of all `$name` in a script. Raises StoreError where it is not SQL or contains `?`."""
    con = duckdb.connect(":memory:")
    try:
        names = {name for statement in con.extract_statements(text) for name in statement.named_parameters}
    except duckdb.Error as error:
        raise StoreError(f"the query failed: {message_of(error)}") from error
    finally:
        con.close()
    if any(name.isdigit() for name in names):
        raise StoreError("the query: expected named parameters ($name), got one without a name (? or $1)")
    return names


def define(
    con: duckdb.DuckDBPyConnection, kind: Literal["TABLE", "VIEW"], name: str, select: str, params: Params = ()
) -> None:
    """Create a table or view of a SELECT on a connection of a `Readable`. params: for a table, values for its `$name`.

    On one store, which is read-only, the table or view is temporary. A temporary view resolves its relations in the
    search path of the query that reads it. Over several stores it would find the plain relations, in which a row may
    occur twice. It is therefore created in the schema `once` there, and resolves its relations in that schema.
    """
    [(path, schemas)] = con.execute("SELECT current_setting('search_path'), current_schemas(FALSE)").fetchall()
    if ONCE not in schemas:
        con.execute(f"CREATE OR REPLACE TEMP {kind} {name} AS\n{select}", params or None).fetchall()
        return
    con.execute("SET search_path = 'once'")
    con.execute(f"CREATE OR REPLACE {kind} {name} AS\n{select}", params or None).fetchall()
    con.execute("SET search_path = $path", {"path": path})


def message_of(error: duckdb.Error) -> str:
    """DuckDB's message as one sentence, with its suggestion but without the line that it points at."""
    lines = [line.strip() for line in str(error).strip().splitlines()]
    pointed = next((i for i, line in enumerate(lines) if line.startswith("LINE ")), len(lines))
    kept = [line for line in lines[:pointed] if line]
    if len(kept) > 2:  # a list of candidate functions
        kept = kept[:1]
    return " ".join(kept).removesuffix(".") or type(error).__name__


def _named_once(table: pa.Table) -> pa.Table:
    """Rename columns x, x to x, x_1, because rows are also printed as JSON objects, whose names must differ."""
    names: list[str] = []
    for name in table.column_names:
        new, n = name, 0
        while new in names:
            n += 1
            new = f"{name}_{n}"
        names.append(new)
    return table.rename_columns(names)
