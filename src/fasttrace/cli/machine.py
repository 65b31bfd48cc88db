"""Verbs about this machine: env."""

import sys
from importlib.metadata import PackageNotFoundError, version

from fasttrace.version import VERSION

from .help import command
from .options import emit, options


@command()
@options("json")
def env(as_json: bool) -> None:
    """Print versions, devices and whether the extension is loaded, for a bug report."""
    import torch

    from fasttrace.ops.native import unavailable_reason
    from fasttrace.processor import this_processor

    names = (
        "torch",
        "transformers",
        "triton",
        "duckdb",
        "gguf",
        "numpy",
        "pyarrow",
        "statsmodels",
        "accelerate",
        "prompt_toolkit",
    )
    rows = [{"what": "fasttrace", "value": VERSION}]
    rows += [{"what": name, "value": _version(name)} for name in names]
    rows.append({"what": "python", "value": sys.version.split()[0]})
    rows.append({"what": "extension", "value": unavailable_reason() or "loaded"})
    capability = torch.backends.cpu.get_cpu_capability()
    cpu = this_processor() or "unknown processor"
    rows.append({"what": "cpu", "value": f"{cpu}, {torch.get_num_threads()} threads, torch uses {capability}"})
    cuda = torch.cuda.get_device_name() if torch.cuda.is_available() else "none"
    rows.append({"what": "cuda", "value": cuda})
    emit(rows, as_json)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
