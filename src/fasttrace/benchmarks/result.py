"""Benchmark results: where, when and on what they were measured, and their rows in the store's relation `benches`.

A row is {"benchmark", "case", "impl", "n", "seconds" (the median), "quartiles" (of the seconds), …}. Other measurements
have the names of `METRICS`.
"""

import datetime
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, TypedDict, cast

import numpy as np
import pyarrow as pa
import torch

from fasttrace.processor import this_processor
from fasttrace.runs import Run
from fasttrace.version import VERSION

ROOT = Path(__file__).resolve().parents[3]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"
BENEATH = ("torch", "triton", "transformers", "numpy")  # packages whose versions a result records

# The measurements of a row: key → (metric, unit) in the store.
METRICS = {
    "seconds": ("time", "seconds"),
    "GB/s": ("bandwidth", "GB/s"),
    "GFLOP/s": ("rate", "GFLOP/s"),
    "bytes": ("memory", "bytes"),
    "difference": ("difference", "probability"),
    "logit_difference": ("difference", "logits"),
    "relative_difference": ("relative difference", "ratio"),
    "fraction_of_ceiling": ("fraction of ceiling", "ratio"),
}

BenchRow = TypedDict(
    "BenchRow",
    {
        "benchmark": str,
        "case": str,
        "impl": str,
        "n": int,
        "seconds": float,
        "quartiles": list[float],
        "GB/s": float,
        "GFLOP/s": float,
        "bytes": int,
        "difference": float,
        "logit_difference": float,
        "relative_difference": float | None,
        "fraction_of_ceiling": float,
        "error": str,
        "tile": dict[str, int],
        "keys": list[str],
    },
    total=False,
)
SCHEMA = pa.schema(
    [(key, pa.string()) for key in ("benchmark", "case", "impl", "metric")]
    + [(key, pa.float64()) for key in ("value", "low", "high")]
    + [("unit", pa.string()), ("n", pa.int32()), ("machine", pa.string()), ("commit", pa.string())]
)


@dataclass(frozen=True)
class BenchResult:
    """run: the `runs` row, of kind "bench". benches: one row per (benchmark, case, impl, metric)."""

    run: Run
    benches: pa.Table


def bench_result(origin: dict[str, Any], rows: list[BenchRow]) -> BenchResult:
    """A result for `Store.add`. origin: what `about` returned; it identifies the run, so the same one adds nothing."""
    settings = json.dumps(origin, sort_keys=True)
    run: Run = {
        "run_id": hashlib.sha256(settings.encode()).hexdigest()[:16],
        "kind": "bench",
        "device": origin["device"],
        "settings": settings,
        "fasttrace_version": origin["versions"]["fasttrace"],
        "torch_version": origin["versions"]["torch"],
        "created_at": origin["at"],
        "seconds": sum(row["seconds"] * row["n"] for row in rows if row.get("seconds")),
    }
    where = {"machine": origin["machine"], "commit": origin["commit"]}
    long = [{**one, **where} for row in rows for one in metrics(row)]
    return BenchResult(run, pa.Table.from_pylist(long, schema=SCHEMA))


def metrics(row: BenchRow) -> list[dict[str, Any]]:
    """A row in long form. low and high are the quartiles; those of a rate come from the quartiles of the seconds."""
    found = []
    fields = cast(dict[str, Any], row)
    for key in METRICS.keys() & fields.keys():
        metric, unit = METRICS[key]
        value, low, high = fields[key], None, None
        if value is not None and "quartiles" in row and metric == "time":
            low, high = fields["quartiles"]
        elif value is not None and "quartiles" in row and metric in ("bandwidth", "rate"):
            high, low = (value * fields["seconds"] / bound for bound in fields["quartiles"])
        names = {name: fields[name] for name in ("benchmark", "case", "impl")}
        found.append(
            {**names, "metric": metric, "value": value, "low": low, "high": high, "unit": unit, "n": fields.get("n", 1)}
        )
    return found


def spread(seconds: Sequence[float]) -> BenchRow:
    """The timing part of a row: seconds, quartiles, n."""
    low, median, high = np.percentile(seconds, [25, 50, 75]).tolist()
    return {"seconds": median, "quartiles": [low, high], "n": len(seconds)}


def about(device: str = DEVICE, **more: Any) -> dict[str, Any]:
    """Where, when, on what and how a benchmark ran. more: anything else the reader must know."""
    return {
        "machine": machine(device),
        "processor": processor(device),
        "device": device,
        "threads": torch.get_num_threads(),
        "capability": torch.backends.cpu.get_cpu_capability(),
        "commit": commit(),
        # fasttrace's version comes from its source, because it may run from a folder without being installed.
        "versions": {"fasttrace": VERSION, **{name: _version(name) for name in BENEATH}},
        "python": sys.version.split()[0],
        "at": datetime.datetime.now(datetime.UTC).strftime("%Y-%m-%dT%H:%M:%S"),
        "command": " ".join([Path(sys.argv[0]).name, *sys.argv[1:]]),
        **more,
    }


def processor(device: str = DEVICE) -> str:
    """The name of the CUDA device, or the CPU's with its generation and instruction set ("cpu" where it is unknown)."""
    if device.startswith("cuda"):
        return torch.cuda.get_device_name(device)
    found = this_processor()
    return "cpu" if found is None else str(found)


def machine(device: str = DEVICE) -> str:
    """The processor as a folder name: cpu-amd-epyc-zen3-avx2, cuda-nvidia-h100-80gb-hbm3."""
    kind = device.partition(":")[0]
    if kind == "cuda":
        return "-".join([kind, *re.findall(r"[a-z0-9]+", processor(device).lower())])
    found = this_processor()
    return kind if found is None else f"{kind}-{found.slug}"


def commit() -> str:
    """The commit of this tree, with -dirty where tracked files differ from it.

    For a copy without its repository it is the environment variable COMMIT, or "unknown"; for an installed package it
    is "unknown".
    """
    if not (ROOT / "pyproject.toml").is_file():
        return "unknown"
    try:
        described = subprocess.run(
            ["git", "describe", "--always", "--dirty", "--exclude=*"], cwd=ROOT, capture_output=True, text=True
        ).stdout.strip()
    except FileNotFoundError:
        described = ""
    return described or os.environ.get("COMMIT") or "unknown"


def _version(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "none"
