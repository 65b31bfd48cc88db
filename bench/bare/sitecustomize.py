"""Python started with this folder on PYTHONPATH finds no package that a lent GPU machine lacks.

So a run here fails where a run there would: `.ci/run` tries the parts of bench/device.sh this way. Nor is fasttrace
installed there: where PYTHONPATH has it as a folder, what is installed here is not found.
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
    """A finder of modules that does not find those."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, *rest: Any) -> ModuleSpec | None:
        return None if name.partition(".")[0] in LACKING else self.finder.find_spec(name, *rest)

    def find_distributions(self, *context: Any) -> Iterator[Any]:
        found = getattr(self.finder, "find_distributions", lambda *_: ())(*context)
        return (one for one in found if one.name.replace("-", "_") not in UNINSTALLED)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


# An editable installation has a finder of its own.
kept = [one for one in sys.meta_path if not (AS_A_FOLDER and "editable" in getattr(one, "__module__", ""))]
sys.meta_path[:] = map(Bare, kept)
