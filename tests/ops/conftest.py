"""Fixtures of the ops' tests. Triton kernels run on a GPU, or in another process in Triton's CPU interpreter."""

from collections.abc import Iterator

import pytest
import torch


@pytest.fixture(params=["interpreter", pytest.param("cuda", marks=pytest.mark.gpu)])
def triton_device(request: pytest.FixtureRequest) -> str:
    """Device of a Triton test. test_interpreter.py runs the tests that use the interpreter."""
    triton = pytest.importorskip("triton")
    if request.param == "cuda":
        if not torch.cuda.is_available():
            pytest.skip("no CUDA device")
        return "cuda"
    if not triton.knobs.runtime.interpret:
        pytest.skip("runs in the process that test_interpreter.py starts")
    return "cpu"


@pytest.fixture
def rounded_dtypes(triton_device: str) -> list[torch.dtype]:
    """Dtypes to which Triton rounds on its device. Its interpreter truncates to bfloat16 instead."""
    return [torch.float32, torch.float16] if triton_device == "cpu" else [torch.float32, torch.float16, torch.bfloat16]


@pytest.fixture
def poisoned_memory() -> Iterator[None]:
    """Fill every torch.empty with NaN, so that an element an op forgets to write shows."""
    torch.use_deterministic_algorithms(True)
    torch.utils.deterministic.fill_uninitialized_memory = True
    yield
    torch.use_deterministic_algorithms(False)
