"""linear: its implementations against float64, gradients, refusals."""

import importlib
import io
import os
import subprocess
import sys

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from fasttrace.errors import UserError
from fasttrace.ops import dispatch, native
from fasttrace.ops.linear import linear, linear_reference

linear_module = importlib.import_module("fasttrace.ops.linear")  # as an attribute, `ops.linear` is the function
SHAPES = [(1, 1, 1), (3, 7, 5), (64, 576, 192), (210, 33, 129), (17, 1536, 576)]
DTYPES = [torch.float32, torch.bfloat16]
REASONS = {dtype: linear_module._onednn_reason(*torch.ones(2, 1, 1, dtype=dtype), None) for dtype in DTYPES}
TAKEN = [dtype for dtype in DTYPES if REASONS[dtype] is None]
WAYS = [("native", torch.float32)] * (native.unavailable_reason() is None) + [("onednn", dtype) for dtype in TAKEN]
IMPLS = sorted({impl for impl, _ in WAYS})
needs_native = pytest.mark.skipif("native" not in IMPLS, reason=f"{native.unavailable_reason()}")
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


@pytest.mark.parametrize("activation", [None, "gelu_tanh"])
@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no-bias"])
@pytest.mark.parametrize(("impl", "dtype"), WAYS, ids=str)
@pytest.mark.parametrize(("n", "k", "m"), SHAPES)
def test_equals_float64(n, k, m, impl, dtype, bias, activation):
    x, w, b = draw(n, k, m, dtype, bias)
    exact = linear_reference(x.double(), w.double(), None if b is None else b.double(), activation)
    got = linear(x, w, b, activation=activation, impl=impl)
    assert got.shape == (n, m)
    assert got.dtype == dtype
    assert_as_exact_as_the_reference(got, linear_reference(x, w, b, activation), exact)


@pytest.mark.parametrize("impl", IMPLS)
def test_transposed_strided_and_higher_rank_operands(impl):
    x, w, b = draw(24, 40, 56, torch.float32)
    exact = linear_reference(x.double(), w.double(), b.double())
    column_major = w.t().contiguous().t()
    wide = torch.full((24, 80), float("nan"))
    wide[:, ::2] = x
    frozen = torch.nn.Parameter(w, requires_grad=False)
    for x_, w_ in ((x, column_major), (wide[:, ::2], w), (x.view(2, 12, 40), w), (x, frozen)):
        got = linear(x_, w_, b, impl=impl)
        assert got.shape == (*x_.shape[:-1], 56)
        assert_as_exact_as_the_reference(got.view(24, 56), linear_reference(x, w, b), exact)


@pytest.mark.parametrize("activation", [None, "gelu_tanh"])
@pytest.mark.parametrize(("impl", "dtype"), WAYS, ids=str)
def test_gradient_wrt_x_equals_float64(impl, dtype, activation):
    x, w, b = draw(19, 48, 72, dtype)
    upstream = torch.randn(19, 72, generator=torch.Generator().manual_seed(1)).to(dtype)

    def grad(run, cast):
        leaf = cast(x).detach().requires_grad_()
        run(leaf, cast(w), cast(b)).backward(cast(upstream))
        return leaf.grad

    exact = grad(lambda *a: linear_reference(*a, activation), torch.Tensor.double)
    reference = grad(lambda *a: linear_reference(*a, activation), torch.Tensor.clone)
    got = grad(lambda *a: linear(*a, activation=activation, impl=impl), torch.Tensor.clone)
    assert_as_exact_as_the_reference(got, reference, exact)


@pytest.mark.parametrize("impl", IMPLS)
def test_expanded_upstream_gradient(impl):
    x, w, _ = draw(5, 8, 6, torch.float32)
    leaf = x.clone().requires_grad_()
    linear(leaf, w, impl=impl).sum().backward()
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
    monkeypatch.setattr(linear_module, "_takes_native", lambda: False)
    monkeypatch.setattr(linear_module, "_onednn_is_faster", lambda dtype: faster)
    monkeypatch.setattr(linear_module, "_onednn", lambda x, w, b, a=None: taken.append("oneDNN") or x @ w.t())
    linear(*draw(3, 4, 5, torch.float32, bias=False))
    assert taken == (["oneDNN"] if faster and linear_module._onednn_op is not None else [])


@pytest.mark.parametrize(
    ("vendor", "flags", "float32", "compiled"),
    [
        ("AuthenticAMD", "avx2 avx512f", True, False),
        ("AuthenticAMD", "avx2", False, True),
        ("GenuineIntel", "avx2 avx512f", False, False),
        ("GenuineIntel", "avx2", False, True),
        ("GenuineIntel", "avx", False, False),
    ],
)
def test_the_choice_depends_on_the_processor_alone(monkeypatch, vendor, flags, float32, compiled):
    text = f"processor : 0\nvendor_id : {vendor}\nflags : fpu {flags} fma\n"
    monkeypatch.setattr(sys, "platform", "linux")
    monkeypatch.setattr("builtins.open", lambda *_, **__: io.StringIO(text))
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    for dtype, taken in ((torch.float32, float32), (torch.bfloat16, True)):
        assert linear_module._onednn_is_faster.__wrapped__(dtype) == taken
    assert linear_module._takes_native.__wrapped__() == compiled


@needs_native
def test_auto_leaves_a_transposed_view_to_the_reference_for_one_row_and_for_many(monkeypatch):
    taken = []
    monkeypatch.setattr(linear_module, "_takes_native", lambda: True)
    monkeypatch.setattr(linear_module, "_onednn_is_faster", lambda dtype: False)
    monkeypatch.setattr(linear_module, "_native", lambda x, w, b, a=None: taken.append(len(x)) or x @ w.t())
    for rows in (1, 2, 256, 257):
        x, w = torch.ones(rows, 5, requires_grad=True), torch.ones(5, 7).t()
        linear(x.detach(), w)
        taken_there, taken[:] = list(taken), []
        assert taken_there == [rows] * (1 < rows <= 256)
        linear(x, w.contiguous()).sum().backward()
        assert taken == [rows] * (1 + (1 < rows <= 256))
        taken.clear()


@needs_native
@pytest.mark.parametrize(("m", "n", "k"), [(50, 577, 513), (241, 49, 300), (130, 600, 200), (9, 24, 1536), (5, 7, 3)])
def test_a_row_has_the_same_bits_alone_in_any_batch_and_with_any_number_of_threads(m, n, k):
    x, w, b = draw(m, k, n, torch.float32)
    before = torch.get_num_threads()
    try:
        for weight in (w, w.t().contiguous().t()):
            torch.set_num_threads(1)
            y = linear(x, weight, b, impl="native")
            for threads in (1, 2):
                torch.set_num_threads(threads)
                assert torch.equal(linear(x, weight, b, impl="native"), y)
                for rows in (slice(0, 1), slice(m - 1, m), slice(1, 4), slice(m // 3, m)):
                    assert torch.equal(linear(x[rows], weight, b, impl="native"), y[rows])
    finally:
        torch.set_num_threads(before)


@needs_native
@pytest.mark.parametrize("transposed", [False, True])
def test_weights_with_gaps_between_rows_and_nothing_but_them_is_read(transposed):
    x, w, b = draw(11, 37, 51, torch.float32)
    whole = torch.full((40, 60) if transposed else (60, 40), float("nan"))
    part = whole[2:39, 4:55].t() if transposed else whole[4:55, 2:39]
    part.copy_(w)
    exact = linear_reference(x.double(), w.double(), b.double())
    assert_as_exact_as_the_reference(linear(x, part, b, impl="native"), linear_reference(x, w, b), exact)


@needs_native
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_nan_and_infinity_spread_as_in_a_plain_product(transposed, value):
    x, w, _ = draw(13, 37, 51, torch.float32)
    x[3, 5], w[7, 2] = value, value
    weight = w.t().contiguous().t() if transposed else w
    torch.testing.assert_close(linear(x, weight, impl="native"), x @ w.t(), equal_nan=True)


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
        pytest.param((ONE.double(), ONE.double()), {"impl": "native"}, "fasttrace._C|takes float32", id="native"),
        pytest.param((ONE.double(), ONE.double()), {"impl": "onednn"}, "takes float32", id="onednn"),
        pytest.param((ONE, torch.ones(8, 9)[::2, ::3]), {"impl": "onednn"}, "strides", id="strides"),
        pytest.param((ONE, torch.ones(8, 9)[::2, ::3]), {"impl": "native"}, "fasttrace._C|strides", id="gaps"),
    ],
)
def test_refusals_name_the_argument(args, kwargs, words):
    with pytest.raises(UserError, match=words):
        linear(*args, **kwargs)


def test_a_weight_with_gaps_is_not_given_to_onednn():
    whole = torch.randn(12, 30)
    x, part = torch.randn(4, 12), whole[:, 10:].t()
    with pytest.raises(UserError, match="oneDNN needs w without gaps between rows or columns"):
        linear(x, part, impl="onednn")
    torch.testing.assert_close(linear(x, part), x @ whole[:, 10:])


@needs_onednn
def test_a_dtype_that_onednn_lacks_on_this_processor_is_widened_and_rounded_once():
    """oneDNN has bfloat16 products from AVX-512 on. ONEDNN_MAX_CPU_ISA limits it to AVX2, as on an older processor."""
    script = """
import torch
from fasttrace.errors import UserError
from fasttrace.ops.linear import linear
x, w, b = torch.randn(3, 80).bfloat16().requires_grad_(), torch.randn(5, 80).bfloat16(), torch.randn(5).bfloat16()
g = torch.randn(3, 5).bfloat16()
for weight in (w, w.t().contiguous().t(), torch.randn(9, 90).bfloat16()[4:, 10:]):
    for impl in ("auto", "native"):
        for activation in (None, "gelu_tanh"):
            with torch.no_grad():
                found = linear(x, weight, b, activation=activation, impl=impl)
                wide = linear(x.float(), weight.float(), b.float(), activation=activation)
            assert torch.equal(found, wide.bfloat16())
        y = linear(x, weight, b, impl=impl)
        assert torch.equal(y, linear(x.detach().float(), weight.float(), b.float()).bfloat16())
        assert torch.equal(torch.autograd.grad(y, x, g)[0], linear(g.float(), weight.float().t()).bfloat16())
try:
    linear(x.detach(), w, impl="onednn")
except UserError as error:
    print(error)
"""
    lesser = {**os.environ, "ONEDNN_MAX_CPU_ISA": "AVX2"}
    done = subprocess.run([sys.executable, "-c", script], env=lesser, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "impl='onednn' was asked for, but oneDNN has no torch.bfloat16 product on this processor" in done.stdout
    assert len(done.stdout.splitlines()) == 1


def test_torch_func_and_forward_gradients_reach_the_product():
    x, v, w = torch.randn(5, 8), torch.randn(5, 8), torch.randn(4, 8)
    _, tangent = torch.func.jvp(lambda x: linear(x, w), (x,), (v,))
    torch.testing.assert_close(tangent, v @ w.T)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, v)
        torch.testing.assert_close(torch.autograd.forward_ad.unpack_dual(linear(dual, w)).tangent, v @ w.T)
    torch.testing.assert_close(torch.func.vmap(lambda row: linear(row, w))(x), x @ w.T)
    torch.testing.assert_close(torch.func.grad(lambda x: linear(x, w).sum())(x), w.sum(0).expand(5, 8))
