"""What a command says of its progress: bars and workers as a terminal shows them, and lines for everything else."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from fasttrace.cluster.jobs import Member, State

MOST_ROWS = 16  # workers that a display has a line for
SLOWEST = 3  # workers that it names where there are more
SPEED_SECONDS = 600.0  # of the past that a rate is taken over


def progress_bars(console: Console, now: Callable[[], float], left: Callable[[Task], float | None]) -> Progress:
    """Bars with counts, rates and times. It draws nothing by itself. left: the seconds that a task still takes."""
    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        _Words(lambda task: counted(task.completed, task.total, task.fields["unit"])),
        _Words(rate),
        _Words(lambda task: duration(elapsed(task))),
        _Words(lambda task: "" if (seconds := left(task)) is None else f"{duration(seconds)} left"),
    )
    return Progress(*columns, console=console, auto_refresh=False, get_time=now, speed_estimate_period=SPEED_SECONDS)


class _Words(ProgressColumn):
    """Words about a task."""

    def __init__(self, words: Callable[[Task], str]) -> None:
        super().__init__()
        self.words = words

    def render(self, task: Task) -> Text:
        return Text(self.words(task))


def rate(task: Task) -> str:
    """Items per second, or seconds per item, such as "3.1/s". Empty where it is not known yet."""
    speed = task.finished_speed or task.speed
    if not speed:
        return ""
    return f"{speed:,.1f}/s" if speed >= 1 else f"{1 / speed:,.1f} s each"


def elapsed(task: Task) -> float:
    """The seconds that a task has taken, or took."""
    return (task.finished_time if task.finished else task.elapsed) or 0.0


def counted(done: float, total: float | None, unit: str) -> str:
    """ "120 of 2,000 facts", or without a total "120 facts"."""
    return f"{done:,.0f} {unit}" if total is None else f"{done:,.0f} of {total:,.0f} {unit}"


def duration(seconds: float) -> str:
    """A time in words: "40 s", "10 min", "3 h 20 min", "2 d 4 h"."""
    minutes, hours = round(seconds / 60), round(seconds / 3600)
    if seconds < 59.5:
        return f"{seconds:.0f} s"
    if minutes < 60:
        return f"{minutes} min"
    if minutes < 24 * 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{hours // 24} d {hours % 24} h"


def several(count: int, one: str, more: str) -> str:
    """ "1 retry", "2 retries"."""
    return f"{count:,} {one if count == 1 else more}"


def line(task: Task, left: float | None, state: "State | None", *, ended: bool = False) -> str:
    """A task as one line, such as "Tracing: 120 of 2,000 facts, 3.1/s, 10 min left, 4 workers, 1 retry".

    ended: whether it says how long the task took in place of what is left.
    """
    parts = [counted(task.completed, task.total, task.fields["unit"])]
    if ended:
        parts[0] += f" in {duration(elapsed(task))}"
    parts.append(rate(task))
    if not ended and left is not None:
        parts.append(f"{duration(left)} left")
    if state is not None:
        parts.append(several(len(state.members), "worker", "workers"))
        parts.append(several(state.retries, "retry", "retries") if state.retries else "")
    return f"{task.description}: {', '.join(filter(None, parts))}"


def cluster_line(state: "State") -> str:
    """Where the workers and Ray's dashboard are."""
    where = "Ray runs on this machine" if state.address == "local" else f"Ray cluster: {state.address}"
    return where + (f", dashboard: {_url(state.dashboard)}" if state.dashboard else "")


def workers_line(members: "Sequence[Member]") -> str:
    """How many workers there are, and what they do."""
    states = Counter(re.sub(r" \d+$", "", one.state) for one in members)
    hosts = len({one.host for one in members if one.host})
    where = f" on {several(hosts, 'machine', 'machines')}" if hosts else ""
    what = ", ".join(f"{state}: {count:,}" for state, count in states.most_common())
    return f"{several(len(members), 'worker', 'workers')}{where} ({what})"


def workers(state: "State", now: float) -> Iterator[RenderableType]:
    """The lines of a display about the workers: one for each, or the numbers by state and those that take longest."""
    members = list(state.members)
    if len(members) > MOST_ROWS:
        yield Text(workers_line(members))
        members = sorted((one for one in members if one.state != "ready"), key=lambda one: one.since)[:SLOWEST]
    rows = Table.grid(padding=(0, 2, 0, 0))
    for one in members:
        words = (one.name, one.host, f"{one.state}, for {duration(now - one.since)}", f"{one.done:,} done")
        rows.add_row(*map(Text, words))
    yield rows
    pieces = f"{state.pieces_done:,} of {state.pieces:,} pieces" if state.pieces else ""
    retries = several(state.retries, "retry", "retries") if state.retries else ""
    if pieces or retries:
        yield Text(", ".join(filter(None, (pieces, retries))))


def _url(dashboard: str) -> str:
    return dashboard if "://" in dashboard else f"http://{dashboard}"


class _Said(logging.Handler):
    """Passes the messages of a logger on, each as one line."""

    def __init__(self, say: Callable[[str], None]) -> None:
        super().__init__()
        self.say = say

    def emit(self, record: logging.LogRecord) -> None:
        self.say(record.getMessage())


@contextmanager
def saying(logger: str, say: Callable[[str], None]) -> Iterator[None]:
    """Say what a logger says at level INFO and above while the block runs."""
    log, handler = logging.getLogger(logger), _Said(say)
    before = log.level
    log.addHandler(handler)
    log.setLevel(logging.INFO)
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.setLevel(before)
