"""The command line: verbs that parse, call and print. Tables go to stdout, progress and errors to stderr.

Nothing large is imported until a verb is named, and it imports torch once `main` listens to Ctrl-C.
"""

import os
import sys
from typing import TYPE_CHECKING, Any

from . import signals

if TYPE_CHECKING:
    from .boundary import cli

__all__ = ["cli", "main"]


def main() -> None:
    """Entry point. A user's error prints one sentence and exits with code 2. Ctrl-C, SIGTERM and SIGHUP keep what was
    committed, and exit with 130, 143 and 129."""
    # On a GPU a sweep's rows grow from layer to layer. With blocks of fixed size torch would reserve three times the
    # memory in use (bench/LOG.md).
    os.environ.setdefault("PYTORCH_CUDA_ALLOC_CONF", "expandable_segments:True")
    _open_standard_streams()
    signals.listen()
    from .boundary import run

    try:
        code = run()
    finally:
        signals.end()
    if code:
        sys.exit(code)


def _open_standard_streams() -> None:
    """Open what is closed of stdin, stdout and stderr. Otherwise the next file to be opened would be one of them, and
    text meant for the stream would be written into a store."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            # Takes the lowest number that is free. Rows for a closed stdout must not get lost without a word.
            os.open(os.devnull, os.O_RDONLY if name == "stdout" else os.O_RDWR)
            setattr(sys, name, os.fdopen(number, "w" if number else "r", closefd=False))


def __getattr__(name: str) -> Any:
    if name == "cli":
        from .boundary import cli

        return cli
    raise AttributeError(f"module 'fasttrace.cli' has no attribute '{name}'")
