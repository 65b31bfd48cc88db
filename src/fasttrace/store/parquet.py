"""Exports a store to a folder of Parquet files, one per relation."""

from pathlib import Path

import duckdb

from fasttrace.errors import StoreError
from fasttrace.places import replacing
from fasttrace.store.failures import first_line
from fasttrace.store.texts import RELATIONS


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
        raise StoreError(f"the folder {folder} cannot be written: {first_line(error)}") from error
