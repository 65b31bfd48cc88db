"""Opens the store's file for one `with` block, and closes it again.

A process that has a DuckDB file open for writing locks out every other process, readers included. So no connection
outlives its `with` block, and a process that finds the file locked retries for a while.
"""

import re
import threading
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, contextmanager
from datetime import UTC, datetime
from functools import cache
from pathlib import Path
from typing import Any, cast

import duckdb

from fasttrace.errors import StoreError, UserError
from fasttrace.places import replacing, sweep, why_full
from fasttrace.store.failures import check_file, check_new, first_line, opening, patiently
from fasttrace.store.folder import is_folder, show
from fasttrace.store.migrate import OLDEST_VERSION, SCHEMA_VERSION, added, as_current, current_names, lacking, upgrade
from fasttrace.store.quack import Address, Session, attach, load, races_of
from fasttrace.store.texts import RELATIONS, schema_sql, statement
from fasttrace.version import VERSION

# One process must not open the same file twice in different modes; its threads take turns instead.
_turn = threading.RLock()


@cache
def schema_columns() -> dict[str, dict[str, str]]:
    """{relation: {column: DuckDB type}} as schema/ defines them, in order."""
    with _empty_store() as con:
        return _columns_found(con)


# The keys of the relations without an index. statements/guard_<relation>.sql enforces them.
_UNINDEXED = {
    "trace_cells": ["run_id", "fact_id", "window_size", "token_index", "layer", "head"],
    "trace_samples": ["run_id", "fact_id", "window_size", "token_index", "layer", "head", "sample"],
    "trace_routing": ["run_id", "fact_id", "sample", "token_index", "layer", "expert"],
    "trace_effects": ["run_id", "fact_id", "window_size", "layer"],
    "edits": ["run_id", "fact_id", "problem", "method", "layer"],
    "edit_prompts": ["run_id", "fact_id", "problem", "method", "layer", "kind", "prompt_index"],
    "mass_prompts": ["run_id", "n_edits", "fact_id", "kind", "prompt_index"],
}


@cache
def schema_keys() -> dict[str, list[str]]:
    """{relation: columns of its key}."""
    with _empty_store() as con:
        return dict(con.execute(statement("keys_found")).fetchall()) | _UNINDEXED


# A query can reach the store, its temporary folder and the folders that it is given. It can reach no other file, no
# network, no extension and no Python variable, and cannot change any of this.
_CLOSED: dict[str, Any] = {"enable_external_access": False, "lock_configuration": True}
_WITHOUT_EXTENSIONS: dict[str, Any] = {
    "autoinstall_known_extensions": False,
    "autoload_known_extensions": False,
    "allow_community_extensions": False,
    "allow_unsigned_extensions": False,
    "python_enable_replacements": False,
}


def connection(
    path: Path | None = None,
    *,
    read_only: bool = False,
    memory: str | None = None,
    stores: Mapping[str, Path] | None = None,
    folders: Iterable[Path] = (),
    serves: bool = False,
) -> duckdb.DuckDBPyConnection:
    """A connection to the store `path`, or to a database in memory. Every connection of fasttrace is made here.

    A store that is a folder of Parquet files is a database in memory with views of them. One behind a server is
    attached to a database in memory as `store`.
    memory: as for `opened`. stores: {name: file} to attach for reading. folders: the folders whose files its queries
        may read and write. serves: whether a server can be started on it.
    Raises StoreError where a file cannot be opened.
    """
    stores = stores or {}
    server = path if isinstance(path, Address) else None
    exports = {name: file for name, file in {"": path, **stores}.items() if file is not None and is_folder(file)}
    in_memory = path is None or server is not None or "" in exports
    reachable = [str(folder.resolve()) for folder in (*folders, *exports.values())]
    config = dict(_WITHOUT_EXTENSIONS)
    if memory is not None:
        config["memory_limit"] = memory
    if in_memory:  # otherwise DuckDB takes a folder beside the file
        beside = [file for file in (path, *stores.values()) if file is not None and file is not server]
        config["temp_directory"] = f"{beside[0].resolve()}.tmp" if beside else ""
    later = bool(stores or reachable or server or serves)
    if not later:
        config |= _CLOSED  # from the start, so that connections to one file within each other have one configuration
    with opening(path):
        file_name = ":memory:" if in_memory else str(path)
        con = duckdb.connect(file_name, read_only=read_only and not in_memory, config=config)
    try:
        for name, file in stores.items():
            text = str(file.resolve()).replace("'", "''")  # DuckDB 1.5 takes no parameter here
            with opening(file):
                if name in exports:
                    con.execute(f"ATTACH ':memory:' AS {quoted(name)}")
                else:
                    con.execute(f"ATTACH '{text}' AS {quoted(name)} (READ_ONLY)")
        for name, folder in exports.items():
            show(con, folder, quoted(name) if name else "memory")
        if server is not None or serves:
            load(con)
        if server is not None:
            attach(con, server)
        if later:
            con.execute("SET allowed_directories = $folders", {"folders": reachable})
            for name, value in _CLOSED.items():
                con.execute(f"SET {name} = {value}")
    except BaseException:
        con.close()
        raise
    return con


@contextmanager
def _empty_store() -> Iterator[duckdb.DuckDBPyConnection]:
    con = connection()
    try:
        for relation in RELATIONS:
            con.execute(schema_sql(relation))
        yield con
    finally:
        con.close()


def create(path: Path) -> None:
    """Create an empty store at `path` atomically. An existing file does not change, and a server has created its own.

    Raises StoreError where the folder is missing, cannot be written or has no room.
    """
    if isinstance(path, Address):
        return
    if path.exists():
        sweep(path.resolve().parent)  # of a process that was killed just after it had created the store
        return
    check_new(path)
    try:
        with replacing(path, keep=True) as draft, closing(connection(draft)) as con:
            con.begin()
            for relation in RELATIONS:
                con.execute(schema_sql(relation))
            made_by = {"fasttrace_version": VERSION, "created_at": utc_now()}
            con.execute(statement("add_schema_version"), {"version": SCHEMA_VERSION, **made_by})
            con.commit()
            con.execute("CHECKPOINT")  # close() would ignore its errors, and the log beside the draft is dropped
    except UserError as error:  # it names the path
        raise StoreError(f"cannot create the store: {error}") from error
    except duckdb.Error as error:
        raise StoreError(f"cannot create the store {path}: {first_line(error)}") from error


@contextmanager
def opened(
    path: Path,
    *,
    read_only: bool,
    timeout_s: float,
    memory: str | None = None,
    upgrades: bool = True,
    stores: Mapping[str, Path] | None = None,
    folders: Iterable[Path] = (),
    serves: bool = False,
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection to an existing store, after a check of its schema. It is closed at the end of the block.

    A store of an older schema version is read under this version's names. A connection for writing upgrades it first.
    The first one of a process reads the whole store before, because DuckDB would write into a damaged one.
    timeout_s: for how many seconds a locked file is retried.
    memory: DuckDB's memory_limit, such as "2GB", or None for its default.
    upgrades: whether a connection for writing upgrades an older store. Otherwise it reads it under the new names.
    stores: {name: file} of other stores, which are attached for reading and checked as well.
    folders: the folders whose files the queries may read and write.
    serves: whether a server can be started on the connection.
    Raises Locked where a server's other writers changed the same rows.
    Raises StoreError where the file is missing, locked for all that time, not a DuckDB file, damaged, not a store of a
    schema version from OLDEST_VERSION on, or (unless read_only) not writable. Also where the block meets a damaged
    part, or finds the disk full.
    """
    stores = stores or {}
    with _turn, _failures_of([path, *stores.values()], path):
        if not isinstance(path, Address):
            check_file(path, read_only)
        _check_attachable(stores)
        if not (read_only or isinstance(path, Address)):
            _check_whole(path, timeout_s)
        con = patiently(
            lambda: connection(path, read_only=read_only, memory=memory, stores=stores, folders=folders, serves=serves),
            timeout_s,
        )
        try:
            _check_attached(con, stores)
            if isinstance(path, Address):
                con = cast(duckdb.DuckDBPyConnection, Session(con, path, read_only=read_only, timeout_s=timeout_s))
            version = check_schema(con, path)
            if version < SCHEMA_VERSION and (read_only or not upgrades):
                _rename_for_reading(con, version)
            elif version < SCHEMA_VERSION:
                _upgrade(con, path, version)
            with races_of(path):
                yield con
        finally:
            con.close()  # a transaction still open is rolled back


@contextmanager
def attached(
    paths: Mapping[str, Path], *, timeout_s: float, folders: Iterable[Path] = ()
) -> Iterator[duckdb.DuckDBPyConnection]:
    """Yield a connection on which every store can be read as name.relation. All stores are attached, or none.

    paths: {name: file}. timeout_s: as in `opened`, for all stores together. folders: as in `opened`.
    Raises StoreError as `opened` does.
    """
    with _turn, _failures_of(paths.values()):
        _check_attachable(paths)
        # Where one store is locked, all are released, because their writers may wait.
        con = patiently(lambda: connection(stores=paths, folders=folders), timeout_s)
        try:
            _check_attached(con, paths)
            yield con
        finally:
            con.close()


def _check_attachable(stores: Mapping[str, Path]) -> None:
    """Raise StoreError where a store is no file or folder that can be read. stores: {name: file}."""
    for path in stores.values():
        if isinstance(path, Address):
            raise StoreError(f"the store {path}: expected a file or a folder beside other stores, got a server")
        check_file(path, read_only=True)


def _check_attached(con: duckdb.DuckDBPyConnection, stores: Mapping[str, Path]) -> None:
    """`check_schema` of every attached store. stores: {name: file}."""
    [(own,)] = con.execute("SELECT current_database()").fetchall()
    for name, path in stores.items():
        con.execute(f"USE {quoted(name)}")
        check_schema(con, path)
    con.execute(f"USE {quoted(own)}")


# The stores that this process has read as a whole.
_whole: set[tuple[Path, int, int]] = set()


def _check_whole(path: Path, timeout_s: float) -> None:
    """Raise StoreError where a part of the store is damaged, at the first call for a file."""
    found = path.stat()
    key = (path.resolve(), found.st_dev, found.st_ino)
    if key not in _whole:
        with closing(patiently(lambda: connection(path, read_only=True), timeout_s)) as con:
            _read_whole(con)
        _whole.add(key)


def _read_whole(con: duckdb.DuckDBPyConnection) -> None:
    """Read every value of every table of the connection's file. DuckDB then checks the sum of every block in use."""
    for schema, table in con.execute(statement("tables")).fetchall():
        con.execute(f"SELECT bit_xor(hash(every)) FROM {quoted(schema)}.{quoted(table)} AS every").fetchall()


@contextmanager
def _failures_of(paths: Iterable[Path], written: Path | None = None) -> Iterator[None]:
    """Turns DuckDB's errors on a damaged store or a full disk, from any statement or commit, into a StoreError.

    paths: the stores that the block reads. written: the one that it writes, if any. An error that is chained to one of
    DuckDB's is turned as well.
    """
    paths = list(paths)
    try:
        yield
    except (duckdb.Error, UserError) as error:
        cause: BaseException | None = error
        while isinstance(cause, UserError):
            cause = cause.__cause__
        if isinstance(cause, duckdb.Error) and _is_damage(cause, paths):
            raise StoreError(_damaged(paths, cause)) from cause
        if cause is not error:
            raise
        where = " and ".join(map(str, paths))
        if (reason := why_full(error)) is not None:
            raise StoreError(
                f"the store {written or where} cannot be written: {reason}; what was committed is in it, and with room "
                "the same command goes on from there"
            ) from error
        if isinstance(error, duckdb.IOException | duckdb.FatalException | duckdb.InternalException):
            raise StoreError(f"the store {where} cannot be read or written: {first_line(error)}") from error
        raise


def _is_damage(error: duckdb.Error, paths: list[Path]) -> bool:
    """Whether DuckDB found a damaged part of a store or of its log. The type of the error depends on its version."""
    if isinstance(error, duckdb.DataError | duckdb.ProgrammingError):  # which quote the user's words and data
        return False
    text = str(error)
    cut = "Could not read enough bytes from file" in text and any(f'{path.name}"' in text for path in paths)
    return cut or any(words in text for words in ("Corrupt database file", "Corrupt WAL file", "replaying WAL file"))


def _damaged(paths: list[Path], error: duckdb.Error) -> str:
    """The sentence for a damaged store. DuckDB does not always name the file, so each of several is read again."""
    if "WAL" in str(error):
        found = re.search(r'file "(.+)\.wal"', str(error))
        path = found[1] if found else " or ".join(map(str, paths))
        return f"the log {path}.wal of the store is damaged: restore both from a copy, or name another store"
    found_in = [path for path in paths if len(paths) == 1 or _is_damaged(path)]
    return (
        f"the store {' or '.join(map(str, found_in or paths))} is damaged, and a part of it cannot be read: restore it "
        "from a copy, or name another"
    )


def _is_damaged(path: Path) -> bool:
    try:
        with closing(connection(path, read_only=True)) as con:
            _read_whole(con)
    except (duckdb.Error, UserError):
        return True
    return False


def quoted(name: str) -> str:
    """A name as an SQL identifier, for places where DuckDB takes no parameter."""
    return '"' + name.replace('"', '""') + '"'


def quoted_if_needed(name: str) -> str:
    """A name as a query must write it: quoted unless it is a plain word."""
    return name if re.fullmatch(r"[A-Za-z_]\w*", name) else quoted(name)


def utc_now() -> datetime:
    """The time in UTC without a zone, as TIMESTAMP columns store it."""
    return datetime.now(UTC).replace(tzinfo=None)


def _columns_found(con: duckdb.DuckDBPyConnection) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = {}
    for relation, column, kind in con.execute(statement("columns_found")).fetchall():
        found.setdefault(relation, {})[column] = kind
    return found


def _rename_for_reading(con: duckdb.DuckDBPyConnection, version: int) -> None:
    """Make an older store readable under this version's names, by temporary views that hide its tables.

    One of them hides store_schema, so that an export states the version of its column names.
    """
    [(database,)] = con.execute("SELECT current_database()").fetchall()
    for relation, columns in schema_columns().items():
        select = as_current(f"{quoted(database)}.main.{relation}", relation, version, columns)
        if relation == "store_schema":
            select = f"SELECT * REPLACE ({SCHEMA_VERSION} AS version) FROM ({select})"
        con.execute(f"CREATE TEMP VIEW {relation} AS {select}").fetchall()


def _upgrade(con: duckdb.DuckDBPyConnection, path: Path, version: int) -> None:
    """Upgrade an older store in one transaction. A process that is killed here leaves it as it was."""
    try:
        con.begin()
        upgrade(con, version)
        check_schema(con, path)
        con.commit()
    except duckdb.Error as error:
        raise StoreError(
            f"the store {path} cannot be upgraded from schema version {version} to {SCHEMA_VERSION} and stays as it "
            f"was: {first_line(error)}"
        ) from error


def check_schema(con: duckdb.DuckDBPyConnection, path: Path) -> int:
    """The schema version of the connection's database.

    Raises StoreError where it is not a store, is older than OLDEST_VERSION or newer than SCHEMA_VERSION, or lacks a
    relation of its version.
    """
    found = _columns_found(con)
    if "version" not in found.get("store_schema", {}):
        raise StoreError(f"{path} is a DuckDB file but not a fasttrace store: name another path")
    [(number,)] = con.execute(statement("schema_version")).fetchall()
    if number is None:
        raise StoreError(f"the store {path} does not say its schema version: it was altered by hand, or is damaged")
    if not OLDEST_VERSION <= number <= SCHEMA_VERSION:
        age = "an older" if number < SCHEMA_VERSION else "a newer"
        raise StoreError(
            f"the store {path} has schema version {number}, made by {age} fasttrace: this one reads "
            f"versions {OLDEST_VERSION} to {SCHEMA_VERSION}"
        )
    for relation, columns in schema_columns().items():
        if relation in lacking(int(number)) and relation not in found:
            continue
        names = current_names(found.get(relation, {}), relation, number)
        stored = {names[column]: kind for column, kind in found.get(relation, {}).items() if column in names}
        if stored | added(relation, number) != columns or stored.keys() & added(relation, number).keys():
            raise StoreError(
                f"the relation {relation} of the store {path} differs from this fasttrace's schema: it was "
                "altered or dropped by hand"
            )
    return int(number)
