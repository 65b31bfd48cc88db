"""A store as a folder of Parquet files, one per relation, which `Store.to_parquet` writes."""

from pathlib import Path

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq

from fasttrace.errors import StoreError
from fasttrace.store.migrate import SCHEMA_VERSION, lacking
from fasttrace.store.texts import RELATIONS


def is_folder(path: Path) -> bool:
    """Whether a store's path is a folder. A path that cannot be looked at is none."""
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def files_of(folder: Path) -> dict[str, Path]:
    """{relation: its file}.

    Raises StoreError where the folder is missing, is no such store, lacks a file, or has an unknown Parquet file.
    """
    if not folder.is_dir():
        raise StoreError(f"there is no folder {folder}: Store.to_parquet writes one")
    if not (folder / "store_schema.parquet").exists():
        raise StoreError(f"the folder {folder} is not a store in Parquet: it has no store_schema.parquet")
    expected, found = set(RELATIONS), {path.stem for path in folder.glob("*.parquet")}
    for name in sorted(expected - found - lacking(_version(folder))):
        raise StoreError(f"the folder {folder} lacks {name}.parquet")
    for name in sorted(found - expected):
        raise StoreError(f"the folder {folder}: expected only the files of a store, got {name}.parquet too: remove it")
    return {name: folder / f"{name}.parquet" for name in RELATIONS if name in found}


def _version(folder: Path) -> int:
    """The schema version of a store, or this one where it cannot be read, which the reader of its rows will say."""
    try:
        [version] = {row["version"] for row in pq.read_table(folder / "store_schema.parquet").to_pylist()}
    except (pa.ArrowException, OSError, KeyError, ValueError):
        return SCHEMA_VERSION
    return version if isinstance(version, int) else SCHEMA_VERSION


# The files that this process has read as a whole.
_whole: set[tuple[Path, int, int]] = set()


def show(con: duckdb.DuckDBPyConnection, folder: Path, database: str) -> None:
    """Create a view of every relation in `database`, which then reads as the store does.

    The first call for a file reads all of it, so that a damaged page shows here and not in the middle of a command.
    database: its name as a quoted identifier. Raises StoreError as `files_of`, and where a file cannot be read.
    """
    for relation, file in files_of(folder).items():
        path = folder.resolve() / file.name
        place = str(path).replace("'", "''")  # a view takes no parameter
        try:
            found = path.stat()
            key = (path, found.st_mtime_ns, found.st_size)
            if key not in _whole:
                con.execute(f"SELECT bit_xor(hash(every)) FROM read_parquet('{place}') AS every").fetchall()
                _whole.add(key)
            con.execute(f"CREATE VIEW {database}.main.{relation} AS FROM read_parquet('{place}')")
        except (duckdb.Error, OSError) as error:
            line = (str(error).strip().splitlines() or [type(error).__name__])[0]
            raise StoreError(f"the folder {folder} holds a damaged file: {line}") from error
