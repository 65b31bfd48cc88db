"""What every benchmark script shares: rows that are written as they come, places checked before, medians, peak memory.

Rows, and the machine and commit they are of, are fasttrace.benchmarks.result's.
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
PATIENCE = 5.0  # seconds that a locked store is waited for: whoever writes into one holds it for a moment


def command(main: Callable[[], None]) -> Callable[[], None]:
    """`main` as a command: what its user did wrong is one sentence on stderr and exit code 2, as of the verbs."""

    @functools.wraps(main)
    def run() -> None:
        try:
            main()
        except UserError as error:
            _leave(2, str(error))
        except KeyboardInterrupt:
            _leave(130, "stopped; the rows that were done are kept")
        except RuntimeError as error:
            if str(error) != "Query interrupted":  # DuckDB's word for Ctrl-C
                raise
            _leave(130, "stopped; the rows that were done are kept")

    return run


def _leave(code: int, why: str) -> NoReturn:
    print(f"{Path(sys.argv[0]).name}: {why}", file=sys.stderr)
    sys.exit(code)


def writes(add: Callable[..., object]) -> None:
    """Adds --out and --store. add: `add_argument` of the script's parser."""
    add("--out", type=Path, metavar="FILE", help="JSON, instead of bench/results/MACHINE/DATE-KIND.json")
    add("--store", type=Path, metavar="FILE", help="the rows into this store's relation benches too")


def positive(text: str) -> int:
    """The type of an option that counts things."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number from 1 on, got {text!r}")
    return int(text)


def device(text: str) -> str:
    """The type of --device."""
    try:
        torch.empty(0, device=text)
    except (RuntimeError, AssertionError) as error:
        raise argparse.ArgumentTypeError(f"expected a device that torch has here, got {text!r}") from error
    return text


class Results:
    """The rows of one run of a benchmark, in its file and its store as they come: a run that is killed keeps them.

    kind: names the file where `out` is None. context: `about(…)`, which is what the store knows the run by.
    Raises UserError where the file or the store cannot be written: make it before anything is measured.
    """

    def __init__(self, kind: str, context: dict[str, Any], out: Path | None, store: Path | None = None) -> None:
        # Rounded here, so that the file put into a store later is the same run.
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
        """Adds rows to both. Raises UserError where one cannot be written any longer."""
        new = [_rounded(row) for row in rows]
        self.rows += new
        _save(self.out, self.context, self.rows)
        if self.store is not None:
            from fasttrace.store import Store

            Store(self.store).add(bench_result(self.context, new))


def check_outputs(out: Path | None, store: Path | None = None) -> None:
    """Makes folders below build/ and bench/results where the two are to be there and have none.

    Raises UserError, one sentence, where `out` could not be written or a result not be added to `store`; neither is
    made or changed.
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
    """Whether its folder is the project's own, to be made where it is missing."""
    return any(_place(path).is_relative_to(own) for own in MADE)


def _place(path: Path) -> Path:
    """Where a link leads, so that the link stays when the file is replaced."""
    return Path(os.path.realpath(path))


def seconds(call: Callable[[], object], rounds: int, *, warm: bool = True) -> BenchRow:
    """Median and quartiles of `rounds` calls; warm: after one that is not counted."""
    if warm:
        call()
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return spread(taken)


def peak_bytes(call: Callable[[], object]) -> tuple[int, int]:
    """(bytes resident before, most while call() ran), read every 2 ms: not every kernel lets a process set its
    high-water mark back."""
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
    """What a script printed last, as JSON, in a process of its own; where that failed, its last words as `error`: a
    budget that cannot hold one fact is refused with a sentence, which is a result."""
    done = subprocess.run([sys.executable, script, *arguments], capture_output=True, text=True)
    if done.returncode == 0:
        row: BenchRow = json.loads(done.stdout.splitlines()[-1])
        return row
    return {"error": (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]}


def write(kind: str, rows: list[BenchRow], context: dict[str, Any], out: Path | None = None) -> Path:
    """All rows so far, for a run whose `context` grows as it goes; else see `Results`. Returns the file."""
    path = out or _default(kind, context)
    path.parent.mkdir(parents=True, exist_ok=True)
    _save(path, context, rows)
    print(f"{len(rows)} rows in {path}")
    return path


def _default(kind: str, context: dict[str, Any]) -> Path:
    return RESULTS / str(context["machine"]) / f"{context['at'][:10]}-{kind}.json"


def _save(path: Path, context: dict[str, Any], rows: list[BenchRow]) -> None:
    """{"about", "rows"} as JSON, a row a line; the file that was there is replaced whole."""
    lines = ",\n".join("    " + json.dumps(_rounded(row), ensure_ascii=False) for row in rows)
    head = json.dumps(context, indent=2, ensure_ascii=False).replace("\n", "\n  ")
    text = f'{{\n  "about": {head},\n  "rows": [\n{lines}\n  ]\n}}\n'
    try:
        with replacing(path) as draft:
            draft.write_text(text, encoding="utf-8")
    except OSError as error:
        raise UserError(f"{path} cannot be written: {error.strerror}") from error


def _rounded(value: Any) -> Any:
    """Floats to six digits: what is beyond is noise, and makes the files hard to read."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return {key: _rounded(one) for key, one in value.items()} if isinstance(value, dict) else value
