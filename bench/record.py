"""Benchmark results into JSON and into a store's relation `benches`.

python bench/record.py FILE…                  pytest-benchmark's JSON → bench/results/<machine>/<date>-ops.json
python bench/record.py FILE… --store PATH     and the rows of any result file under bench/results into a store
"""

import argparse
import hashlib
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
from harness import METRICS, Row, about, write

import fasttrace as ft


@dataclass(frozen=True)
class BenchResult:
    """run: the `runs` row, of kind "bench". benches: one row a (benchmark, case, impl, metric)."""

    run: dict[str, Any]
    benches: pa.Table


def bench_result(told: dict[str, Any], rows: list[Row]) -> BenchResult:
    """A result file's `about` and `rows` as `Store.add` takes them. The run is named by its `about`: a file read
    twice adds nothing."""
    settings = json.dumps(told, sort_keys=True)
    run = {
        "run_id": hashlib.sha256(settings.encode()).hexdigest()[:16],
        "kind": "bench",
        "device": told["device"],
        "settings": settings,
        "fasttrace_version": told["versions"]["fasttrace"],
        "torch_version": told["versions"]["torch"],
        "created_at": told["at"],
        "seconds": sum(row["seconds"] * row["n"] for row in rows if row.get("seconds")),
    }
    where = {"machine": told["machine"], "commit": told["commit"]}
    long = [{**one, **where} for row in rows for one in metrics(row)]
    return BenchResult(run, pa.Table.from_pylist(long, schema=SCHEMA))


SCHEMA = pa.schema(
    [(key, pa.string()) for key in ("benchmark", "case", "impl", "metric")]
    + [(key, pa.float64()) for key in ("value", "low", "high")]
    + [("unit", pa.string()), ("n", pa.int32()), ("machine", pa.string()), ("commit", pa.string())]
)


def metrics(row: Row) -> list[dict[str, Any]]:
    """A row in long form. low and high are the quartiles: of a rate, those of the seconds turned round."""
    found = []
    for key in METRICS.keys() & row.keys():
        metric, unit = METRICS[key]
        value, low, high = row[key], None, None
        if value is not None and "quartiles" in row and metric == "time":
            low, high = row["quartiles"]
        elif value is not None and "quartiles" in row and metric == "rate":
            high, low = (value * row["seconds"] / bound for bound in row["quartiles"])
        names = {name: row[name] for name in ("benchmark", "case", "impl")}
        found.append(
            {**names, "metric": metric, "value": value, "low": low, "high": high, "unit": unit, "n": row.get("n", 1)}
        )
    return found


def compact(measured: dict[str, Any]) -> list[Row]:
    """pytest-benchmark's JSON as rows: of each benchmark its median, quartiles and rate."""
    rows = []
    for one in measured["benchmarks"]:
        told, stats = dict(one["extra_info"]), one["stats"]
        gigabyte, gigaflop = told.pop("gigabyte", None), told.pop("gigaflop", None)
        row = {**told, "seconds": stats["median"], "quartiles": [stats["q1"], stats["q3"]], "n": stats["rounds"]}
        if gigabyte is not None:
            row["GB/s"] = gigabyte / stats["median"]
        if gigaflop is not None:
            row["GFLOP/s"] = gigaflop / stats["median"]
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+")
    parser.add_argument("--out", type=Path, help="instead of bench/results/<machine>/<date>-ops.json")
    parser.add_argument("--store", type=Path)
    options = parser.parse_args()
    for path in options.files:
        read = json.loads(path.read_text())
        if "benchmarks" in read:
            told = about(at=read["datetime"][:19], command="make bench")
            read = json.loads(write("ops", compact(read), told, options.out).read_text())
        if options.store:
            added = ft.Store(options.store).add(bench_result(read["about"], read["rows"]))
            print(f"{added} rows into {options.store}")


if __name__ == "__main__":
    main()
