"""Every op on a GPU at the shapes that its kernel is for, JSON; and the short table of a folder of such JSON.

python bench/device_ops.py --tune FOLDER       tries every tile; FOLDER/tiles.json is what kernels/tiles.json is to be
python bench/device_ops.py --out FILE.json     times, with the tiles that were recorded
python bench/device_ops.py --table FOLDER      a line a case: fasttrace, the best other way, the part of the ceiling
"""

import argparse
import json
import sys
from pathlib import Path

from fasttrace.kernels.tiles import records
from harness import DEVICE, Row, about, write

from fasttrace.benchmarks import TILED, bench, ceilings, fastest, record, tune

GPTJ = {"rows": 8192, "d": 4096}
SHAPES: dict[str, dict[str, int]] = {
    "noised_embed": {"facts": 100, "tokens": 8, "subject": 2, "vocab": 50400, "d": 4096},
    "window_restore": GPTJ,
    "prefix_attention": {"facts": 50, "length": 8, "heads": 16, "kv_heads": 16, "head_dim": 256},
    "target_logprob": {"rows": 512, "d": 4096, "vocab": 50400},
    "second_moment_": {"tokens": 8192, "m": 16384, "single": 1},
    "rank_one_": {"d": 4096, "m": 16384},
    "rank_one_linear": {"rows": 2048, "d": 4096, "m": 16384},
    "rank_one_add_": {"rows": 2048, "d": 4096, "m": 16384},
    "gelu_tanh_": {"rows": 16384, "m": 16384},
    "adam_linf_": {"items": 8, "d": 4096, "m": 16384},
}
# So that tiles of keys differ: at 8 tokens every one is a single step of 16.
LONGER = {"prefix_attention": {"facts": 20, "length": 40}}
# torch.compile takes most of the time, so it is asked for in one dtype.
COMPILED_IN = "bfloat16"


def timed(out: Path | None) -> list[str]:
    """Times and writes what there is after every op; returns what failed, which takes nothing from the others."""
    rows: list[Row] = []
    failed: list[str] = []
    told: dict[str, dict[str, float]] = {}
    for dtype in ("bfloat16", "float32"):
        peak = ceilings(dtype, DEVICE)
        told[dtype] = {"GB/s": peak.gigabyte, "GFLOP/s": peak.gigaflop}
        for op, sizes in SHAPES.items():
            try:
                rows += bench(op, sizes, dtype=dtype, device=DEVICE, compiled=dtype == COMPILED_IN)
            except Exception as error:
                failed.append(f"{op} in {dtype}: {error}")
                print(failed[-1], flush=True)
            write("device-ops", rows, about(DEVICE, ceilings=told, failed=failed), out)
    return failed


def tuned(folder: Path) -> list[str]:
    """Every tile of every kernel, the fastest into the folder's record and this user's; returns what failed."""
    rows: list[Row] = []
    failed: list[str] = []
    for dtype in ("bfloat16", "float32"):
        for op in TILED:
            tried: list[Row] = []
            try:
                tried += tune(op, SHAPES[op] | LONGER.get(op, {}), dtype=dtype, device=DEVICE)
            except Exception as error:
                failed.append(f"{op} in {dtype}: {error}")
                print(failed[-1], flush=True)
            rows += tried
            best = fastest(tried, dtype)
            if best is not None:
                for path in (folder / "tiles.json", records()[1]):
                    record(path, best, DEVICE)
                slowest = max(row["seconds"] for row in tried if "seconds" in row)
                gain = f"{slowest / best['seconds']:.2f} times as fast as the slowest"
                print(f"{op} in {dtype}: {best['impl']}, {gain}", flush=True)
            write("tiles", rows, about(DEVICE, failed=failed), folder / "tried.json")
    return failed


def line(rows: list[Row]) -> str:
    """fasttrace against the fastest other way that computes the same."""
    [own] = [row for row in rows if row["impl"] == "auto"]
    others = [row for row in rows if row["impl"] != "auto" and row.get("relative_difference") is not None]
    best = min(others, key=lambda row: row["seconds"])
    part = f"{100 * own['fraction_of_ceiling']:.0f} % of ceiling"
    against = f"{best['seconds'] / own['seconds']:.2f} times {best['impl']}"
    dtype, taken = own["case"].rpartition(", ")[2], f"{1e6 * own['seconds']:.0f} µs"
    return f"{own['benchmark']:18}{dtype:10}{taken:>12}  {part:18}{against:32}{own['relative_difference']:.0e}"


def table(folder: Path) -> None:
    for path in sorted(folder.glob("*.json")):
        rows = json.loads(path.read_text())["rows"]
        for key in dict.fromkeys((row["benchmark"], row["case"]) for row in rows):
            mine = [row for row in rows if (row["benchmark"], row["case"]) == key]
            if key[0] != "sweep":
                print(line(mine))
            for row in mine:
                if "seconds_a_fact" in row:
                    told = f"{row['seconds_a_fact']:.3f} s a fact, {100 * row['fraction_of_peak']:.0f} % of GEMM peak"
                    print(f"{row['case']}: {told}, {row['times_faster']:.1f} times one hooked forward a cell")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tune", type=Path)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--table", type=Path)
    options = parser.parse_args()
    if options.table:
        return table(options.table)
    if failed := tuned(options.tune) if options.tune else timed(options.out):
        sys.exit(f"{len(failed)} could not be timed: {'; '.join(failed)}")


if __name__ == "__main__":
    main()
