"""The cases of processors.py: which settings meet, and what a failure does."""

import itertools
import runpy
import subprocess
import sys
from pathlib import Path

SCRIPT = Path(__file__).with_name("processors.py")
CASES = runpy.run_path(str(SCRIPT))["CASES"]


def test_any_two_values_of_two_settings_meet_in_one_case():
    settings = [set(column) for column in zip(*CASES, strict=True)]
    assert [len(values) for values in settings] == [3, 2, 2, 2, 2]
    for i, j in itertools.combinations(range(len(settings)), 2):
        assert {(case[i], case[j]) for case in CASES} == set(itertools.product(settings[i], settings[j]))


def test_settings_reach_the_tests_and_a_failure_is_the_exit_code(tmp_path):
    """The first case on a test that passes only as it asks for, and on one that fails."""
    seen = tmp_path / "test_seen.py"
    seen.write_text(
        "import os, torch\n"
        "def test_it(request):\n"
        "    assert os.environ['ONEDNN_MAX_CPU_ISA'] == 'AVX2' and os.environ['ATEN_CPU_CAPABILITY'] == 'avx2'\n"
        "    assert torch.backends.cpu.get_cpu_capability() == 'AVX2'\n"
        "    assert os.environ.get('MKL_CBWR') == ('COMPATIBLE' if torch.backends.mkl.is_available() else None)\n"
        "    assert torch.get_num_threads() == int(os.environ['OMP_NUM_THREADS'])\n"
    )
    wrong = tmp_path / "test_wrong.py"
    wrong.write_text("def test_it():\n    assert False\n")
    for file, code, words in ((seen, 0, "1 passed"), (wrong, 1, "1 failed")):
        command = [sys.executable, str(SCRIPT), "--cases", "0", str(file)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=300)
        assert done.returncode == code, done.stdout + done.stderr
        assert words in done.stdout
