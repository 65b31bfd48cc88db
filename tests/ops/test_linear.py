"""linear: both implementations against float64, gradients, refusals."""

import importlib
import io
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fasttrace.errors import UserError
from fasttrace.ops import dispatch
from fasttrace.ops.linear import linear, linear_reference

linear_module = importlib.import_module("fasttrace.ops.linear")  # as an attribute, `ops.linear` is the function
SHAPES = [(1, 1, 1), (3, 7, 5), (64, 576, 192), (210, 33, 129), (17, 1536, 576)]
DTYPES = [torch.float32, torch.bfloat16]
REASONS = {dtype: linear_module._onednn_reason(*torch.ones(2, 1, 1, dtype=dtype), None) for dtype in DTYPES}
TAKEN = [dtype for dtype in DTYPES if REASONS[dtype] is None]
needs_onednn = pytest.mark.skipif(not TAKEN, reason=f"{REASONS[torch.float32]}")


def draw(n, k, m, dtype, bias=True, seed=0):
    g = torch.Generator().manual_seed(seed)
    x, w, b = torch.randn(n, k, generator=g), torch.randn(m, k, generator=g), torch.randn(m, generator=g)
    return x.to(dtype), w.to(dtype), b.to(dtype) if bias else None


def assert_as_exact_as_the_reference(got, reference, exact, slack=4.0):
    """Assert an error of at most `slack` times the reference's in the same dtype, plus one rounding."""
    scale = exact.abs().max()
    bound = slack * (reference.double() - exact).abs().max() + torch.finfo(got.dtype).eps * scale
    assert (got.double() - exact).abs().max() <= bound


@needs_onednn
@pytest.mark.parametrize("activation", [None, "gelu_tanh"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize("dtype", TAKEN, ids=str)
@pytest.mark.parametrize(("n", "k", "m"), SHAPES)
def test_native_equals_float64(n, k, m, dtype, bias, activation):
    x, w, b = draw(n, k, m, dtype, bias)
    exact = linear_reference(x.double(), w.double(), None if b is None else b.double(), activation)
    got = linear(x, w, b, activation=activation, impl="native")
    assert got.shape == (n, m)
    assert got.dtype == dtype
    assert_as_exact_as_the_reference(got, linear_reference(x, w, b, activation), exact)


@needs_onednn
def test_transposed_strided_and_higher_rank_operands():
    x, w, b = draw(24, 40, 56, torch.float32)
    exact = linear_reference(x.double(), w.double(), b.double())
    column_major = w.t().contiguous().t()
    wide = torch.full((24, 80), float("nan"))
    wide[:, ::2] = x
    frozen = torch.nn.Parameter(w, requires_grad=False)
    for x_, w_ in ((x, column_major), (wide[:, ::2], w), (x.view(2, 12, 40), w), (x, frozen)):
        got = linear(x_, w_, b, impl="native")
        assert got.shape == (*x_.shape[:-1], 56)
        assert_as_exact_as_the_reference(got.view(24, 56), linear_reference(x, w, b), exact)


@needs_onednn
@pytest.mark.parametrize("activation", [None, "gelu_tanh"])
@pytest.mark.parametrize("dtype", TAKEN, ids=str)
def test_gradient_wrt_x_equals_float64(dtype, activation):
    x, w, b = draw(19, 48, 72, dtype)
    upstream = torch.randn(19, 72, generator=torch.Generator().manual_seed(1)).to(dtype)

    def grad(run, cast):
        leaf = cast(x).detach().requires_grad_()
        run(leaf, cast(w), cast(b)).backward(cast(upstream))
        return leaf.grad

    exact = grad(lambda *a: linear_reference(*a, activation), torch.Tensor.double)
    reference = grad(lambda *a: linear_reference(*a, activation), torch.Tensor.clone)
    got = grad(lambda *a: linear(*a, activation=activation, impl="native"), torch.Tensor.clone)
    assert_as_exact_as_the_reference(got, reference, exact)


@needs_onednn
def test_expanded_upstream_gradient():
    x, w, _ = draw(5, 8, 6, torch.float32)
    leaf = x.clone().requires_grad_()
    linear(leaf, w, impl="native").sum().backward()
    torch.testing.assert_close(leaf.grad, w.sum(0).expand(5, 8))


def test_a_weight_that_requires_grad_gets_its_gradient():
    x, w, b = draw(6, 8, 4, torch.float32)
    w.requires_grad_()
    b.requires_grad_()
    linear(x, w, b).sum().backward()
    torch.testing.assert_close(w.grad, x.sum(0).expand(4, 8))
    torch.testing.assert_close(b.grad, torch.full((4,), 6.0))


@pytest.mark.parametrize("faster", [True, False])
def test_auto_uses_onednn_where_it_is_faster(monkeypatch, faster):
    taken = []
    monkeypatch.setattr(linear_module, "_onednn_is_faster", lambda dtype: faster)
    monkeypatch.setattr(linear_module, "_onednn", lambda x, w, b, a=None: taken.append("oneDNN") or x @ w.t())
    linear(*draw(3, 4, 5, torch.float32, bias=False))
    assert taken == (["oneDNN"] if faster and linear_module._onednn_op is not None else [])


@pytest.mark.parametrize(
    ("vendor", "flags", "float32"),
    [
        ("AuthenticAMD", "avx2 avx512f", True),
        ("AuthenticAMD", "avx2", False),
        ("GenuineIntel", "avx2 avx512f", False),
        ("GenuineIntel", "avx2", False),
    ],
)
def test_the_choice_depends_on_the_processor_alone(monkeypatch, vendor, flags, float32):
    text = f"processor : 0\nvendor_id : {vendor}\nflags : fpu {flags} fma\n"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.StringIO(text))
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    for dtype, taken in ((torch.float32, float32), (torch.bfloat16, True)):
        assert linear_module._onednn_is_faster.__wrapped__(dtype) == taken


def test_float64_empty_and_fake_inputs_use_the_reference():
    x, w, b = draw(3, 4, 5, torch.float64)
    torch.testing.assert_close(linear(x, w, b), x @ w.t() + b)
    assert linear(torch.ones(0, 4), torch.ones(5, 4)).shape == (0, 5)
    with FakeTensorMode():
        assert linear(torch.empty(3, 4), torch.empty(5, 4)).shape == (3, 5)


def test_under_torch_compile(monkeypatch):
    monkeypatch.setattr(dispatch, "_announced", set())
    x, w, b = draw(3, 4, 5, torch.float32)
    compiled = torch.compile(linear, backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(x, w, b), linear_reference(x, w, b))


ONE = torch.ones(2, 3)


@pytest.mark.parametrize(
    ("args", "kwargs", "words"),
    [
        pytest.param((ONE, torch.ones(4, 5)), {}, r"got x \(2, 3\) and w \(4, 5\)", id="inner"),
        pytest.param((ONE, torch.ones(4, 3), ONE[0]), {}, r"expected bias of shape \(4,\), got \(3,\)", id="bias"),
        pytest.param((ONE, torch.ones(4, 3).double()), {}, "expected w .* to match x, got torch.float64", id="dtype"),
        pytest.param((ONE, ONE), {"activation": "relu"}, "activation .*, got 'relu'", id="activation"),
        pytest.param((ONE, torch.ones(4, 3)), {"impl": "triton"}, "but this op has no such implementation", id="impl"),
        pytest.param((ONE.double(), ONE.double()), {"impl": "native"}, "takes float32", id="native"),
        pytest.param((ONE, torch.ones(8, 9)[::2, ::3]), {"impl": "native"}, "strides", id="strides"),
    ],
)
def test_refusals_name_the_argument(args, kwargs, words):
    with pytest.raises(UserError, match=words):
        linear(*args, **kwargs)


def test_a_weight_with_gaps_is_not_given_to_onednn():
    whole = torch.randn(12, 30)
    x, part = torch.randn(4, 12), whole[:, 10:].t()
    with pytest.raises(UserError, match="oneDNN needs w without gaps between rows or columns"):
        linear(x, part, impl="native")
    torch.testing.assert_close(linear(x, part), x @ whole[:, 10:])


@needs_onednn
def test_a_dtype_that_onednn_lacks_on_this_processor_is_widened_and_rounded_once():
    """oneDNN has bfloat16 products from AVX-512 on. ONEDNN_MAX_CPU_ISA limits it to AVX2, as on an older processor."""
    script = """
import torch
from fasttrace.ops.linear import linear, linear_reference
x, w, b = torch.randn(3, 80).bfloat16().requires_grad_(), torch.randn(5, 80).bfloat16(), torch.randn(5).bfloat16()
g = torch.randn(3, 5).bfloat16()
for weight in (w, w.t().contiguous().t(), torch.randn(9, 90).bfloat16()[4:, 10:]):
    for impl in ("auto", "native"):
        for activation in (None, "gelu_tanh"):
            with torch.no_grad():
                found = linear(x, weight, b, activation=activation, impl=impl)
            assert torch.equal(found, linear_reference(x.float(), weight.float(), b.float(), activation).bfloat16())
        y = linear(x, weight, b, impl=impl)
        assert torch.equal(y, linear_reference(x.float(), weight.float(), b.float()).bfloat16())
        assert torch.equal(torch.autograd.grad(y, x, g)[0], (g.float() @ weight.float()).bfloat16())
"""
    lesser = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", script], env=lesser, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
