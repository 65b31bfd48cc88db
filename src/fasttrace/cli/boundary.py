"""All verbs, and the one place where errors become sentences and exit codes."""

import errno
import os
import sys
from collections.abc import Iterator
from contextlib import suppress
from importlib import import_module
from typing import TextIO

import click

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.memory import lacks_memory, memory_line
from fasttrace.places import why_full

from . import signals
from .help import asked, suggesting
from .verbs import FIRST, GROUPS, VERBS


class _Verbs(click.Group):
    """The verbs. What a verb needs, torch above all, is imported once its words are read and do not ask for help."""

    def list_commands(self, ctx: click.Context | None) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context | None, name: str) -> click.Command | None:
        if name in VERBS and name not in self.commands:
            verb = getattr(import_module(f".{VERBS[name].module}", __package__), name)
            verb.example = f"fasttrace {VERBS[name].example}"
            self.add_command(verb)
        return self.commands.get(name)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        with suggesting(self):
            return super().parse_args(ctx, args)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        if args[0] not in VERBS and not ctx.resilient_parsing:
            raise click.UsageError(f"No such command '{args[0]}'.{asked(args[0], VERBS)}")
        name, verb, rest = super().resolve_command(ctx, args)
        if name is not None and verb is not None and not ctx.resilient_parsing:
            own = click.Context(verb, ctx, name)
            with suggesting(verb):
                given, _, _ = verb.make_parser(own).parse_args(list(rest))
            asks = verb.get_help_option(own)
            if asks is None or not given.get(asks.name):
                import_module(VERBS[name].needs)
                signals.begin()  # all is imported
        return name, verb, rest

    def format_help(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        formatter.write(f"Example: fasttrace {FIRST}\n\n")
        super().format_help(ctx, formatter)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        for heading, group in GROUPS.items():
            with formatter.section(heading):
                formatter.write_dl([(f"{name:<10}", row.line) for name, row in group.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100})
@click.version_option(ft.__version__, prog_name="fasttrace")
def cli() -> None:
    """Trace facts in a language model, edit them, and test whether tracing tells where to edit.

    `fasttrace VERB --help` explains a verb, beginning with an example.
    """


def run() -> int:
    """Run the verb of the command line, and return the exit code. An error prints one sentence."""
    try:
        cli(standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
        if isinstance(error, click.exceptions.NoArgsIsHelpError):
            click.echo(error.format_message(), err=True)
            return 2
        code, text = _ended_by(error)
        if text is None:
            raise
        if text:
            with suppress(OSError):  # where stderr is full or gone, nobody can be told
                click.echo(f"fasttrace: {text}", err=True)
        for stream in (sys.stdout, sys.stderr):
            try:
                stream.flush()
            except OSError:
                _drop(stream)
        return code
    return 0


def _ended_by(error: BaseException) -> tuple[int, str | None]:
    """(exit code, sentence) for what ended a verb. The sentence is empty where there is nothing to say, and None for an
    error of fasttrace itself."""
    chain = list(_causes(error))
    if stops := [one for one in (signals.behind(link) or link for link in chain) if isinstance(one, _STOPS)]:
        return signals.exit_code(stops[-1]), STOPPED
    if short := next((one for one in chain if lacks_memory(one)), None):
        return 2, f"the memory does not suffice ({memory_line(short)}): {_less_memory()}"
    if isinstance(error, click.ClickException):
        return 2, error.format_message()
    if isinstance(error, BrokenPipeError):  # the reader has closed our output, as `head` does
        _drop(sys.stdout)
        return 1, ""
    if isinstance(error, OSError):
        return 2, _sentence(error)
    return 2, str(error) if isinstance(error, UserError) else None


STOPPED = (
    "stopped; finished work is in the store (a mass edit only as a whole), and the same command continues from there"
)
_STOPS = KeyboardInterrupt | click.Abort


def _causes(error: BaseException | None) -> Iterator[BaseException]:
    """The error, what caused it, and so on."""
    while error is not None:
        yield error
        error = error.__cause__ or (None if error.__suppress_context__ else error.__context__)


def _less_memory() -> str:
    """What to do where memory does not suffice."""
    verb = next((cli.commands[word] for word in sys.argv[1:] if word in cli.commands), None)
    if verb is not None and any("--memory" in option.opts for option in verb.params):
        return "run the same command with a smaller --memory, or on a machine with more"
    return "this command has no --memory to lower, and needs a machine with more"


def _sentence(error: OSError) -> str:
    """The sentence for an error of the system. Every file is named, so a write that names none was to stdout: to stderr
    nothing more can be said."""
    if error.filename is not None:
        return f"'{error.filename}' could not be read or written: {why_full(error) or error.strerror}"
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EBADF):
        _drop(sys.stdout)
        return f"stdout cannot be written: {why_full(error) or error.strerror}"
    return (str(error).strip().splitlines() or [type(error).__name__])[0]


def _drop(stream: TextIO) -> None:
    """Send what a stream still holds nowhere, so that its last flush does not fail."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
