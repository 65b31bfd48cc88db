"""What every benchmark script shares: medians, peak memory, JSON under results/.

Rows, and the machine and commit they are of, are fasttrace.benchmarks.result's.
"""

import json
import os
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from fasttrace.benchmarks.result import DEVICE, ROOT, Row, about, bench_result, spread

__all__ = ["DEVICE", "ROOT", "Row", "about", "bench_result", "peak_bytes", "seconds", "spread", "write"]

RESULTS = ROOT / "bench" / "results"


def seconds(call: Callable[[], object], rounds: int, *, warm: bool = True) -> Row:
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


def write(kind: str, rows: list[Row], told: dict[str, Any], out: Path | None = None) -> Path:
    """{"about", "rows"} as JSON, a row a line, to `out` or bench/results/<machine>/<date>-<kind>.json."""
    path = out or RESULTS / told["machine"] / f"{told['at'][:10]}-{kind}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ",\n".join("    " + json.dumps(_rounded(row), ensure_ascii=False) for row in rows)
    head = json.dumps(told, indent=2, ensure_ascii=False).replace("\n", "\n  ")
    path.write_text(f'{{\n  "about": {head},\n  "rows": [\n{lines}\n  ]\n}}\n')
    print(f"{len(rows)} rows in {path}")
    return path


def _rounded(value: Any) -> Any:
    """Floats to six digits: what is beyond is noise, and makes the files hard to read."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return {key: _rounded(one) for key, one in value.items()} if isinstance(value, dict) else value
