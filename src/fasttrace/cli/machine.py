"""The verb env: what is fast on this machine, what is not, and what to do about it."""

import json
import os
import sys
import textwrap
from collections.abc import Iterator
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import NamedTuple

import click

from fasttrace.show.words import count
from fasttrace.version import VERSION

from .help import command
from .options import options

PACKAGES = (
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
SETS = {
    "amx": "products have instructions of their own in bfloat16: --dtype bfloat16 is fastest",
    "avx512-bf16": "products have instructions of their own in bfloat16: --dtype bfloat16 is fastest",
    "avx512": "",
    "avx2": "",
}


class Part(NamedTuple):
    """A part of this machine or installation.

    fast: whether it is as fast as it can be, or None for a version or a place. advice: what to do, or to know.
    """

    what: str
    value: str
    fast: bool | None = None
    advice: str = ""


@command()
@options("json")
def env(as_json: bool) -> None:
    """Print versions and devices, what is fast here and what is not, and what to do about it.

    A bug report needs the whole output.
    """
    parts = [*_versions(), *_computing(), *_places()]
    if as_json:
        click.echo(json.dumps([part._asdict() for part in parts], indent=2, ensure_ascii=False))
        return
    width = max(len(part.what) for part in parts)
    for heading, fast in (("Installed", None), ("Fast here", True), ("Not fast here", False)):
        if chosen := [part for part in parts if part.fast is fast]:
            click.echo(f"{heading}:")
        for part in chosen:
            click.echo(f"  {part.what:<{width}}  {part.value}")
            for line in textwrap.wrap(part.advice, 96 - width):
                click.echo(f"  {'':<{width}}  {line}")


def _versions() -> Iterator[Part]:
    yield Part("fasttrace", VERSION)
    yield Part("python", sys.version.split()[0])
    yield from (Part(name, _version(name)) for name in PACKAGES)


def _computing() -> Iterator[Part]:
    """What computes: processor, threads, extension, GPU and its kernels."""
    import torch

    from fasttrace.ops.native import unavailable_reason
    from fasttrace.processor import this_processor

    cpu, uses = this_processor(), torch.backends.cpu.get_cpu_capability()
    about = f"{cpu or 'unknown processor'}, {count(torch.get_num_threads(), 'thread')}, torch uses {uses}"
    if cpu is None or cpu.matrix_set in SETS:
        yield Part("cpu", about, None if cpu is None else True, "" if cpu is None else SETS[cpu.matrix_set])
    else:
        yield Part("cpu", about, False, "it has neither AVX2 nor AVX-512: products take several times as long")
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if (threads := torch.get_num_threads()) < cores:
        yield Part("threads", f"{threads} of {cores} cores", False, "unset OMP_NUM_THREADS, or raise it")
    reason = unavailable_reason()
    without = "the ops run as torch's own: install a C++ compiler, then fasttrace from its source (pip install .)"
    yield Part("extension", reason or "loaded", reason is None, without if reason else "")
    if torch.cuda.is_available():
        yield Part("cuda", torch.cuda.get_device_name(), True, "name it with --device cuda")
        yield from _kernels(unavailable_reason("cuda"))
    elif torch.version.cuda is None:
        yield Part("cuda", "none", False, "this torch is built for CPUs; with a GPU, install one built for CUDA")
    else:
        built = torch.version.cuda
        yield Part("cuda", "none", False, f"this torch is built for CUDA {built} and sees no GPU: look at nvidia-smi")


def _kernels(reason: str | None) -> Iterator[Part]:
    """The kernels for a GPU. reason: why those in CUDA are not there, or None."""
    import torch

    build = f"wheels lack them: install fasttrace from its source, where nvcc is of CUDA {torch.version.cuda}"
    yield Part("cuda kernels", reason or "loaded", reason is None, build if reason else "")
    triton = _version("triton")
    missing = triton == "not installed"
    yield Part("triton kernels", triton, not missing, "the GPU runs torch's own: pip install triton" if missing else "")


def _places() -> Iterator[Part]:
    """The default model, the cache, and the version of stores."""
    from fasttrace.cache import cache_place
    from fasttrace.errors import FasttraceError
    from fasttrace.memory import size_text
    from fasttrace.packaged import DEFAULT_MODEL, PACKAGED, full_name, weights_of

    try:
        weights_of(DEFAULT_MODEL)
        yield Part("model", full_name(DEFAULT_MODEL))
    except FasttraceError:
        yield Part("model", f"{DEFAULT_MODEL} is not installed", False, PACKAGED[DEFAULT_MODEL].install)
    cache = cache_place(None)
    copies = [folder for folder in (cache / "models").glob("*") if folder.is_dir()]
    size = sum(file.stat().st_size for folder in copies for file in folder.rglob("*") if file.is_file())
    about = f"{cache}, with {count(len(copies), 'model')} of {size_text(size)}"
    if _is_writable(cache):
        first = "" if copies else "the first load of a GGUF model takes half a minute, and later ones a second"
        yield Part("cache", about, None, first)
    else:
        yield Part("cache", f"{cache} cannot be written", False, "name another folder with XDG_CACHE_HOME")
    try:
        from fasttrace.store.migrate import OLDEST_VERSION, SCHEMA_VERSION
    except ImportError:
        return  # a machine that only computes lacks duckdb, which is said above
    yield Part("store", f"version {SCHEMA_VERSION}; stores of version {OLDEST_VERSION} and later are read")


def _is_writable(folder: Path) -> bool:
    """Whether files can be made in a folder, or in the nearest folder above it that exists."""
    there = next(one for one in (folder, *folder.absolute().parents) if one.exists())
    return there.is_dir() and os.access(there, os.W_OK)


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "not installed"
