"""Tasks for bench/apart.py that raise, break the GPU, die or hang."""

import os
import time
from collections.abc import Iterator

import torch


def a_fault(*_):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def break_the_gpu() -> None:
    """Make torch.cuda.synchronize fail in this process, as it does after a kernel's fault."""
    torch.cuda.is_initialized = lambda: True
    torch.cuda.synchronize = a_fault


def gpu_is_broken() -> bool:
    return torch.cuda.synchronize is a_fault


def rows(task: str) -> Iterator[dict[str, object]]:
    """Yield a row that names the process, then fail as `task` names it or yield a last row."""
    yield {"process": os.getpid(), "broken": gpu_is_broken()}
    if task == "fails":
        raise ValueError("no such thing\nand more")
    if task == "faults":
        break_the_gpu()
        a_fault()
    if task == "dies":
        os._exit(7)
    if task == "hangs":
        time.sleep(600)
    yield {"last": True}
