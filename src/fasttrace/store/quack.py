"""A store behind DuckDB's own server (its extension quack), which many processes read and write at once.

The extension attaches a server's database, but cannot update or join what it has attached. So the SQL of a session runs
on the server. Only the rows of a batch go to it as a table, which lives as long as the transaction.
"""

import math
import os
import re
import uuid
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path, PosixPath
from typing import Any

import duckdb
import pyarrow as pa

from fasttrace.errors import StoreError, UserError
from fasttrace.store.failures import Locked, first_line, patiently

VERSION = "1.5.5"
"""The version of DuckDB that has the extension as a package."""
PACKAGES = " ".join(
    f"{name}=={VERSION}"
    for name in ("duckdb", "duckdb-extensions", "duckdb-extension-httpfs", "duckdb-extension-quack")
)
TOKEN = "FASTTRACE_QUACK_TOKEN"
WRITES = "/* fasttrace writes */ "
"""Begins every statement of a session that writes, so that the server can tell one that was abandoned."""

# What other writers, or a server that was started again, make of a transaction. It succeeds when it is run again.
_LOST_RACE = re.compile(r"conflict|Failed to commit|Invalid connection id|Failed to send", re.IGNORECASE)
# The same, or a batch that has a row twice. To run that again does not help.
_PERHAPS = re.compile(r"Duplicate key|PRIMARY KEY or UNIQUE constraint")
_PATIENCE_S = 5.0


class Address(PosixPath):
    """The address of a server, quack:HOST or quack:HOST:PORT, in place of a store's path.

    A server makes its store before it answers, so the store is taken to exist.
    """

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        return True

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        return False

    def resolve(self, strict: bool = False) -> "Address":
        return self

    @property
    def host_and_port(self) -> tuple[str, int]:
        host, port = re.fullmatch(r"quack:(.+?)(?::(\d+))?", str(self)).groups()  # type: ignore[union-attr]
        return host.strip("[]"), int(port or 9494)


def place_of(path: str | os.PathLike[str]) -> Path:
    """The path of a store, or the address of its server. Raises StoreError where an address is none."""
    text = os.fspath(path)
    if not text.startswith("quack:"):
        return Path(path)
    if not re.fullmatch(r"quack:([\w.-]+|\[[0-9A-Fa-f:]+\])(:\d{1,5})?", text, re.ASCII):
        raise StoreError(f"the store {text}: expected an address such as quack:localhost:9494")
    return Address(text)


def load(con: duckdb.DuckDBPyConnection) -> None:
    """Load the extension. Raises StoreError where it, or the version of DuckDB that it needs, is not installed."""
    for name in ("httpfs", "quack"):
        spec = find_spec(f"duckdb_extension_{name}")
        folders = [] if spec is None else list(spec.submodule_search_locations or ())
        files = [Path(one) / "extensions" / f"v{duckdb.__version__}" / f"{name}.duckdb_extension" for one in folders]
        file = next((one for one in files if one.exists()), None)
        if file is None:
            raise StoreError(
                f"a store's server needs duckdb {VERSION} with its extension quack, and found duckdb "
                f"{duckdb.__version__} without it: pip install {PACKAGES}"
            )
        con.execute(f"LOAD {_literal(str(file))}")


def attach(con: duckdb.DuckDBPyConnection, address: Address) -> None:
    """Attach the server's database as `store`. Raises StoreError without the token, and where the server refuses it,
    and Locked where nobody answers."""
    token = os.environ.get(TOKEN)
    if not token:
        raise StoreError(f"the store {address} needs the token of its server in the environment variable {TOKEN}")
    try:
        con.execute(f"ATTACH '{address}' AS store (TYPE quack, TOKEN {_literal(token)}, DISABLE_SSL true)")
    except duckdb.IOException as error:
        raise Locked(
            f"nobody answers at {address} ({first_line(error)}): `fasttrace serve` starts a server", patience_s=2.0
        ) from error
    except duckdb.Error as error:
        if "Authentication failed" in str(error):
            raise StoreError(f"the server of the store {address} does not accept the token in {TOKEN}") from error
        raise StoreError(f"the store {address} cannot be opened: {first_line(error)}") from error


@contextmanager
def races_of(path: Path) -> Iterator[None]:
    """Raises Locked in place of an error that a server's other writers caused."""
    try:
        yield
    except (duckdb.Error, UserError) as error:
        cause: BaseException | None = error
        while isinstance(cause, UserError):
            cause = cause.__cause__
        if not isinstance(path, Address) or not isinstance(cause, duckdb.Error) or isinstance(error, Locked):
            raise
        text = first_line(cause)
        said = f"the store {path} was changed by others meanwhile ({text}): run the same command again"
        if _LOST_RACE.search(text):
            raise Locked(said) from error
        if _PERHAPS.search(text):
            raise Locked(str(error) if isinstance(error, UserError) else said, patience_s=_PATIENCE_S) from error
        raise


class Session:
    """A session on a server, with the methods of DuckDB's connection that fasttrace uses.

    local: the connection that has the server's database attached as `store`, and other stores beside it.
    read_only: whether the session sees one state of the store, and changes nothing. timeout_s: for how many seconds
    `begin` waits for another writer's transaction.
    """

    def __init__(
        self, local: duckdb.DuckDBPyConnection, address: Address, *, read_only: bool, timeout_s: float
    ) -> None:
        self.local = local
        self.address = address
        self.timeout_s = timeout_s
        self._mark = "" if read_only else WRITES
        self._staged: dict[str, str] = {}
        if read_only:
            self._remote("BEGIN TRANSACTION READ ONLY")
        self._read_only = read_only

    def execute(self, query: str | duckdb.Statement, params: Any = None) -> duckdb.DuckDBPyConnection:
        """Run statements on the server. The rows of the last can be fetched."""
        statements = self.local.extract_statements(query) if isinstance(query, str) else [query]
        if self._read_only:  # its transaction has begun
            statements = [one for one in statements if one.type != duckdb.StatementType.TRANSACTION]
        texts = [one.query.strip().rstrip(";") for one in statements]
        if params:
            [text] = texts
            texts = [filled(text, params)]
        for text in texts:
            self._remote(text)
        return self.local

    def sql(self, query: str | duckdb.Statement, *, params: Any = None) -> duckdb.DuckDBPyRelation:
        """The rows of the last statement, as they are now."""
        return self.local.from_arrow(self.execute(query, params).to_arrow_table())

    def table(self, name: str) -> duckdb.DuckDBPyRelation:
        """The rows of a relation, as they are now, in DuckDB's own types."""
        copy = _fresh("copy")
        sql = f"CREATE TEMP TABLE {copy} AS FROM quack_query_by_name('store', $text)"
        self.local.execute(sql, {"text": f'FROM "{name}"'})
        return self.local.table(copy)

    def register(self, view: str, rows: pa.Table | duckdb.DuckDBPyRelation) -> None:
        """Give rows of this process a name on the server, until the transaction ends."""
        if self._read_only:  # no rows can be sent then; the transaction is rolled back at the end, as every reader's is
            self._remote("ROLLBACK")
            self._begin()
            self._read_only = False
        if view in self._staged:
            self._remote(f"DROP TABLE {self._staged.pop(view)}")
        stage = self._staged[view] = _fresh("stage")
        self.local.register("rows_to_send", rows)
        # A table cannot keep the type of a column that is NULL throughout.
        empty = {one.name for one in rows.schema if pa.types.is_null(one.type)} if isinstance(rows, pa.Table) else set()
        names = rows.column_names if isinstance(rows, pa.Table) else rows.columns
        sent = ", ".join(f'"{name}"' for name in names if name not in empty) or "NULL AS nothing"
        self.local.execute(f"CREATE TABLE store.{stage} AS SELECT {sent} FROM rows_to_send")
        [(count,)] = self.local.execute("SELECT count(*) FROM rows_to_send").fetchall()
        [(arrived,)] = self._remote(f"SELECT count(*) FROM {stage}").fetchall()
        if arrived != count:
            raise StoreError(f"the server received {arrived} of {count} rows: run the same command again")
        columns = ", ".join(f'NULL AS "{name}"' if name in empty else f'"{name}"' for name in names)
        self._remote(f'CREATE OR REPLACE TEMP VIEW "{view}" AS SELECT {columns} FROM {stage}')
        self.local.unregister("rows_to_send")

    def begin(self) -> None:
        """Begin a transaction that writes, once no other writer has one: they would have to run theirs again."""

        def attempt() -> None:
            self._begin()
            try:
                # Every other transaction that creates this view conflicts, even after it is dropped. An update that
                # changes no value would not conflict.
                self._remote("CREATE VIEW fasttrace_writes AS SELECT 1 AS one")
                self._remote("DROP VIEW fasttrace_writes")
            except duckdb.Error as error:
                self.local.rollback()
                if not _LOST_RACE.search(str(error)):
                    raise
                raise Locked(f"the store {self.address} is locked: another process writes to it") from error

        patiently(attempt, self.timeout_s)

    def _begin(self) -> None:
        self.local.begin()
        # The extension begins the server's transaction with the first change of an attached relation.
        view = _fresh("begun")
        self.local.execute(f"CREATE VIEW store.{view} AS SELECT 1 AS one")
        self._remote(f"DROP VIEW {view}")

    def commit(self) -> None:
        """Commit the transaction."""
        for stage in self._staged.values():
            self._remote(f"DROP TABLE {stage}")
        self._staged.clear()
        self.local.commit()

    def extract_statements(self, query: str) -> list[duckdb.Statement]:
        """As of DuckDB's connection."""
        return list(self.local.extract_statements(query))

    def interrupt(self) -> None:
        """As of DuckDB's connection. A statement that the server runs goes on there."""
        self.local.interrupt()

    def close(self) -> None:
        """End the session. A transaction still open is rolled back."""
        with suppress(duckdb.Error):  # where the server is gone, so is the transaction
            self.local.rollback()
        self.local.close()

    def _remote(self, text: str) -> duckdb.DuckDBPyConnection:
        return self.local.execute("FROM quack_query_by_name('store', $text)", {"text": f"{self._mark}{text}"})


def beside(con: duckdb.DuckDBPyConnection) -> duckdb.DuckDBPyConnection:
    """The connection that has the other stores attached."""
    return con.local if isinstance(con, Session) else con


def _fresh(what: str) -> str:
    """A name that no relation of the server has had. The extension remembers what it knows of a name."""
    return f"{what}_{uuid.uuid4().hex}"


def filled(text: str, params: Mapping[str, Any] | Sequence[Any]) -> str:
    """SQL with values in place of `$name` (of a mapping) or `?` (of a sequence). A session takes no parameters."""
    encoded = text.encode()  # the tokenizer counts bytes
    starts = [start for start, _ in duckdb.tokenize(text)]
    tokens = [encoded[start:end].decode() for start, end in zip(starts, [*starts[1:], None], strict=True)]
    values = iter(() if isinstance(params, Mapping) else params)
    parts: list[str] = []
    for before, token in zip(["", *tokens], tokens, strict=False):  # a comment belongs to the token before it
        if isinstance(params, Mapping) and before == "$" and (name := re.match(r"\w+", token)):
            parts[-1] = f"({_literal(params[name[0]])})"
            token = token[name.end() :]
        elif not isinstance(params, Mapping) and token.startswith("?"):
            token = f"({_literal(next(values))}){token[1:]}"
        parts.append(token)
    return "".join(parts)


def _literal(value: Any) -> str:
    """A value as SQL, for places where no parameter can be given."""
    if value is None:
        return "NULL"
    if isinstance(value, bool | int):
        return str(value)
    if isinstance(value, float):
        return f"'{value!r}'::DOUBLE" if math.isfinite(value) else f"'{value}'::DOUBLE"
    if isinstance(value, datetime):
        return f"TIMESTAMP '{value.isoformat(sep=' ')}'"
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return f"[{', '.join(map(_literal, value))}]"
    text = str(value).replace("'", "''")
    return f"'{text}'"
