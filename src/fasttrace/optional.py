"""Packages that only some parts of fasttrace need. The other parts work without them.

`from fasttrace.optional import duckdb` imports the package, or raises PackageError where it is missing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fasttrace.errors import PackageError

if TYPE_CHECKING:
    import duckdb as duckdb

NEEDED_BY = {
    "bitsandbytes": "a model that bitsandbytes has quantised",
    "datasets": "a data set of the hub",
    "duckdb": "reading or writing a store",
    "gguf": "reading a GGUF model such as smollm2-135m",
    "lm_eval": "a task of lm-evaluation-harness",
    "openai": "a judge behind an address",
    "ray": "computing with several workers",
    "torchao": "a model that torchao has quantised",
    "pandas": "a pandas data frame",
    "polars": "a polars data frame",
    "prompt_toolkit": "the prompt of `fasttrace sql` or `fasttrace chat`",
}


def require(package: str) -> Any:
    """Import a package. Raises PackageError where it is not installed, saying what needs it and how to install it."""
    try:
        return import_module(package)
    except ModuleNotFoundError as error:
        if error.name != package:
            raise  # the package is installed, but a module that it imports is not
        what = f"{NEEDED_BY[package]} needs {package}, which is not installed here: pip install {package}"
        raise PackageError(what, name=package) from error


def __getattr__(name: str) -> Any:
    if name in NEEDED_BY:
        return require(name)
    raise AttributeError(f"module 'fasttrace.optional' has no attribute '{name}'")
