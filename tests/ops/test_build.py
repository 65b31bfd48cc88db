"""The extension with libstdc++ linked into it, as the compiler of the first GPU machine did.

Such a copy numbers locale facets apart from the process's copy, so writing a number into a message crashed or lost it.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
BUILD = "import setuptools; setuptools.setup()"
REFUSED = """
import sys, torch
torch.ops.load_library(sys.argv[1])
try:
    torch.ops.fasttrace.rank_one_(torch.zeros(4, 5), torch.ones(3), torch.ones(5), 1.0)
except RuntimeError as error:
    print(error)
"""


@pytest.mark.slow
def test_messages_keep_their_numbers_with_a_static_libstdcpp(tmp_path):
    if shutil.which("g++") is None or not sys.platform.startswith("linux"):
        pytest.skip("needs g++ on Linux")
    folders = ("--build-lib", str(tmp_path / "lib"), "--build-temp", str(tmp_path / "objects"))
    command = [sys.executable, "-W", "ignore", "-c", BUILD, "-q", "build_ext", "--force", *folders]
    subprocess.run(command, cwd=ROOT, env={**os.environ, "LDFLAGS": "-static-libstdc++"}, check=True)
    [library] = (tmp_path / "lib" / "fasttrace").glob("_C.*")
    assert "libstdc++" not in subprocess.run(["ldd", library], capture_output=True, text=True, check=True).stdout
    done = subprocess.run([sys.executable, "-c", REFUSED, library], capture_output=True, text=True, check=True)
    assert "expected u of shape (4,)" in done.stdout
    assert "got (3,)" in done.stdout
