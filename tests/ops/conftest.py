"""Where a Triton kernel can run: on a GPU, or on CPU tensors in Triton's interpreter, which needs its own process."""

import os
import subprocess
import sys
from collections.abc import Callable
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
def in_the_interpreter() -> Callable[[str], int]:
    """Run a test file's interpreter tests in a process of their own; how many passed (none may fail or skip)."""

    def run(file: str) -> int:
        pytest.importorskip("triton")
        root = Path(__file__).parents[2]
        command = [sys.executable, "-m", "pytest", file, "-k", "interpreter and not in_the", "-p", "no:cacheprovider"]
        env = {**os.environ, "TRITON_INTERPRET": "1"}
        done = subprocess.run(command, env=env, cwd=root, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        summary = done.stdout.strip().splitlines()[-1]
        assert "skipped" not in summary, done.stdout
        return int(summary.split(" passed")[0].split()[-1])

    return run
