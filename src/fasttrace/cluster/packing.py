"""What driver and workers send each other: pickles in which every process has its own model and cache folder."""

import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

from fasttrace.cache import cache_place
from fasttrace.models.adapter import Decoder


class Elsewhere:
    """Stands for the workers' model in a driver that has none."""


class Packed(NamedTuple):
    """A value as bytes. paths: those in the cache folder that it names, and that a receiver must have, too."""

    content: bytes
    paths: frozenset[str]


def packed(value: Any) -> Packed:
    """A value as bytes. A model in it stands for the receiver's, and a path in the cache folder for the receiver's."""
    from ray import cloudpickle

    root, paths = cache_place(None), set[str]()

    class Packer(cloudpickle.Pickler):
        def persistent_id(self, value: Any) -> tuple[str, str] | None:
            if isinstance(value, Decoder | Elsewhere):
                return "model", ""
            if isinstance(value, Path) and value.is_relative_to(root):
                paths.add(str(value.relative_to(root)))
                return "cache", str(value.relative_to(root))
            return None

    file = io.BytesIO()
    Packer(file, protocol=pickle.HIGHEST_PROTOCOL).dump(value)
    return Packed(file.getvalue(), frozenset(paths))


def unpacked(content: bytes, model: Decoder | None) -> Any:
    """The value of packed bytes, with this process's model in it, or `Elsewhere` where it has none."""
    return _Unpacker(io.BytesIO(content), model).load()


def files_of(paths: frozenset[str]) -> dict[str, int]:
    """The files at these places of the cache folder, and in these folders: path → size in bytes."""
    root, found = cache_place(None), dict[str, int]()
    for path in sorted(paths):
        for file in [root / path, *(root / path).rglob("*")]:
            if file.is_file():
                found[str(file.relative_to(root))] = file.stat().st_size
    return found


class _Unpacker(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, model: Decoder | None) -> None:
        super().__init__(file)
        self.model = Elsewhere() if model is None else model

    def persistent_load(self, stands_for: tuple[str, str]) -> Any:
        kind, path = stands_for
        return self.model if kind == "model" else cache_place(None) / path
