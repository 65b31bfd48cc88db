"""rms_norm against float64 and against transformers' own module: rows, rounding, gradients, refusals."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import LlamaRMSNorm

from fasttrace.errors import UserError
from fasttrace.ops.rms_norm import rms_norm, rms_norm_reference

IMPLS = ["reference", "native"]
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 1), (3, 7), (5, 16), (2, 31), (4, 33), (9, 576), (200, 1000)]
EPS = 1e-5


def draw(n, d, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    return torch.randn(n, d, generator=g).mul(3).to(dtype), torch.randn(d, generator=g).to(dtype)


def oracle(x, weight, eps, rows=None):
    x = x.double() if rows is None else x.double()[rows]
    return weight.double() * x / (x.square().sum(-1, keepdim=True) / x.shape[1] + eps).sqrt()


def modules(x, weight, eps):
    """Result of transformers' module."""
    norm = LlamaRMSNorm(len(weight), eps).to(weight.dtype)
    norm.weight.data.copy_(weight)
    with torch.no_grad():
        return norm(x)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(shape, dtype, impl, poisoned_memory):
    x, weight = draw(*shape, dtype)
    got, wanted = rms_norm(x, weight, EPS, impl=impl), oracle(x, weight, EPS)
    assert got.dtype == dtype
    assert got.shape == wanted.shape
    # Rounded twice: the scaled row, then its product with the weight.
    limit = 4e-7 if dtype == torch.float32 else torch.finfo(dtype).eps
    assert ((got.double() - wanted).abs() <= limit * wanted.abs()).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_native_rounds_as_transformers_does(dtype):
    x, weight = draw(300, 576, dtype)
    got, theirs = rms_norm(x, weight, EPS, impl="native"), modules(x, weight, EPS)
    if dtype == torch.float32:
        torch.testing.assert_close(got, theirs, rtol=4e-7, atol=0)
    else:
        # A sum in another order may round a value to the other of two neighboring bfloat16.
        assert (got != theirs).float().mean() < 1e-3
        torch.testing.assert_close(got, theirs, rtol=2**-6, atol=0)


@pytest.mark.parametrize("dtype", [*DTYPES, torch.float16], ids=str)
def test_reference_is_transformers_to_the_bit(dtype):
    x, weight = draw(20, 48, dtype)
    assert torch.equal(rms_norm(x, weight, EPS, impl="reference"), modules(x, weight, EPS))


def test_reference_in_float64_rounds_nothing_to_float32():
    x, weight = draw(20, 48, torch.float64)
    exact = weight * x / (x.square().mean(1, keepdim=True) + EPS).sqrt()
    torch.testing.assert_close(rms_norm(x, weight, EPS, impl="reference"), exact, rtol=1e-14, atol=0)


@pytest.mark.parametrize("impl", IMPLS)
def test_only_the_rows_named_are_read(impl, poisoned_memory):
    x, weight = draw(50, 40)
    rows = torch.tensor([3, 3, 49, 0, 17, 8])[::2]
    unread = torch.ones(50, dtype=torch.bool)
    unread[rows] = False
    x[unread] = float("nan")
    got = rms_norm(x, weight, EPS, rows=rows, impl=impl)
    torch.testing.assert_close(got.double(), oracle(x, weight, EPS, rows), rtol=4e-7, atol=0)
    assert rms_norm(x, weight, EPS, rows=rows[:0], impl=impl).shape == (0, 40)


@pytest.mark.parametrize("shape", [(0, 4), *SHAPES], ids=str)
@pytest.mark.parametrize("by_index", [False, True])
def test_triton_equals_float64(triton_device, rounded_dtypes, by_index, shape, poisoned_memory):
    for dtype in rounded_dtypes:
        x, weight = (t.to(triton_device) for t in draw(*shape, dtype))
        rows = torch.arange(len(x) * 2, device=triton_device) // 2 if by_index else None
        got, wanted = rms_norm(x, weight, EPS, rows=rows, impl="triton"), oracle(x, weight, EPS, rows)
        assert got.dtype == dtype
        assert got.shape == wanted.shape
        # Rounded twice: the scaled row, then its product with the weight. float16 may also underflow.
        limit = 4e-7 if dtype == torch.float32 else torch.finfo(dtype).eps
        assert ((got.double() - wanted).abs() <= limit * wanted.abs() + (1e-7 if dtype == torch.float16 else 0)).all()


def test_triton_rows_with_gaps_and_rows_that_do_not_exist(triton_device):
    x, weight = (t.to(triton_device) for t in draw(6, 40))
    wide = torch.cat((x, x * float("nan")), 1)[:, :40]
    rows = torch.tensor([5, 6, 0, -1], device=triton_device)
    if triton_device == "cpu":
        rows = rows[::2]  # rows that do not exist are an error on a CPU
    got = rms_norm(wide, weight, EPS, rows=rows, impl="triton")
    torch.testing.assert_close(got[rows % 6 == rows].double(), oracle(x, weight, EPS, rows[rows % 6 == rows]))
    assert got[rows % 6 != rows].isnan().all()


@settings(deadline=None, max_examples=40)
@given(n=st.integers(0, 40), d=st.integers(1, 200), seed=st.integers(0, 99), dtype=st.sampled_from(DTYPES))
def test_any_shape(n, d, seed, dtype):
    x, weight = draw(n, d, dtype, seed)
    got, wanted = rms_norm(x, weight, EPS, impl="native"), oracle(x, weight, EPS)
    assert ((got.double() - wanted).abs() <= (4e-7 if dtype == torch.float32 else 2**-7) * wanted.abs()).all()


def test_strided_operands():
    x, weight = draw(6, 40)
    wide = torch.cat((x, x), 1)[:, :40]
    spread = torch.stack((weight, weight), 1)[:, 0]
    assert torch.equal(rms_norm(wide, spread, EPS, impl="native"), rms_norm(x, weight, EPS, impl="native"))


def test_a_row_of_zeros_and_a_row_with_nan():
    x = torch.zeros(2, 20)
    x[1, 3] = float("nan")
    got = rms_norm(x, torch.ones(20), EPS, impl="native")
    assert (got[0] == 0).all()
    assert got[1].isnan().all()


def test_gradients():
    x, weight = (t.double().requires_grad_() for t in draw(5, 12))
    rows = torch.tensor([4, 0, 0])
    weights = torch.randn(3, 12, dtype=torch.float64)
    got = torch.autograd.grad((rms_norm(x, weight, EPS, rows=rows) * weights).sum(), (x, weight))
    wanted = torch.autograd.grad((oracle(x, weight, EPS, rows) * weights).sum(), (x, weight))
    for a, b in zip(got, wanted, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-5, atol=1e-6)


def test_auto_keeps_the_gradient():
    x, weight = draw(5, 12)
    y = rms_norm(x.requires_grad_(), weight, EPS)
    assert y.requires_grad
    with torch.no_grad():
        assert not rms_norm(x, weight, EPS).requires_grad


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(0, 4), *SHAPES], ids=str)
@pytest.mark.parametrize("by_index", [False, True])
@pytest.mark.usefixtures("poisoned_memory")
def test_native_gradient_equals_float64(by_index, shape, dtype):
    x, weight = draw(*shape, dtype)
    x = torch.stack((x, x), 1)[:, 0].requires_grad_()
    rows = torch.arange(len(x)).flip(0) if by_index else None
    grad = torch.randn(shape[1]).to(dtype).expand(shape)
    y = rms_norm(x, weight, EPS, rows=rows, impl="native")
    assert torch.equal(y, rms_norm(x.detach(), weight, EPS, rows=rows, impl="native"))
    (found,) = torch.autograd.grad(y, x, grad)
    wide = x.detach().double().requires_grad_()
    (wanted,) = torch.autograd.grad(oracle(wide, weight, EPS, rows), wide, grad.double())
    assert found.dtype == dtype
    # A difference of two terms, of which the second is a sum over the row.
    scale = 1 / (wide.detach().square().mean(1, keepdim=True) + EPS).sqrt()
    along = (grad * weight).double().abs()
    unit = wide.detach().abs() * scale
    terms = scale * (along + unit * (along * unit).mean(1, keepdim=True))
    rounding = torch.finfo(dtype).eps / 2 * wanted.abs() if dtype == torch.bfloat16 else 0
    assert ((found.double() - wanted).abs() <= rounding + 1e-6 * terms).all()


def test_a_row_read_twice_gets_both_gradients():
    x, weight = draw(5, 12)
    rows = torch.tensor([4, 0, 0])
    found = [torch.autograd.grad(rms_norm(leaf, weight, EPS, rows=rows, impl=impl).square().sum(), leaf)[0]
             for leaf in [x.requires_grad_()] for impl in IMPLS]  # fmt: skip
    torch.testing.assert_close(*found)
    assert (found[0][1:4] == 0).all()


def test_second_derivatives():
    x, weight = draw(5, 12)
    found = []
    for leaf in (x.requires_grad_(), x.detach().double().requires_grad_()):
        y = rms_norm(leaf, weight, EPS, impl="native") if leaf is x else oracle(leaf, weight, EPS)
        (slope,) = torch.autograd.grad(y.pow(3).sum(), leaf, create_graph=True)
        found.append(torch.autograd.grad(slope.square().sum(), leaf)[0].double())
    torch.testing.assert_close(*found, rtol=1e-4, atol=1e-4)


def test_forward_gradients():
    (x, weight), (tangent, _) = draw(5, 12), draw(5, 12, seed=1)
    wanted = torch.func.jvp(lambda x: oracle(x, weight, EPS), (x,), (tangent,))[1]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, tangent)
        found = torch.autograd.forward_ad.unpack_dual(rms_norm(dual, weight, EPS)).tangent
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    x, weight = draw(5, 12, dtype)
    for rows in (None, torch.tensor([1, 4])):
        out = torch.empty(5 if rows is None else 2, 12, dtype=dtype)
        torch.library.opcheck(torch.ops.fasttrace.rms_norm_.default, (x, weight, EPS, rows, out))
    torch.library.opcheck(torch.ops.fasttrace.rms_norm_backward_.default, (x, x, weight, EPS, x.clone()))


@pytest.mark.parametrize(
    ("change", "options", "words"),
    [
        ({0: torch.ones(3)}, {}, r"got \(3,\)"),
        ({0: torch.ones(3, 4, dtype=torch.int32)}, {}, "expected x .*int32"),
        ({1: torch.ones(5)}, {}, r"expected weight to be \(4,\) torch.float32, got \(5,\)"),
        ({1: torch.ones(4).double()}, {}, "expected weight .*float64"),
        ({}, {"rows": torch.ones(2)}, r"expected rows .*, got \(2,\) torch.float32"),
        ({}, {"rows": torch.tensor([0, 3])}, "expected rows in 0 … 2, got values 0 … 3"),
        ({}, {"rows": torch.tensor([-1])}, "expected rows in 0 … 2, got values -1"),
        ({1: torch.ones(4, requires_grad=True)}, {"impl": "native"}, "no gradient"),
        ({}, {"impl": "triton"}, "Triton needs CUDA tensors"),
    ],
)
def test_refusals_name_the_argument(change, options, words):
    args = [torch.ones(3, 4), torch.ones(4), EPS]
    for i, value in change.items():
        args[i] = value
    with pytest.raises(UserError, match=words):
        rms_norm(*args, **options)


def test_native_refuses_float64():
    with pytest.raises(UserError, match="takes float32 and bfloat16"):
        rms_norm(torch.ones(3, 4).double(), torch.ones(4).double(), EPS, impl="native")


def test_the_op_itself_never_reads_outside():
    x, weight = draw(3, 4)
    with pytest.raises(RuntimeError, match=r"^rms_norm: expected rows\[1\] in 0 … 2, got 3"):
        torch.ops.fasttrace.rms_norm_(x, weight, EPS, torch.tensor([0, 3]), torch.empty(2, 4))
    with pytest.raises(RuntimeError, match=r"^rms_norm_backward: expected .* of shape \(3, 4\), got \(2, 4\)"):
        torch.ops.fasttrace.rms_norm_backward_(x[:2], x, weight, EPS, torch.empty(3, 4))


def test_reference_takes_rows_as_a_gather():
    x, weight = draw(9, 20)
    rows = torch.tensor([8, 1])
    assert torch.equal(rms_norm_reference(x, weight, EPS, rows=rows), rms_norm_reference(x[rows], weight, EPS))
