"""Shows what a computation does while it runs: on a terminal, in a notebook, as lines elsewhere, and in a file beside
the store of a command."""

import logging
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING

from rich.console import Console, Group
from rich.errors import LiveError
from rich.live import Live
from rich.progress import Progress, Task, TaskID
from rich.text import Text

from .page import Page, in_notebook
from .progress import (
    cluster_line,
    counted,
    duration,
    elapsed,
    pieces_line,
    progress_bars,
    progress_words,
    rate,
    saying,
    worker_rows,
    workers_line,
)
from .running import Doing, Status, StatusFile

if TYPE_CHECKING:
    from fasttrace.cluster.jobs import State

log = logging.getLogger(__name__)
FRAME_SECONDS = 0.25  # between two refreshes of a terminal
BEAT_SECONDS = 1.0  # between two looks at the clock without one
LINE_SECONDS = 60.0  # between two lines without a terminal
QUIET_SECONDS = 10.0  # for which a bar without workers says nothing there: a quick command has no such lines
STATUS_SECONDS = 2.0  # between two writes of the status file
IDLE_SECONDS = 10.0  # after its last tick, a pool is no longer shown
MOST_SAID = 5  # sentences that the status file keeps


class Watch:
    """Shows progress on stderr while its `with` block runs, and writes the status file of a store.

    A terminal has one display of bars and workers. Otherwise a bar has a line at its start, one a minute and one at its
    end. A thread redraws and writes, because computations report only now and then.

    store: None without one. verb: the command's, None for a call in Python, which shows its bars and says nothing else.
    lines: whether lines are printed where there is no display. now: the clock.
    """

    def __init__(
        self,
        store: str | Path | None,
        verb: str | None,
        *,
        lines: bool = True,
        console: Console | None = None,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self.verb, self.lines, self.now = verb, lines, now
        self.console = Console(stderr=True) if console is None else console
        # Rich also takes a log for a terminal where FORCE_COLOR is set, as CI does.
        self.is_live = self.console.is_interactive and self.console.file.isatty()
        self.is_page = console is None and in_notebook()
        self.file = None if store is None else StatusFile.of(store)
        self.begun = datetime.now(UTC)
        self.state: State | None = None
        self.bars = self._no_bars()
        self.open: list[TaskID] = []
        self.named: set[TaskID] = set()  # the bars of which a line was printed
        self.live: Live | Page | None = None
        self.ticked = 0.0
        self.next_line = self.next_status = now()
        self.said: deque[str] = deque(maxlen=MOST_SAID)
        self._turn = threading.RLock()
        self._closed = threading.Event()
        self._thread = threading.Thread(target=self._beats, daemon=True, name="fasttrace-watch")

    def __enter__(self) -> "Watch":
        self.next_status = self.now() + STATUS_SECONDS / 2
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closed.set()
        self._thread.join(timeout=10.0)  # it may wait for a slow disk
        with self._turn:
            self._hide()
        if self.file is not None:
            self.file.remove()

    @contextmanager
    def bar(self, title: str, total: int | None, unit: str = "facts") -> Iterator[Callable[[int], None]]:
        """Show a bar. Yields a function to call as f(n) after n more items. unit: what the items are."""
        task = self._begin(title, total, unit)
        try:
            yield lambda n: self.bars.advance(task, n)
        finally:
            self._end(task)

    @contextmanager
    def stages(self) -> Iterator[Callable[[str, int, int], None]]:
        """Show a bar per stage, and what will be collected. Yields a function to call as f(stage, done, total)."""
        tasks: dict[str, TaskID] = {}

        def report(stage: str, done: int, total: int) -> None:
            if stage not in tasks:
                tasks[stage] = self._begin(f"Moments: {stage}", total, "tokens")
            self.bars.update(tasks[stage], completed=done, total=total)

        with nullcontext() if self.verb is None else saying("fasttrace.editing", self.say):
            try:
                yield report
            finally:
                for task in tasks.values():
                    self._end(task)

    def tick(self, state: "State") -> None:
        """Show what a pool is doing, and say what it has to say. A pool calls this about twice a second."""
        if self.state is None:
            self._say_if_asked(cluster_line(state.address, state.dashboard))
            self.next_line = self.now() + (0.0 if self.open else LINE_SECONDS)
        self.state, self.ticked = state, self.now()
        while state.said:
            self.said.append(text := state.said.pop(0))
            self._say_if_asked(text)
        self.beat()

    def say(self, text: str) -> None:
        """Print a sentence on stderr, above the display."""
        with self._turn, suppress(OSError):  # where stderr is full or gone, nobody can be told
            self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _say_if_asked(self, text: str) -> None:
        """Print a sentence of a pool: a command does, and a call in Python logs it."""
        if self.verb is not None:
            self.say(text)
        else:
            log.info("%s", text)

    def beat(self) -> None:
        """Do what is due: refresh the display or print a line, and write the status file."""
        now = self.now()
        with self._turn:
            if self.is_live or self.is_page:
                self._show()
            elif self.lines and now >= self.next_line:
                self._say_line()
            due = self.file is not None and now >= self.next_status
            status = self.status() if due else None
            if due:
                self.next_status = now + STATUS_SECONDS
        if self.file is not None and status is not None:
            self.file.write(status)

    def status(self) -> Status:
        """What the command does, for its status file."""
        task, state = self._current(), self.state
        left = None if task is None else self._left(task)
        return Status(
            verb=self.verb or "python",
            title=None if task is None else task.description,
            unit=None if task is None else task.fields["unit"],
            done=None if task is None else int(task.completed),
            total=None if task is None or task.total is None else int(task.total),
            begun=self.begun,
            seconds_left=None if left is None else round(left),
            retries=0 if state is None else state.retries,
            said=list(self.said),
            dashboard=None if state is None else state.dashboard,
            workers=self._workers(),
        )

    def _begin(self, title: str, total: int | None, unit: str) -> TaskID:
        with self._turn:
            task = self.bars.add_task(title, total=total, unit=unit)
            self.open.append(task)
            self.next_line = self.now() + (QUIET_SECONDS if self.state is None else 0.0)
        self.beat()
        return task

    def _end(self, number: TaskID) -> None:
        with self._turn:
            self.bars.stop_task(number)
            self.open.remove(number)
            if number in self.named:
                self.say(self._line(self._task(number), ended=True))
            if not self.open:
                self._hide()
                self.bars, self.named = self._no_bars(), set()
                self.next_line = self.now() + LINE_SECONDS

    def _say_line(self) -> None:
        """Print the line that is due."""
        self.next_line = self.now() + LINE_SECONDS
        task = self._current()
        if task is not None:
            self.named.add(task.id)
            self.say(self._line(task))
        elif workers := self._workers():
            self.say(workers_line(workers))

    def _line(self, task: Task, *, ended: bool = False) -> str:
        """A bar as a line, such as "Tracing: 120 of 2,000 facts, 3.1/s, 10 min left". ended: whether it says how long
        the bar took."""
        counts = counted(task.completed, task.total, task.fields["unit"])
        counts += f" in {duration(elapsed(task))}" if ended else ""
        pool, left = self._pool(), self._left(task)
        retries = 0 if pool is None else pool.retries
        return f"{task.description}: {progress_words(counts, rate(task), left, len(self._workers()), retries)}"

    def _show(self) -> None:
        """Refresh the display, which is there while a bar is open or a pool is at work."""
        if not (self.open or self._pool()):
            self._hide()
            return
        with suppress(OSError):
            if self.live is None:
                live = Page(self._drawn) if self.is_page else self._screen()
                try:
                    live.start()
                except LiveError:  # the caller has a display of rich already
                    self.is_live = self.lines = False
                    return
                self.live = live
            self.live.refresh()

    def _screen(self) -> Live:
        # What is printed to stdout must not go to stderr, unless they are one screen.
        shares = sys.stdout.isatty()
        return Live(console=self.console, auto_refresh=False, redirect_stdout=shares, get_renderable=self._drawn)

    def _hide(self) -> None:
        """End the display. Of its last frame, the bars stay."""
        live, self.live = self.live, None
        if live is not None:
            live.transient = not self.bars.tasks
            with suppress(OSError):
                live.stop()

    def _drawn(self) -> Group:
        bars = [self.bars.get_renderable()] if self.bars.tasks else []
        if self.live is None or (pool := self._pool()) is None:
            return Group(*bars)
        last = pieces_line(pool.pieces_done, pool.pieces, pool.retries)
        return Group(*bars, *worker_rows(self._workers()), *([Text(last)] if last else []))

    def _no_bars(self) -> Progress:
        return progress_bars(self.console, self.now, self._left)

    def _task(self, number: TaskID) -> Task:
        [task] = [one for one in self.bars.tasks if one.id == number]
        return task

    def _current(self) -> Task | None:
        """The bar that was opened last, while it is open."""
        return self._task(self.open[-1]) if self.open else None

    def _left(self, task: Task) -> float | None:
        """The seconds that a bar still takes: by the cost of its pieces if a pool computes them."""
        if task.finished or task.stop_time is not None:
            return None
        pool = self._pool()
        if pool is not None and pool.pieces_done < pool.pieces:
            return pool.seconds_left(self.now())
        return task.time_remaining

    def _pool(self) -> "State | None":
        """What a pool is doing, while one is at work."""
        return self.state if self.now() - self.ticked < IDLE_SECONDS else None

    def _workers(self) -> list[Doing]:
        """What its workers do."""
        pool, now = self._pool(), self.now()
        return [
            Doing(one.name, one.host, one.pid, one.state, max(0, round(now - one.since)), one.done)
            for one in ([] if pool is None else list(pool.members))
        ]

    def _beats(self) -> None:
        while not self._closed.wait(FRAME_SECONDS if self.is_live or self.is_page else BEAT_SECONDS):
            self.beat()
