"""Verbs that run a whole study: demo."""

import json
from pathlib import Path

import click

from .options import bar, options, stages


@click.command()
@options("model", "json")
@click.option("--out", type=click.Path(file_okay=False), default="demo", show_default=True, help="Folder to write to.")
@click.option("--known", "wanted", type=click.IntRange(1), default=24, show_default=True, help="Known facts to study.")
def demo(model: str, as_json: bool, out: str, wanted: int) -> None:
    """The whole study, small: know, trace, collect, edit, regress, report."""
    from fasttrace.demo import run_demo

    run_demo(model, Path(out), wanted, bar, stages, quiet=as_json)
    if as_json:
        click.echo(json.dumps({"store": str(Path(out) / "study.duckdb"), "report": str(Path(out) / "report.html")}))
