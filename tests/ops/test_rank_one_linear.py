"""rank_one_add_ and rank_one_linear against float64: rows with and without an edit, several updates, odd shapes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttrace.errors import UserError
from fasttrace.ops.linear import linear
from fasttrace.ops.rank_one_linear import rank_one_add_, rank_one_linear

DTYPES = [torch.float32, torch.bfloat16, torch.float64]
IMPLS = ["reference", "native"]
# N, m, d, E, w
SHAPES = [(1, 1, 1, 1, 1), (7, 5, 3, 2, 1), (40, 33, 17, 6, 3), (9, 200, 129, 3, 5), (3, 64, 32, 4, 40)]


def draw(rows, m, d, edits, width, dtype=torch.float32, seed=0):
    """Return (y, x, edit, key, value). Almost half of the rows have no edit."""
    generator = torch.Generator().manual_seed(seed)
    y, x = (torch.randn(rows, size, generator=generator).to(dtype) for size in (d, m))
    key, value = (torch.randn(edits, width, size, generator=generator) for size in (m, d))
    edit = torch.randint(-(edits // 2 + 1), edits, (rows,), generator=generator).clamp_min(-1)
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return y, x, edit, (key / m**0.5).to(wide), value.to(wide)


def oracle(y, x, edit, key, value):
    """Return the float64 result, computed update by update, and the sum of absolute terms, which scales its errors."""
    wanted, size = y.double(), y.double().abs()
    for r, e in enumerate(edit.tolist()):
        if e < 0:
            continue
        for a, b in zip(key[e].double(), value[e].double(), strict=True):
            wanted[r] += b * (a @ x[r].double())
            size[r] += b.abs() * (a.abs() @ x[r].double().abs())
    return wanted, size


def within_one_rounding(got, wanted, size):
    """Whether `got` equals `wanted` up to half a unit of its dtype and the roundings of the sums before."""
    inside = 1e-14 if got.dtype == torch.float64 else 2e-6
    unit = torch.finfo(got.dtype).eps / 2
    return bool(((got.double() - wanted).abs() <= unit * wanted.abs() + inside * size).all())


def combinations():
    """Every (dtype, impl), except native in float64."""
    return [(dtype, impl) for dtype in DTYPES for impl in IMPLS if (dtype, impl) != (torch.float64, "native")]


@pytest.mark.parametrize(("dtype", "impl"), combinations())
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64(shape, dtype, impl):
    y, *rest = draw(*shape, dtype)
    before, exact = y.clone(), oracle(y, *rest)
    assert rank_one_add_(y, *rest, impl=impl) is y
    assert within_one_rounding(y, *exact)
    assert torch.equal(y[rest[1] < 0], before[rest[1] < 0])


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_native_is_as_exact_as_the_reference(dtype):
    y, *rest = draw(200, 300, 70, 9, 4, dtype)
    wanted, _ = oracle(y, *rest)
    errors = [(rank_one_add_(y.clone(), *rest, impl=impl).double() - wanted).abs() for impl in IMPLS]
    assert errors[1].max() <= 2 * errors[0].max()
    assert errors[1].mean() <= 1.1 * errors[0].mean()


@pytest.mark.parametrize("impl", IMPLS)
def test_rows_without_an_edit_keep_their_bits(impl):
    y, x, edit, key, value = draw(12, 6, 5, 3, 2)
    y[0], x[:] = float("nan"), float("inf")
    before = y.clone()
    rank_one_add_(y, x, torch.full_like(edit, -1), key, value, impl=impl)
    assert torch.equal(y.view(torch.int32), before.view(torch.int32))
    rank_one_add_(y, x, torch.full_like(edit, -1), key[:0], value[:0], impl=impl)
    assert torch.equal(y.view(torch.int32), before.view(torch.int32))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_strided_operands(dtype):
    y, x, edit, key, value = draw(12, 6, 35, 3, 2, dtype)
    expected = rank_one_add_(y.clone(), x, edit, key, value, impl="native")
    whole = torch.full((12, 50), float("nan"), dtype=dtype)
    part = whole[:, 5:40]
    part.copy_(y)
    names = torch.stack((edit, edit), 1)[:, 0]
    for rows in (x.T.contiguous().T, torch.cat((x, x), 1)[:, :6]):
        rank_one_add_(part, rows, names, key.mT.contiguous().mT, value.mT.contiguous().mT, impl="native")
        assert torch.equal(part, expected)
        part.copy_(y)
    part.fill_(float("nan"))
    assert whole.isnan().all()


@settings(deadline=None, max_examples=40)
@given(
    rows=st.integers(0, 9),
    m=st.integers(1, 70),
    d=st.integers(0, 140),
    edits=st.integers(1, 4),
    width=st.integers(1, 5),
    seed=st.integers(0, 2**31),
)
def test_any_shape(rows, m, d, edits, width, seed):
    y, *rest = draw(rows, m, d, edits, width, seed=seed)
    exact = oracle(y, *rest)
    assert within_one_rounding(rank_one_add_(y, *rest, impl="native"), *exact)


@pytest.mark.parametrize("transposed", [False, True], ids=["rows", "columns"])
@pytest.mark.parametrize("with_bias", [False, True], ids=["plain", "bias"])
@pytest.mark.parametrize(("dtype", "impl"), combinations())
def test_linear_is_the_product_and_the_update(dtype, impl, with_bias, transposed):
    _, x, edit, key, value = draw(21, 40, 13, 4, 2, dtype)
    generator = torch.Generator().manual_seed(1)
    W = torch.randn((40, 13) if transposed else (13, 40), generator=generator).to(dtype)
    W = W.T if transposed else W
    bias = torch.randn(13, generator=generator).to(dtype) if with_bias else None
    before = W.clone()
    y = rank_one_linear(x, W, bias, edit, key, value, impl=impl)
    base = linear(x, W, bias, impl="reference" if impl == "reference" else "auto")
    assert torch.equal(y, rank_one_add_(base, x, edit, key, value, impl=impl))
    assert torch.equal(W, before)
    for e in range(4):
        # As if the edit had been written into the weights, in float64.
        edited = W.double() + (value[e].double().T @ key[e].double())
        wanted = x[edit == e].double() @ edited.T + (0 if bias is None else bias.double())
        assert torch.allclose(y[edit == e].double(), wanted, rtol=0, atol=20 * torch.finfo(dtype).eps * 10)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_opcheck(dtype):
    torch.library.opcheck(torch.ops.fasttrace.rank_one_add_.default, draw(7, 5, 3, 2, 2, dtype))


def test_native_takes_float32_and_bfloat16():
    with pytest.raises(UserError, match="takes float32 and bfloat16, y is"):
        rank_one_add_(*draw(3, 4, 5, 2, 1, torch.float64), impl="native")


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_cuda_equals_float64(shape, dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    args = draw(*shape, dtype)
    wanted = oracle(*args)
    got = rank_one_add_(*(t.cuda() for t in args), impl="native")
    assert within_one_rounding(got.cpu(), *wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("impl", IMPLS)
def test_cuda_rows_with_an_unknown_edit_are_nan(impl):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    y, x, edit, key, value = (t.cuda() for t in draw(5, 6, 7, 3, 2))
    edit[:] = torch.tensor([0, 3, -1, -2, 2])
    before = y.clone()
    got = rank_one_add_(y, x, edit, key, value, impl=impl)
    assert got[[1, 3]].isnan().all()
    assert not got[[0, 2, 4]].isnan().any()
    assert torch.equal(got[2], before[2])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.zeros(3)}, r"expected y to be \(N, d\) .*, got \(3,\) torch.float32"),
        ({0: torch.zeros(7, 3).half()}, "y .*, got .*float16"),
        ({1: torch.zeros(6, 5)}, r"expected x to be \(7, m\) .*, got \(6, 5\) torch.float32"),
        ({1: torch.zeros(7, 5).bfloat16()}, "x .* to match y, got .*bfloat16"),
        ({2: torch.zeros(7)}, r"expected edit to be \(7,\) torch.int64, got \(7,\) torch.float32"),
        ({2: torch.full((7,), 2)}, "expected edit in -1 … 1, got values 2 … 2"),
        ({2: torch.full((7,), -2)}, "edit .*, got values -2 … -2"),
        ({3: torch.zeros(2, 5)}, r"expected key to be \(E, w, 5\) .*, got \(2, 5\) torch.float32"),
        ({3: torch.zeros(2, 0, 5)}, "w at least 1"),
        ({3: torch.zeros(2, 2, 5).double()}, "key .*, got .*float64"),
        ({4: torch.zeros(2, 1, 3)}, r"expected value to be \(2, 2, 3\) .*, got \(2, 1, 3\) torch.float32"),
        ({4: torch.zeros(2, 2, 3).bfloat16()}, "value .*, got .*bfloat16"),
        ({0: torch.zeros(3, 7).T}, r"y with rows without gaps .*, got strides \(1, 7\)"),
        ({0: torch.zeros(3).expand(7, 3)}, r"y .*, got strides \(0, 1\)"),
        ({1: torch.zeros(7, 5, requires_grad=True)}, "x requires grad"),
    ],
)
def test_refusals_name_the_argument(change, words):
    args = list(draw(7, 5, 3, 2, 2))
    for i, value in change.items():
        args[i] = value
    with pytest.raises(UserError, match=words):
        rank_one_add_(*args)


def test_linear_refuses_before_it_multiplies():
    _, x, edit, key, value = draw(7, 5, 3, 2, 2)
    with pytest.raises(UserError, match=r"got x \(7, 5\) and W \(5, 3\)"):
        rank_one_linear(x, torch.zeros(5, 3), None, edit, key, value)
    with pytest.raises(UserError, match="rank_one_linear: W requires grad"):
        rank_one_linear(x, torch.zeros(3, 5, requires_grad=True), None, edit, key, value)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({2: torch.tensor([0, 1, 2, 0, 0, 0, 0])}, r"expected edit\[2\] in -1 … 1, got 2"),
        ({4: torch.zeros(2, 2, 4)}, r"expected y \(N, d\), .*, got y \(7, 3\)"),
        ({0: torch.zeros(3, 7).T}, r"expected y .*, got strides \(1, 7\)"),
    ],
)
def test_the_op_itself_refuses_in_a_sentence(change, words):
    args = list(draw(7, 5, 3, 2, 2))
    for i, value in change.items():
        args[i] = value
    with pytest.raises(RuntimeError, match="^rank_one_add_: " + words):
        torch.ops.fasttrace.rank_one_add_(*args)
