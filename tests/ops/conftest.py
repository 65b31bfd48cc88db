"""Where a Triton kernel can run: on a GPU, or on the CPU in Triton's interpreter, in a process of its own."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def triton_device(request: pytest.FixtureRequest) -> str:
    """The device for a Triton test; each file's `test_in_the_interpreter` runs the interpreter's share."""
    triton = pytest.importorskip("triton")
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        return "cuda"
    if not triton.knobs.runtime.interpret:
        pytest.skip("runs in the process that test_in_the_interpreter starts")
    return "cpu"


@pytest.fixture
def rounded_dtypes(triton_device: str) -> list[torch.dtype]:
    """The dtypes that Triton rounds to on its device: its interpreter cuts bfloat16 off."""
    return [torch.float32, torch.float16] if triton_device == "cpu" else [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def in_the_interpreter() -> Callable[[str], int]:
    """Run a test file's interpreter tests in their own process; how many passed (none may fail or skip)."""

    def run(file: str) -> int:
        pytest.importorskip("triton")
        root = Path(__file__).parents[2]
        chosen = ("-k", "interpreter and not in_the", "-p", "no:cacheprovider")
        command = [sys.executable, "-m", "pytest", file, *chosen]
        env = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        summary = done.stdout.strip().splitlines()[-1]
        assert "skipped" not in summary, done.stdout
        return int(summary.split(" passed")[0].split()[-1])

    return run


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Every torch.empty is full of NaN, so that an element an op forgets to write is seen."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
