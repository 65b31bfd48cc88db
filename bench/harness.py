"""What every benchmark shares: the machine and commit of a run, quartiles, one form of row, JSON.

A row is {"benchmark", "case", "impl", "n", "seconds" (the median), "quartiles" (of the seconds), …}, what else was
measured under the names of `METRICS`; bench/record.py reads rows into a store.
"""

import datetime
import json
import os
import re
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
import torch

if TYPE_CHECKING:  # where only a sweep is timed, as on a lent GPU, it need not be installed
    from pytest_benchmark.fixture import BenchmarkFixture

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "bench" / "results"
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
DTYPES = pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])

# What a row may hold: its key → (metric, unit) in the store.
METRICS = {
    "seconds": ("time", "seconds"),
    "GB/s": ("rate", "GB/s"),
    "GFLOP/s": ("rate", "GFLOP/s"),
    "bytes": ("memory", "bytes"),
    "difference": ("difference", "probability"),
}

Row = dict[str, Any]


def processor(device: str = DEVICE) -> str:
    """The CUDA device's name, or the model name in /proc/cpuinfo ("cpu" where there is none)."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name()
    info = Path("/proc/cpuinfo")
    found = re.search(r"^model name\s*:\s*(.+)$", info.read_text() if info.exists() else "", re.MULTILINE)
    return found[1].strip() if found else "cpu"


def machine(device: str = DEVICE) -> str:
    """A folder's name for the processor: cpu-amd-epyc, cuda-nvidia-h100-80gb-hbm3."""
    kind = device.partition(":")[0]
    words = re.findall(r"[a-z0-9]+", re.sub(r"\((r|tm)\)|@.*|\bcpu\b", " ", processor(device).lower()))
    return "-".join([kind, *words])


def commit() -> str:
    """The commit this tree is at, with -dirty where tracked files differ from it."""
    told = subprocess.run(
        ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
    )
    return told.stdout.strip() or "unknown"


def about(device: str = DEVICE, **more: Any) -> dict[str, Any]:
    """Where, when, of what and how a benchmark ran; more: what else the reader must know."""
    return {
        "machine": machine(device),
        "processor": processor(device),
        "device": device,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "commit": commit(),
        "versions": {name: _version(name) for name in ("fasttrace", "torch", "transformers", "numpy")},
        "python": sys.version.split()[0],
        "at": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "command": " ".join(["python", *sys.argv]),
        **more,
    }


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


def spread(taken: Sequence[float]) -> Row:
    """The part of a row that says how long it took: seconds, quartiles, n."""
    low, median, high = np.percentile(taken, [25, 50, 75]).tolist()
    return {"seconds": median, "quartiles": [low, high], "n": len(taken)}


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


def implementations(**functions: Callable[..., object]) -> pytest.MarkDecorator:
    """Parametrizes a benchmark with (impl, function); a function under a name that begins with "compiled" goes
    through torch.compile."""
    return pytest.mark.parametrize(("impl", "function"), functions.items(), ids=functions)


def measure(
    benchmark: "BenchmarkFixture",
    op: str,
    case: str,
    impl: str,
    function: Callable[..., object],
    *args: object,
    gigabyte: float | None = None,
    gigaflop: float | None = None,
    grad: bool = False,
    rounds: int = 7,
    iterations: int = 1,
) -> None:
    """Time function(*args) as one implementation of an op.

    gigabyte: what it reads and writes at the least. gigaflop: its arithmetic. grad: not in inference mode.
    Skips, with the reason, where torch.compile cannot take the function.
    """
    plain = function
    if impl.startswith("compiled"):
        torch.compiler.reset()  # shapes of other cases would count against the limit of recompilations
        function = torch.compile(function, dynamic=False)
    benchmark.extra_info.update(benchmark=op, case=case, impl=impl, gigabyte=gigabyte, gigaflop=gigaflop)

    def run() -> None:
        function(*args)
        if DEVICE == "cuda":
            torch.cuda.synchronize()

    with torch.inference_mode(not grad):
        try:
            run()
        except Exception as error:
            if not impl.startswith("compiled"):
                raise
            plain(*args)  # what fails uncompiled too is no fault of the compiler's
            pytest.skip(f"torch.compile: {str(error).strip().splitlines()[0]}")
        benchmark.pedantic(run, rounds=rounds, iterations=iterations, warmup_rounds=1)


def name(dtype: torch.dtype) -> str:
    """torch.float32 → "float32"."""
    return str(dtype).removeprefix("torch.")


def traffic(*tensors: torch.Tensor) -> float:
    """Gigabytes of the tensors, each read or written once."""
    return sum(x.numel() * x.element_size() for x in tensors) / 1e9


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"


def _rounded(value: Any) -> Any:
    """Floats to six digits: what is beyond is noise, and makes the files hard to read."""
    if isinstance(value, float):
        return float(f"{value:.6g}")
    if isinstance(value, list):
        return [_rounded(one) for one in value]
    return {key: _rounded(one) for key, one in value.items()} if isinstance(value, dict) else value
