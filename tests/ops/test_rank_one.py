"""rank_one_ against float64: both dtypes, both orientations, slices, odd shapes, rounding of bfloat16."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttrace.errors import UserError
from fasttrace.ops.rank_one import rank_one_, rank_one_reference

IMPLS = ["reference", "native"]
DTYPES = [torch.float32, torch.bfloat16]


def draw(*shape: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def oracle(W: torch.Tensor, u: torch.Tensor, v: torch.Tensor, alpha: float) -> torch.Tensor:
    return W.double() + alpha * u.double()[:, None] * v.double()[None, :]


def within_one_rounding(W: torch.Tensor, wanted: torch.Tensor) -> bool:
    """Whether W equals `wanted` up to half a unit of its dtype, and 5e-7 for the float32 arithmetic before."""
    half_unit = torch.finfo(W.dtype).eps / 2
    return bool(((W.double() - wanted).abs() <= half_unit * wanted.abs() + 5e-7).all())


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("vector_dtype", DTYPES, ids=["uv32", "uv16"])
@pytest.mark.parametrize("dtype", DTYPES, ids=["W32", "W16"])
@pytest.mark.parametrize(("a", "b"), [(1, 1), (1, 17), (17, 1), (3, 5), (64, 33), (129, 200)])
def test_equals_float64(
    a: int, b: int, dtype: torch.dtype, vector_dtype: torch.dtype, transposed: bool, impl: str
) -> None:
    W = draw(b, a, dtype=dtype).T if transposed else draw(a, b, dtype=dtype)
    u, v = draw(a, dtype=vector_dtype, seed=1), draw(b, dtype=vector_dtype, seed=2)
    wanted = oracle(W, u, v, 0.37)
    assert rank_one_(W, u, v, 0.37, impl=impl) is W
    assert within_one_rounding(W, wanted)


def test_alpha_is_one_unless_given() -> None:
    W = rank_one_(torch.zeros(2, 3), torch.tensor([1.0, 2.0]), torch.tensor([3.0, 4.0, 5.0]), impl="native")
    assert W.tolist() == [[3, 4, 5], [6, 8, 10]]


@pytest.mark.parametrize("dtype", DTYPES)
def test_a_slice_leaves_its_surroundings(dtype: torch.dtype) -> None:
    for transposed in (False, True):
        whole = torch.full((40, 50), float("nan"), dtype=dtype)
        part = whole[3:20, 5:42].T if transposed else whole[3:20, 5:42]
        part.zero_()
        u, v = draw(part.shape[0], seed=1), draw(part.shape[1], seed=2)
        rank_one_(part, u, v, -2.0, impl="native")
        assert within_one_rounding(part, oracle(torch.zeros(part.shape), u, v, -2.0))
        whole[3:20, 5:42] = float("nan")
        assert whole.isnan().all()


def test_strided_vectors() -> None:
    W, pool = draw(7, 9), draw(20, 3, seed=1)
    u, v = pool[:7, 1], pool[:18:2, 0]
    wanted = oracle(W, u, v, 1.5)
    rank_one_(W, u, v, 1.5, impl="native")
    assert within_one_rounding(W, wanted)


def test_bfloat16_rounds_to_nearest_even_as_torch_does() -> None:
    """Every 16-bit pattern is rounded as W + 0, and sums halfway between two bfloat16 go to the even one."""
    patterns = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
    W = patterns.clone().view(256, 256)
    rank_one_(W, torch.zeros(256), torch.zeros(256), impl="native")
    plain = patterns.view(256, 256).float() + 0.0
    assert torch.equal(W.isnan(), plain.isnan())
    assert torch.equal(W.float()[~plain.isnan()], plain[~plain.isnan()])
    halves = torch.tensor([1 + k * 2.0**-8 for k in range(16)])
    W = torch.zeros(1, 16, dtype=torch.bfloat16)
    rank_one_(W, torch.ones(1), halves, impl="native")
    assert torch.equal(W[0], halves.bfloat16())


def test_overflow_and_nan() -> None:
    W = torch.tensor([[3e38, 1.0, 2.0]], dtype=torch.bfloat16)
    rank_one_(W, torch.ones(1), torch.tensor([3e38, float("nan"), float("-inf")]), impl="native")
    assert W[0, 0].item() == float("inf")
    assert W[0, 1].isnan()
    assert W[0, 2].item() == float("-inf")


def test_undone_by_minus_alpha() -> None:
    """On exactly representable numbers the update and its opposite cancel to the bit."""
    W = torch.randint(-50, 50, (33, 65), generator=torch.Generator().manual_seed(0)).float()
    u, v, start = torch.arange(33.0), torch.arange(65.0) - 30, W.clone()
    rank_one_(W, u, v, 0.5, impl="native")
    assert not torch.equal(W, start)
    assert torch.equal(rank_one_(W, u, v, -0.5, impl="native"), start)


@settings(deadline=None, max_examples=40)
@given(a=st.integers(0, 70), b=st.integers(0, 70), transposed=st.booleans(), seed=st.integers(0, 2**31))
def test_any_shape(a: int, b: int, transposed: bool, seed: int) -> None:
    W = draw(b, a, seed=seed).T if transposed else draw(a, b, seed=seed)
    u, v = draw(a, seed=seed + 1), draw(b, seed=seed + 2)
    reference = rank_one_reference(W.clone(), u, v, 0.9)
    assert torch.allclose(rank_one_(W, u, v, 0.9, impl="native"), reference, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", DTYPES)
def test_opcheck(dtype: torch.dtype) -> None:
    for W in (draw(4, 6, dtype=dtype), draw(6, 4, dtype=dtype).T):
        torch.library.opcheck(torch.ops.fasttrace.rank_one_.default, (W, draw(4), draw(6), 0.5))


@pytest.mark.parametrize(
    ("W", "u", "v", "sentence"),
    [
        (torch.zeros(3), torch.zeros(3), torch.zeros(3), r"expected W to be a matrix \(a, b\), got shape \(3,\)"),
        (torch.zeros(3, 4), torch.zeros(4), torch.zeros(4), r"expected u of .* the rows of W, got \(4,\)"),
        (torch.zeros(3, 4), torch.zeros(3), torch.zeros(3), r"expected v of .* the columns of W, got \(3,\)"),
        (torch.zeros(3, 4), torch.zeros(3, 1), torch.zeros(4), r"expected u .*, got \(3, 1\)"),
        (torch.zeros(3, 4).double(), torch.zeros(3), torch.zeros(4), r"expected W .*, got torch.float64"),
        (torch.zeros(3, 4), torch.zeros(3).half(), torch.zeros(4), r"expected u .*, got torch.float16"),
        (torch.zeros(6, 8)[::2, ::2], torch.zeros(3), torch.zeros(4), r"expected W .*, got strides \(16, 2\)"),
        (torch.zeros(4).expand(3, 4), torch.zeros(3), torch.zeros(4), r"expected W .*, got strides \(0, 1\)"),
        (torch.zeros(3, 4, requires_grad=True), torch.zeros(3), torch.zeros(4), r"W requires grad"),
    ],
)
def test_refusals_name_the_argument(W: torch.Tensor, u: torch.Tensor, v: torch.Tensor, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        rank_one_(W, u, v)


def test_the_op_itself_refuses_in_a_sentence() -> None:
    sentence = r"^rank_one_: expected u of shape \(3,\) to match the rows of W, got \(4,\)$"
    with pytest.raises(RuntimeError, match=sentence):
        torch.ops.fasttrace.rank_one_(torch.zeros(3, 4), torch.zeros(4), torch.zeros(4), 1.0)


def test_a_weight_that_requires_grad_is_edited_under_no_grad() -> None:
    W = torch.nn.Parameter(torch.zeros(2, 2))
    with torch.no_grad():
        rank_one_(W, torch.ones(2), torch.ones(2))
    assert W.tolist() == [[1, 1], [1, 1]]
