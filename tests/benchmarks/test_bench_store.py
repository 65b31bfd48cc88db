"""bench_store.py at the size of twenty facts."""

import json
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]


def test_every_row_is_there_and_regressions_equal_statsmodels(tmp_path):
    out = tmp_path / "store.json"
    command = [sys.executable, ROOT / "bench/bench_store.py", "--size", "0.0004", "--rounds", "1"]
    done = subprocess.run([*command, "--folder", tmp_path, "--out", out], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    rows = json.loads(out.read_text())["rows"]
    assert rows[0]["case"].endswith("4,000 edits")
    assert {row["impl"] for row in rows} >= {"the file", "layer_sums", "regressions", "checks", "add_parquet"}
    assert rows[-1]["relative_difference"] < 1e-8
    assert list(tmp_path.iterdir()) == [out]
