"""Which tile of its small set a Triton kernel is fastest with on this device, measured and recorded."""

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from fasttrace.benchmarks.measure import DTYPES, bench, prepare
from fasttrace.benchmarks.result import BenchRow, processor
from fasttrace.errors import UserError
from fasttrace.ops.dispatch import triton_reason
from fasttrace.places import replacing

TILED = (
    "noised_embed", "window_restore", "prefix_attention", "target_logprob", "rms_norm", "rotary_", "silu_mul_",
    "gelu_tanh_", "adam_linf_",
)  # fmt: skip
ROUNDINGS = 64  # of the dtype: a result that is further off the reference is wrong, and its tile is not recorded


def check_tiled(op: str) -> None:
    """Raises UserError for an op whose kernel has no tiles, and where Triton cannot be imported."""
    if op not in TILED:
        raise UserError(f"{op} has no tiles to choose from; there are {', '.join(TILED)}")
    if (reason := triton_reason()) is not None:
        raise UserError(f"{op}: {reason}, and only Triton's kernels have tiles")


def tune(
    op: str, sizes: Mapping[str, int] | None = None, *, dtype: str = "float32", device: str = "cuda"
) -> Iterator[BenchRow]:
    """Time an op with every tile of its kernel's set; a row a tile, as of `bench`, with the tile in "tile" and what its
    launches look up in "keys".

    A tile that the device has no room for gets a row with "error". Raises UserError as `check_tiled` and `bench`.
    """
    check_tiled(op)
    tiles = importlib.import_module("fasttrace.kernels.tiles")
    kernel = op.removesuffix("_")
    known = importlib.import_module(f"fasttrace.kernels.{kernel}").TILES
    case, _ = prepare(op, sizes or {}, dtype, "meta")
    for one in tiles.tiles_of(known, DTYPES[dtype]):
        name = "triton " + " ".join(f"{part}={value}" for part, value in one.items())
        with tiles.trying(kernel, one) as asked:
            try:
                [row] = bench(op, sizes, dtype=dtype, device=device, only=["triton"])
            except UserError:
                raise
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                row = {"benchmark": op, "case": case, "error": reason, "n": 1}
        yield {**row, "impl": name, "tile": one, "keys": sorted(asked)}


def is_right(row: BenchRow, dtype: str) -> bool:
    """Whether a row's result was the reference's, but for roundings; NaN never is."""
    difference = row.get("relative_difference")
    return difference is not None and difference <= ROUNDINGS * torch.finfo(DTYPES[dtype]).eps


def fastest(rows: list[BenchRow], dtype: str) -> BenchRow | None:
    """Of one op's rows the one to record: the fastest that is right. None where there is none."""
    right = [row for row in rows if is_right(row, dtype)]
    return min(right, key=lambda row: row["seconds"], default=None)


def record(path: Path, row: BenchRow, device: str) -> None:
    """Adds a row's tile to a record, {device name: {key: tile}}, beside what is there. Raises UserError where the file
    cannot be written."""
    tiles = importlib.import_module("fasttrace.kernels.tiles")
    held = tiles.read(path)
    for key in row["keys"]:
        held.setdefault(processor(device), {})[key] = row["tile"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise UserError(f"the record of tiles '{path}' cannot be written: {error.strerror}") from error
    tiles.recorded_on.cache_clear()
