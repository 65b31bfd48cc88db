"""The command line: verbs that parse, call and print. Tables go to stdout, progress and errors to stderr."""

import errno
import os
import sys
from contextlib import suppress
from typing import TextIO

import click

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.places import why_full

from . import bench, edit, machine, read, regress, sql, study, trace

__all__ = ["cli", "main"]

VERBS = (
    trace.facts,
    trace.trace,
    trace.stats,
    edit.edit,
    edit.mass,
    edit.tune,
    edit.export,
    study.study,
    study.demo,
    sql.sql,
    regress.regress,
    read.tables,
    read.figures,
    read.report,
    bench.bench,
    machine.env,
)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(ft.__version__, prog_name="fasttrace")
def cli() -> None:
    """Trace facts in a language model, edit them, and test whether tracing tells where to edit."""


for verb in VERBS:
    cli.add_command(verb)


def main() -> None:
    """Entry point. A user's error prints one sentence and exits with code 2. Ctrl-C keeps what was committed."""
    # On a GPU a sweep's rows grow from layer to layer. With blocks of fixed size torch would reserve three times the
    # memory in use (bench/LOG.md).
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    _open_standard_streams()
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"fasttrace: {error.format_message()}", err=True)
        sys.exit(2)
    except BrokenPipeError:  # the reader has closed our output, as `head` does
        _drop(sys.stdout)
        sys.exit(1)
    except OSError as error:
        text = _sentence(error)
        with suppress(OSError):  # where stderr is full, nobody can be told
            click.echo(f"fasttrace: {text}", err=True)
        sys.exit(2)
    except click.exceptions.Abort:
        _interrupted()
    except KeyboardInterrupt:
        _interrupted()
    except UserError as error:
        with suppress(OSError):
            click.echo(f"fasttrace: {error}", err=True)
        sys.exit(2)


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


def _open_standard_streams() -> None:
    """Open what is closed of stdin, stdout and stderr. Otherwise the next file to be opened would be one of them, and
    text meant for the stream would be written into a store."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # takes the lowest number that is free
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def _interrupted() -> None:
    click.echo(
        "fasttrace: stopped; finished work is in the store (a mass edit only as a whole), and the same command "
        "continues from there",
        err=True,
    )
    sys.exit(130)
