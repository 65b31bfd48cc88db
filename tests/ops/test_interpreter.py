"""Triton's kernels in its CPU interpreter, which must be chosen before a process imports Triton."""

import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from fasttrace.benchmarks import TILED

HERE = Path(__file__).parent
# File → its tests of Triton kernels, so that none is lost unnoticed.
COUNTS = {
    "test_adam_linf.py": 18,
    "test_fuzz.py": len(TILED),
    "test_noised_embed.py": 65,
    "test_prefix_attention.py": 25,
    "test_rms_norm.py": 17,
    "test_rotary.py": 12,
    "test_silu_mul.py": 7,
    "test_target_logprob.py": 56,
    "test_window_restore.py": 23,
}
TILES = {"test_tiles.py": len(TILED)}


@pytest.mark.parametrize("counts", [COUNTS, pytest.param(TILES, marks=pytest.mark.slow)], ids=["kernels", "tiles"])
def test_kernels_are_right_in_the_interpreter(counts: dict[str, int]) -> None:
    pytest.importorskip("triton")
    other = ["test_interpreter.py", *(COUNTS if counts is TILES else TILES)]
    words = [sys.executable, "-m", "pytest", HERE, "-k", "interpreter and not in_the", "-vv", "-p", "no:cacheprovider"]
    words += [f"--ignore={HERE / name}" for name in other]
    env = {**os.environ, "TRITON_INTERPRET": "1"}
    done = subprocess.run(words, env=env, cwd=HERE.parents[1], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    outcomes = re.findall(r"^tests/ops/(\w+\.py)::.* ([A-Z]+) +\[", done.stdout, re.MULTILINE)
    assert Counter(file for file, _ in outcomes) == counts
    assert {outcome for _, outcome in outcomes} == {"PASSED"}
