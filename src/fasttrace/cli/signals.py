"""What ends a command from outside: Ctrl-C, SIGTERM (`kill`, a scheduler) and SIGHUP (its terminal is gone).

Imports nothing large, because the console script listens before a verb imports torch.
"""

import os
import signal
import sys
import threading
import time
from types import FrameType

NUMBERS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
CLEANING_SECONDS = 10.0

_stopped_at: float | None = None
_stopped_by: int | None = None
_begun = False


class Stopped(KeyboardInterrupt):
    """Raised where a signal arrives, so that all three end a computation as Ctrl-C does. number: the signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def listen() -> None:
    """From now on, let the signals end this process. A signal that is ignored, as under nohup, stays ignored."""
    global _stopped_at, _stopped_by, _begun
    _stopped_at, _stopped_by, _begun = None, None, False
    if threading.current_thread() is not threading.main_thread():
        return  # only the main thread may
    for number in NUMBERS:
        if signal.getsignal(number) is not signal.SIG_IGN:
            signal.signal(number, _arrived)


def begin() -> None:
    """From now on a signal raises Stopped. Before, it ends the process at once: there is nothing to clean up."""
    global _begun
    _begun = True
    sys.unraisablehook = _unraisable


def end() -> None:
    """From now on no signal does anything: the work is done, and Python is about to end."""
    sys.unraisablehook = sys.__unraisablehook__
    for number in NUMBERS:
        if signal.getsignal(number) is _arrived:
            signal.signal(number, signal.SIG_IGN)


def go_on(stop: KeyboardInterrupt) -> None:
    """Listen again after a Ctrl-C that ended only a query. Raises any other signal's `stop` again."""
    if exit_code(stop) != 128 + signal.SIGINT:
        raise stop
    _listen_again()


def _listen_again() -> None:
    global _stopped_at
    _stopped_at = None


def exit_code(stop: BaseException) -> int:
    """The exit code of a command that `stop` ended: 130, 143 or 129, as a shell would say."""
    return 128 + (stop.number if isinstance(stop, Stopped) else signal.SIGINT)


def behind(error: BaseException) -> KeyboardInterrupt | None:
    """The stop that `error` is about. DuckDB and Ray raise an error of their own in place of one that arrives in a
    query or a wait."""
    own = isinstance(error, RuntimeError) and str(error) == "Query interrupted"
    if _stopped_by is not None and (own or type(error) is KeyboardInterrupt):
        return Stopped(_stopped_by)
    return error if isinstance(error, KeyboardInterrupt) else None


def _unraisable(lost: "sys.UnraisableHookArgs") -> None:
    """Raise Stopped once more, a moment later, where it was raised in a finaliser, which can only print it."""
    if not isinstance(lost.exc_value, Stopped):
        sys.__unraisablehook__(lost)
        return
    stop = Stopped(lost.exc_value.number)
    _listen_again()

    def again(number: int, frame: FrameType | None) -> None:
        _arrived(stop.number, frame)

    if hasattr(signal, "setitimer"):
        signal.signal(signal.SIGALRM, again)
        signal.setitimer(signal.ITIMER_REAL, 0.01)


def _arrived(number: int, frame: FrameType | None) -> None:
    global _stopped_at, _stopped_by
    if not _begun:
        # An exception inside an import may be printed by whatever imports, or lost.
        os.write(2, b"fasttrace: stopped before it began\n")
        os._exit(128 + number)
    now = time.monotonic()
    # A second one would interrupt the cleaning up. Later it is needed, in case the first one was lost.
    if _stopped_at is None or now - _stopped_at >= CLEANING_SECONDS:
        _stopped_at, _stopped_by = now, number
        raise Stopped(number)
