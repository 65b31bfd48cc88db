"""What a command says of its progress: bars and workers as a terminal shows them, and lines for everything else."""

import logging
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console, RenderableType
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn
from rich.table import Table
from rich.text import Text

from .running import Doing
from .words import count, escaped

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


def progress_words(counts: str, speed: str = "", left: float | None = None, workers: int = 0, retries: int = 0) -> str:
    """How far a command is, such as "120 of 2,000 facts, 3.1/s, 10 min left, 4 workers, 1 retry"."""
    parts = (
        counts,
        speed,
        "" if left is None else f"{duration(left)} left",
        count(workers, "worker") if workers else "",
        count(retries, "retry", "retries") if retries else "",
    )
    return ", ".join(filter(None, parts))


def cluster_line(address: str, dashboard: str | None) -> str:
    """Where the workers and Ray's dashboard are."""
    where = "Ray runs on this machine" if address == "local" else f"Ray cluster: {address}"
    return where + (f", dashboard: {dashboard_url(dashboard)}" if dashboard else "")


def dashboard_url(dashboard: str) -> str:
    return dashboard if "://" in dashboard else f"http://{dashboard}"


def workers_line(workers: Sequence[Doing]) -> str:
    """How many workers there are, and what they do."""
    states = Counter(re.sub(r" \d+$", "", one.state) for one in workers)
    hosts = len({one.host for one in workers if one.host})
    where = f" on {count(hosts, 'machine')}" if hosts else ""
    what = ", ".join(f"{state}: {many:,}" for state, many in states.most_common())
    return f"{count(len(workers), 'worker')}{where} ({what})"


def worker_rows(workers: Sequence[Doing]) -> Iterator[RenderableType]:
    """A line for each worker, or where there are many, the numbers by state and those that take longest."""
    if len(workers) > MOST_ROWS:
        yield Text(workers_line(workers))
        workers = sorted((one for one in workers if one.state != "ready"), key=lambda one: -one.for_seconds)[:SLOWEST]
    rows = Table.grid(padding=(0, 2, 0, 0))
    for one in workers:
        words = (one.name, one.host, f"{one.state}, for {duration(one.for_seconds)}", f"{one.done:,} done")
        rows.add_row(*(Text(escaped(word)) for word in words))
    yield rows


def pieces_line(pieces_done: int, pieces: int, retries: int) -> str:
    """The last line of a display: "4 of 64 pieces, 1 retry"."""
    parts = (
        f"{pieces_done:,} of {pieces:,} pieces" if pieces else "",
        count(retries, "retry", "retries") if retries else "",
    )
    return ", ".join(filter(None, parts))


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
