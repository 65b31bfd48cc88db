"""Work that goes wrong in every way, for bench/apart.py."""

import os
import time
from collections.abc import Iterator

import torch


def a_fault(*_):
    raise RuntimeError("CUDA error: an illegal memory access was encountered")


def break_the_gpu() -> None:
    """As after a kernel's fault: every later call to the GPU fails in this process."""
    torch.cuda.is_initialized = lambda: True
    torch.cuda.synchronize = a_fault


def gpu_is_broken() -> bool:
    return torch.cuda.synchronize is a_fault


def rows(task: str) -> Iterator[dict[str, object]]:
    """A row that names the process, and then what the task is called."""
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
