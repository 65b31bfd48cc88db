"""The common base of one store and several stores: reading them with SQL."""

import os
import re
from abc import ABC, abstractmethod
from collections.abc import Hashable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, wait
from contextlib import AbstractContextManager
from pathlib import Path
from threading import Event, Thread
from typing import Annotated, Any, Literal

import duckdb
import pyarrow as pa
from duckdb import ExpectedResultType, StatementType

from fasttrace.errors import StoreError
from fasttrace.places import check_replaceable, is_same, why_full
from fasttrace.settings.arguments import checked
from fasttrace.settings.kinds import Kind, instance
from fasttrace.store.connect import connection

Params = Sequence[Any] | Mapping[str, Any]

ONCE = "once"
"""The schema in which the relations of several stores have each row once (see several.py)."""


class Readable(ABC):
    """One store or several stores. The analysis functions accept either."""

    @property
    @abstractmethod
    def files(self) -> dict[str, Path]:
        """{name: file} of the stores. One store has the name ""."""

    @property
    def where(self) -> str:
        """The files, for messages."""
        return ", ".join(map(str, self.files.values()))

    @property
    def key(self) -> Hashable:
        """What two objects share if a connection of the one reads what a connection of the other reads."""
        return type(self), tuple(self.files.items())

    @abstractmethod
    def reading(self, *, folders: Iterable[Path] = ()) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        """A read-only connection. All queries in the `with` block see the same state.

        folders: the folders whose files the queries may read. They can read no other file.
        """

    @abstractmethod
    def relations(self) -> pa.Table:
        """The relations that can be read, one row per relation."""

    @abstractmethod
    def once(self) -> "Readable":
        """The same data with every row of a relation once. One store returns itself."""

    @checked
    def query(self, sql: str, params: Params = ()) -> pa.Table:
        """Return the rows of a query. The file is opened read-only.

        params: values for `?` (a sequence) or `$name` (a mapping).
        """
        with self.reading() as con:
            return rows_of(con, sql, params)


Stored = Annotated[Readable, Kind("a store, as ft.Store(path) or ft.Stores(paths) opens it", instance(Readable))]
"""A store, or several, as the argument of a public function."""


def rows_of(con: duckdb.DuckDBPyConnection, sql: str, params: Params = ()) -> pa.Table:
    """The rows of one query as a pyarrow Table, empty for a statement without rows.

    Raises StoreError where the query fails, or would write a file.
    """
    try:
        _check_files(_statements(con, sql), writes_files=False)
        relation = con.sql(sql, params=params or None)
        return pa.table({}) if relation is None else relation.to_arrow_table()
    except duckdb.Error as error:
        raise StoreError(_failure(error)) from error
    except ValueError as error:  # a statement's type that DuckDB's own Python package does not know
        raise StoreError(f"the query failed: {error}") from error


def run_script(
    con: duckdb.DuckDBPyConnection,
    text: str,
    params: Mapping[str, Any],
    *,
    writes: Iterable[Path] = (),
    writes_files: bool = False,
) -> pa.Table:
    """Run statements separated by `;` in the open transaction. Returns the rows of the last, with unique column names.

    params: values for `$name`, passed to the statements that contain it. writes: the stores that the connection writes,
    which no statement may name. writes_files: whether COPY may write files in the folders of the connection. Ctrl-C
    stops the script.
    Raises StoreError where there is no statement or one fails, and before any runs where one would write another file.
    """
    stopped, outcome = Event(), Future[pa.Table]()

    def work() -> None:
        if stopped.is_set():
            outcome.cancel()
            return
        try:
            outcome.set_result(_run(con, text, params, writes, writes_files))
        except BaseException as error:
            outcome.set_exception(error)

    # DuckDB does not check for signals while it computes a result, but a thread that waits for it does.
    thread = Thread(target=work)
    try:
        thread.start()
        return outcome.result()
    except KeyboardInterrupt:
        # A thread that does not run yet, because Ctrl-C came while it was being started, sees `stopped` first.
        stopped.set()
        # An interrupt that arrives before a statement starts, or between two, is lost.
        while thread.ident is not None and not outcome.done():
            con.interrupt()
            wait([outcome], timeout=0.05)
        raise


def _run(
    con: duckdb.DuckDBPyConnection, text: str, params: Mapping[str, Any], writes: Iterable[Path], writes_files: bool
) -> pa.Table:
    try:
        statements = _statements(con, text)
        if not statements:
            raise StoreError("the query: expected a statement, got an empty text")
        _check_files(statements, writes_files)
        _check_leaves_alone(text, writes)
        *first, last = [(one, {name: params[name] for name in one.named_parameters} or None) for one in statements]
        if any(one.type == StatementType.TRANSACTION for one in statements):
            raise StoreError("the query is one transaction already: leave out BEGIN, COMMIT and ROLLBACK")
        answers = last[0].expected_result_type == [ExpectedResultType.QUERY_RESULT]
        for one, values in first:
            con.execute(one, values).fetchall()  # DuckDB 2 requires a result to be read before the next statement
        relation = con.sql(last[0], params=last[1])
        rows = pa.table({}) if relation is None else _named_once(relation.to_arrow_table())
        # DuckDB 2 answers CREATE and SET with an empty table that says Success.
        return rows if answers or len(rows) else pa.table({})
    except duckdb.Error as error:
        raise StoreError(_failure(error)) from error
    except ValueError as error:  # a statement's type that DuckDB's own Python package does not know
        raise StoreError(f"the query failed: {error}") from error


# Statements that contain no other statement, and write no file.
_PLAIN = (
    StatementType.SELECT,
    StatementType.INSERT,
    StatementType.UPDATE,
    StatementType.DELETE,
    StatementType.CREATE,
    StatementType.ALTER,
    StatementType.DROP,
)
_WRITERS = ("COPY", "EXPORT", "IMPORT", "ATTACH")
_READERS = ("SELECT", "WITH", "FROM")  # reserved, so that nothing has such a name without quotes


def _statements(con: duckdb.DuckDBPyConnection, text: str) -> list[duckdb.Statement]:
    """The statements of a text. Raises StoreError where it is not text, and duckdb.Error where it is not SQL."""
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise StoreError("the query: expected UTF-8 text, got bytes that are not") from error
    return list(con.extract_statements(text))


def _check_files(statements: Sequence[duckdb.Statement], writes_files: bool) -> None:
    """Raise StoreError where a statement writes a file, also within another, such as EXPLAIN ANALYZE.

    DuckDB's read-only mode does not refuse them, and the store's own path is one that its queries can reach.
    writes_files: whether COPY may write. Its file is named in quotes and does not exist, so that nothing is replaced.
    """
    for one in statements:
        if one.type in _PLAIN:
            continue
        tokens = list(_tokens(one.query))
        first = next((token.upper() for token in tokens if token.upper() in _WRITERS + _READERS), None)
        if first not in _WRITERS:
            continue
        if first != "COPY" or not writes_files:
            raise StoreError(
                f"the query has {first}, which can write files: `fasttrace sql --write --files DIR` "
                "allows COPY alone; --out FILE writes the rows of any query, and a second --store reads another store"
            )
        if found := re.search("filename_pattern|file_extension", one.query, re.IGNORECASE):  # they may lead elsewhere
            raise StoreError(f"the query: expected COPY without {found[0].upper()}, which can name files anywhere")
        _check_target(tokens)


def _check_target(tokens: Sequence[str]) -> None:
    """Raise StoreError where COPY does not write one new file that its text names. tokens: of the statement."""
    depth = 0
    for token, following in zip(tokens, [*tokens[1:], ""], strict=True):
        depth += (token == "(") - (token == ")")
        if depth or token.upper() != "TO":
            continue
        file = _quoted(following)
        if not file or re.match(r"[A-Za-z][\w+.-]*:", file):  # computed, or an address such as file:x
            raise StoreError("the query: expected COPY … TO 'FILE' with the path of one file in quotes")
        path = Path(_place(file))
        # DuckDB may write to the second name first, and then move it to the first.
        for place in (path, path.with_name(f"tmp_{path.name}")):
            check_replaceable(place)
            if os.path.lexists(place):
                raise StoreError(f"the query: expected COPY … TO a new file, got '{file}', where '{place}' is already")


def _check_leaves_alone(text: str, files: Iterable[Path]) -> None:
    """Raise StoreError where SQL names one of the files. To close one would end this process's lock on the store."""
    for quoted in map(_quoted, _tokens(text)):
        for file in files:
            place = _place(quoted.removeprefix("file:"))
            if quoted and (is_same(place, file) or is_same(place, f"{file}.wal")):
                raise StoreError(f"the query: expected a file other than the store, got '{quoted}'")


def _place(text: str) -> str:
    """The path that DuckDB takes a text for."""
    return os.path.expanduser(text)


def _tokens(text: str) -> Iterator[str]:
    """The tokens of SQL, without comments: a word, a text with its quotes, or a symbol."""
    encoded = text.encode()  # the tokenizer counts bytes
    tokens = duckdb.tokenize(text)
    ends = [*(start for start, _ in tokens[1:]), len(encoded)]
    for (start, kind), end in zip(tokens, ends, strict=False):
        if kind != duckdb.token_type.comment:
            yield encoded[start:end].decode(errors="replace").strip()


def _quoted(token: str) -> str:
    """The text of a token in plain single quotes, or "" for any other token."""
    found = re.fullmatch(r"'((?:[^']|'')*)'", token)
    return "" if found is None else found[1].replace("''", "'")


def _failure(error: duckdb.Error) -> str:
    """The sentence for a query that failed. Where DuckDB was not allowed to do something, it says what allows it.

    Only the beginning of DuckDB's message and its type are looked at, because the rest may quote the user's data.
    """
    text = str(error)
    if found := re.match(r'Invalid Input Error: Cannot change configuration option "(\w+)"', text):
        return f"the query sets {found[1]}, but DuckDB's settings are fixed: only USE and SET VARIABLE can be used"
    if re.match(r"(Invalid Input|Transaction\w*) Error: Cannot .* read-only", text):
        return "the query writes, but the store is open read-only: `fasttrace sql --write` allows it on one"
    if isinstance(error, duckdb.PermissionException):
        if "external extensions" in text or "/extensions/" in text:
            return _NO_EXTENSION
        named = re.search(r'"([^"]+)"', text)
        return (
            f"the query uses '{named[1] if named else ''}', but it can reach only the store and the folders that "
            "--files DIR names"
        )
    if isinstance(error, duckdb.CatalogException) and re.search(r"\nINSTALL \w+;\nLOAD \w+;", text):
        return _NO_EXTENSION
    if isinstance(error, duckdb.BinderException | duckdb.ParserException) and "max_expression_depth" in text:
        return "the query failed: its expressions are nested too deeply"
    if isinstance(error, duckdb.IOException) and (reason := why_full(error)) is not None:
        return f"the query cannot write: {reason}"
    return f"the query failed: {message_of(error)}"


_NO_EXTENSION = "the query needs an extension of DuckDB, and fasttrace loads none: leave it out"


def parameters_of(text: str) -> set[str]:
    """The names of all `$name` in a script. Raises StoreError where it is not SQL or contains `?`."""
    con = connection()
    try:
        names = {name for statement in _statements(con, text) for name in statement.named_parameters}
    except duckdb.Error as error:
        raise StoreError(_failure(error)) from error
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
