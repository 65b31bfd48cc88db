"""bench/apart.py: a failure in one task does not affect the others."""

import os
import subprocess
import sys
from pathlib import Path

from apart import apart
from bad_work import rows

ROOT = Path(__file__).resolve().parents[2]


def test_each_task_gives_its_rows_and_the_reason_for_its_end():
    tasks = ["good", "fails", "good", "faults", "dies", "hangs", "good"]
    found = list(apart(rows, tasks, 3.0))
    assert [task for task, _, _ in found] == tasks
    assert [why for _, _, why in found] == [
        None, "no such thing", None, "CUDA error: an illegal memory access was encountered",
        "its process ended with code 7", "nothing for 3 s", None,
    ]  # fmt: skip
    assert [len(mine) for _, mine, _ in found] == [2, 1, 2, 1, 1, 1, 2]
    # A fault, a death and a hang each cost a process, and nothing else does.
    processes = [mine[0]["process"] for _, mine, _ in found]
    assert len(set(processes[:4])) == 1
    assert len(set(processes)) == 4
    assert os.getpid() not in processes
    assert not any(mine[0]["broken"] for _, mine, _ in found)


def test_a_worker_of_pytest_ends_with_the_test_that_lost_the_gpu(tmp_path):
    (tmp_path / "test_three.py").write_text(
        "import bad_work\n"
        "def test_first(): pass\n"
        "def test_faults(): bad_work.break_the_gpu(); bad_work.a_fault()\n"
        "def test_after(): assert not bad_work.gpu_is_broken()\n"
    )
    paths = os.pathsep.join([str(ROOT / "bench"), str(ROOT / "tests" / "support")])
    command = [sys.executable, "-m", "pytest", "-p", "apart", "-n", "1", "-v", "test_three.py"]
    environment = {**os.environ, "PYTHONPATH": paths}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 1, done.stdout + done.stderr
    for line in ("PASSED {}first", "FAILED {}faults", "PASSED {}after"):
        assert line.format("test_three.py::test_") in done.stdout, done.stdout
    assert "an illegal memory access" in done.stdout
