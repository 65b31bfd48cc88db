"""The verb regress: fits a formula to the edits of a store."""

import json
from typing import Any

import click

from fasttrace.errors import UserError

from .deliver import FILE, check_apart, deliver
from .help import command, completing, option
from .options import named_store, open_stores, options


@command()
@options("stores", "json", "format", "tracing window")
@click.argument("formula", shell_complete=completing(lambda: ("layer", "effect", "both")))
@option("--score", metavar="COLUMN", help="Score that a model by name explains; by default rewrite.")
@option("--where", multiple=True, metavar="SQL", help="Condition on rows, as in \"method = 'rome'\"; repeatable.")
@option("--robust", is_flag=True, help="Standard errors that allow for unequal variances (HC3).")
@option("--cluster", metavar="COLUMN", help="Standard errors clustered by this column, such as fact_id.")
@option("--groups", metavar="COLUMN", help="Mixed model with a random intercept for each value of this column.")
@option("--mixed", is_flag=True, help="The same as --groups fact_id.")
@option("--out", heading="Output", type=FILE, metavar="FILE", help="Write to FILE instead of stdout, which - names.")
def regress(
    stores: tuple[str, ...],
    as_json: bool,
    formula: str,
    score: str | None,
    where: tuple[str, ...],
    robust: bool,
    cluster: str | None,
    groups: str | None,
    mixed: bool,
    tracing_window: int | None,
    format_: str,
    out: str | None,
) -> None:
    """Regress an edit score on the edited layer, the tracing effect, or any other column.

    FORMULA is a statsmodels formula, such as "rewrite ~ C(layer) * effect", or the name of one of the paper's three
    models: layer, effect or both. It may use every column of traced_edits, which
    `fasttrace sql "DESCRIBE traced_edits" --store FILE` lists.
    """
    from fasttrace.analysis.regress import regress as fitted
    from fasttrace.analysis.render import json_rows, render

    check_apart(*[("--store", named_store(text)[1]) for text in stores], ("--out", out))
    if mixed:
        if groups not in (None, "fact_id"):
            raise UserError(f"expected --mixed or --groups, got --mixed and --groups {groups}")
        groups = "fact_id"
    if as_json and format_ not in ("text", "json"):
        raise UserError(f"expected one format, got --json and --format {format_}")
    store = open_stores(stores)
    result = fitted(
        store,
        formula,
        score=score,
        where=where,
        robust=robust,
        cluster=cluster,
        groups=groups,
        tracing_window=tracing_window,
    )
    kind = "json" if as_json else format_
    table = result.coefficients
    if kind == "text":
        text = str(result)
    elif kind == "json":
        whole: dict[str, Any] = {"formula": result.formula, "errors": result.errors, **result.statistics}
        whole |= {"coefficients": json_rows(table), "dropped": json_rows(result.selection.dropped)}
        text = json.dumps(whole | {"notes": list(result.notes)}, ensure_ascii=False, indent=2) + "\n"
    else:
        text = render(table, kind, title=result.formula)
        click.echo(result.account(), nl=False, err=True)
    deliver(table, "text", out, lambda: text)
