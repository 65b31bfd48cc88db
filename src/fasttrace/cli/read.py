"""Verbs that read a store: tables, figures, report. The verb sql answers all other questions."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from fasttrace.errors import UserError, did_you_mean
from fasttrace.places import check_replaceable, replacing

from .deliver import FILE_AND_FOLDER, FOLDER, STDOUT, check_apart, saying_overwritten
from .help import Choice, command, completing, option
from .options import named_store, open_stores, options

if TYPE_CHECKING:
    from fasttrace.analysis.paper import Effects, Numbered

EFFECTS = ("tracing window", "localization", "metric", "module", "run")  # the options that choose tracing effects


@command()
@options("stores", "json", "format", "score", "resamples", *EFFECTS)
@click.argument("numbers", nargs=-1, type=int)
@option("--out", heading="Output", type=FOLDER, help="Folder to write to, one file per table.")
def tables(
    stores: tuple[str, ...],
    as_json: bool,
    score: str,
    numbers: tuple[int, ...],
    format_: str,
    out: str | None,
    resamples: int,
    **given: Any,
) -> None:
    """Print the paper's tables from the data of the store.

    NUMBERS are 1 to 8. Without any, print R² of --score and mean scores by layer, or with --out write every table that
    the store has data for.
    """
    from fasttrace.analysis.paper import TABLES, chosen, coverage, what_is_missing
    from fasttrace.analysis.regression import layer_means, regressions
    from fasttrace.analysis.relation import asking_once
    from fasttrace.analysis.render import render
    from fasttrace.analysis.tables import paper_table, summary

    click.get_current_context().with_resource(asking_once())
    target = open_stores(stores)
    there, effects = coverage(target), _effects(given)
    asked = chosen(target, effects)
    catalogue = {n: one.at(**asked) for n, one in TABLES.items()}
    if not numbers:
        _check_traced(there, asked, effects)
        if not there.edits:
            raise UserError(f"tables are of edits: expected some in {target.where}, got none")
    if not numbers and out is None:
        if as_json or format_ == "json":
            both = {
                "regressions": regressions(target, score, **asked).to_pylist(),
                "layer_means": layer_means(target, score).to_pylist(),
            }
            click.echo(json.dumps(both, default=str, ensure_ascii=False, indent=2))
            return
        click.echo(summary(target, score, **asked), nl=False)
        click.echo(_which("tables", catalogue, there, _asked(effects)), err=True)
        return
    kind = "json" if as_json else format_
    if len(numbers) > 1 and kind in ("csv", "json") and out is None:
        raise UserError(f"expected --out FOLDER for several tables as {kind}, got {len(numbers)} tables and no folder")
    wanted = numbers or tuple(n for n, one in catalogue.items() if what_is_missing(there, one) is None)
    if not wanted:
        raise UserError(_which("tables", catalogue, there, _asked(effects)))
    ending = {"text": "txt", "markdown": "md", "latex": "tex"}.get(kind, kind)
    paths = {} if out is None else {n: Path(out) / f"table-{n}.{ending}" for n in wanted}
    for path in paths.values():
        check_replaceable(path)
    made = {n: paper_table(target, n, resamples=resamples, **effects) for n in map(int, wanted)}
    texts = {n: render(table, kind, title=f"Table {n}. {catalogue[n].title}") for n, table in made.items()}
    _say_others(there, [catalogue[n] for n in wanted])
    if out is None:
        click.echo(("\n" if kind == "text" else "").join(texts.values()), nl=False)
        return
    Path(out).mkdir(parents=True, exist_ok=True)
    with saying_overwritten(*paths.values()):
        for n, path in paths.items():
            with replacing(path) as draft:
                draft.write_text(texts[n], encoding="utf-8")
            click.echo(str(path))


NAMED = ("roles", "edits")  # figures that the paper does not have


class _FigureName(click.ParamType):
    """The number of a figure of the paper, or one of NAMED."""

    name = "figure"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int | str:
        """The number, or the name."""
        if value in NAMED or isinstance(value, int):
            return value
        if not str(value).isdecimal():
            hint = did_you_mean(value, NAMED)
            self.fail(f"expected the number of a figure or {' or '.join(NAMED)}, got {value!r}{hint}", param, ctx)
        return int(value)


@command()
@options("stores", "json", *EFFECTS)
@click.argument(
    "names",
    nargs=-1,
    type=_FigureName(),
    metavar="[NUMBERS | roles | edits]...",
    shell_complete=completing(lambda: NAMED),
)
@option(
    "--format",
    "format_",
    type=Choice(["png", "svg", "pdf"]),
    default="svg",
    show_default=True,
    help="Format of the figures.",
)
@option("--out", heading="Output", type=FOLDER, default="figures", show_default=True, help="Folder to write to.")
@option("--fact-id", help="Fact of Figure 2; by default the one whose probability the noise lowered most.")
@option(
    "--layer",
    type=click.IntRange(0),
    help="Edited layer of Figures 4 and 14; by default the model's own (5 of GPT-J, 17 of GPT2-XL, else a fifth of the "
    "way up) or the edited layer nearest to it.",
)
def figures(
    stores: tuple[str, ...],
    as_json: bool,
    names: tuple[int | str, ...],
    format_: str,
    out: str,
    fact_id: str | None,
    layer: int | None,
    **given: Any,
) -> None:
    """Draw the paper's figures from the data of the store, mean effects by token role, or what N edits do.

    NUMBERS are 1, 2, 4 and 6 to 22. Without any, draw every figure of the paper that the store has data for. `roles`
    are mean indirect effects by token role and layer, and heads × layers for traces of heads (Meng et al. 2022, Figures
    2 and 3). `edits` are rewrite, greedy match, neighborhood, perplexity and other measures by number of edits in the
    model, one line per mass edit.
    """
    from fasttrace.analysis.figures import edits_figure, paper_figure, role_figure, save
    from fasttrace.analysis.paper import FIGURES, chosen, coverage, what_is_missing
    from fasttrace.analysis.relation import asking_once

    click.get_current_context().with_resource(asking_once())
    target = open_stores(stores)
    there, effects = coverage(target), _effects(given)
    asked = chosen(target, effects)
    catalogue = {n: one.at(**asked) for n, one in FIGURES.items()}
    wanted = names or tuple(n for n, one in catalogue.items() if what_is_missing(there, one) is None)
    if not names:
        _check_traced(there, asked, effects)
    if not wanted:
        raise UserError(_which("figures", catalogue, there, _asked(effects)))
    paths = {n: Path(out) / f"{n if n in NAMED else f'figure-{n}'}.{format_}" for n in wanted}
    for path in paths.values():
        check_replaceable(path)
    made = {
        n: paper_figure(target, n, fact_id=fact_id, layer=layer, **effects)
        if isinstance(n, int)
        else role_figure(target, **effects)
        if n == "roles"
        else edits_figure(target, run=effects["run"])
        for n in wanted
    }
    _say_others(there, [catalogue[n] for n in wanted if isinstance(n, int)])
    with saying_overwritten(*paths.values()):
        written = [str(save(made[n], path)) for n, path in paths.items()]
    click.echo(json.dumps(written, indent=2) if as_json else "\n".join(written))
    if not names:
        click.echo(_which("figures", catalogue, there, _asked(effects)), err=True)


def _effects(given: dict[str, Any]) -> "Effects":
    """The tracing effects that the options EFFECTS choose."""
    return {"window_size": given.pop("tracing_window"), **given}  # type: ignore[typeddict-item]


def _asked(effects: "Effects") -> str:
    """The options that choose tracing effects, as they were given."""
    names = {"window_size": "window", "localization": "method"}
    return "".join(f" --{names.get(name, name)} {value}" for name, value in effects.items() if value is not None)


def _check_traced(covered: Any, asked: dict[str, Any], effects: "Effects") -> None:
    """Raise UserError where the store has no effects as asked for. asked: as `paper.chosen` gives them."""
    from fasttrace.analysis.paper import OF_TRACES, ways_text

    wanted = {name: asked[name] for name in OF_TRACES if name in asked}
    if any(all(row[name] == value for name, value in wanted.items()) for row in covered.traces) or not wanted:
        return
    has = f"those of {ways_text(covered.traces)}" if covered.traces else "none"
    raise UserError(f"expected traces with{_asked(effects)} in {covered.store.where}, got {has}")


def _say_others(covered: Any, shown: "Sequence[Numbered]") -> None:
    """Print on stderr which traces the tables or figures show and which others the store has, if it has any."""
    from fasttrace.analysis.paper import others_text

    if (said := others_text(covered, shown)) is not None:
        click.echo(f"{said}: --module, --method, --metric, --window and --run choose", err=True)


def _which(what: str, catalogue: dict[int, Any], covered: Any, asked: str) -> str:
    """Which of the paper's tables or figures the store has data for, and which not. asked: options to repeat."""
    from fasttrace.analysis.paper import what_is_missing

    there = [n for n, one in catalogue.items() if what_is_missing(covered, one) is None]
    absent = [n for n in catalogue if n not in there]
    text = f"the store has data for the paper's {what} {', '.join(map(str, there))}"
    if not there:
        text = f"the store has data for none of the paper's {what}"
    elif absent:
        text += f"; not for {', '.join(map(str, absent))}"
    if absent:
        text += f": `fasttrace {what} {absent[0]}{asked}` names what is missing"
    return text


@command()
@options("stores", "json")
@option(
    "--out",
    type=FILE_AND_FOLDER,
    default="report.html",
    show_default=True,
    help="File to write, or - for stdout.",
)
def report(stores: tuple[str, ...], as_json: bool, out: str) -> None:
    """Write a report on everything in the stores, as one self-contained HTML file."""
    from fasttrace.analysis.report import report_page, write_report

    check_apart(*(("--store", named_store(text)[1]) for text in stores), ("--out", out))
    if out == STDOUT:
        if as_json:
            raise UserError("expected --json or --out -, got both")
        click.echo(report_page(open_stores(stores)), nl=False)
        return
    with saying_overwritten(out):
        path = write_report(open_stores(stores), out)
    click.echo(json.dumps({"report": str(path)}) if as_json else f"report: {path}")
