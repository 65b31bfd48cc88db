"""Run the numerical tests as other processors compute them, to find those that pass only by luck of rounding.

python tests/processors.py [-k EXPRESSION] [--case N …] [TEST …]      (make test-all; without tests, all of NUMERICAL)

The settings are the instruction sets of oneDNN and torch, MKL's kernels, the number of threads, and the product of
ops.linear. Every pair of values of two settings occurs in some case. If this processor lacks an instruction set, oneDNN
and torch use the best one that it has.
"""

import argparse
import os
import subprocess
import sys
from pathlib import Path
from typing import NamedTuple

import torch

ROOT = Path(__file__).resolve().parents[1]
NUMERICAL = ("tests/ops", "tests/models", "tests/tracing", "tests/editing")
# These run under sanitizers, in Triton's interpreter or on meta tensors, where the settings have no effect.
ELSEWHERE = ("tests/ops/test_twin.py", "tests/ops/test_tiles.py", "tests/ops/test_dispatch.py")
ELSEWHERE += ("tests/ops/test_instruction_sets.py", "tests/tracing/test_no_waits.py")


class Case(NamedTuple):
    """onednn: ONEDNN_MAX_CPU_ISA. aten: ATEN_CPU_CAPABILITY. mkl: MKL_CBWR. None: not set. Others: conftest.py."""

    onednn: str | None
    aten: str | None
    mkl: str | None
    threads: int
    linear: str

    def environment(self) -> dict[str, str]:
        named = {"ONEDNN_MAX_CPU_ISA": self.onednn, "ATEN_CPU_CAPABILITY": self.aten}
        if torch.backends.mkl.is_available():
            named["MKL_CBWR"] = self.mkl
        # The test processes share the cores, so a waiting thread must not occupy one.
        named["OMP_WAIT_POLICY"] = "PASSIVE"
        plain = {name: value for name, value in os.environ.items() if name not in named}
        return plain | {name: value for name, value in named.items() if value is not None}

    def __str__(self) -> str:
        return " ".join(f"{name}={value or 'default'}" for name, value in self._asdict().items())


CASES = (
    Case("AVX2", "avx2", "COMPATIBLE", 1, "reference"),
    Case("AVX2", None, "COMPATIBLE", 2, "native"),
    Case("AVX2", None, None, 1, "onednn"),
    Case("AVX512_CORE", None, None, 1, "reference"),
    Case("AVX512_CORE", "avx2", None, 1, "native"),
    Case("AVX512_CORE", "avx2", "COMPATIBLE", 2, "onednn"),
    Case(None, None, None, 2, "reference"),
    Case(None, "avx2", None, 1, "native"),
    Case(None, None, "COMPATIBLE", 1, "onednn"),
)


def run(case: Case, tests: list[str], expression: str) -> bool:
    """Run the tests with the settings of a case. Return whether they pass."""
    workers = len(os.sched_getaffinity(0))
    command = [
        sys.executable, "-m", "pytest", *tests, *(f"--ignore={path}" for path in ELSEWHERE), "-p", "no:cacheprovider",
        "-n", str(workers), "--dist", "worksteal", "--threads", str(case.threads), "--linear", case.linear,
        "-k", expression,
    ]  # fmt: skip
    print(f"== {case}", flush=True)
    return subprocess.run(command, cwd=ROOT, env=case.environment()).returncode == 0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("-k", help="as pytest's -k", default="not in_the_interpreter")
    parser.add_argument("--case", type=int, action="append", choices=range(len(CASES)), help="may be repeated")
    parser.add_argument("tests", nargs="*", default=list(NUMERICAL))
    options = parser.parse_args()
    chosen = [CASES[number] for number in options.case or range(len(CASES))]
    passed = {case: run(case, options.tests, options.k) for case in chosen}
    for case, well in passed.items():
        print(f"{'passed' if well else 'FAILED'}  {case}")
    sys.exit(0 if all(passed.values()) else 1)


if __name__ == "__main__":
    main()
