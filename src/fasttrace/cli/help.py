"""How the help of a verb looks, and what is answered to a mistyped word.

The help opens with an example. Options are grouped under headings: those of settings under the heading of their type,
all others under the one that they are declared with.
"""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem

from fasttrace.errors import did_you_mean, question

OWN = "Options"  # the heading of a verb's own options
LAST = ("Run", "Machines", "Output")  # headings of options that many verbs share
Words = Callable[[], Iterable[str]]


class Option(click.Option):
    """An option with a heading in the help."""

    def __init__(self, *names: Any, heading: str = OWN, **about: Any) -> None:
        super().__init__(*names, **about)
        self.heading = heading


class Choice(click.Choice):
    """A choice of click that suggests the nearest word."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter as error:
            said = error.message.rstrip(".") + (did_you_mean(value, self.choices) or ".")
            raise click.BadParameter(said, ctx, param) from None


class Verb(click.Command):
    """A verb: its help, and its options by heading. example: a command that works, written in `boundary.VERBS`."""

    example = ""

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        if self.example:
            formatter.write(f"Example: {self.example}\n\n")
        super().format_help(ctx, formatter)

    def format_options(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        groups: dict[str, list[tuple[str, str]]] = {}
        for param in self.get_params(ctx):
            if isinstance(param, click.Option) and (record := param.get_help_record(ctx)) is not None:
                groups.setdefault(getattr(param, "heading", LAST[-1]), []).append(record)
        for heading in sorted(groups, key=lambda name: LAST.index(name) if name in LAST else -1):
            with formatter.section(heading):
                formatter.write_dl(groups[heading])


command = partial(click.command, cls=Verb)
option = partial(click.option, cls=Option)


@contextmanager
def suggesting(verb: click.Command) -> Iterator[None]:
    """Let the error for an option that a verb does not have suggest the nearest one that it has."""
    try:
        yield
    except click.NoSuchOption as error:
        known = [name for param in verb.params for name in (*param.opts, *param.secondary_opts) if name[:2] == "--"]
        raise click.UsageError(f"No such option '{error.option_name}'.{asked(error.option_name, known)}") from None


def asked(name: str, known: Iterable[str]) -> str:
    """ " Did you mean 'trace'?", or "" where no known name is similar."""
    return f" {text.capitalize()}" if (text := question(name, known)) else ""


def completing(words: Words, *, files: str | None = None) -> Callable[..., list[CompletionItem]]:
    """The `shell_complete` of a parameter: words, and files where `files` is their ending ("" for any)."""

    def complete(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        found = [CompletionItem(word) for word in words() if word.startswith(incomplete)]
        return found if files is None else [*found, *paths(incomplete, files)]

    return complete


def completing_files(ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
    """The `shell_complete` of a path: the shell's own."""
    return [CompletionItem(incomplete, type="file")]


def names_in(folder: str, ending: str) -> list[str]:
    """Names, without their ending, of the data files of a folder of fasttrace, none of which is imported."""
    found = (Path(__file__).parents[1] / folder).glob(f"*{ending}")
    return sorted(path.name.removesuffix(ending) for path in found)


def paths(begun: str, ending: str) -> list[CompletionItem]:
    """Files with this ending, and folders, whose path begins so."""
    folder, _, name = begun.rpartition("/")
    where = Path(f"{folder}/" if "/" in begun else ".").expanduser()
    if not where.is_dir():
        return []
    inside = sorted(path for path in where.iterdir() if path.name.startswith(name) and path.name[0] != ".")
    before = f"{folder}/" if "/" in begun else ""
    return [
        CompletionItem(f"{before}{path.name}{'/' if path.is_dir() else ''}")
        for path in inside
        if path.is_dir() or path.name.endswith(ending)
    ]
