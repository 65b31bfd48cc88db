"""Which tile a kernel is launched with: of its small set the one recorded as fastest on this device, else the first.

A tile is the constants that a launch is compiled with. The sets stand beside their kernels; what was measured stands
in tiles.json, here (from bench/device.sh) and in the user's cache (from `fasttrace bench --tune`, which goes first):
nothing is timed during a sweep, and one device always takes the same tile.
"""

import functools
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch

Tile = dict[str, int]
Tiles = Mapping[int, Sequence[Tile]]  # by the bytes of an element up to which a set is

_tried: dict[str, Tile] = {}


def each(names: str, *values: tuple[int, ...]) -> list[Tile]:
    """A set, a tile for each tuple of values of these names."""
    return [dict(zip(names.split(), one, strict=True)) for one in values]


def tiles_of(tiles: Tiles, dtype: torch.dtype) -> Sequence[Tile]:
    """The set for a dtype; the widest serves what is wider still."""
    return tiles[min((size for size in tiles if size >= dtype.itemsize), default=max(tiles))]


def tile(kernel: str, tiles: Tiles, of: torch.Tensor) -> Tile:
    """The tile to launch `kernel` with for a tensor's dtype and device."""
    if kernel in _tried:
        return _tried[kernel]
    known = tiles_of(tiles, of.dtype)
    recorded = _recorded(of.device).get(key(kernel, of.dtype)) if of.device.type == "cuda" else None
    # A set may have changed since a tile of it was recorded.
    return recorded if recorded is not None and recorded in known else known[0]


@contextmanager
def trying(kernel: str, one: Tile) -> Iterator[None]:
    """Launches `kernel` with this tile, whatever is recorded."""
    _tried[kernel] = one
    try:
        yield
    finally:
        del _tried[kernel]


def key(kernel: str, dtype: torch.dtype) -> str:
    """What a tile is recorded under, of a device."""
    return f"{kernel} {str(dtype).removeprefix('torch.')}"


def records() -> tuple[Path, Path]:
    """The record that comes with fasttrace, and this user's own."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser()
    return Path(__file__).with_name("tiles.json"), cache / "fasttrace" / "tiles.json"


@functools.cache
def _recorded(device: torch.device) -> dict[str, Tile]:
    name = torch.cuda.get_device_name(device)
    found: dict[str, Tile] = {}
    for path in records():
        if path.exists():
            found |= json.loads(path.read_text()).get(name, {})
    return found
