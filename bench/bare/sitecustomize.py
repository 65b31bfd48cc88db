"""Python started with this folder on PYTHONPATH finds no package that a lent GPU machine lacks.

So a run here fails where a run there would: `.ci/run` tries the parts of bench/device.sh this way.
"""

import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from typing import Any

LACKING = frozenset({"duckdb", "gguf", "prompt_toolkit", "pydantic", "ray"})


class Bare:
    """A finder of modules that does not find those."""

    def __init__(self, finder: Any) -> None:
        self.finder = finder

    def find_spec(self, name: str, *rest: Any) -> ModuleSpec | None:
        return None if name.partition(".")[0] in LACKING else self.finder.find_spec(name, *rest)

    def find_distributions(self, *context: Any) -> Iterator[Any]:
        found = getattr(self.finder, "find_distributions", lambda *_: ())(*context)
        return (one for one in found if one.name.replace("-", "_") not in LACKING)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.finder, name)


sys.meta_path[:] = map(Bare, sys.meta_path)
