"""References that are written from the code: every option, every relation, every public name."""

import inspect
import re
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import click

import fasttrace as ft
from fasttrace.analysis.relation import CHAIN
from fasttrace.analysis.saved import columns_of, saved_queries
from fasttrace.cli import cli
from fasttrace.editing.mass_result import MassResult
from fasttrace.settings.base import Setting, settings_of
from fasttrace.settings.columns import SETTINGS
from fasttrace.store.header import header_of
from fasttrace.store.texts import RELATIONS, schema_sql

# Verb → the function or method that does the same in Python, where there is one.
IN_PYTHON: dict[str, Any] = {
    "facts": ft.load_facts,
    "trace": ft.trace,
    "stats": ft.second_moments,
    "edit": ft.edit,
    "mass": ft.mass_edit,
    "export": MassResult.export,
    "chat": ft.generate,
    "sql": ft.ask,
    "regress": ft.regress,
}
# Heading → what stands under it in the Python reference: names of `fasttrace`, or of a module where a result is made.
PUBLIC = {
    "Models": ("load_model", "wrap_model", "fasttrace.models.adapter.Decoder"),
    "Facts": ("load_facts", "pair_facts", "Fact", "Probe"),
    "Tracing": ("trace", "check_known", "fasttrace.tracing.result.TraceResult"),
    "Editing": (
        *("edit", "mass_edit", "second_moments", "import_moments", "apply_delta", "load_delta", "generate"),
        *("fasttrace.editing.result.EditResult", "fasttrace.editing.mass_result.MassResult"),
        *("fasttrace.editing.applied.Applied", "fasttrace.editing.delta.Edit"),
    ),
    "Store and analysis": ("Store", "Stores", "ask", "regress"),
    "Errors": ("UserError", "FactError", "ModelError", "PackageError", "StoreError", "FasttraceError"),
}
# Types that are shown with their methods, and which: null for every public one.
MEMBERS = {"Decoder": "[generate, model_hash]"} | dict.fromkeys(
    ("Result", "Store", "Stores", "Applied", "Edit", "Fact", "Probe"), "null"
)


# -- the command line and settings --------------------------------------------------------------------------


def verbs() -> str:
    """A section for every verb: its help, and one table of its options and the keywords of its function."""
    return "\n".join(line for name in cli.list_commands(None) for line in _verb(name))


def _verb(name: str) -> Iterator[str]:
    verb = cli.get_command(None, name)
    assert verb is not None
    function = IN_PYTHON.get(name)
    usage = " ".join([f"fasttrace {name}", *verb.collect_usage_pieces(click.Context(verb, info_name=name))])
    yield from (f"## {name}", "", f"`{usage}`", "", inspect.cleandoc(verb.help or "").replace("\b", ""), "")
    keywords = dict(inspect.signature(function).parameters) if function is not None else {}
    if function is not None:
        yield from (f"In Python: `{_name_of(function)}`.", "")
    head = ["option", *(["keyword"] if keywords else []), "meaning"]
    yield from (f"| {' | '.join(head)} |", "|" + "---|" * len(head))
    context = click.Context(verb, info_name=name)
    for one in verb.params:
        if isinstance(one, click.Option) and not one.hidden:
            option, keyword, meaning = _row(one, context, keywords)
            yield _cells(option, *([keyword] if keywords else []), meaning)
    yield ""


def _row(option: click.Option, context: click.Context, keywords: dict[str, Any]) -> tuple[str, str, str]:
    name = {"as_json": "", "format_": "format"}.get(option.name or "", option.name or "")
    choices = getattr(option.type, "choices", None) or getattr(getattr(option.type, "kind", None), "choices", ())
    value = "" if option.is_flag or choices else f" {option.make_metavar(context)}"
    known = option.default is not None and isinstance(option.default, str | int | float) and not option.is_flag
    default = f"`{option.default}`" if known else ""
    spelled = ", ".join(f"`{text}{value}`" for text in option.opts)
    return spelled, f"`{name}`" if name in keywords else "", _meaning(option.help or "", choices, default)


def _meaning(text: str, choices: Collection[str], default: str) -> str:
    """What an option or a setting means, with its choices and its default."""
    more = [f"Choices: {', '.join(map(_code, choices))}."] if choices else []
    return "<br>".join([text, " ".join([*more, *([f"Default: {default}."] if default else [])])]).removesuffix("<br>")


def settings_tables() -> str:
    """A table of every public type of settings."""
    lines: list[str] = []
    for name in sorted(one for one in ft.__all__ if one.endswith("Settings")):
        kind = getattr(ft, name)
        about = (inspect.getdoc(kind) or "").split("\n\n")[0].replace("\n", " ")
        lines += [f"### {name}", "", about, "", "| setting | meaning |", "|---|---|"]
        lines += [_setting(one) for one in settings_of(kind).values()]
        lines.append("")
    return "\n".join(lines)


def _setting(one: Setting) -> str:
    default = "the method's" if one.tabled else f"`{one.default}`"
    value = "" if one.kind.choices or one.kind.is_flag else f" {one.kind.metavar}"
    return _cells(_code(f"{one.name}{value}"), _meaning(one.description, one.kind.choices, default))


def _cells(*cells: str) -> str:
    """A row of a table. A bar within code needs no escape."""
    parts = (re.split(r"(`[^`]*`)", cell) for cell in cells)
    escaped = ("".join(part if part[:1] == "`" else part.replace("|", "\\|") for part in cell) for cell in parts)
    return f"| {' | '.join(escaped)} |"


def _code(text: str) -> str:
    return f"`{text}`" if text else ""


def _name_of(function: Any) -> str:
    return f"ft.{function.__name__}" if "." not in function.__qualname__ else function.__qualname__


# -- the store ----------------------------------------------------------------------------------------------


def relations() -> str:
    """A section for every relation of the store, from its schema file: what a row is, its units and columns."""
    lines: list[str] = []
    for name in RELATIONS:
        lines += [f"### {name}", "", *_header(header_of(schema_sql(name), name).text), *_schema_columns(name), ""]
    return "\n".join(lines)


def views() -> str:
    """A section for every view of the analysis, from its file."""
    saved = saved_queries()
    columns = columns_of(ft.Store(Path(__file__).resolve().parents[2] / "analysis/results/smollm2-135m/store"))
    lines: list[str] = []
    for name in (one for one in CHAIN if one not in SETTINGS):
        named = ", ".join(f"`{column}` {kind}" for column, kind in columns[name])
        lines += [f"### {name}", "", *_header(saved[name].header.text), f"Columns: {named}.", ""]
    return "\n".join(lines)


def queries() -> str:
    """A table of the saved queries."""
    rows = [one for name, one in sorted(saved_queries().items()) if one.kind == "query"]
    lines = ["| query | answers | parameters |", "|---|---|---|"]
    for one in rows:
        lines.append(_cells(_code(one.name), one.header.what, ", ".join(map(_code, one.parameters))))
    return "\n".join(lines)


def _header(text: str) -> Iterator[str]:
    """A header as a paragraph for each of its parts."""
    whole = re.sub(r"^\w+: ", "", " ".join(text.split()))
    for part in re.split(r"(?<=[.;]) (?=(?:Grain|Inputs?|Parameters?|Models|Units)\b[^.]*?:)", whole):
        label, colon, rest = part.partition(": ")
        headed = colon and re.match(r"(Grain|Inputs?|Parameters?|Models|Units)\b", label)
        yield from (f"**{label}.** {_begun(rest)}" if headed else _begun(part), "")


def _begun(text: str) -> str:
    """A text with a capital, where it begins with a word and not with a name."""
    return text[:1].upper() + text[1:] if re.match(r"[a-z]+ [a-z(]", text) else text


def _schema_columns(name: str) -> Iterator[str]:
    yield from ("| column | type | |", "|---|---|---|")
    body = schema_sql(name).partition("(")[2] if "CREATE TABLE" in schema_sql(name) else ""
    for line in schema_sql(name).splitlines():
        found = re.match(r"    (\w+)\s+([A-Z]+(?:\[\])?)\b ?(.*?),?\s*(?:--.*)?$", line)
        if found and found[2] not in ("KEY",) and body:
            yield f"| `{found[1]}` | {found[2]} | {found[3].strip()} |"


# -- Python -------------------------------------------------------------------------------------------------


def public() -> str:
    """A directive of mkdocstrings for every public name, under its heading. Raises where a name has no heading."""
    listed = {name for names in PUBLIC.values() for name in names if "." not in name}
    settings = {name for name in ft.__all__ if name.endswith("Settings")}
    if lost := sorted(set(ft.__all__) - listed - settings - {"__version__"}):
        raise ValueError(f"docs/site/generated.py: expected a heading in PUBLIC for {', '.join(lost)}")
    lines: list[str] = []
    for heading, names in PUBLIC.items():
        lines += [f"## {heading}", ""]
        for name in names:
            lines.append(f"::: {name if '.' in name else f'fasttrace.{name}'}")
            if name.endswith(tuple(MEMBERS)):
                members = next(shown for ending, shown in MEMBERS.items() if name.endswith(ending))
                lines += ["    options:", f"      members: {members}", "      filters: ['!^_']"]
            lines.append("")
    return "\n".join(lines)


