"""Options that verbs share, by name, and what they name: stores, and text on stdin."""

import functools
import re
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import click
from click.shell_completion import CompletionItem

import fasttrace as ft
from fasttrace.analysis.naming import LOCALIZATIONS, MODULES
from fasttrace.errors import UserError
from fasttrace.packaged import PACKAGED
from fasttrace.settings.base import Setting, settings_of, text_of
from fasttrace.settings.cluster import ClusterSettings
from fasttrace.settings.prompt import PromptSettings
from fasttrace.settings.study import FactSettings, StudySettings
from fasttrace.show.words import METRICS

from .deliver import STORE
from .help import Choice, completing, completing_files, option

Verb = Callable[..., None]

# The settings that say which model is loaded and how: the arguments of `load`.
OF_MODEL = ("model", "dtype", "device", "tokenizer", "trust_remote_code")

# The settings that say how facts are read, and which of them.
READING = ("relation", "limit", "order", "zsre", "format", "map", "on_bad")


def only_one(_: click.Context, option: click.Parameter, values: tuple[str, ...]) -> str | None:
    """The value of an option that may be given once. Raises BadParameter for a second one, which would replace it."""
    if len(values) > 1:
        raise click.BadParameter(f"expected one store, got {len(values)}; only verbs that read stores take several")
    return values[0] if values else None


class SettingType(click.ParamType):
    """Type of the option of a setting. The setting checks and converts the value."""

    def __init__(self, setting: Setting) -> None:
        self.setting, self.kind, self.name = setting, setting.kind, setting.kind.metavar

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str:
        """The placeholder of the value in the help, such as [one|other] for a choice."""
        return self.kind.metavar

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """The choices that begin with `incomplete`, or else the files of a path, for completion in a shell."""
        words = [CompletionItem(word) for word in self.kind.choices if word.startswith(incomplete)]
        return words if words or not self.kind.is_path else completing_files(ctx, param, incomplete)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """The setting's value. Raises a UserError that names the verb, or click's error for a missing path."""
        verb = self.setting.owner if ctx is None or ctx.info_name is None else ctx.info_name
        converted = attrs.evolve(self.setting, owner=verb).convert(value)
        if self.kind.is_path and converted not in (None, self.setting.default, *self.kind.choices):
            click.Path(exists=True).convert(converted, param, ctx)
        return converted


def setting_options(kind: type, *, without: Sequence[str] = (), only: Sequence[str] = ()) -> Callable[[Verb], Verb]:
    """Add an option for every setting of a type, in their order. Its value is passed under the setting's name.

    without: settings that get no option. only: if given, the settings that get one.
    """
    chosen = [one for name, one in settings_of(kind).items() if name in (only or settings_of(kind))]

    def add(verb: Verb) -> Verb:
        for one in reversed(chosen):
            if one.name not in without:
                verb = _option(one)(verb)
        return verb

    return add


def _option(one: Setting, **more: Any) -> Callable[[Verb], Verb]:
    if one.kind.is_flag:
        return option(
            one.option, one.name, heading=one.heading, is_flag=True, default=one.default, help=one.description
        )
    default = None if one.default is None else text_of(one.default)
    return option(
        one.option,
        one.name,
        heading=one.heading,
        type=SettingType(one),
        default=default,
        show_default=True,
        help=one.description,
        **more,
    )


def options(*names: str) -> Callable[[Verb], Verb]:
    """The options that verbs share, by name, in the order given."""
    known: dict[str, Callable[[Verb], Verb]] = {
        **{name: _option(settings_of(StudySettings)[name]) for name in OF_MODEL},
        "model": _option(
            settings_of(StudySettings)["model"], shell_complete=completing(lambda: PACKAGED, files="")
        ),
        "reading": setting_options(FactSettings, only=READING),
        "prompt": setting_options(PromptSettings),
        "pairs": option(
            "--pairs",
            heading="Facts",
            type=SettingType(pairs := settings_of(FactSettings)["pairs"]),
            is_flag=False,
            flag_value="1",
            help=f"{pairs.help}; without a number, one.",
        ),
        "facts": option(
            "--facts",
            heading="Facts",
            type=click.Path(),
            metavar="FILE",
            help="Facts in any known format: a JSON, JSONL, CSV, TSV or Parquet file, a folder of them, or "
            "hub:owner/name; by default the built-in facts.",
        ),
        "store": option(
            "--store",
            heading="Output",
            type=STORE,
            multiple=True,
            callback=only_one,
            metavar="FILE",
            help="DuckDB file for the results.",
        ),
        "stores": option(
            "--store",
            "stores",
            heading="Store",
            multiple=True,
            shell_complete=completing_files,
            metavar="[NAME=]FILE",
            help="DuckDB file to read, or a folder of Parquet files; repeat it to read several together.",
        ),
        "json": option("--json", "as_json", heading="Output", is_flag=True, help="Print JSON."),
        "format": option(
            "--format",
            "format_",
            heading="Output",
            type=Choice(["text", "markdown", "latex", "csv", "json"]),
            default="text",
            show_default=True,
            help="Format of the numbers.",
        ),
        "score": option(
            "--score", heading="Analysis", default="rewrite", show_default=True, help="Edit score to analyse."
        ),
        "resamples": option(
            "--resamples",
            heading="Analysis",
            type=click.IntRange(0),
            default=1000,
            show_default=True,
            help="Bootstrap resamples of the facts for the 95 % intervals; 0: none. Verdicts need at least 200.",
        ),
        "tracing window": option(
            "--tracing-window",
            "--window",
            "tracing_window",
            heading="Analysis",
            type=click.IntRange(1),
            metavar="LAYERS",
            help="Window size of the tracing effects, in layers; by default that of the edits which are compared with "
            "them, and every one where none is.",
        ),
        "localization": option(
            "--localization",
            "--method",
            "localization",
            heading="Analysis",
            type=Choice(LOCALIZATIONS),
            help="How the traces localize facts: the method of `fasttrace trace`, and with counterfactual prompts "
            "counterfactual; by default as the paper's table or figure, mostly denoise.",
        ),
        "metric": option(
            "--metric",
            heading="Analysis",
            type=Choice(list(METRICS)),
            help="What the tracing effects are made of; by default probability, and with --localization every metric.",
        ),
        "module": option(
            "--module",
            heading="Analysis",
            type=Choice(MODULES),
            help="Whose outputs the traces replace; by default mlp, and for `roles` every module, told apart.",
        ),
        "run": option(
            "--run",
            heading="Analysis",
            metavar="ID",
            help="One tracing run, which --module, --method and --metric then follow, or one editing run: its id or "
            "the start of it. By default every run, told apart.",
        ),
    }

    def add(verb: Verb) -> Verb:
        for name in reversed(names):
            verb = known[name](verb)
        return verb

    return add


def cluster_options(verb: Callable[..., None]) -> Verb:
    """Add the options of who computes. The verb receives them as its argument `cluster`."""

    @functools.wraps(verb)
    def packed(*args: Any, **given: Any) -> None:
        names = settings_of(ClusterSettings)
        verb(*args, cluster=ClusterSettings(**{name: given.pop(name) for name in names}), **given)

    return setting_options(ClusterSettings)(packed)


def open_store(path: str | None) -> Any:
    if path is None:
        raise UserError("expected --store FILE, got no store")
    return ft.Store(path)


def open_stores(named: Sequence[str], timeout_s: float = 60.0) -> Any:
    """The store of one FILE without a name. Several, or one with a name, are opened together as `Stores`."""
    if not named:
        raise UserError("expected --store FILE, got no store")
    pairs = [named_store(text) for text in named]
    if len(pairs) == 1 and not pairs[0][0]:
        return ft.Store(pairs[0][1], timeout_s=timeout_s)
    return ft.Stores([(name or Path(path).stem, path) for name, path in pairs], timeout_s=timeout_s)


def named_store(text: str) -> tuple[str, str]:
    """ "a=runs/a.duckdb" → ("a", "runs/a.duckdb"). The name of a path alone is ""."""
    named = re.fullmatch(r"([\w .+-]+)=(.+)", text)
    return (named[1], named[2]) if named else ("", text)


def read_stdin(what: str) -> str:
    """All of stdin. what: its name in the UserError that is raised where it is not UTF-8 text."""
    try:
        text = sys.stdin.read()
        text.encode()  # in the C locale, Python reads other bytes as halves of surrogate pairs
    except UnicodeError as error:
        raise UserError(f"{what} on stdin is not UTF-8 text") from error
    return text
