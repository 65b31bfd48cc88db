"""Measures and records which tile of its set makes a Triton kernel fastest on this device."""

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
    "noised_embed",
    "window_restore",
    "prefix_attention",
    "target_logprob",
    "rms_norm",
    "rotary_",
    "silu_mul_",
    "gelu_tanh_",
    "adam_linf_",
)
ROUNDINGS = 64  # a result that differs from the reference by more roundings of the dtype is wrong


def check_tiled(op: str) -> None:
    """Raises UserError for an op whose kernel has no tiles, and where Triton cannot be imported."""
    if op not in TILED:
        raise UserError(f"{op} has no tiles to choose from; there are {', '.join(TILED)}")
    if (reason := triton_reason()) is not None:
        raise UserError(f"{op}: {reason}, and only Triton's kernels have tiles")


def tune(
    op: str, sizes: Mapping[str, int] | None = None, *, dtype: str = "float32", device: str = "cuda"
) -> Iterator[BenchRow]:
    """Time an op with every tile of its kernel's set. Yields a row per tile, as `bench` does.

    Each row also has the "tile" and the "keys" under which launches look it up. A tile that is too large for the device
    gets a row with "error". Raises UserError as `check_tiled` and `bench` do.
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
    """Whether a row's result equals the reference's up to roundings. NaN never does."""
    difference = row.get("relative_difference")
    return difference is not None and difference <= ROUNDINGS * torch.finfo(DTYPES[dtype]).eps


def fastest(rows: list[BenchRow], dtype: str) -> BenchRow | None:
    """The row to record among those of one op: the fastest that is right, or None where none is."""
    right = [row for row in rows if is_right(row, dtype)]
    return min(right, key=lambda row: row["seconds"], default=None)


def record(path: Path, row: BenchRow, device: str) -> None:
    """Add a row's tile to the record at `path`, {device name: {key: tile}}. Raises UserError where the file cannot be
    written."""
    tiles = importlib.import_module("fasttrace.kernels.tiles")
    recorded = tiles.read(path)
    for key in row["keys"]:
        recorded.setdefault(processor(device), {})[key] = row["tile"]
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path) as draft:
            draft.write_text(json.dumps(recorded, indent=1, sort_keys=True) + "\n")
    except OSError as error:
        raise UserError(f"the record of tiles '{path}' cannot be written: {error.strerror}") from error
    tiles.recorded_on.cache_clear()
