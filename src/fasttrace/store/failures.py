"""What keeps a store from being opened, as one sentence: no file, no store, no permission, a lock."""

import math
import os
import random
import stat
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TypeVar

import duckdb

from fasttrace.errors import StoreError
from fasttrace.places import why_full, why_unwritable
from fasttrace.store.folder import files_of

T = TypeVar("T")


class Locked(StoreError):
    """Others have the store open, or changed it, so a retry may succeed. patience_s: for how long one is worth it."""

    def __init__(self, text: str, *, patience_s: float = math.inf) -> None:
        super().__init__(text)
        self.patience_s = patience_s


def patiently(attempt: Callable[[], T], timeout_s: float) -> T:
    """Call `attempt`, and retry while others have, or change, the store. Raises StoreError after timeout_s seconds."""
    begun = time.monotonic()
    delay = 0.005
    while True:
        try:
            return attempt()
        except Locked as locked:
            if time.monotonic() + delay > begun + min(timeout_s, locked.patience_s):
                text = str(locked).replace(" is locked:", f" stayed locked for {timeout_s:g} s:", 1)
                raise StoreError(text) from (locked.__cause__ or locked)
        time.sleep(delay * random.uniform(0.5, 1.0))  # random, so that two waiting processes do not stay in step
        delay = min(delay * 1.6, 0.25)


@contextmanager
def opening(path: Path | None) -> Iterator[None]:
    """Turns DuckDB's errors on opening `path` into Locked or StoreError."""
    try:
        yield
    except duckdb.Error as error:
        if path is None:
            raise
        if _is_lock(error):
            raise Locked(
                f"the store {path} is locked: another connection has it open ({first_line(error)}); close that one and "
                "run the same command again"
            ) from error
        raise StoreError(_sentence(path, error)) from error


def _is_lock(error: duckdb.Error) -> bool:
    """Whether the file is open in another process, or in this one in another mode."""
    text = str(error)
    if "different configuration" in text or "already attached by database" in text:
        return True
    return isinstance(error, duckdb.IOException) and ("Could not set lock" in text or "used by another process" in text)


def check_new(path: Path) -> None:
    """Raise StoreError where no store can be created at `path`."""
    if not path.parent.exists():
        raise StoreError(f"the folder {path.parent} of the store {path.name} does not exist: create it first")
    if not path.parent.is_dir():
        raise StoreError(f"the folder {path.parent} of the store {path.name} is not a folder: choose another")
    if (reason := why_unwritable(path.parent)) is not None:
        raise StoreError(f"the store {path.name} cannot be created: {reason}")
    if path.with_name(f"{path.name}.wal").exists() and not path.exists():
        # DuckDB would replay the old log into the new file.
        raise StoreError(f"there is no store at {path}, but there is its log {path.name}.wal: remove the log")


def check_file(path: Path, read_only: bool) -> None:
    """Raise StoreError where `path` is no file that can be read, and written unless read_only."""
    try:
        found = path.stat()
    except (FileNotFoundError, NotADirectoryError):
        raise StoreError(f"there is no store at {path}: `fasttrace trace` or `fasttrace edit` creates one") from None
    except (OSError, ValueError) as error:  # such as a name that is too long
        raise StoreError(f"the store {path} cannot be opened: {getattr(error, 'strerror', error)}") from error
    if stat.S_ISDIR(found.st_mode):
        if not read_only:
            raise StoreError(
                f"the store {path}: expected a file, got a folder; one of Parquet files is only read, and "
                "`fasttrace merge` takes its rows into a file"
            )
        files_of(path)
        return
    if not stat.S_ISREG(found.st_mode):  # to open a pipe would wait for its writer
        raise StoreError(f"the store {path}: expected a file, got neither file nor folder")
    if not os.access(path, os.R_OK):
        raise StoreError(f"the store {path} cannot be read: permission denied")
    if not read_only and not (os.access(path, os.W_OK) and os.access(path.parent, os.W_OK)):
        raise StoreError(f"the store {path}: expected a file and a folder that can be written, got read-only ones")


def _sentence(path: Path, error: duckdb.Error) -> str:
    text = str(error)
    if (reason := why_full(error)) is not None:
        return f"the store {path} cannot be opened: {reason}"
    if "not a valid DuckDB database file" in text:
        return f"the store {path} is not a DuckDB file: name another path, or remove it"
    if "version number" in text:
        return (
            f"the store {path} was written by another DuckDB, whose files duckdb {duckdb.__version__} cannot "
            "read: install the version that wrote it, or a newer one"
        )
    return f"the store {path} cannot be opened: {first_line(error)}"


def first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].removesuffix(".") if lines else type(error).__name__
