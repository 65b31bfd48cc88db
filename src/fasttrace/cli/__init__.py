"""The command line: verbs that parse, call and print. Tables go to stdout, progress and errors to stderr."""

import os
import sys

import click

import fasttrace as ft
from fasttrace.errors import UserError

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
    try:
        cli(standalone_mode=False)
    except click.ClickException as error:
        click.echo(f"fasttrace: {error.format_message()}", err=True)
        sys.exit(2)
    except BrokenPipeError:  # the reader has closed our output, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that the last flush does not fail
        sys.exit(1)
    except OSError as error:
        click.echo(f"fasttrace: '{error.filename}' could not be read or written: {error.strerror}", err=True)
        sys.exit(2)
    except click.exceptions.Abort:
        _interrupted()
    except KeyboardInterrupt:
        _interrupted()
    except UserError as error:
        click.echo(f"fasttrace: {error}", err=True)
        sys.exit(2)


def _interrupted() -> None:
    click.echo(
        "fasttrace: stopped; finished work is in the store (a mass edit only as a whole), and the same command "
        "continues from there",
        err=True,
    )
    sys.exit(130)
