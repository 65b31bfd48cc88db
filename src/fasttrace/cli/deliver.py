"""Rows to stdout or to a file, which is written beside its place and renamed: whole, or not there."""

import os
from collections.abc import Callable
from pathlib import Path

import click
import pyarrow as pa

from fasttrace.errors import UserError


def format_of(as_json: bool, as_csv: bool, parquet: str | None, out: str | None) -> str:
    """text | json | csv | parquet. Raises UserError where more than one is asked for, or two files."""
    asked = [name for name, wanted in (("json", as_json), ("csv", as_csv), ("parquet", parquet)) if wanted]
    if len(asked) > 1:
        raise UserError(f"--{' and --'.join(asked)} were given: one of them was wanted")
    if parquet is not None and out is not None:
        raise UserError("--parquet and --out both name a file: one of them was wanted")
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
    draft = path.with_name(f".{path.name}.{os.getpid()}.new")
    try:
        write(draft)
        draft.replace(path)
    except (OSError, pa.ArrowException) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error).splitlines()[0]
        raise UserError(f"'{path}' could not be written: {reason}") from error
    finally:
        draft.unlink(missing_ok=True)
