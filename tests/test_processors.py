"""processors.py: every pair of settings has a case, settings reach the tests, and a failure sets the exit code."""

import itertools
import os
import runpy
import subprocess
import sys
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).with_name("processors.py")
CASES = runpy.run_path(str(SCRIPT))["CASES"]


def test_every_pair_of_values_of_two_settings_occurs_in_a_case():
    settings = [set(column) for column in zip(*CASES, strict=True)]
    assert [len(values) for values in settings] == [3, 2, 2, 2, 3]
    for i, j in itertools.combinations(range(len(settings)), 2):
        assert {(case[i], case[j]) for case in CASES} == set(itertools.product(settings[i], settings[j]))


def test_inside_the_first_case(request):
    """Run by the test below."""
    if request.config.getoption("--linear") is None:
        pytest.skip("only processors.py sets --linear")
    assert os.environ["ONEDNN_MAX_CPU_ISA"] == "AVX2"
    assert torch.backends.cpu.get_cpu_capability() == "AVX2"
    assert os.environ.get("MKL_CBWR") == ("COMPATIBLE" if torch.backends.mkl.is_available() else None)
    assert torch.get_num_threads() == CASES[0].threads
    module = sys.modules["fasttrace.ops.linear"]
    assert not module._is_faster("native", torch.ones(2, 2), torch.ones(2, 2))


@pytest.mark.slow
def test_settings_reach_the_tests_and_a_failure_is_the_exit_code():
    inside = "tests/test_processors.py::test_inside_the_first_case"
    for test, code, words in ((inside, 0, "1 passed"), (f"{inside}_that_is_not_there", 1, "FAILED  onednn=AVX2")):
        command = [sys.executable, str(SCRIPT), "--case", "0", "-k", "", test]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        assert words in done.stdout
