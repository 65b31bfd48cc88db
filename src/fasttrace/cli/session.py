"""A prompt on a terminal: reads lines, prints their answers, and keeps a history. Shared by `sql` and `chat`."""

import os
from collections.abc import Callable
from pathlib import Path

import click
from prompt_toolkit import PromptSession
from prompt_toolkit.history import FileHistory, History, InMemoryHistory

from fasttrace.errors import UserError

from . import signals


def converse(session: PromptSession[str], answer: Callable[[str], str]) -> None:
    """Print the answer to every line until Ctrl-D or .quit. An answer's UserError is printed as one sentence."""
    click.echo("Type .help for help, or Ctrl-D to leave.", err=True)
    while True:
        try:
            line = session.prompt("fasttrace> ").strip()
            if line in (".quit", ".exit"):
                return
            if line:
                click.echo(answer(line), nl=False)
        except EOFError:
            return
        except KeyboardInterrupt as stop:
            signals.go_on(stop)
        except UserError as error:
            click.echo(f"fasttrace: {error}", err=True)


def history(verb: str) -> History:
    """The history of all prompts of a verb, in the user's state folder. If that cannot be written, that of this
    prompt."""
    state = Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local" / "state")
    path = state / "fasttrace" / f"{verb}_history"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch(mode=0o600)
    except OSError as error:
        click.echo(f"fasttrace: no history is kept: '{path}' cannot be written: {error.strerror}", err=True)
        return InMemoryHistory()
    return FileHistory(path)
