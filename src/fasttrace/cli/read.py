"""Verbs that read a store: tables, report. Any other question is sql's."""

import json

import click

from .options import open_store, open_stores, options


@click.command()
@options("stores", "json", "score")
def tables(stores: tuple[str, ...], as_json: bool, score: str) -> None:
    """R² of an edit score by layer, tracing effect and both; mean scores by layer."""
    from fasttrace.analysis.regression import layer_means, regressions
    from fasttrace.analysis.tables import summary

    target = open_stores(stores)
    if as_json:
        both = {
            "regressions": regressions(target, score).to_pylist(),
            "layer_means": layer_means(target, score).to_pylist(),
        }
        click.echo(json.dumps(both, default=str, ensure_ascii=False, indent=2))
    else:
        click.echo(summary(target, score), nl=False)


@click.command()
@options("store", "json")
@click.option("--out", type=click.Path(dir_okay=False), default="report.html", show_default=True)
def report(store: str | None, as_json: bool, out: str) -> None:
    """Write everything the store holds as one self-contained HTML file."""
    from fasttrace.analysis.report import write_report

    path = write_report(open_store(store), out)
    click.echo(json.dumps({"report": str(path)}) if as_json else f"report: {path}")
