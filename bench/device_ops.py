"""Times every op on a GPU at the shapes its kernel is made for, writes JSON, and prints a table of such JSON.

python bench/device_ops.py --out FILE.json                      every way except torch.compile, with the recorded tiles
python bench/device_ops.py --out FILE.json --only triton        every Triton kernel, without the extension
python bench/device_ops.py --out FILE.json --only torch.compile
python bench/device_ops.py --tune FOLDER       times every tile; FOLDER/tiles.json is meant to become kernels/tiles.json
python bench/device_ops.py --table FOLDER      a line per case: fasttrace, its share of the ceiling, the best other way

--ops NAME … limits the ops. --small uses sizes that take moments on any machine; without a GPU, Triton's kernels need
TRITON_INTERPRET=1.
"""

import argparse
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from apart import apart
from harness import DEVICE, BenchRow, about, command, write

from fasttrace.benchmarks import TILED, bench, ceilings, fastest, measure, record, tune
from fasttrace.benchmarks.measure import COMPILED
from fasttrace.benchmarks.tuning import is_right
from fasttrace.kernels.tiles import records
from fasttrace.places import check_file

GPTJ = {"rows": 8192, "d": 4096}
SHAPES: dict[str, dict[str, int]] = {
    "noised_embed": {"facts": 100, "tokens": 8, "subject": 2, "vocab": 50400, "d": 4096},
    "window_restore": GPTJ,
    "prefix_attention": {"facts": 50, "length": 8, "heads": 16, "kv_heads": 16, "head_dim": 256},
    "target_logprob": {"rows": 20000, "d": 4096, "vocab": 50400},
    "second_moment_": {"tokens": 8192, "m": 16384, "single": 1},
    "rank_one_": {"d": 4096, "m": 16384},
    "rank_one_linear": {"rows": 2048, "d": 4096, "m": 16384},
    "rank_one_add_": {"rows": 2048, "d": 4096, "m": 16384},
    "rms_norm": {"rows": 40000, "d": 4096},
    "rotary_": {"rows": 40000, "heads": 32, "head_dim": 128},
    "silu_mul_": {"rows": 16384, "m": 14336},
    "gelu_tanh_": {"rows": 16384, "m": 16384},
    "adam_linf_": {"items": 8, "d": 4096, "m": 16384},
}
SMALL: dict[str, dict[str, int]] = {
    "noised_embed": {"facts": 2, "samples": 2, "tokens": 5, "subject": 2, "vocab": 40, "d": 70},
    "window_restore": {"rows": 24, "d": 70},
    "prefix_attention": {"facts": 1, "length": 5, "cells": 1, "samples": 2, "heads": 2, "kv_heads": 1, "head_dim": 24},
    "target_logprob": {"rows": 20, "d": 40, "vocab": 300},
    "second_moment_": {"tokens": 24, "m": 48, "single": 1},
    "rank_one_": {"d": 16, "m": 48},
    "rank_one_linear": {"rows": 24, "d": 16, "m": 48},
    "rank_one_add_": {"rows": 24, "d": 16, "m": 48},
    "rms_norm": {"rows": 9, "d": 70},
    "rotary_": {"rows": 9, "heads": 2, "head_dim": 24},
    "silu_mul_": {"rows": 9, "m": 300},
    "gelu_tanh_": {"rows": 9, "m": 300},
    "adam_linf_": {"items": 2, "d": 16, "m": 48},
}
# Tiles are also tried on prompts with several steps of keys. A fact's tensors take 0.15 GB in float32.
LONGER = {"prefix_attention": {"facts": 8, "length": 20}}
PATIENCE = 60.0  # seconds without a row after which an op is stopped


@dataclass(frozen=True)
class Task:
    """An op in a dtype. way: a way of `bench`, "tiles" for every tile, or "" for every way except torch.compile."""

    op: str
    dtype: str
    way: str
    small: bool
    longer: bool = False

    def __str__(self) -> str:
        return f"{self.op} in {self.dtype}{', longer prompts' if self.longer else ''}"

    @property
    def sizes(self) -> dict[str, int]:
        """Sizes of the op's load."""
        if self.small:
            return SMALL[self.op]
        return SHAPES[self.op] | (LONGER[self.op] if self.longer else {})


def tasks(options: argparse.Namespace) -> list[Task]:
    """The tasks to run, one dtype after the other, so that every op runs in bfloat16 before any runs in float32."""
    way, chosen, dtypes = "tiles" if options.tune else options.only or "", options.ops, ["bfloat16", "float32"]
    if way in ("tiles", "triton"):
        chosen = chosen or TILED
        # Triton's interpreter cannot multiply bfloat16.
        dtypes = dtypes if DEVICE == "cuda" else ["float32"]
    if way == COMPILED:
        dtypes = ["bfloat16"]  # compiling takes longest of all
    both = [(op, longer) for op in chosen or SHAPES for longer in (False, way == "tiles" and op in LONGER)]
    return [Task(op, dtype, way, options.small, longer) for dtype in dtypes for op, longer in dict.fromkeys(both)]


def rows_of(task: Task) -> Iterator[BenchRow]:
    """Yield the ceilings of the dtype, then a row per way or tile."""
    if task.small:
        measure.ENOUGH = 0.0  # seconds: the fewest calls are enough to see that everything runs
    peak = ceilings(task.dtype, DEVICE)
    yield {"GB/s": peak.gigabyte, "GFLOP/s": peak.gigaflop}
    if task.way == "tiles":
        yield from tune(task.op, task.sizes, dtype=task.dtype, device=DEVICE)
    else:
        only = [task.way] if task.way else []
        yield from bench(task.op, task.sizes, dtype=task.dtype, device=DEVICE, only=only, compiled=False)


def measured(options: argparse.Namespace) -> list[str]:
    """Run every task and write all rows after each. Returns a line per failure or wrong result; none stops the rest."""
    kind, out = ("tiles", options.tune / "tried.json") if options.tune else ("device-ops", options.out)
    rows: list[BenchRow] = []
    failed: list[str] = []
    peaks: dict[str, BenchRow] = {}
    patience = 3 * PATIENCE if options.small else PATIENCE  # as in device.sh: --small is for few, shared cores
    for task, found, why in apart(rows_of, tasks(options), patience):
        if found:
            peaks[task.dtype] = found[0]
        mine = found[1:]
        rows += mine
        wrong = [] if why is None else [why]
        if task.way == "tiles":
            wrong += kept(task, mine, options.tune)
        else:
            ours = [row for row in mine if row["impl"] in ("auto", "triton") and not is_right(row, task.dtype)]
            wrong += [f"off by {row['relative_difference']:.1e} of the largest value" for row in ours]
        for words in wrong:
            failed.append(f"{task}: {words}")
            print(failed[-1], flush=True)
        write(kind, rows, about(DEVICE, ceilings=peaks, failed=failed), out)
    return failed


def kept(task: Task, tried: list[BenchRow], folder: Path) -> list[str]:
    """Put an op's fastest tile into the folder's record and the user's. Returns the reason if there is none."""
    best = fastest(tried, task.dtype)
    if best is None:
        found = {row.get("error", f"off by {row.get('relative_difference')}") for row in tried}
        return [f"no tile is right: {'; '.join(sorted(found))}"]
    for path in (folder / "tiles.json", records()[1]):
        record(path, best, DEVICE)
    slowest = max(row["seconds"] for row in tried if "seconds" in row)
    print(f"{task}: {best['impl']}, {slowest / best['seconds']:.2f} times as fast as the slowest", flush=True)
    return []


def line(rows: list[BenchRow]) -> str:
    """The table's line of a case: fasttrace against the fastest other way that computes the same."""
    [own] = [row for row in rows if row["impl"] == "auto"]
    others = [row for row in rows if row["impl"] != "auto" and row.get("relative_difference") is not None]
    part = f"{100 * own['fraction_of_ceiling']:.0f} % of ceiling"
    against = ""
    if others:
        best = min(others, key=lambda row: row["seconds"])
        against = f"{best['seconds'] / own['seconds']:.2f} times {best['impl']}"
    dtype, taken = own["case"].rpartition(", ")[2], f"{1e6 * own['seconds']:.0f} µs"
    return f"{own['benchmark']:18}{dtype:10}{taken:>12}  {part:18}{against:32}{own['relative_difference']:.0e}"


def sweep_line(rows: list[BenchRow]) -> str:
    """The table's line of a sweep: seconds per fact, share of the GEMM peak, and the comparisons that follow it."""
    parts = []
    for row in rows:
        if "seconds_a_fact" in row:
            parts += [f"{row['seconds_a_fact']:.3f} s a fact", f"{100 * row['fraction_of_peak']:.0f} % of GEMM peak"]
        if "times_slower" in row:
            parts += [f"hooked forwards {row['times_slower']:.1f} times slower"]
            parts += [f"{row['relative_difference']:.0e} from them"]
        if "fasttrace_off" in row:
            wider = row["impl"].rpartition(" ")[2]
            parts += [f"{row['fasttrace_off']:.0e} from {wider}", f"they {row['hooked_off']:.0e}"]
    return f"{rows[0]['case']}: {', '.join(parts)}"


def edit_line(rows: list[BenchRow]) -> str:
    """The table's line of some edits: their rate and memory, and the released way beside them."""
    parts = []
    for row in rows:
        name = "" if row["impl"] == "fasttrace" else f"{row['impl']} "
        for unit in ("edits/s", "tokens/s"):
            if unit in row:
                parts.append(f"{name}{row[unit]:.3g} {unit}")
        if "bytes" in row:
            parts.append(f"{name}{row['bytes'] / 1e9:.1f} GB")
        if "fasttrace_off" in row:
            parts += [f"{row['fasttrace_off']:.0e} from {row['impl']}", f"they {row['released_off']:.0e}"]
    taken = f"{rows[0]['seconds']:.2f} s" if "seconds" in rows[0] else ""
    return f"{rows[0]['benchmark']}, {rows[0]['case']}: {', '.join([taken, *parts]).strip()}"


def table(folder: Path) -> None:
    """Print a line per case of all the JSON in a folder."""
    cases: dict[tuple[str, str], list[BenchRow]] = {}
    for path in sorted(folder.glob("*.json")):
        for row in json.loads(path.read_text())["rows"]:
            cases.setdefault((row["benchmark"], row["case"]), []).append(row)
    for (benchmark, case), rows in cases.items():
        if benchmark == "sweep":
            print(sweep_line(rows))
        elif benchmark.startswith("editing: "):
            print(edit_line(rows))
        elif any(row["impl"] == "auto" for row in rows):
            print(line(rows))
        else:
            print(f"{benchmark}, {case}: fasttrace's own row is missing")


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    parser.add_argument("--only", choices=("triton", COMPILED))
    parser.add_argument("--ops", nargs="+", choices=SHAPES)
    parser.add_argument("--small", action="store_true")
    options = parser.parse_args()
    for path in (options.out, options.tune and options.tune / "tried.json"):
        if path:
            check_file(path, makes_folder=True)
    if options.table:
        return table(options.table)
    if failed := measured(options):
        sys.exit(f"{len(failed)} failed")


if __name__ == "__main__":
    main()
