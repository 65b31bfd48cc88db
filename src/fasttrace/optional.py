"""Packages that only a part of fasttrace needs: the rest works where they are not installed.

`from fasttrace.optional import duckdb` is that package. Where it is missing, PackageError says so in one sentence.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fasttrace.errors import PackageError

if TYPE_CHECKING:
    import duckdb as duckdb

NEEDED_BY = {
    "duckdb": "reading or writing a store",
    "gguf": "reading a GGUF model such as smollm2-135m",
    "prompt_toolkit": "the prompt of `fasttrace sql`",
}


def require(package: str) -> Any:
    """The package, imported. Raises PackageError, with who needs it and how it is had, where it is not installed."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise  # it is installed, and something that it imports is not
        what = f"{NEEDED_BY[package]} needs {package}, which is not installed here: pip install {package}"
        raise PackageError(what, name=package) from error


def __getattr__(name: str) -> Any:
    if name in NEEDED_BY:
        return require(name)
    raise AttributeError(f"module 'fasttrace.optional' has no attribute '{name}'")
