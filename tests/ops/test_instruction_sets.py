"""The C++ sources compiled for lesser instruction sets than this CPU has, and for the sanitizers."""

import json
import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from fasttrace.ops import native

CSRC = Path(__file__).resolve().parents[2] / "csrc"
TORCH = Path(torch.__file__).resolve().parent
SETS = {
    "baseline": "FASTTRACE_ISA=0",
    "avx2": "FASTTRACE_ISA=1",
    "avx512": "FASTTRACE_PRODUCTS=0",
    "avx512_bf16": "FASTTRACE_PRODUCTS=1",
}

MEASURE = """
import json, sys, torch
torch.ops.load_library(sys.argv[1])
torch.manual_seed(0)
names = ("moment", "linear", "rank_one", "rank_one_add", "adam", "rows", "attention float32", "attention bfloat16")
names += ("score", "slope")
worst = dict.fromkeys(names, 0.0)
for n, m in [(1, 1), (33, 13), (70, 25), (1030, 61)]:
    # x wᵀ by rows of w, and by columns.
    x, w, b, y = torch.randn(n, m), torch.randn(97, m), torch.randn(97), torch.empty(n, 97)
    wanted = x.double() @ w.double().T + b.double()
    bound = (m + 1) ** 0.5 * (1 + x.abs().max() * w.abs().max())
    for weight in (w, w.T.contiguous().T):
        torch.ops.fasttrace.linear_(x, weight, b, y)
        worst["linear"] = max(worst["linear"], ((y - wanted).abs() / bound).max().item())
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
        y, x, key, value = draw(n, 70), draw(n, m), torch.randn(5, 3, m), torch.randn(5, 3, 70)
        edit = torch.arange(n) % 6 - 1
        along = torch.einsum("nm,nwm->nw", x.double(), key[edit].double()) * (edit >= 0)[:, None]
        added = along[..., None] * value[edit].double()
        wanted, size = y.double() + added.sum(1), m**0.5 * added.abs().sum(1)
        torch.ops.fasttrace.rank_one_add_(y, x, edit, key, value)
        error = (y.double() - wanted).abs() / (wanted.abs() * unit / 2 + 5e-7 * (1 + size + m**0.5 * value.abs().max()))
        worst["rank_one_add"] = max(worst["rank_one_add"], error.max().item())
        for d in (1, 6, 9):
            # Items 0 and 2 have no rows, item 2 is inactive, and items 1 and 3 share the n rows.
            begin, active = torch.tensor([0, 0, n // 2, n // 2, n]), torch.tensor([True, True, False, True])
            delta, mean, square = (torch.randn(4, d, m) for _ in range(3))
            square.square_().add_(0.1)  # so that a small root does not magnify a rounding of the sums
            g, k, start = draw(n, d), draw(n, m), (delta.clone(), mean.clone(), square.clone())
            G = [g[a:b].double().T @ k[a:b].double() for a, b in zip(begin[:-1], begin[1:])]
            G, D, M, V = torch.stack(G), *(t.double() for t in start)
            M, V = 0.9 * M + 0.1 * G, 0.999 * V + 0.001 * G * G
            D = (D - 0.5 * (M / (1 - 0.9**4)) / ((V / (1 - 0.999**4)).sqrt() + 1e-3)).clamp(-1.5, 1.5)
            torch.ops.fasttrace.adam_linf_(
                delta, mean, square, g, k, begin, active, 4, 0.5, 1.5, 0.9, 0.999, 1e-3
            )
            for now, wanted, then in zip((delta, mean, square), (D, M, V), start):
                assert torch.equal(now[2], then[2])
                error = (now - wanted).abs()[active] / (1 + wanted.abs()[active].amax())
                worst["adam"] = max(worst["adam"], error.max().item())
        x, w, out = draw(n, m), draw(m), draw(n, m)
        torch.ops.fasttrace.rms_norm_(x, w, 1e-5, None, out)
        wanted = w.double() * x.double() / (x.double().square().mean(1, keepdim=True) + 1e-5).sqrt()
        errors = [(out - wanted).abs() / wanted.abs()]
        scale = 1 / (x.double().square().mean(1, keepdim=True) + 1e-5).sqrt()
        grad = draw(n, m)
        along, unit_row = grad.double() * w.double(), x.double() * scale
        terms = along, unit_row * (along * unit_row).mean(1, keepdim=True)
        torch.ops.fasttrace.rms_norm_backward_(grad, x, w, 1e-5, out)
        bound = along.abs() + unit_row.abs() * (along * unit_row).abs().mean(1, keepdim=True)
        errors.append((out - scale * (terms[0] - terms[1])).abs() / (scale * bound))
        gate, up = 9 * draw(n, m), draw(n, m)
        wide, half = gate.double(), gate.double().sigmoid()
        to_gate, to_up = torch.empty_like(gate), torch.empty_like(up)
        torch.ops.fasttrace.silu_mul_backward_(grad, gate, up, to_gate, to_up)
        errors.append((to_up - grad.double() * wide * half).abs() / (grad.double() * wide * half).abs())
        wanted = grad.double() * up.double() * half
        errors.append((to_gate - wanted * (1 + wide * (1 - half))).abs() / (wanted.abs() * (1 + wide.abs())))
        wanted = gate.double() * gate.double().sigmoid() * up.double()
        torch.ops.fasttrace.silu_mul_(gate, up)
        errors.append((gate - wanted).abs() / wanted.abs())
        turned = 3 * draw(n, m)
        wide = turned.double()
        wanted = wide * (1.5957691216057308 * (wide + 0.044715 * wide**3)).sigmoid()
        torch.ops.fasttrace.gelu_tanh_(turned)
        errors.append((turned - wanted).abs() / (wanted.abs() + 1e-2 * wide.abs()))
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
        # Tails of different lengths, so that scratch data of one sequence does not fit the next.
        for width in (13, 64, 128):
            tails = [3, 10, 14, 1, 17, 30, 33]
            begin = [sum(tails[:i]) for i in range(len(tails))]
            table = torch.tensor([(b, t, 0, 2 * (t < 20), 0, 0, b, t) for b, t in zip(begin, tails)])
            q, k, v = draw(sum(tails), 6, width), draw(sum(tails), 2, width), draw(sum(tails), 2, width)
            mixed = torch.empty(sum(tails), 6 * width, dtype=dtype)
            for window, cap, slopes, sinks in ((0, 0.0, None, None), (5, 3.0, torch.rand(6), torch.randn(6))):
                torch.ops.fasttrace.prefix_attention_(q, k, v, table, 0.2, window, cap, slopes, sinks, mixed)
                for b, t in zip(begin, tails):
                    seen = torch.cat((torch.arange(2 * (t < 20)), torch.arange(b, b + t)))
                    a, c, d = (x.double() for x in (q[b : b + t], k[seen], v[seen]))
                    scores = 0.2 * torch.einsum("ihd,jhd->hij", a, c.repeat_interleave(3, 1))
                    far = torch.arange(len(seen) - t, len(seen))[:, None] - torch.arange(len(seen))
                    if cap:
                        scores = cap * torch.tanh(scores / cap) - slopes.double()[:, None, None] * far
                    hidden = (far < 0) | (far >= (window or len(seen)))
                    scores = scores.masked_fill(hidden, -torch.inf)
                    if sinks is not None:
                        scores = torch.cat((scores, sinks.double()[:, None, None].expand(-1, t, 1)), dim=-1)
                    wanted = scores.softmax(-1)[..., : len(seen)]
                    wanted = torch.einsum("hij,jhd->ihd", wanted, d.repeat_interleave(3, 1)).reshape(t, -1)
                    error = (mixed[b : b + t] - wanted).abs().max().item() / unit
                    name = f"attention {str(dtype)[6:]}"
                    worst[name] = max(worst[name], error)
# Rows and tokens beside the borders of tiles (16, 32), of a product of the gradient (256) and of shares (2048).
SIZES = [(1, 1, 1, 0, 0), (3, 7, 16, 1, 0), (17, 33, 97, 1, 2), (33, 64, 2049, 0, 0), (150, 40, 2304, 1, 30)]
for n, d, vocab, bias, cap in (*SIZES, (2, 576, 4097, 0, 0)):
    x, U, b = (torch.randn(*shape).bfloat16() for shape in ((n, d), (vocab, d), (vocab,)))
    b, target = b if bias else None, torch.randint(0, vocab, (n,))
    target[:2] = torch.tensor([vocab - 1, 0])[:n]
    wide = x.double().requires_grad_()
    a = wide @ U.double().T + (b.double() if bias else 0)
    wanted = (cap * (a / cap).tanh() if cap else a).log_softmax(1).gather(1, target[:, None])[:, 0]
    g = torch.randn(n)
    (slope,) = torch.autograd.grad(wanted, wide, g.double())
    first = None
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        found, total, grad = (torch.full(shape, torch.nan) for shape in ((n,), (n,), (n, d)))
        # Rows of U with NaN between them, and U stored by columns.
        gaps = torch.full((vocab, 2 * d), torch.nan, dtype=torch.bfloat16)
        gaps[:, :d] = U
        for V in (U, gaps[:, :d], U.t().contiguous().t())[: 3 if threads == 1 else 1]:
            torch.ops.fasttrace.token_logprob_(x, V, b, target, cap, found, total)
            torch.ops.fasttrace.token_logprob_backward_(g, total, x, V, b, target, cap, grad)
            now = (found.clone(), total.clone(), grad.clone())
            first = first or now
            assert all(torch.equal(p, q) for p, q in zip(now, first))
    # Sums of d products in float32: the rounding of each sum, of which errors add up like a random walk.
    unit = 2.0**-24 * d**0.5 * (x.double().abs() @ U.double().abs().T).max()
    worst["score"] = max(worst["score"], ((found - wanted).abs().max() / (unit + 2.0**-22 * wanted.abs().max())).item())
    # The slopes are sums of two bfloat16: 17 bits.
    size = g.abs().max().double() * U.double().abs().max()
    worst["slope"] = max(worst["slope"], ((grad - slope).abs().max() / (size * (unit + 2.0**-17))).item())
x[1, 5] = torch.nan
torch.ops.fasttrace.token_logprob_(x, U, b, target, cap, found, total)
assert found[:2].isnan().tolist() == [False, True]
# Words beside a sum and beside the eight sums taken together, some of them at an odd byte.
factors = torch.randint(-(2**63), 2**63 - 1, (4096,))
for dtype in (torch.int8, torch.int16, torch.int32):
    for n in (0, 5, 4095, 4096, 8 * 4096 - 1, 8 * 4096, 19 * 4096 + 7):
        for at in (0, 1):
            bits = torch.randint(0, 256, (at + n * dtype.itemsize,), dtype=torch.uint8)
            words = torch.frombuffer(bits.numpy(), dtype=dtype, offset=at) if n else torch.empty(0, dtype=dtype)
            sums = torch.full((n // 4096 + 1,), -1)
            torch.ops.fasttrace.bit_sums_(words, factors, sums)
            filled = torch.nn.functional.pad(words.long(), (0, len(sums) * 4096 - n)).view(-1, 4096)
            assert torch.equal(sums, (filled * factors).sum(1)), (dtype, n, at)
print(json.dumps(worst))
"""


def measure(folder: Path, flags: list[str], **environment: str) -> dict[str, float]:
    """Compile every CPU source with these flags, load it in a process of its own and measure its errors there."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C++ compiler on Linux")
    library = folder / "lesser.so"
    command = [compiler, "-shared", "-fPIC", "-std=c++20", "-Wno-psabi", "-DTORCH_TARGET_VERSION=0x020b000000000000"]
    command += ["-DPy_LIMITED_API=0x030b0000", f"-I{TORCH / 'include'}", f"-I{sysconfig.get_path('include')}"]
    command += [*flags, f"-L{TORCH / 'lib'}"]
    command += [str(path) for path in sorted(CSRC.glob("*.cpp")) if path.name != "library_cuda.cpp"]
    subprocess.run([*command, "-o", str(library), "-ltorch_cpu", "-lc10"], check=True)
    answer = subprocess.run(
        [sys.executable, "-c", MEASURE, str(library)], env={**os.environ, **environment}, capture_output=True, text=True
    )
    assert answer.returncode == 0, answer.stderr[-3000:]
    worst: dict[str, float] = json.loads(answer.stdout)
    return worst


def check(worst: dict[str, float]) -> None:
    assert worst["moment"] < 6e-7
    assert worst["linear"] < 6e-7
    assert worst["rank_one"] <= 1.0
    assert worst["rank_one_add"] <= 1.0
    assert worst["adam"] <= 1e-6
    assert worst["rows"] <= 5.0  # units of the dtype, mostly of float32's sums and exponential; bfloat16 takes only two
    assert worst["attention float32"] <= 16.0  # values are up to 3 and follow an exponential of a sum over the head
    assert worst["score"] <= 1.0
    assert worst["slope"] <= 1.0
    assert worst["attention bfloat16"] <= 2.0  # computed in float32, so little more than the final rounding


def has(name: str) -> bool:
    """Whether this CPU has the set; for the last two, whether it has more, which the other tests run."""
    avx2 = "AVX2" in torch.backends.cpu.get_cpu_capability().replace("AVX512", "AVX2")
    products = torch.ops.fasttrace.bfloat16_products() if native.unavailable_reason() is None else 0
    return {"baseline": True, "avx2": avx2, "avx512": products > 0, "avx512_bf16": products > 1}[name]


@pytest.mark.parametrize("name", ["baseline", *(pytest.param(one, marks=pytest.mark.slow) for one in list(SETS)[1:])])
def test_smaller_instruction_sets_compute_the_same(name: str, tmp_path: Path) -> None:
    if not has(name):
        pytest.skip(f"this CPU has no {name}, or nothing beyond it")
    check(measure(tmp_path, ["-O2", f"-D{SETS[name]}"]))


@pytest.mark.slow
def test_the_sanitizers_find_nothing(tmp_path: Path) -> None:
    found = subprocess.run(["c++", "-print-file-name=libasan.so"], capture_output=True, text=True)
    if found.returncode or not os.path.isabs(found.stdout.strip()):
        pytest.skip("this compiler has no address sanitizer")
    flags = ["-O1", "-g", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    # Python and torch never free some allocations, so leaks are not checked.
    preload = {"LD_PRELOAD": found.stdout.strip(), "ASAN_OPTIONS": "detect_leaks=0"}
    check(measure(tmp_path, flags, **preload))
