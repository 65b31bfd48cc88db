"""fasttrace from a folder on PYTHONPATH, neither installed nor compiled."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

import fasttrace

ROOT = Path(__file__).resolve().parents[2]
# Some of the ops that the extension implements.
NATIVE = ("window_restore", "prefix_attention", "second_moment_", "rank_one_", "rank_one_linear", "rank_one_add_")


@pytest.fixture(scope="module")
def told(tmp_path_factory):
    """Output of tests/support/unbuilt.py."""
    folder = tmp_path_factory.mktemp("plain")
    (folder / "fasttrace").mkdir()
    for entry in (ROOT / "src" / "fasttrace").iterdir():
        if entry.suffix != ".so" and entry.name != "__pycache__":
            (folder / "fasttrace" / entry.name).symlink_to(entry)
    paths = [folder, ROOT / "bench" / "bare", ROOT / "bench", ROOT / "tests" / "support"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(map(str, paths))}
    command = [sys.executable, ROOT / "tests" / "support" / "unbuilt.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout)
    assert answer["file"] == str(folder / "fasttrace" / "__init__.py")
    return answer


def test_auto_uses_the_reference_and_native_is_refused(told):
    # Not 0, because ops.linear within an op uses whichever product is faster on this machine.
    assert max(told["off"].values()) < 1e-6
    for op in NATIVE:
        assert "impl='native' was asked for, but fasttrace._C is not built in this installation" in told["native"][op]


def test_a_sweep_runs_and_results_name_the_version(told):
    assert told["cells"] > 0
    assert not told["installed"]
    assert told["version"] == fasttrace.__version__
