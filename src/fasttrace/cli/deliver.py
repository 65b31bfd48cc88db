"""Output of results. Paths are checked while the command line is parsed, before a model is loaded. Rows go to stdout or
to a file, which is written atomically."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import pyarrow as pa

import fasttrace as ft
from fasttrace.editing.cache import cache_root
from fasttrace.editing.delta import check_delta_file, check_export_folder
from fasttrace.errors import UserError
from fasttrace.places import check_file, check_folder, replacing


class Place(click.ParamType):
    """Type of an option or argument that is a path to write to. check: raises UserError where that is impossible."""

    def __init__(self, name: str, check: Callable[[str], object]) -> None:
        self.name, self.check = name, check

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        self.check(value)
        return value


def check_store(path: str | Path, *, makes_folder: bool = False) -> None:
    """Raise UserError where a store cannot be written. makes_folder: whether the caller creates a missing folder."""
    path = Path(path)
    if makes_folder and not path.parent.exists():
        check_folder(path.parent)
    else:
        ft.Store(path).check()


def _check_new_folder(path: str) -> None:
    check_folder(check_export_folder(path).parent)  # the folder is written beside its final path first


def _check_new_file(path: str) -> None:
    check_file(check_delta_file(path), makes_folder=True)


STORE = Place("file", check_store)
FILE = Place("file", check_file)
FILE_AND_FOLDER = Place("file", partial(check_file, makes_folder=True))
FOLDER = Place("directory", check_folder)
NEW_FILE = Place("file", _check_new_file)
NEW_FOLDER = Place("directory", _check_new_folder)


def check_cache() -> None:
    """Raise UserError where the cache folder cannot be created, or is empty and cannot be written to. A folder that is
    not empty may already have all that is needed."""
    root = cache_root(None)
    if not any(root.iterdir()):
        check_folder(root)


def check_apart(*places: tuple[str, str | None]) -> None:
    """Raise UserError where two options, each given as (name, value), name the same path."""
    options: dict[Path, str] = {}
    for option, place in places:
        if place is not None and (other := options.setdefault(Path(place).resolve(), option)) != option:
            raise UserError(f"expected {other} and {option} to name two paths, got '{place}' for both")


def format_of(as_json: bool, as_csv: bool, parquet: str | None, out: str | None) -> str:
    """The output format: text, json, csv or parquet. Raises UserError where two formats or two files are given."""
    asked = [name for name, wanted in (("json", as_json), ("csv", as_csv), ("parquet", parquet)) if wanted]
    if len(asked) > 1:
        raise UserError(f"expected one format, got --{' and --'.join(asked)}")
    if parquet is not None and out is not None:
        raise UserError("expected one file, got --parquet and --out")
    if asked:
        return asked[0]
    ending = Path(out).suffix.lower().removeprefix(".") if out else ""
    return ending if ending in ("json", "csv", "parquet") else "text"


def deliver(table: pa.Table, form: str, file: str | None, text: Callable[[], str]) -> None:
    """Print the table, or write it to `file` and report that on stderr.

    text: makes the text form of the table.
    Raises UserError where the file cannot be written. The file then does not change.
    """
    from fasttrace.analysis.render import render

    if file is None:
        click.echo(text() if form == "text" else render(table, form), nl=False)
        return
    if form == "parquet":
        _write(Path(file), lambda draft: _parquet(table, draft))
    else:
        made = text() if form == "text" else render(table, form)
        _write(Path(file), lambda draft: draft.write_text(made, encoding="utf-8", newline="\n"))
    click.echo(f"{len(table)} rows are in {file}", err=True)


def _parquet(table: pa.Table, draft: Path) -> None:
    from pyarrow.parquet import write_table

    write_table(table, draft)


def _write(path: Path, write: Callable[[Path], object]) -> None:
    try:
        with replacing(path) as draft:
            write(draft)
    except (OSError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(f"'{path}' could not be written: {reason}") from error
