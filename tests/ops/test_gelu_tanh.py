"""gelu_tanh_ against float64: far from zero, in other layouts, with gradients, and independent of position."""

import pytest
import torch

from fasttrace.errors import UserError
from fasttrace.ops.gelu_tanh import gelu_tanh_, gelu_tanh_reference

DTYPES = [torch.float32, torch.bfloat16]


def draw(*shape, dtype=torch.float32, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).mul(3).to(dtype)


def oracle(x):
    x = x.double()
    return x * torch.sigmoid(2 * (2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))


@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", [(1, 1), (3, 7), (5, 16), (2, 33), (70, 1000), (0, 4)], ids=str)
def test_equals_float64_in_place(shape, dtype, impl, poisoned_memory):
    x = draw(*shape, dtype=dtype)
    wanted, given = oracle(x), x.double().abs()
    assert gelu_tanh_(x, impl=impl) is x
    # One rounding of the result, and some of x where the exponential's argument is large or a sum cancels.
    limit = torch.finfo(dtype).eps / 2 * wanted.abs() + 2e-7 * given
    assert ((x.double() - wanted).abs() <= limit).all()


def test_small_results_keep_their_digits():
    x = torch.linspace(-9, -3, 500)
    wanted = oracle(x)
    got = gelu_tanh_(x.clone(), impl="native").double()
    assert ((got - wanted).abs() <= 3e-5 * wanted.abs()).all()


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_far_from_zero(impl):
    x = torch.tensor([100.0, 1e30, float("inf"), -100.0, -1e30, 0.0, float("nan")])
    got = gelu_tanh_(x, impl=impl)
    assert got[:3].tolist() == [100.0, pytest.approx(1e30), float("inf")]
    assert (got[3:6].abs() < 1e-37).all()
    assert got[6].isnan()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_result_does_not_depend_on_its_position(dtype):
    """Otherwise a value would depend on what is computed beside it."""
    x = draw(1000, dtype=dtype)
    whole = gelu_tanh_(x.clone(), impl="native")
    for begin, end in ((0, 1), (3, 20), (517, 1000)):
        assert torch.equal(gelu_tanh_(x[begin:end].clone(), impl="native"), whole[begin:end])


def test_layouts():
    wide = draw(6, 16)
    wanted = gelu_tanh_reference(wide)[:, :8]
    with pytest.raises(UserError, match="needs a contiguous x"):
        gelu_tanh_(wide[:, :8], impl="native")
    rest = wide[:, 8:].clone()
    torch.testing.assert_close(gelu_tanh_(wide[:, :8]), wanted)
    assert torch.equal(wide[:, 8:], rest)


def test_gradients_leave_x_as_it_was():
    x = draw(4, 6).double().requires_grad_()
    before = x.detach().clone()
    y = gelu_tanh_(x)
    assert torch.equal(x, before)
    (got,) = torch.autograd.grad(y.square().sum(), x)
    (wanted,) = torch.autograd.grad(oracle(x).square().sum(), x)
    torch.testing.assert_close(got, wanted)


def test_forward_gradients_and_torch_func():
    x, tangent = draw(4, 6), draw(4, 6, seed=1)
    wanted = torch.func.jvp(oracle, (x,), (tangent,))[1]
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.clone(), tangent.clone())
        found = torch.autograd.forward_ad.unpack_dual(gelu_tanh_(dual)).tangent
    torch.testing.assert_close(found.double(), wanted.double(), rtol=1e-5, atol=1e-5)
    slope = torch.func.grad(lambda x: (gelu_tanh_(x) * tangent).sum())(x)
    torch.testing.assert_close(slope.double(), wanted.double(), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    torch.library.opcheck(torch.ops.fasttrace.gelu_tanh_.default, (draw(4, 6, dtype=dtype),))


def test_refusals_name_the_argument():
    with pytest.raises(UserError, match=r"gelu_tanh_: expected x to be floating point, got torch.int32"):
        gelu_tanh_(torch.ones(3, dtype=torch.int32))
    with pytest.raises(UserError, match="Triton needs CUDA tensors"):
        gelu_tanh_(torch.ones(3), impl="triton")
    with pytest.raises(UserError, match="no gradient"):
        gelu_tanh_(torch.ones(3, requires_grad=True), impl="native")
    with pytest.raises(RuntimeError, match=r"^gelu_tanh_: expected x to be float32 or bfloat16"):
        torch.ops.fasttrace.gelu_tanh_(torch.ones(3).double())
