"""The builds a CPU without AVX-512 would run: the same sources, compiled here for the two lesser sets."""

import json
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

CSRC = Path(__file__).resolve().parents[2] / "csrc"
TORCH = Path(torch.__file__).resolve().parent
SETS = {"baseline": 0, "avx2": 1}

MEASURE = """
import json, sys, torch
torch.ops.load_library(sys.argv[1])
torch.manual_seed(0)
worst = {"moment": 0.0, "rank_one": 0.0, "rows": 0.0}
for n, m in [(1, 1), (33, 13), (70, 25), (1030, 61)]:
    for dtype in (torch.float32, torch.bfloat16):
        K, C = torch.randn(n, m).to(dtype), torch.zeros(m, m, dtype=torch.float64)
        torch.ops.fasttrace.second_moment_(C, K)
        wanted = K.double().T @ K.double()
        scale = wanted.diagonal().sqrt()
        worst["moment"] = max(worst["moment"], ((C - wanted).abs() / torch.outer(scale, scale)).max().item())
        W, u, v = torch.randn(n, m).to(dtype), torch.randn(n), torch.randn(m)
        wanted = (W.double() + 0.5 * torch.outer(u.double(), v.double()))
        torch.ops.fasttrace.rank_one_(W, u, v, 0.5)
        error = (W.double() - wanted).abs() / (wanted.abs() * torch.finfo(dtype).eps / 2 + 5e-7)
        worst["rank_one"] = max(worst["rank_one"], error.max().item())
        draw, unit = lambda *shape: torch.randn(*shape).to(dtype), torch.finfo(dtype).eps
        x, w, out = draw(n, m), draw(m), draw(n, m)
        torch.ops.fasttrace.rms_norm_(x, w, 1e-5, None, out)
        wanted = w.double() * x.double() / (x.double().square().mean(1, keepdim=True) + 1e-5).sqrt()
        errors = [(out - wanted).abs() / wanted.abs()]
        gate, up = 9 * draw(n, m), draw(n, m)
        wanted = gate.double() * gate.double().sigmoid() * up.double()
        torch.ops.fasttrace.silu_mul_(gate, up)
        errors.append((gate - wanted).abs() / wanted.abs())
        zero = torch.zeros(n, dtype=torch.int64)
        torch.ops.fasttrace.window_restore_(x, up, zero, zero, out)
        wanted = x[:1].double() + up[:1].double()
        errors.append((out - wanted).abs() / wanted.abs())
        turned, cos, sin = draw(n, 3, 2 * m), draw(n, 2 * m), draw(n, 2 * m)
        wide, c, s = turned.double(), cos.double()[:, None], sin.double()[:, None]
        crossed = torch.cat((-wide[..., m:], wide[..., :m]), 2)
        torch.ops.fasttrace.rotary_(turned, cos, sin)
        errors.append((turned - (wide * c + crossed * s)).abs() / ((wide * c).abs() + (crossed * s).abs()))
        worst["rows"] = max(worst["rows"], *(error.max().item() / unit for error in errors))
print(json.dumps(worst))
"""


@pytest.mark.parametrize("name", SETS)
def test_lesser_instruction_sets_compute_the_same(name: str, tmp_path: Path) -> None:
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C++ compiler on Linux")
    if name == "avx2" and "AVX2" not in torch.backends.cpu.get_cpu_capability().replace("AVX512", "AVX2"):
        pytest.skip("this CPU has no AVX2")
    library = tmp_path / "lesser.so"
    command = [compiler, "-shared", "-fPIC", "-std=c++20", "-O2", "-Wno-psabi"]
    command += [f"-DFASTTRACE_ISA={SETS[name]}", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    command += ["-DPy_LIMITED_API=0x030b0000", f"-I{TORCH / 'include'}", f"-I{sysconfig.get_path('include')}"]
    command += [f"-L{TORCH / 'lib'}"]
    command += [str(path) for path in sorted(CSRC.glob("*.cpp")) if path.name != "library_cuda.cpp"]
    subprocess.run([*command, "-o", str(library), "-ltorch_cpu", "-lc10"], check=True)
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, str(library)], check=True, capture_output=True, text=True
    )
    worst = json.loads(answer.stdout)
    assert worst["moment"] < 6e-7
    assert worst["rank_one"] <= 1.0
    assert worst["rows"] <= 5.0  # units of the dtype: float32's sums and exponential take some, bfloat16 only two
