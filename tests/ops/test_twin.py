"""The CUDA kernels' unchanged sources on CPU threads under sanitizers: the checks that need no GPU.

tests/ops/twin defines the names of device.cuh for a CPU. It relies on published descriptions of the instructions
(fragment layouts, sums rounded towards zero).
"""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CSRC = Path(__file__).resolve().parents[2] / "csrc"
TWIN = Path(__file__).resolve().parent / "twin"
ASAN = ["-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
TSAN = ["-fsanitize=thread"]
OUTSIDE = "heap-buffer-overflow|misaligned"
# Bounds of errors, in units of one rounding to the dtype or relative to the diagonal. 0: it must not happen.
BOUNDS = {
    "rank_one_": 1.0,
    "rank_one_add_": 1.0,
    "rank_one_add_ out of range": 0.0,
    "second_moment_ asymmetry": 0.0,
    "second_moment_ bfloat16": 4e-7,
    "second_moment_ float32": 4e-7,
    "written in a gap": 0.0,
}


def run(folder: Path, flags: list[str], *ops: str, kernels: Path = CSRC) -> subprocess.CompletedProcess[str]:
    """Compile the twin with these kernels and run it on these ops, or on all."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C++ compiler on Linux")
    program, library = folder / "twin", "tsan" if flags == TSAN else "asan"
    found = subprocess.run([compiler, f"-print-file-name=lib{library}.so"], capture_output=True, text=True)
    if not os.path.isabs(found.stdout.strip()):
        pytest.skip(f"this compiler has no {library}")
    paths = [f"-I{TWIN}", f"-I{kernels}"]
    command = [compiler, "-std=c++20", "-O1", "-g", "-Wno-unknown-pragmas", *flags, *paths, str(TWIN / "twin.cpp")]
    subprocess.run([*command, "-o", str(program), "-pthread"], check=True)
    first = {**os.environ, "TSAN_OPTIONS": "halt_on_error=1"}
    return subprocess.run([str(program), *ops], env=first, capture_output=True, text=True, timeout=500)


@pytest.mark.parametrize(
    "flags",
    [
        pytest.param(ASAN, id="address and undefined behaviour"),
        pytest.param(TSAN, id="threads", marks=pytest.mark.slow),
    ],
)
def test_kernels_are_right_and_stay_within_their_memory(flags: list[str], tmp_path: Path) -> None:
    answer = run(tmp_path, flags)
    assert answer.returncode == 0, answer.stderr[-3000:]
    worst: dict[str, float] = json.loads(answer.stdout)
    assert worst.keys() == BOUNDS.keys()
    for name, bound in BOUNDS.items():
        assert worst[name] <= bound, worst


@pytest.mark.slow
@pytest.mark.parametrize(
    ("op", "file", "line", "instead", "flags", "seen"),
    [
        ("second_moment_", "moments.cuh", "    __syncthreads();\n", "", TSAN, "data race"),
        ("second_moment_", "moments.cuh", "stages<TK> * sizeof(Stage<TK>)}", "sizeof(Stage<TK>)}", ASAN, OUTSIDE),
        ("second_moment_", "moments.cuh", "stages<TK> - 2>()", "2>()", ASAN, "second_moment_ float32"),
        ("rank_one_", "rank_one.cuh", "columns % width == 0 && ", "", ASAN, OUTSIDE),
        ("rank_one_", "rank_one.cuh", "stride + j) = w", "columns + j) = w", ASAN, "rank_one_"),
        ("rank_one_add_", "rank_one_linear.cuh", "  __syncthreads();\n", "", TSAN, "data race"),
    ],
    ids=["no barrier", "half the shared memory", "no wait", "cut packs", "wrong stride", "no barrier after the sums"],
)  # fmt: skip
def test_the_twin_detects_broken_kernels(
    op: str, file: str, line: str, instead: str, flags: list[str], seen: str, tmp_path: Path
) -> None:
    kernels = tmp_path / "csrc"
    kernels.mkdir()
    for path in CSRC.glob("*.cuh"):
        shutil.copy(path, kernels)
    text = (kernels / file).read_text()
    assert text.count(line) == 1
    (kernels / file).write_text(text.replace(line, instead))
    answer = run(tmp_path, flags, op, kernels=kernels)
    if answer.returncode:
        assert re.search(seen, answer.stderr), answer.stderr[-3000:]
    else:
        worst: dict[str, float] = json.loads(answer.stdout)
        assert worst[seen] > BOUNDS[seen], worst
