"""With this folder on PYTHONPATH, Python does not find the packages that a lent GPU machine lacks.

A run here then fails where a run on that machine would. `.ci/run` tests the parts of bench/device.sh this way.
fasttrace is not installed on that machine either: if PYTHONPATH has it as a folder, an installed one is not found.
"""

import os
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

LACKING = {"duckdb", "gguf", "prompt_toolkit", "pydantic", "ray"}
PATHS = [Path(path) for path in os.environ.get("PYTHONPATH", "").split(os.pathsep) if path]
AS_A_FOLDER = any((path / "fasttrace").is_dir() for path in PATHS)
UNINSTALLED = LACKING | {"fasttrace"} if AS_A_FOLDER else LACKING


class Bare:
    """A module finder that does not find the missing packages."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, *rest: Any) -> ModuleSpec | None:
        return None if name.partition(".")[0] in LACKING else self.finder.find_spec(name, *rest)

    def find_distributions(self, *context: Any) -> Iterator[Any]:
        found = getattr(self.finder, "find_distributions", lambda *_: ())(*context)
        return (one for one in found if one.name.replace("-", "_") not in UNINSTALLED)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


# If PYTHONPATH has fasttrace as a folder, the finder of an editable installation is removed.
kept = [one for one in sys.meta_path if not (AS_A_FOLDER and "editable" in getattr(one, "__module__", ""))]
sys.meta_path[:] = map(Bare, kept)
