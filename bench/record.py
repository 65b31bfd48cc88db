"""Benchmark results into JSON and into a store's relation `benches`.

python bench/record.py FILE…                  pytest-benchmark's JSON → bench/results/<machine>/<date>-ops.json
python bench/record.py FILE… --store PATH     and the rows of any result file under bench/results into a store
"""

import argparse
import json
from pathlib import Path
from typing import Any

from harness import Row, about, bench_result, write

import fasttrace as ft


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
