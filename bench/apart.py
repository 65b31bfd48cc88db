"""Runs tasks in a separate process, so that a kernel that faults or hangs does not stop later tasks.

After a fault every later GPU call fails in that process, so `apart` gives the remaining tasks to a new process. As a
pytest plugin (-p apart) this module does the same for pytest-xdist: the worker ends with the test that broke its GPU,
and xdist starts another worker.
"""

import multiprocessing
import os
import signal
from collections.abc import Callable, Iterable, Iterator, Sequence
from multiprocessing.connection import Connection
from typing import Any, TypeVar

import torch

Task = TypeVar("Task")
Rows = list[dict[str, Any]]


def gpu_is_lost() -> bool:
    """Whether a kernel's fault has made the GPU unusable to this process."""
    if not torch.cuda.is_initialized():
        return False
    try:
        torch.cuda.synchronize()
    except RuntimeError:
        return True
    return False


def apart(
    work: Callable[[Task], Iterable[dict[str, Any]]], tasks: Sequence[Task], seconds: float
) -> Iterator[tuple[Task, Rows, str | None]]:
    """Yield (task, its rows, None or why it failed) of every task, in order.

    work: a module-level function that yields the rows of a task. seconds: a task that yields no row for this long is
    stopped.
    """
    left = list(tasks)
    spawn = multiprocessing.get_context("spawn")  # a GPU cannot be used after a fork
    while left:
        ours, theirs = spawn.Pipe(duplex=False)
        process = spawn.Process(target=_worker, args=(work, left, theirs), daemon=True)
        process.start()
        theirs.close()
        try:
            if ours.recv() != ("ready", None):
                raise RuntimeError("apart: expected 'ready' as a worker's first message, got another")
            kind = ""
            while left and kind in ("", "done", "failed"):
                kind, rows, why = _one(ours, seconds, process)
                yield left.pop(0), rows, why
        finally:
            process.kill()
            process.join()


def _one(ours: Connection, seconds: float, process: Any) -> tuple[str, Rows, str | None]:
    """(how it ended, its rows, why it failed) of the worker's current task."""
    rows: Rows = []
    while True:
        if not ours.poll(seconds):
            return "hung", rows, f"nothing for {seconds:g} s"
        try:
            kind, value = ours.recv()
        except EOFError:
            process.join()
            return "died", rows, f"its process ended with code {process.exitcode}"
        if kind != "row":
            return kind, rows, value
        rows.append(value)


def _worker(work: Callable[[Task], Iterable[dict[str, Any]]], tasks: Sequence[Task], theirs: Connection) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the parent process ends the worker
    theirs.send(("ready", None))
    for task in tasks:
        try:
            for row in work(task):
                theirs.send(("row", row))
            theirs.send(("done", None))
        except Exception as error:
            reason = (str(error).strip() or type(error).__name__).splitlines()[0]
            lost = gpu_is_lost()
            theirs.send(("lost" if lost else "failed", reason))
            if lost:
                return


def pytest_runtest_logfinish(nodeid: str) -> None:
    """End a pytest-xdist worker whose GPU is lost. By then xdist has its report of the test."""
    if "PYTEST_XDIST_WORKER" in os.environ and gpu_is_lost():
        os._exit(1)
