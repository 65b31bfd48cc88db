"""Output of results. Paths are checked while the command line is parsed, before a model is loaded. Rows go to stdout or
to a file, which is written atomically. What is overwritten is said on stderr."""

import io
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from itertools import permutations
from pathlib import Path
from typing import TYPE_CHECKING

import click
from click.shell_completion import CompletionItem

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.places import check_file, check_folder, is_same, replacing
from fasttrace.show.words import count

from .help import completing_files

if TYPE_CHECKING:
    import pyarrow as pa

STDOUT = "-"


class Place(click.ParamType):
    """Type of an option or argument that is a path to write to. An empty name is refused.

    check: raises UserError where nothing can be written there. stdout: whether `-` means stdout; otherwise it is
    refused, and ./- is the file of that name.
    """

    def __init__(self, name: str, check: Callable[[str], object], *, stdout: bool = False) -> None:
        self.name, self.check, self.stdout = name, check, stdout

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        return completing_files(ctx, param, incomplete)

    def convert(self, value: str, param: click.Parameter | None, ctx: click.Context | None) -> str:
        option = param.opts[0] if param is not None else "output"
        if not value:
            raise UserError(f"{option}: expected the name of a {self.name}, got an empty one")
        if value != STDOUT:
            self.check(value)
        elif not self.stdout:
            raise UserError(f"{option}: expected a {self.name}, got {STDOUT}, which is stdout")
        return value


def check_store(path: str | Path, *, makes_folder: bool = False) -> None:
    """Raise UserError where a store cannot be written. makes_folder: whether the caller creates a missing folder."""
    store = ft.Store(path)
    if store.folder is None or store.folder.exists() or not makes_folder:
        store.check()
    if store.folder is not None:
        check_folder(store.folder)


def _check_new_folder(path: str) -> None:
    from fasttrace.editing.export import check_export_folder

    folder = check_export_folder(path)
    if folder.is_symlink() and not folder.exists():
        raise UserError(f"export: expected a new folder, got '{path}', which is a link that leads to nothing")
    if folder.is_mount():  # no rename can replace it
        raise UserError(f"export: expected a new folder, got '{path}', where a disk is mounted: name a folder in it")
    check_folder(folder.parent)  # the folder is written beside its final path first


def _check_new_file(path: str) -> None:
    from fasttrace.editing.delta import check_delta_file

    check_file(check_delta_file(path), makes_folder=True)


STORE = Place("file", check_store)
FILE = Place("file", check_file, stdout=True)
FILE_AND_FOLDER = Place("file", partial(check_file, makes_folder=True), stdout=True)
FOLDER = Place("directory", check_folder)
NEW_FILE = Place("file", _check_new_file)
NEW_FOLDER = Place("directory", _check_new_folder)
NAME = Place("path", lambda _: None)
"""A path that the verb checks itself."""


def check_cache() -> None:
    """Raise UserError where the cache folder cannot be created, or is empty and cannot be written to. A folder that is
    not empty may already have all that is needed."""
    from fasttrace.cache import cache_root

    root = cache_root(None)
    if not any(root.iterdir()):
        check_folder(root)


def check_apart(*places: tuple[str, str | Path | None]) -> None:
    """Raise UserError where two options, each given as (name, value), name the same file or folder. A store's log
    belongs to the store, as do the files of one that is a folder. `-` names no file."""
    given = [(option, place) for option, place in places if place is not None and str(place) != STDOUT]
    for (one, first), (other, second) in permutations(given, 2):
        if one != other and is_same(first, second):
            raise UserError(f"expected {one} and {other} to name two paths, got '{second}' for both")
        if one == "--store" and is_same(f"{first}.wal", second):
            raise UserError(f"{other}: '{second}' is the log of the store {first}: name another path")
        if one == "--store" and is_same(first, Path(second).parent):
            raise UserError(f"{other}: '{second}' is in the store {first}: name another path")


@contextmanager
def saying_overwritten(*places: str | Path) -> Iterator[None]:
    """Say on stderr, when the block ends, which files it has replaced, and where it has written through links.

    places: the files, and the folders in whose files the block writes.
    """
    before = {path: _identity(path) for path in _files(places)}
    links = {path for path in map(Path, places) if path.is_symlink() and not path.exists()}
    try:
        yield
    finally:
        _say_overwritten([path for path, old in before.items() if _identity(path) != old], links)


def _say_overwritten(replaced: list[Path], links: set[Path]) -> None:
    for path in sorted({*links, *(path for path in replaced if path.is_symlink())}):
        if path.exists():
            verb = "overwritten" if path in replaced else "written"
            click.echo(f"'{path}' is a link: '{path.resolve()}' was {verb}", err=True)
    plain = [path for path in replaced if not path.is_symlink()]
    if len(plain) == 1:
        click.echo(f"'{plain[0]}' was overwritten", err=True)
    elif plain:
        folders = sorted({f"'{path.parent}'" for path in plain})
        click.echo(f"{len(plain)} files in {', '.join(folders)} were overwritten", err=True)


def _files(places: Iterable[str | Path]) -> Iterator[Path]:
    for path in map(Path, places):
        yield from (one for one in path.iterdir() if one.is_file()) if path.is_dir() else [path] * path.is_file()


def _identity(path: Path) -> tuple[int, int] | None:
    """What tells a replaced file from the file before it. A store that is written to keeps its identity."""
    try:
        found = path.stat()
    except OSError:
        return None
    return found.st_dev, found.st_ino


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


def deliver(table: "pa.Table", form: str, file: str | None, text: Callable[[], str]) -> None:
    """Print the table where `file` is None or `-`, or write it to `file` and say so on stderr.

    text: makes the text form of the table.
    Raises UserError where the file cannot be written. The file then does not change.
    """
    from fasttrace.analysis.render import render

    made = _parquet(table, file) if form == "parquet" else text() if form == "text" else render(table, form)
    if file is None or file == STDOUT:
        click.echo(made, nl=False)
        return
    with saying_overwritten(file), replacing(file) as draft:
        draft.write_bytes(made.encode() if isinstance(made, str) else made)
    click.echo(f"{count(len(table), 'row is', 'rows are')} in {file}", err=True)


def _parquet(table: "pa.Table", file: str | None) -> bytes:
    import pyarrow as pa
    from pyarrow.parquet import write_table

    try:
        write_table(table, made := io.BytesIO())
    except pa.ArrowException as error:  # such as a type that Parquet does not have
        raise UserError(f"'{file}' cannot be written: {str(error).splitlines()[0]}") from error
    return made.getvalue()
