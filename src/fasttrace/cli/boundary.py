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

# verb → (module, what it imports before it runs, its line in the help), in the order in which a study needs them
VERBS = {
    "facts": ("facts", "fasttrace.workflow", "List, show, profile, pair and test facts."),
    "trace": ("trace", "fasttrace.workflow", "Measure what restoring each window brings back."),
    "stats": ("trace", "fasttrace.workflow", "Collect the second moments of keys."),
    "edit": ("edit", "fasttrace.workflow", "Edit each fact at each layer, and score every edit."),
    "mass": ("edit", "fasttrace.workflow", "Edit many facts into one model, and score all of them."),
    "tune": ("edit", "fasttrace.workflow", "Choose the best of a hyperparameter's values."),
    "export": ("edit", "fasttrace.workflow", "Write an edited model that transformers can load."),
    "chat": ("chat", "fasttrace.editing", "Continue prompts, with an edited model or an unedited one."),
    "study": ("study", "fasttrace.study", "Trace, edit, analyse and report, as one resumable study."),
    "demo": ("study", "fasttrace.study", "Run the small study 'demo', from facts to report."),
    "status": ("status", "fasttrace.store", "Print what a running command does, and what its store has."),
    "merge": ("merge", "fasttrace.store", "Merge the stores of several machines into one."),
    "serve": ("serve", "fasttrace.store", "Serve a store to many processes at once."),
    "sql": ("sql", "fasttrace.store", "Query a store with SQL."),
    "regress": ("regress", "fasttrace.store", "Regress an edit score on layer, tracing effect or any column."),
    "tables": ("read", "fasttrace.store", "Print the paper's tables from the data of a store."),
    "figures": ("read", "fasttrace.store", "Draw the paper's figures from the data of a store."),
    "report": ("read", "fasttrace.store", "Write a report on a store as one HTML file."),
    "claims": ("claims", "fasttrace.store", "Print which of the paper's claims a store confirms or refutes."),
    "bench": ("bench", "fasttrace.benchmarks", "Time ops beside their reference and other ways."),
    "models": ("models", "fasttrace.models", "List the model types that are supported, and what a model takes."),
    "env": ("machine", "fasttrace.ops", "Print versions and devices, for a bug report."),
}


class _Verbs(click.Group):
    """The verbs. What a verb needs, torch above all, is imported once its words are read and do not ask for help."""

    def list_commands(self, ctx: click.Context | None) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context | None, name: str) -> click.Command | None:
        if name in VERBS and name not in self.commands:
            self.add_command(getattr(import_module(f".{VERBS[name][0]}", __package__), name))
        return self.commands.get(name)

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name, verb, rest = super().resolve_command(ctx, args)
        if name is not None and verb is not None and not ctx.resilient_parsing:
            own = click.Context(verb, ctx, name)
            given, _, _ = verb.make_parser(own).parse_args(list(rest))
            asks = verb.get_help_option(own)
            if asks is None or not given.get(asks.name):
                import_module(VERBS[name][1])
                signals.begin()  # all is imported
        return name, verb, rest

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl([(name, line) for name, (*_, line) in VERBS.items()])


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ft.__version__, prog_name="fasttrace")
def cli() -> None:
    """Trace facts in a language model, edit them, and test whether tracing tells where to edit."""


def run() -> int:
    """Run the verb of the command line, and return the exit code. An error prints one sentence."""
    try:
        cli(standalone_mode=False)
    except (Exception, KeyboardInterrupt) as error:
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
