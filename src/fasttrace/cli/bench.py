"""The verb bench: times any op at any shape on this machine."""

import json
import re
from typing import TYPE_CHECKING, Any

import click
from click.core import ParameterSource

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.places import check_file

from .help import Choice, command, option
from .options import options
from .printed import Rows, emit
from .work import watching

if TYPE_CHECKING:
    from fasttrace.benchmarks.result import BenchRow


@command()
@click.argument("ops", nargs=-1, metavar="[OP]...")
@option("--size", "sizes", multiple=True, metavar="NAME=NUMBER", help="Load size, as in rows=8192; repeatable.")
@option(
    "--dtype",
    type=Choice(["float32", "bfloat16", "float16"]),
    default="float32",
    show_default=True,
    help="Dtype of the loads.",
)
@option("--impl", "only", multiple=True, metavar="WAY", help="Time only this way: auto, native, …; repeatable.")
@option("--no-compile", is_flag=True, help="Leave out torch.compile, which takes longest.")
@option("--tune", "tuning", is_flag=True, help="Try every tile of a Triton kernel and record the fastest.")
@option("--list", "listing", is_flag=True, help="List the ops and the sizes of their loads.")
@options("device", "store", "json")
def bench(
    ops: tuple[str, ...],
    sizes: tuple[str, ...],
    dtype: str,
    only: tuple[str, ...],
    no_compile: bool,
    tuning: bool,
    listing: bool,
    device: str,
    store: str | None,
    as_json: bool,
) -> None:
    """Time ops beside their reference, torch.compile and torch's own ops.

    Without OP, every op is timed, at the sizes of SmolLM2-135M. A result is compared with the reference's before it is
    timed. The column "of ceiling" is the shortest time that this machine's copy bandwidth and product rate allow,
    divided by the measured time. Both rates are measured in the same run. Data in caches can raise the ratio above 1.
    --tune records the fastest tile in the cache folder, and every later launch on this device uses it.
    """
    from fasttrace import benchmarks
    from fasttrace.kernels import tiles

    if listing:
        named = [{"op": op, "sizes": _words(benchmarks.sizes_of(op))} for op in benchmarks.OPS]
        emit(named, as_json)
        return
    context = click.get_current_context()
    if tuning and context.get_parameter_source("device") is ParameterSource.DEFAULT:
        device = "cuda"  # tiles matter only on a GPU
    given, chosen = dict(_size(text) for text in sizes), ops or (benchmarks.TILED if tuning else tuple(benchmarks.OPS))
    if tuning and only:
        raise UserError("--tune tries only tiles of Triton kernels, so --impl cannot be given with it")
    for op in chosen:
        benchmarks.checked(op, given)
        if tuning:
            benchmarks.check_tiled(op)
    if tuning and device.startswith("cuda"):
        check_file(tiles.records()[1], makes_folder=True)
    rows: list[BenchRow] = []
    with watching(None).bar("Timing", None, "measurements") as done:
        for op in chosen:
            if tuning:
                found = benchmarks.tune(op, given, dtype=dtype, device=device)
            else:
                found = benchmarks.bench(op, given, dtype=dtype, device=device, only=only, compiled=not no_compile)
            for row in found:
                rows.append(row)
                done(1)
            if tuning:
                _record([row for row in rows if row["benchmark"] == op], dtype, device)
    peak = benchmarks.ceilings(dtype, device)
    about = benchmarks.about(device, dtype=dtype, ceilings={"GB/s": peak.gigabyte, "GFLOP/s": peak.gigaflop})
    if store is not None:
        ft.Store(store).add(benchmarks.bench_result(about, [row for row in rows if "seconds" in row]))
    if as_json:
        click.echo(json.dumps({"about": about, "rows": rows}, indent=2, ensure_ascii=False))
        return
    where = about["processor"] if device.startswith("cuda") else f"{about['processor']}, {about['threads']} threads"
    copied, product = f"copies {peak.gigabyte:.1f} GB/s", f"products {peak.gigaflop / 1e3:.3f} TFLOP/s"
    click.echo(f"{where}, {dtype}: {copied}, {product}", err=True)
    for op in chosen:
        mine = [row for row in rows if row["benchmark"] == op]
        emit(_table(mine), False, title=f"{op}: {mine[0]['case']}")


def _record(tried: "list[BenchRow]", dtype: str, device: str) -> None:
    """Add the fastest tile of an op's rows to the user's record, if the device is a GPU."""
    from fasttrace import benchmarks
    from fasttrace.kernels import tiles

    what = f"{tried[0]['benchmark']} in {dtype}"
    best = benchmarks.fastest(tried, dtype)
    if best is None:
        click.echo(f"{what}: no tile ran with a correct result; nothing is recorded", err=True)
    elif not device.startswith("cuda"):
        click.echo(f"{what}: {best['impl']}; nothing is recorded for {device}, where Triton is interpreted", err=True)
    else:
        benchmarks.record(tiles.records()[1], best, device)
        click.echo(f"{what}: {best['impl']}, recorded in {tiles.records()[1]}", err=True)


def _table(rows: "list[BenchRow]") -> Rows:
    reference = next((row["seconds"] for row in rows if row["impl"] == "reference"), None)
    shown: list[dict[str, Any]] = []
    for row in rows:
        if "error" in row:
            shown.append({"way": row["impl"], "note": row["error"]})
            continue
        low, high = row["quartiles"]
        columns = {
            "way": row["impl"],
            "µs": 1e6 * row["seconds"],
            "quartiles": f"{1e6 * low:.1f} … {1e6 * high:.1f}",
            "times the reference's speed": reference / row["seconds"] if reference else None,
            "GB/s": row.get("GB/s"),
            "TFLOP/s": row["GFLOP/s"] / 1e3 if "GFLOP/s" in row else None,
            "of ceiling": row["fraction_of_ceiling"],
            "largest relative difference": _short(row["relative_difference"]),
            "MB allocated": row["bytes"] / 1e6 if "bytes" in row else None,
            "note": "computes less" if row["relative_difference"] is None else None,
        }
        shown.append(columns)
    names = list(dict.fromkeys(name for row in shown for name in row))
    filled = [name for name in names if any(row.get(name) is not None for row in shown)]
    return [{name: row.get(name) for name in filled} for row in shown]


def _short(difference: float | None) -> str | None:
    return None if difference is None else f"{difference:.0e}" if difference else "0"


def _words(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name}={value}" for name, value in sizes.items())


def _size(text: str) -> tuple[str, int]:
    found = re.fullmatch(r"([a-z_]+)=(\d+)", text)
    if found is None:
        raise UserError(f"--size: expected NAME=NUMBER such as rows=8192, got '{text}'")
    return found[1], int(found[2])
