"""Fixtures of the ops' tests. Triton kernels run on a GPU, or in another process in Triton's CPU interpreter."""

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def triton_device(request: pytest.FixtureRequest) -> str:
    """Device of a Triton test. Each file's `test_in_the_interpreter` runs the tests that use the interpreter."""
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
    """Dtypes to which Triton rounds on its device. Its interpreter truncates to bfloat16 instead."""
    return [torch.float32, torch.float16] if triton_device == "cpu" else [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def in_the_interpreter() -> Callable[[str], int]:
    """A function that runs a file's interpreter tests in another process. It returns how many passed; none may skip."""

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
    """Fill every torch.empty with NaN, so that an element an op forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
