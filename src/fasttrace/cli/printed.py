"""What verbs print: rows and heatmaps."""

import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    import pyarrow as pa

    from fasttrace.show.grids import Heatmap
    from fasttrace.tracing import TraceResult


Rows = list[dict[str, Any]]


def emit(rows: "Rows | pa.Table", as_json: bool, title: str | None = None) -> None:
    """Print rows of the same columns, or a table, as text or JSON."""
    import pyarrow as pa

    from fasttrace.analysis.render import render

    table = pa.Table.from_pylist(rows) if isinstance(rows, list) else rows
    click.echo(render(table, "json" if as_json else "text", title=title), nl=False)


def say_all_there(what: str, store: Any, run_id: str | None = None, *, err: bool = False) -> None:
    """Say that a command has nothing to compute, because the store has it all."""
    run = "" if run_id is None else f" (run {run_id})"
    click.echo(f"nothing to compute: all {what} are in {store}{run}", err=err)


def show_first(batch: "TraceResult") -> None:
    """Draw the first traced fact of a batch on stderr, if that is a terminal."""
    if sys.stderr.isatty():
        # A write to stderr prints above a bar, while click.echo would go round it.
        sys.stderr.write(drawn_heatmap(batch.heatmap(batch.cells["fact_id"][0].as_py()), err=True))


def print_heatmaps(heats: "Sequence[Heatmap]") -> None:
    """Print heatmaps on stdout."""
    # drawn_heatmap has decided about colours, which click would take from whatever is no terminal.
    click.echo("\n".join(drawn_heatmap(heat) for heat in heats), nl=False, color=True)


def drawn_heatmap(heat: "Heatmap", *, err: bool = False) -> str:
    """A heatmap as lines for stdout, or for stderr. Where these show no colour, digits take its place."""
    from rich.console import Console

    from fasttrace.show.terminal import heatmap_text

    console = Console(stderr=err)
    colored = console.color_system is not None and not console.no_color
    with console.capture() as drawn:
        console.print(heatmap_text(heat, console.width, color=colored), soft_wrap=True)
    return drawn.get()
