"""Where results go: places are looked at while the command line is read, before a model is loaded; rows go to stdout or
to a file, which is written whole or not at all."""

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
    """The value of an option or argument that names a place to write. check: raises UserError for one that is none."""

    def __init__(self, name: str, check: Callable[[str], object]) -> None:
        self.name, self.check = name, check

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        self.check(value)
        return value


def check_store(path: str | Path, *, makes_folder: bool = False) -> None:
    """Raises UserError where a store cannot be written. makes_folder: its folder is made where it is missing."""
    path = Path(path)
    if makes_folder and not path.parent.exists():
        check_folder(path.parent)
    else:
        ft.Store(path).check()


def _check_new_folder(path: str) -> None:
    check_folder(check_export_folder(path).parent)  # it is written beside its place


def _check_new_file(path: str) -> None:
    check_file(check_delta_file(path), makes_folder=True)


STORE = Place("file", check_store)
FILE = Place("file", check_file)
FILE_AND_FOLDER = Place("file", partial(check_file, makes_folder=True))
FOLDER = Place("directory", check_folder)
NEW_FILE = Place("file", _check_new_file)
NEW_FOLDER = Place("directory", _check_new_folder)


def check_cache() -> None:
    """Raises UserError where the cache folder cannot be made, or is empty and cannot be written to. One that is not
    empty may have all that is needed."""
    root = cache_root(None)
    if not any(root.iterdir()):
        check_folder(root)


def check_apart(*places: tuple[str, str | None]) -> None:
    """Raises UserError where two options, (name, value) each, are of one place."""
    options: dict[Path, str] = {}
    for option, place in places:
        if place is not None and (other := options.setdefault(Path(place).resolve(), option)) != option:
            raise UserError(f"expected {other} and {option} to name two places, got '{place}' for both")


def format_of(as_json: bool, as_csv: bool, parquet: str | None, out: str | None) -> str:
    """text | json | csv | parquet. Raises UserError where more than one is asked for, or two files."""
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
    """Print the table, or write it to `file` and say so on stderr.

    text: makes the table of text. Raises UserError where the file cannot be written; it is then as it was.
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
