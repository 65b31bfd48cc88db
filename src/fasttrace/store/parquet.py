"""Exports a store to a folder of Parquet files, one per relation, and reads such a folder."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import duckdb
from duckdb import ColumnExpression, ConstantExpression, StarExpression

from fasttrace.errors import StoreError
from fasttrace.places import replacing, why_full
from fasttrace.store.connect import schema_columns
from fasttrace.store.folder import files_of
from fasttrace.store.migrate import OLDEST_VERSION, SCHEMA_VERSION, as_current, empty, lacking
from fasttrace.store.texts import RELATIONS
from fasttrace.store.write import GIVEN_BY_RUN, TABLES, add_facts, add_run, execute, run_row

Read = Mapping[str, duckdb.DuckDBPyRelation]


def export(con: duckdb.DuckDBPyConnection, folder: Path) -> None:
    """Write every relation of the store on `con` atomically as folder/<relation>.parquet (zstd).

    Raises StoreError where the folder exists, and UserError where it cannot be written.
    """
    if folder.exists():
        raise StoreError(f"the folder {folder} exists already: name another, or remove it")
    try:
        with replacing(folder) as draft:
            draft.mkdir()
            for relation in RELATIONS:
                con.table(relation).write_parquet(str(draft / f"{relation}.parquet"), compression="zstd")
    except duckdb.Error as error:
        raise StoreError(f"the folder {folder} cannot be written: {_first_line(error)}") from error


def read(con: duckdb.DuckDBPyConnection, folder: Path) -> Read:
    """Open the relations of an exported folder lazily, after all checks that do not need their rows.

    Columns of an older export have this version's names.
    Raises StoreError where the folder is not an export of a schema version from OLDEST_VERSION on, lacks a file or has
    an unknown one, or where a file is damaged or has other columns.
    """
    paths = files_of(folder)
    with _damage_reported(folder):
        files = {name: con.read_parquet(str(path)) for name, path in paths.items()}
        version = files["store_schema"].max("version").fetchall()[0][0]
    if version is None or not OLDEST_VERSION <= version <= SCHEMA_VERSION:
        raise StoreError(
            f"the folder {folder} has schema version {version}: this fasttrace reads versions {OLDEST_VERSION} to "
            f"{SCHEMA_VERSION}"
        )
    files = {name: as_current(rows, name, version) for name, rows in files.items()}
    for name in lacking(version) - files.keys():
        files[name] = con.sql(empty(schema_columns()[name]))
    for name, columns in schema_columns().items():
        found = dict(zip(files[name].columns, map(str, files[name].dtypes), strict=True))
        for column in [*columns, *found]:
            if found.get(column) != columns.get(column):
                raise StoreError(
                    f"the file {name}.parquet of {folder}, column '{column}': "
                    f"expected {columns.get(column, 'none')}, got {found.get(column, 'none')}"
                )
    return files


def add(con: duckdb.DuckDBPyConnection, files: Read, folder: Path) -> int:
    """Add the rows of an exported store that the store on `con` lacks, in one transaction.

    trace_effects is computed again from the cells. Returns the number of facts (edits, verdicts, …) added.
    Raises StoreError where a run_id or fact_id means something else in the store, a row belongs to no run or breaks a
    constraint, or a file is damaged.
    """
    with _damage_reported(folder):
        con.begin()
        runs = [run_row(dict(zip(files["runs"].columns, row, strict=True))) for row in files["runs"].fetchall()]
        for relation in RELATIONS:
            if "run_id" in schema_columns()[relation]:
                _check_runs(files, relation, runs)
        add_facts(con, files["facts"])
        con.register("batch_left_out", files["facts_left_out"])
        execute(con, "add_left_out_of_others", {})
        added = sum(add_run(con, run, _batch(files, run)) for run in runs)
        con.commit()
    return added


def _batch(files: Read, run: Mapping[str, Any]) -> list[tuple[str, duckdb.DuckDBPyRelation]]:
    """[(relation, its rows of the run)] in the form that `Store.add` takes."""
    of_run = ColumnExpression("run_id") == ConstantExpression(run["run_id"])
    batch = []
    for _, relation in TABLES[run["kind"]]:
        given = [column for column in GIVEN_BY_RUN if column in files[relation].columns]
        batch.append((relation, files[relation].filter(of_run).select(StarExpression(exclude=given))))
    return batch


def _check_runs(files: Read, relation: str, runs: list[dict[str, Any]]) -> None:
    """Raises StoreError where a row belongs to no run of the folder with the relation's kind and the row's protocol.

    Such a row would be left out silently.
    """
    if relation == "runs":
        return
    has_protocol = "protocol" in files[relation].columns
    written = {run["run_id"]: run["protocol"] for run in runs if _writes(run["kind"], relation)}
    for run_id, *protocol in files[relation].unique("run_id, protocol" if has_protocol else "run_id").fetchall():
        if run_id not in written or (has_protocol and written[run_id] != protocol[0]):
            raise StoreError(
                f"the file {relation}.parquet has rows of the run {run_id!r}, but runs.parquet has no such run of that "
                "kind and protocol"
            )


def _writes(kind: str, relation: str) -> bool:
    return relation in [name for _, name in TABLES[kind]] or (kind == "trace" and relation == "trace_effects")


@contextmanager
def _damage_reported(folder: Path) -> Iterator[None]:
    """Turns DuckDB's errors on an unreadable file into a StoreError. Constraint errors of a row stay as they are."""
    try:
        yield
    except (duckdb.Error, StoreError) as error:
        cause = error.__cause__ if isinstance(error, StoreError) else error
        of_a_row = isinstance(cause, duckdb.ConstraintException)
        if isinstance(cause, duckdb.Error) and not of_a_row and why_full(cause) is None:
            raise StoreError(f"the folder {folder} holds a damaged file: {_first_line(cause)}") from error
        raise


def _first_line(error: BaseException) -> str:
    return (str(error).strip().splitlines() or [type(error).__name__])[0]
