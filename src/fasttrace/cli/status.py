"""The verb status: what a running command does, and what its store has."""

import json
from collections.abc import Iterator
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

import click

from fasttrace.show.running import Status, StatusFile
from fasttrace.show.words import escaped

from .deliver import NAME
from .help import command, option
from .options import only_one, open_store, options
from .printed import emit

if TYPE_CHECKING:
    import pyarrow as pa


@command()
@option("--store", type=NAME, multiple=True, callback=only_one, metavar="FILE", help="DuckDB file to read.")
@options("json")
def status(store: str | None, as_json: bool) -> None:
    """Print what a running command does, and what its store has.

    A command that computes writes what it does to FILE.status.json, beside its store FILE.
    """
    target = open_store(store)
    file = StatusFile.of(target.path)
    found = None if file is None else file.read()
    stored = _stored(target, found)
    if as_json:
        from fasttrace.analysis.render import json_rows

        command = None if found is None else {"running": found.is_running, **found.values()}
        click.echo(json.dumps({"command": command, "runs": json_rows(stored)}, ensure_ascii=False, indent=2))
        return
    for line in _lines(found, str(target.path)):
        click.echo(escaped(line))
    if len(stored):
        click.echo()
        emit(_shown(stored), False, f"Runs in {target.path}")


def _stored(store: Any, found: Status | None) -> "pa.Table":
    """A row for each run. Raises StoreError where there is no store, unless a command is about to make it."""
    import pyarrow as pa

    from fasttrace.analysis.relation import relation

    return pa.table({}) if found is not None and not store.path.exists() else relation(store, "run_progress")


def _lines(found: Status | None, store: str) -> Iterator[str]:
    """What the command does."""
    from fasttrace.show.progress import dashboard_url, duration

    if found is None:
        yield f"no command is at work on {store}"
        return
    process = f"process {found.pid} on {found.host}"
    if not found.is_running:
        yield f"{found.verb} has stopped: {process}, last seen at {found.updated.astimezone():%Y-%m-%d %H:%M}"
        yield from _how_far(found)
        yield "the same command continues"
        return
    yield f"{found.verb} is running: {process}, for {duration((datetime.now(UTC) - found.begun).total_seconds())}"
    yield from _how_far(found)
    if found.workers:
        yield from _worker_lines(found)
    yield from found.said
    if found.dashboard:
        yield f"Ray's dashboard: {dashboard_url(found.dashboard)}"


def _how_far(found: Status) -> Iterator[str]:
    """The line of its bar, if it has one."""
    from fasttrace.show.progress import counted, progress_words

    if found.title is not None and found.done is not None:
        counts = counted(found.done, found.total, found.unit or "")
        left = found.seconds_left if found.is_running else None
        yield f"{found.title}: {progress_words(counts, '', left, len(found.workers), found.retries)}"


def _worker_lines(found: Status) -> list[str]:
    """Its workers, as its own display has them."""
    from rich.console import Console, Group

    from fasttrace.show.progress import worker_rows

    console = Console(color_system=None)
    with console.capture() as shown:
        console.print(Group(*worker_rows(found.workers)))
    return [line.rstrip() for line in shown.get().splitlines()]


def _shown(stored: "pa.Table") -> "pa.Table":
    """The runs for people: what each finished, and times in words and in their own zone."""
    import pyarrow as pa

    from fasttrace.show.progress import counted, duration

    rows = [
        {name: row[name] for name in ("kind", "model", "module", "method", "problem")}
        | {
            "finished": counted(row["finished"], None, row["unit"] or "facts"),
            "compute": duration(row["seconds"]),
            "began": f"{row['created_at'].replace(tzinfo=UTC).astimezone():%Y-%m-%d %H:%M}",
            "run_id": row["run_id"],
        }
        for row in stored.to_pylist()
    ]
    return pa.Table.from_pylist([{name: escaped(value) for name, value in row.items()} for row in rows])
