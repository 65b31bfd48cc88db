"""Every GPU kernel compiles with every tile on a machine without a GPU, and does not spill or ask for too much."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from fasttrace.benchmarks import TILED

pytestmark = pytest.mark.slow  # .ci/run runs it

ROOT = Path(__file__).resolve().parents[2]
SHARED = 227 * 1024  # bytes that a block may have at capability 9.0
# Sine and cosine of any angle in float64 keep a table on the stack.
ON_THE_STACK = {"noised_embed": 64}


@pytest.fixture(scope="module")
def rows():
    pytest.importorskip("triton")
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, "-W", "ignore", "bench/compile_kernels.py", "--json"]
    told = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert told.returncode == 0, told.stderr[-3000:]
    return json.loads(told.stdout)


def test_every_kernel_is_compiled_in_both_dtypes(rows):
    for op in TILED:
        for dtype in ("float32", "bfloat16"):
            tiles = {row["case"] for row in rows if row["kernel"].startswith(op) and row["case"].startswith(dtype)}
            assert len(tiles) >= 4
    if shutil.which("nvcc"):
        assert {row["kernel"] for row in rows if ".cu" in row["kernel"]} == {
            path.name for path in (ROOT / "csrc").glob("*.cu")
        }


def is_recorded(row):
    """Whether a row's tile was measured as the fastest of its set on some device."""
    dtype, *parts = row["case"].split()
    tile = {name: int(value) for name, value in (part.split("=") for part in parts)}
    devices = json.loads((ROOT / "kernels" / "tiles.json").read_text())
    own = f"{row['kernel'].removesuffix('_')} {dtype}"
    return any(tile == one for held in devices.values() for key, one in held.items() if key.startswith(own))


def test_nothing_spills_and_every_block_fits(rows):
    """A tile may spill if it is recorded as the fastest. It is launched only on devices for which it is recorded."""
    defaults = {}
    for row in rows:
        default = defaults.setdefault((row["kernel"], row["case"].split()[0]), row) is row
        spills = row["stack"] > ON_THE_STACK.get(row["kernel"], 0)
        assert not spills or (not default and ".cu" not in row["kernel"] and is_recorded(row)), row
        assert row["shared"] <= SHARED, row
        assert row["blocks"] >= 1, row
