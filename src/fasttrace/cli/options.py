"""What the verbs share: options by name, progress bars on stderr, results on stdout."""

import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import click
import pyarrow as pa
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    ProgressColumn,
    Task,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.text import Text

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.models import DEFAULT_MODEL
from fasttrace.tracing.sweep import DEFAULT_MEMORY

from .deliver import STORE

Verb = Callable[..., None]


class _Rate(ProgressColumn):
    """Things a second, or seconds a thing."""

    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if not speed:
            return Text("–")
        return Text(f"{speed:.1f}/s" if speed >= 1 else f"{1 / speed:.1f} s each")


@contextmanager
def bar(title: str, total: int | None) -> Iterator[Callable[[int], None]]:
    """A progress bar on stderr; yields a function to be called after n more are done."""
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        _Rate(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=Console(stderr=True)) as progress:
        task = progress.add_task(title, total=total)
        yield lambda n: progress.advance(task, n)


@contextmanager
def stages() -> Iterator[Callable[[str, int, int], None]]:
    """A bar a stage, for work that reports (stage, done, total)."""
    with Progress(
        TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), _Rate(), TimeElapsedColumn(),
        TimeRemainingColumn(), console=Console(stderr=True),
    ) as progress:  # fmt: skip
        tasks: dict[str, Any] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = progress.add_task(f"Moments: {stage}, tokens", total=total)
            progress.update(tasks[stage], completed=done, total=total)

        yield report


def numbers(_: click.Context, option: click.Parameter, text: str | None) -> list[int] | None:
    """ "0,4,8" → [0, 4, 8]."""
    if text is None:
        return None
    try:
        return [int(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of whole numbers such as 5 or 10,5,1") from None


def only_one(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The one value of an option that other verbs take several of; a second does not silently replace the first."""
    if len(values) > 1:
        raise click.BadParameter(f"{len(values)} were given and one was wanted; sql and tables read several stores")
    return values[0] if values else None


def floats(_: click.Context, option: click.Parameter, text: str | None) -> list[float] | None:
    """ "0.0625,0.9" → [0.0625, 0.9]."""
    if text is None:
        return None
    try:
        return [float(part) for part in text.split(",") if part.strip()]
    except ValueError:
        raise click.BadParameter(f"{text!r} is not a list of numbers such as 0.0625,0.9") from None


def options(*names: str) -> Callable[[Verb], Verb]:
    """The options that verbs share, by name, in the order given."""
    known = {
        "model": click.option(
            "--model", default=DEFAULT_MODEL, show_default=True, help="Short name, hub id, folder or .gguf file."
        ),
        "dtype": click.option(
            "--dtype",
            type=click.Choice(["float32", "tf32", "bfloat16", "float64"]),
            default="float32",
            show_default=True,
        ),
        "device": click.option(
            "--device", default="cpu", show_default=True, help="As torch names it, or auto: over GPUs, CPU and disk."
        ),
        "facts": click.option(
            "--facts",
            type=click.Path(),
            help="CounterFact, known_1000 or zsRE JSON, or own JSONL; default: the built-in facts.",
        ),
        "relation": click.option("--relation", help="Only facts of this relation."),
        "limit": click.option("--limit", type=click.IntRange(1), help="At most so many facts."),
        "store": click.option(
            "--store",
            type=STORE,
            multiple=True,
            callback=only_one,
            metavar="FILE",
            help="DuckDB file for the results.",
        ),
        "store to read": click.option(
            "--store",
            type=click.Path(dir_okay=False),
            multiple=True,
            callback=only_one,
            metavar="FILE",
            help="DuckDB file to read.",
        ),
        "stores": click.option(
            "--store",
            "stores",
            multiple=True,
            metavar="[NAME=]FILE",
            help="DuckDB file to read; several times for several, read together as NAME.relation.",
        ),
        "json": click.option("--json", "as_json", is_flag=True, help="Print JSON."),
        "protocol": click.option(
            "--protocol", type=click.Choice(["paper", "released"]), default="paper", show_default=True
        ),
        "seed": click.option("--seed", type=click.IntRange(0), default=0, show_default=True),
        "memory": click.option(
            "--memory", default=DEFAULT_MEMORY, show_default=True, help="For activations, weights not counted."
        ),
        "score": click.option("--score", default="rewrite", show_default=True, help="Which edit score."),
        "corpus": click.option(
            "--corpus",
            type=click.Path(exists=True),
            help="Text file or folder of .txt; default: text the model samples.",
        ),
        "tokens": click.option(
            "--corpus-tokens", type=click.IntRange(1), default=100_000, show_default=True, help="Tokens to read."
        ),
        "ridge": click.option(
            "--ridge",
            type=click.FloatRange(0),
            default=0.0,
            show_default=True,
            help="Added to the second moments' diagonal, as a multiple of its mean.",
        ),
    }

    def add(verb: Verb) -> Verb:
        for name in reversed(names):
            verb = known[name](verb)
        return verb

    return add


def load(model: str, dtype: str, device: str) -> Any:
    with Console(stderr=True).status(f"Loading {model}"):
        return ft.load_model(model, dtype=dtype, device=device)


def emit(table: pa.Table, as_json: bool, title: str | None = None) -> None:
    from fasttrace.analysis.render import render

    click.echo(render(table, "json" if as_json else "text", title=title), nl=False)


def open_store(path: str | None) -> Any:
    if path is None:
        raise UserError("no store was named, --store FILE was wanted")
    return ft.Store(path)


def open_stores(named: Sequence[str], timeout_s: float = 60.0) -> Any:
    """The store of one FILE; for several, or one with a name, those stores together."""
    if not named:
        raise UserError("no store was named, --store FILE was wanted")
    pairs = [named_store(text) for text in named]
    if len(pairs) == 1 and not pairs[0][0]:
        return ft.Store(pairs[0][1], timeout_s=timeout_s)
    return ft.Stores([(name or Path(path).stem, path) for name, path in pairs], timeout_s=timeout_s)


def named_store(text: str) -> tuple[str, str]:
    """ "a=runs/a.duckdb" → ("a", "runs/a.duckdb"); a path alone has no name."""
    named = re.fullmatch(r"([A-Za-z_]\w*)=(.+)", text)
    return (named[1], named[2]) if named else ("", text)
