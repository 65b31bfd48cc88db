"""silu_mul_ against float64, and its exponential within 2 units in the last place on every instruction set."""

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttrace.errors import UserError
from fasttrace.ops.silu_mul import silu_mul_, silu_mul_reference

CSRC = Path(__file__).resolve().parents[2] / "csrc"
IMPLS = ["reference", "native"]
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 1), (3, 7), (5, 16), (2, 33), (70, 1000)]

HARNESS = """
#include "vector_exp.h"
template <class T> FT_INLINE void each(const T* x, T* y, long count) {
  for (long i = 0; i < count; ++i) y[i] = fasttrace::vector_exp(x[i]);
}
extern "C" void baseline(const float* x, float* y, long count) { each(x, y, count); }
#if defined(__x86_64__)
extern "C" FT_AVX2 void avx2(const float* x, float* y, long count) { each(x, y, count); }
extern "C" FT_AVX512 void avx512(const float* x, float* y, long count) { each(x, y, count); }
#endif
"""


def draw(*shape, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=g).mul(4).to(dtype), torch.randn(*shape, generator=g).to(dtype)


def oracle(gate, up):
    gate = gate.double()
    return gate / (1 + (-gate).exp()) * up.double()


@pytest.fixture(scope="module")
def exponential(tmp_path_factory):
    """The exponential's C functions, one for each instruction set."""
    compiler = shutil.which("c++") or shutil.which("g++")
    if compiler is None or not sys.platform.startswith("linux"):
        pytest.skip("needs a C++ compiler on Linux")
    library = tmp_path_factory.mktemp("exp") / "exp.so"
    command = [compiler, "-x", "c++", "-", "-shared", "-fPIC", "-std=c++20", "-O3", f"-I{CSRC}", "-o", str(library)]
    subprocess.run(command, input=HARNESS.encode(), check=True)
    return ctypes.CDLL(str(library))


@pytest.mark.parametrize("name", ["baseline", "avx2", "avx512"])
def test_exp_is_within_two_units_in_the_last_place(name, exponential):
    capability = torch.backends.cpu.get_cpu_capability()
    if name != "baseline" and name.upper() not in (capability, "AVX2" if "AVX512" in capability else ""):
        pytest.skip(f"this CPU has no {name}")
    rng = np.random.default_rng(0)
    x = np.concatenate(
        (np.linspace(-105, 89, 1_000_003), rng.normal(size=500_000), rng.normal(size=10_000) * 1e-6, [0.0, -0.0])
    ).astype(np.float32)
    y = np.full_like(x, np.nan)
    floats = ctypes.POINTER(ctypes.c_float)
    getattr(exponential, name)(x.ctypes.data_as(floats), y.ctypes.data_as(floats), ctypes.c_long(len(x)))
    with np.errstate(over="ignore", under="ignore"):
        wanted = np.exp(x.astype(np.float64))
        nearest = wanted.astype(np.float32)
    finite = np.isfinite(nearest)
    assert (y[~finite] == np.inf).all()
    assert (np.abs(y[finite] - wanted[finite]) <= 2 * np.spacing(nearest[finite]).astype(np.float64)).all()
    x[:2] = np.inf, -np.inf
    getattr(exponential, name)(x.ctypes.data_as(floats), y.ctypes.data_as(floats), ctypes.c_long(2))
    assert y[0] == np.inf
    assert y[1] == 0


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64_in_place(shape, dtype, impl, poisoned_memory):
    gate, up = draw(*shape, dtype=dtype)
    wanted, before = oracle(gate, up), up.clone()
    assert silu_mul_(gate, up, impl=impl) is gate
    assert torch.equal(up, before)
    # Rounded twice: the activation, then its product.
    limit = 5e-7 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert ((gate.double() - wanted).abs() <= limit * wanted.abs()).all()


def test_bfloat16_rounds_as_torch_does():
    gate, up = draw(1000, 300, dtype=torch.bfloat16)
    wanted = silu_mul_reference(gate, up)
    got = silu_mul_(gate, up, impl="native")
    # Two float32 exponentials may lie on opposite sides of a tie.
    assert (got != wanted).float().mean() < 1e-4
    torch.testing.assert_close(got, wanted, rtol=2**-6, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_far_from_zero(impl):
    gate = torch.tensor([100.0, 1e30, float("inf"), -100.0, -1e30, 0.0, float("nan"), -20.0])
    got = silu_mul_(gate, torch.ones(8), impl=impl)
    assert got[:3].tolist() == [100.0, pytest.approx(1e30), float("inf")]
    assert (got[3:6].abs() < 1e-37).all()
    assert got[6].isnan()
    assert float(got[7]) == pytest.approx(-20 * np.exp(-20.0), rel=1e-6)


@pytest.mark.parametrize("shape", [(0, 4), *SHAPES], ids=str)
def test_triton_equals_float64_in_place(triton_device, rounded_dtypes, shape, poisoned_memory):
    for dtype in rounded_dtypes:
        gate, up = (t.to(triton_device) for t in draw(*shape, dtype=dtype))
        wanted, given = oracle(gate, up), gate.double().abs()
        assert silu_mul_(gate, up, impl="triton") is gate
        # Rounded twice: silu(gate), then its product. A GPU's exp(x) is 2^(x log2 e), whose exponent is rounded: a
        # large x costs |x| half-units of float32, 6e-8 each.
        relative = 1.01 * torch.finfo(dtype).eps + 4e-7 + 6e-8 * given
        limit = relative * wanted.abs() + (1e-7 if dtype == torch.float16 else 0)
        assert ((gate.double() - wanted).abs() <= limit).all()


def test_triton_far_from_zero(triton_device):
    gate = torch.tensor([100.0, float("inf"), -100.0, -1e30, 0.0, float("nan")], device=triton_device)
    got = silu_mul_(gate, torch.full_like(gate, 2.0), impl="triton").cpu()
    assert got[:2].tolist() == [200.0, float("inf")]
    assert (got[2:5].abs() < 1e-37).all()
    assert got[5].isnan()


@settings(deadline=None, max_examples=40)
@given(n=st.integers(0, 40), m=st.integers(0, 100), seed=st.integers(0, 99))
def test_any_shape(n, m, seed):
    gate, up = draw(n, m, seed=seed)
    wanted = silu_mul_reference(gate, up)
    torch.testing.assert_close(silu_mul_(gate, up, impl="native"), wanted, rtol=1e-6, atol=0)


def test_strides():
    gate, up = draw(6, 8)
    wanted = silu_mul_reference(gate, up)
    torch.testing.assert_close(silu_mul_(gate.clone(), up.t().contiguous().t(), impl="native"), wanted)
    wide = torch.cat((gate, gate), 1)[:, :8]
    with pytest.raises(UserError, match="needs a contiguous gate"):
        silu_mul_(wide, up, impl="native")
    assert silu_mul_(wide, up) is wide
    torch.testing.assert_close(wide, wanted)


@pytest.mark.parametrize("leaf", [0, 1])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_gradients_leave_gate_as_it_was(dtype, leaf):
    args = [t.to(dtype) for t in draw(4, 6)]
    args[leaf].requires_grad_()
    before = args[0].detach().clone()
    y = silu_mul_(*args)
    assert torch.equal(args[0], before)
    (got,) = torch.autograd.grad(y.square().sum(), args[leaf])
    (wanted,) = torch.autograd.grad(oracle(*args).square().sum(), args[leaf])
    torch.testing.assert_close(got, wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 4), *SHAPES], ids=str)
@pytest.mark.usefixtures("poisoned_memory")
def test_native_gradients_equal_float64(shape, dtype):
    # Halves of one product, as in Phi-3, and a gradient without rows of its own.
    gate, up = torch.stack(draw(*shape, dtype=dtype), 1).unbind(1)
    leaves, grad = (gate.requires_grad_(), up.requires_grad_()), torch.randn(shape[1]).to(dtype).expand(shape)
    y = silu_mul_(*leaves, impl="native")
    assert torch.equal(y, silu_mul_(gate.detach().contiguous(), up.detach(), impl="native"))
    found = torch.autograd.grad(y, leaves, grad)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    wanted = torch.autograd.grad(oracle(*wide), wide, grad.double())
    # The gradient of gate has a zero, near which it is as exact as its terms.
    terms = (grad * up).double().abs() * gate.sigmoid() * (1 + gate.abs()), wanted[1].abs()
    for one, exact, term in zip(found, wanted, terms, strict=True):
        assert one.dtype == dtype
        rounding = torch.finfo(dtype).eps / 2 * exact.abs() if dtype == torch.bfloat16 else 0
        assert ((one.double() - exact).abs() <= rounding + 1e-6 * term).all()


def test_native_gradients_far_from_zero():
    gate = torch.tensor([64.0, 1e30, -100.0, -1e30, 0.0, float("nan")], requires_grad=True)
    up = torch.full((6,), 2.0, requires_grad=True)
    to_gate, to_up = torch.autograd.grad(silu_mul_(gate, up, impl="native"), (gate, up), torch.full((6,), 2.0**30))
    assert to_gate[:5].tolist() == [2.0**31, 2.0**31, 0, 0, 2.0**30]
    assert to_up[:5].tolist() == [2.0**36, torch.inf, 0, 0, 0]
    assert to_gate[5].isnan()
    assert to_up[5].isnan()


def test_second_derivatives():
    leaves = [t.requires_grad_() for t in draw(4, 6)]
    found = []
    for args in (leaves, [t.detach().double().requires_grad_() for t in leaves]):
        y = silu_mul_(*args, impl="native") if args is leaves else oracle(*args)
        slopes = torch.autograd.grad(y.square().sum(), args, create_graph=True)
        found.append(torch.autograd.grad(sum(slope.square().sum() for slope in slopes), args))
    for got, wanted in zip(*found, strict=True):
        torch.testing.assert_close(got.double(), wanted, rtol=1e-5, atol=1e-4)


def test_forward_gradients():
    (gate, up), (tangent, _) = draw(4, 6), draw(4, 6, seed=1)
    wanted = torch.func.jvp(lambda gate: oracle(gate, up), (gate,), (tangent,))[1]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(gate.clone(), tangent)
        found = torch.autograd.forward_ad.unpack_dual(silu_mul_(dual, up)).tangent
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    gate, up = draw(4, 6, dtype=dtype)
    torch.library.opcheck(torch.ops.fasttrace.silu_mul_.default, (gate.clone(), up))
    torch.library.opcheck(torch.ops.fasttrace.silu_mul_backward_.default, (up, gate, up, gate.clone(), gate.clone()))


@pytest.mark.parametrize(
    ("change", "impl", "words"),
    [
        ({0: torch.ones(3, 4, dtype=torch.int32)}, "auto", "expected gate to be floating point, got torch.int32"),
        ({1: torch.ones(3, 5)}, "auto", r"expected 'up' to be \(3, 4\) torch.float32 to match gate, got \(3, 5\)"),
        ({1: torch.ones(3, 4).double()}, "auto", "expected 'up' .*float64"),
        ({0: torch.ones(3, 4).double(), 1: torch.ones(3, 4).double()}, "native", "takes float32 and bfloat16"),
        ({}, "triton", "Triton needs CUDA tensors"),
    ],
)
def test_refusals_name_the_argument(change, impl, words):
    args = [torch.ones(3, 4), torch.ones(3, 4)]
    for i, value in change.items():
        args[i] = value
    with pytest.raises(UserError, match=words):
        silu_mul_(*args, impl=impl)


def test_the_op_itself_refuses_in_a_sentence():
    with pytest.raises(RuntimeError, match=r"^silu_mul_: expected up of shape \(3, 4\) to match gate, got \(3, 5\)"):
        torch.ops.fasttrace.silu_mul_(torch.ones(3, 4), torch.ones(3, 5))
    with pytest.raises(RuntimeError, match=r"^silu_mul_backward: expected .* of one shape, got \(3, 4\) and \(3, 5\)"):
        torch.ops.fasttrace.silu_mul_backward_(*[torch.ones(3, 4)] * 3, torch.ones(3, 4), torch.ones(3, 5))
