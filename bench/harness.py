"""Shared by all benchmark scripts: rows written as they come, paths checked before a run, medians, peak memory.

fasttrace.benchmarks.result defines the rows, and the description of the machine and commit.
"""

import argparse
import functools
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import torch

from fasttrace.benchmarks.result import DEVICE, ROOT, BenchRow, about, bench_result, spread
from fasttrace.errors import UserError
from fasttrace.places import check_file, replacing

__all__ = [
    "DEVICE",
    "ROOT",
    "BenchRow",
    "Results",
    "about",
    "bench_result",
    "check_outputs",
    "command",
    "device",
    "fresh",
    "peak_bytes",
    "positive",
    "seconds",
    "spread",
    "write",
    "writes",
]

RESULTS = ROOT / "bench" / "results"
MADE = (ROOT / "build", RESULTS)  # the project's own folders, which a fresh clone may lack
PATIENCE = 5.0  # seconds to wait for a locked store, since a writer holds it only for a moment


def command(main: Callable[[], None]) -> Callable[[], None]:
    """`main` as a command: a UserError becomes one sentence on stderr and exit code 2, as in the fasttrace command."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except UserError as error:
            _leave(2, str(error))
        except KeyboardInterrupt:
            _leave(130, "stopped; the rows that were done are kept")
        except RuntimeError as error:
            if str(error) != "Query interrupted":  # DuckDB's message on Ctrl-C
                raise
            _leave(130, "stopped; the rows that were done are kept")

    return run


def _leave(code: int, why: str) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: {why}", file=sys.stderr)
    sys.exit(code)


def writes(add: Callable[..., object]) -> None:
    """Add --out and --store. add: `add_argument` of the script's parser."""
    add("--out", type=Path, metavar="FILE", help="write JSON here, not to bench/results/MACHINE/DATE-KIND.json")
    add("--store", type=Path, metavar="FILE", help="also add the rows to this store's relation benches")


def positive(text: str) -> int:
    """The type of an option whose value is a positive whole number."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number of at least 1, got {text!r}")
    return int(text)


def device(text: str) -> str:
    """The type of --device."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"expected a device that torch can use here, got {text!r}") from error
    return text


class Results:
    """The rows of one benchmark run. Each is written to the file and the store at once, so that a killed run keeps it.

    kind: part of the file's name if `out` is None. context: `about(…)`, which identifies the run in the store.
    Raises UserError where the file or the store cannot be written, so create it before measuring.
    """

    def __init__(self, kind: str, context: dict[str, Any], out: Path | None, store: Path | None = None) -> None:
        # Rounded here, so that record.py makes the same run from the file.
        self.context: dict[str, Any] = _rounded(context)
        self.rows: list[BenchRow] = []
        self.out, self.store = out or _default(kind, context), store
        check_outputs(self.out, store)

    def __enter__(self) -> "Results":
        return self

    def __exit__(self, *_: object) -> None:
        if self.rows:
            print(self)

    def __str__(self) -> str:
        return f"{len(self.rows)} rows in {self.out}" + (f" and {self.store}" if self.store else "")

    def add(self, *rows: BenchRow) -> None:
        """Add rows to the file and the store. Raises UserError where one can no longer be written."""
        new = [_rounded(row) for row in rows]
        self.rows += new
        _save(self.out, self.context, self.rows)
        if self.store is not None:
            from fasttrace.store import Store

            Store(self.store).add(bench_result(self.context, new))


def check_outputs(out: Path | None, store: Path | None = None) -> None:
    """Check that `out` can be written and a result added to `store`. Neither file is made or changed.

    Missing folders below build/ and bench/results are made. Raises UserError, in one sentence, if a check fails.
    """
    if out is not None:
        check_file(_place(out), makes_folder=_is_ours(out))
    if store is not None:
        if out is not None and _place(out) == _place(store):
            raise UserError(f"--out and --store: expected two files, got {out} for both")
        from fasttrace.store import Store

        if _is_ours(store):
            check_file(_place(store), makes_folder=True)
            store.parent.mkdir(parents=True, exist_ok=True)
        Store(store, timeout_s=PATIENCE).check()
    if out is not None and _is_ours(out):
        out.parent.mkdir(parents=True, exist_ok=True)


def _is_ours(path: Path) -> bool:
    """Whether the path is in one of the project's own folders, which are made if missing."""
    return any(_place(path).is_relative_to(own) for own in MADE)


def _place(path: Path) -> Path:
    """The path with its links resolved: replacing a file keeps the link to it."""
    return Path(os.path.realpath(path))


def seconds(call: Callable[[], object], rounds: int, *, warm: bool = True) -> BenchRow:
    """Median and quartiles of the seconds of `rounds` calls. warm: whether an untimed call precedes them."""
    if warm:
        call()
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return spread(taken)


def peak_bytes(call: Callable[[], object]) -> tuple[int, int]:
    """(resident bytes before, the most during call()), sampled every 2 ms, because not every kernel lets a process
    reset its high-water mark."""
    resident = lambda: int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")  # noqa: E731
    before = most = resident()
    done = threading.Event()

    def watch() -> None:
        nonlocal most
        while not done.wait(0.002):
            most = max(most, resident())

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        call()
    finally:
        done.set()
        watcher.join()
    return before, most


def fresh(script: str, *arguments: str) -> BenchRow:
    """Run a script in a new process and return its last line of output, read as JSON. If it fails, its last line on
    stderr becomes `error`: that a budget cannot hold one fact is a result too."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    if done.returncode == 0:
        row: BenchRow = json.loads(done.stdout.splitlines()[-1])
        return row
    return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}


def write(kind: str, rows: list[BenchRow], context: dict[str, Any], out: Path | None = None) -> Path:
    """Write all rows so far, for a run whose `context` still grows (others use `Results`). Returns the file."""
    path = out or _default(kind, context)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(path, context, rows)
    print(f"{len(rows)} rows in {path}")
    return path


def _default(kind: str, context: dict[str, Any]) -> Path:
    return RESULTS / str(context["machine"]) / f"{context['at'][:10]}-{kind}.json"


def _save(path: Path, context: dict[str, Any], rows: list[BenchRow]) -> None:
    """Write {"about", "rows"} as JSON with a row per line. An existing file is replaced atomically."""
    lines = ",\n".join("    " + json.dumps(_rounded(row), ensure_ascii=False) for row in rows)
    head = json.dumps(context, indent=2, ensure_ascii=False).replace("\n", "\n  ")
    text = f'{{\n  "about": {head},\n  "rows": [\n{lines}\n  ]\n}}\n'
    with replacing(path) as draft:
        draft.write_text(text, encoding="utf-8")


def _rounded(value: Any) -> Any:
    """Round floats to six digits. Further digits are noise and make the files hard to read."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return {key: _rounded(one) for key, one in value.items()} if isinstance(value, dict) else value
