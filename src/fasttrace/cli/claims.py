"""The verb claims: the paper's claims and tables beside what a store says of them."""

import click

from .help import Choice, command, option
from .options import open_stores, options


@command()
@options("stores", "json", "format", "resamples", "tracing window")
@option("--model", help="Model, if the store has results of several.")
@option(
    "--protocol", type=Choice(["paper", "released"]), help="Protocol, if the store has results of both."
)
@option(
    "--cells", is_flag=True, help="Print Tables 1 to 6 cell by cell instead, the paper's numbers and the store's."
)
def claims(
    stores: tuple[str, ...],
    as_json: bool,
    format_: str,
    model: str | None,
    protocol: str | None,
    cells: bool,
    resamples: int,
    tracing_window: int | None,
) -> None:
    """Print which of the paper's claims the store confirms, and which it refutes.

    A verdict follows from the ends of 95 % intervals over facts. A claim that they leave open is not decided.
    """
    from fasttrace.analysis.beside import beside_paper
    from fasttrace.analysis.claims import claims, lines
    from fasttrace.analysis.render import render

    store, kind = open_stores(stores), "json" if as_json else format_
    if cells:
        table = beside_paper(store, model=model, protocol=protocol, window_size=tracing_window, resamples=resamples)
        click.echo(render(table, kind, title="The paper's Tables 1 to 6 beside this store"), nl=False)
        return
    table = claims(store, model=model, protocol=protocol, window_size=tracing_window, resamples=resamples)
    if kind == "text":
        click.echo("\n".join(lines(table)))
    else:
        click.echo(render(table, kind, title="The paper's claims beside this store"), nl=False)
