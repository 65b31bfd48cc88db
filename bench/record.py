"""Adds result files, such as those under bench/results, to a store's relation `benches`.

python bench/record.py FILE… --store FILE     adding the same file again changes nothing
"""

import argparse
import json
from pathlib import Path
from typing import Any

from harness import bench_result, check_outputs, command

import fasttrace as ft
from fasttrace.benchmarks import BenchResult
from fasttrace.errors import UserError


def result_of(path: Path) -> BenchResult:
    """The result in a file. Raises UserError for a file that no benchmark wrote."""
    try:
        read: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return bench_result(read["about"], read["rows"])
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except (ValueError, KeyError, TypeError) as error:
        raise UserError(f"{path}: expected a benchmark's JSON of 'about' and 'rows', got another file") from error


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("files", type=Path, nargs="+", metavar="FILE")
    parser.add_argument("--store", type=Path, required=True, metavar="FILE")
    options = parser.parse_args()
    check_outputs(None, options.store)
    results = [result_of(path) for path in options.files]
    for path, result in zip(options.files, results, strict=True):
        print(f"{ft.Store(options.store).add(result)} rows of {path} into {options.store}")


if __name__ == "__main__":
    main()
