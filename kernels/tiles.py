"""Which tile a kernel is launched with: the tile recorded as fastest on this device, else the first of its set.

A tile is the constants that a launch is compiled with. Each kernel's file has its set of tiles. The fastest are
recorded in tiles.json: in this folder (by bench/device.sh) and in the user's cache (by `fasttrace bench --tune`), which
takes precedence. Nothing is timed during a sweep, so one device always uses the same tile.
"""

import functools
import json
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

Tile = dict[str, int]
Tiles = Mapping[int, Sequence[Tile]]  # largest element size in bytes → the set for it

log = logging.getLogger("fasttrace.kernels")
_tried: dict[str, tuple[Tile, set[str]]] = {}


def each(names: str, *values: tuple[int, ...]) -> list[Tile]:
    """A set of tiles, one for each tuple of values of these names."""
    return [dict(zip(names.split(), one, strict=True)) for one in values]


def tiles_of(tiles: Tiles, dtype: torch.dtype) -> Sequence[Tile]:
    """The set for a dtype. Dtypes wider than every set use the widest set."""
    return tiles[min((size for size in tiles if size >= dtype.itemsize), default=max(tiles))]


def tile(kernel: str, tiles: Tiles, of: torch.Tensor, *more: object) -> Tile:
    """The tile to launch `kernel` with for a tensor's dtype and device. more: what else the choice depends on."""
    key = " ".join([kernel, str(of.dtype).removeprefix("torch."), *map(str, more)])
    if kernel in _tried:
        tried, asked = _tried[kernel]
        asked.add(key)
        return tried
    known = tiles_of(tiles, of.dtype)
    recorded = recorded_on(of.device).get(key) if of.device.type == "cuda" else None
    # The set may have changed since the tile was recorded.
    return recorded if recorded is not None and recorded in known else known[0]


@contextmanager
def trying(kernel: str, one: Tile) -> Iterator[set[str]]:
    """Launch `kernel` with this tile inside the block. Yields the keys that its launches would look up in a record."""
    asked: set[str] = set()
    _tried[kernel] = one, asked
    try:
        yield asked
    finally:
        del _tried[kernel]


def records() -> tuple[Path, Path]:
    """Paths of the record that comes with fasttrace and of the user's own."""
    # Not expanduser, which fails for a user without a home.
    cache = Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"))
    return Path(__file__).with_name("tiles.json"), cache / "fasttrace" / "tiles.json"


def read(path: Path) -> dict[str, dict[str, Tile]]:
    """A record: device → key → tile. An unreadable file counts as empty, so that it cannot stop a sweep."""
    try:
        held = json.loads(path.read_text())
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        log.warning("the record of tiles '%s' is ignored: %s", path, error)
        return {}
    return held if isinstance(held, dict) else {}


@functools.cache
def recorded_on(device: torch.device) -> dict[str, Tile]:
    """Key → tile on a device. The user's own record overrides the one that comes with fasttrace."""
    name = torch.cuda.get_device_name(device)
    found: dict[str, Tile] = {}
    for path in records():
        found |= read(path).get(name, {})
    return found
