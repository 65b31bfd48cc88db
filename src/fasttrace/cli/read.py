"""Verbs that read a store: sql, tables, report."""

import json
from pathlib import Path

import click

from fasttrace.errors import UserError

from .options import emit, open_store, options


@click.command()
@options("store", "json")
@click.argument("query")
def sql(store: str | None, as_json: bool, query: str) -> None:
    """Run a query over the store, read-only. QUERY: SQL, or the name of a file that holds it."""
    path = Path(query)
    try:
        text = path.read_text(encoding="utf-8") if query.endswith(".sql") and path.is_file() else query
    except UnicodeDecodeError as error:
        raise UserError(f"query file '{query}' is not UTF-8 text") from error
    emit(open_store(store).query(text), as_json)


@click.command()
@options("store", "json", "score")
def tables(store: str | None, as_json: bool, score: str) -> None:
    """R² of an edit score by layer, tracing effect and both; mean scores by layer."""
    from fasttrace.analysis.regression import layer_means, regressions
    from fasttrace.analysis.tables import summary

    target = open_store(store)
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
