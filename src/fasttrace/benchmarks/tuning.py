"""Which tile of its small set a Triton kernel is fastest with on this device, measured and recorded."""

import importlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path

import torch

from fasttrace.benchmarks.measure import DTYPES, bench
from fasttrace.benchmarks.result import Row
from fasttrace.errors import UserError

TILED = ("noised_embed", "window_restore", "prefix_attention", "target_logprob", "adam_linf_")
WORSE = 10  # times the first tile's difference from the reference: what is further off is not recorded


def tune(
    op: str, sizes: Mapping[str, int] | None = None, *, dtype: str = "float32", device: str = "cuda"
) -> Iterator[Row]:
    """Time an op with every tile of its kernel's set; a row a tile, as of `bench`, with the tile in "tile".

    A tile that the device has no room for gets a row with "error". Raises UserError for an op without tiles, and where
    Triton cannot run.
    """
    if op not in TILED:
        raise UserError(f"{op} has no tiles to choose from; there are {', '.join(TILED)}")
    tiles = importlib.import_module("fasttrace.kernels.tiles")
    kernel = op.removesuffix("_")
    known = importlib.import_module(f"fasttrace.kernels.{kernel}").TILES
    for one in tiles.tiles_of(known, DTYPES[dtype]):
        name = "triton " + " ".join(f"{part}={value}" for part, value in one.items())
        with tiles.trying(kernel, one):
            try:
                [row] = bench(op, sizes, dtype=dtype, device=device, only=["triton"])
            except UserError:
                raise
            except Exception as error:
                reason = (str(error).strip() or type(error).__name__).splitlines()[0]
                row = {"benchmark": op, "case": dtype, "error": reason, "n": 1}
        yield {**row, "impl": name, "tile": one}


def fastest(rows: list[Row]) -> Row | None:
    """Of one op's rows the one to record; None where no tile could run."""
    right = [row for row in rows if "error" not in row]
    if not right:
        return None
    bound = WORSE * max(right[0]["relative_difference"], 1e-9)
    return min((row for row in right if row["relative_difference"] <= bound), key=lambda row: row["seconds"])


def record(path: Path, row: Row, dtype: str, device: str) -> None:
    """Adds a row's tile to a record, {device name: {"kernel dtype": tile}}, beside what is there."""
    tiles = importlib.import_module("fasttrace.kernels.tiles")
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
    held = json.loads(path.read_text()) if path.exists() else {}
    held.setdefault(name, {})[tiles.key(row["benchmark"].removesuffix("_"), DTYPES[dtype])] = row["tile"]
    path.parent.mkdir(parents=True, exist_ok=True)
    whole = path.with_name(f".{path.name}.tmp")
    whole.write_text(json.dumps(held, indent=1, sort_keys=True) + "\n")
    whole.replace(path)
