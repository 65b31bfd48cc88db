"""window_restore: against a row-by-row oracle, gradients, zeroed rows, rows out of range."""

import pytest
import torch
from torch.testing import assert_close

from fasttrace.errors import UserError
from fasttrace.ops.window_restore import _op, window_restore, window_restore_reference

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
SHAPES = [(1, 1, 1, 1), (9, 4, 13, 7), (5, 30, 64, 33), (3, 2, 1, 2049), (4, 4, 0, 8)]


def draw(n, m, p, d, dtype=torch.float32):
    g = torch.Generator().manual_seed(n + 10 * m + 100 * p)
    h, out = torch.randn(n, d, generator=g).to(dtype), torch.randn(m, d, generator=g).to(dtype)
    return h, out, torch.randint(-1, n, (p,), generator=g), torch.randint(-1, m, (p,), generator=g)


def oracle(h, out, base, source):
    zero = 0 * h[0]
    pairs = zip(base.tolist(), source.tolist(), strict=True)
    rows = [(h[b] if b >= 0 else zero) + (out[s] if s >= 0 else zero) for b, s in pairs]
    return torch.stack(rows) if rows else h[:0]


def assert_one_rounding(got, h, out, base, source):
    exact = oracle(h.double(), out.double(), base, source)
    assert got.dtype == h.dtype
    assert got.shape == exact.shape
    assert ((got.double() - exact).abs() <= torch.finfo(h.dtype).eps / 2 * exact.abs()).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_reference_equals_float64_up_to_one_rounding(shape, dtype, poisoned_memory):
    args = draw(*shape, dtype)
    assert_one_rounding(window_restore(*args, impl="reference"), *args)


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
@pytest.mark.parametrize("shape", [*SHAPES, (700, 650, 900, 576)], ids=str)
def test_native_equals_the_reference(shape, dtype, poisoned_memory):
    args = draw(*shape, dtype)
    got = window_restore(*args, impl="native")
    assert torch.equal(got, window_restore_reference(*args))
    assert_one_rounding(got, *args)


def test_native_strided_operands():
    h, out, base, source = draw(6, 5, 40, 8)
    expected = window_restore_reference(h, out, base, source)
    wide, column_major = torch.cat((h, h), 1)[:, :8], out.t().contiguous().t()
    rows = [torch.stack((t, t), 1)[:, 0] for t in (base, source)]
    assert torch.equal(window_restore(wide, column_major, *rows, impl="native"), expected)


def test_native_takes_float32_and_bfloat16():
    for dtype in DTYPES[2:]:
        with pytest.raises(UserError, match="takes float32 and bfloat16, h is"):
            window_restore(*draw(4, 3, 5, 6, dtype), impl="native")


def test_the_native_op_itself_never_reads_outside():
    h, out, base, source = draw(4, 3, 5, 6)
    base[2] = 4
    with pytest.raises(RuntimeError, match=r"^window_restore: expected base\[2\] in -1 … 3, got 4"):
        torch.ops.fasttrace.window_restore_(h, out, base, source, torch.empty(5, 6))


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_a_zeroed_output_may_hold_anything(impl):
    h, out, base, _ = draw(4, 3, 5, 6)
    out.fill_(float("nan"))
    nothing = torch.full((5,), -1)
    kept = torch.where((base < 0)[:, None], 0.0, h[base])
    assert torch.equal(window_restore(h, out, base, nothing, impl=impl), kept)
    assert torch.equal(window_restore(h, out[:0], base, nothing, impl=impl), kept)
    assert torch.equal(window_restore(out, out, nothing, nothing, impl=impl), torch.zeros(5, 6))


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_neither_input_is_written(impl):
    h, out, base, source = draw(4, 3, 5, 6)
    before = (h.clone(), out.clone())
    window_restore(h, out, base, source, impl=impl).zero_()
    assert torch.equal(h, before[0])
    assert torch.equal(out, before[1])


def test_gradients():
    h, out, base, source = draw(4, 3, 12, 5, torch.float64)
    assert (source == -1).any()
    assert (base == -1).any()
    h.requires_grad_()
    out.requires_grad_()
    torch.autograd.gradcheck(lambda h, out: window_restore(h, out, base, source), (h, out))
    got = torch.autograd.grad(window_restore(h, out, base, source).square().sum(), (h, out))
    wanted = torch.autograd.grad(oracle(h, out, base, source).square().sum(), (h, out))
    assert_close(got, wanted)


def test_gradient_of_one_input_alone():
    h, out, base, source = draw(4, 3, 12, 5, torch.float64)
    (grad,) = torch.autograd.grad(window_restore(h, out.requires_grad_(), base, source).sum(), out)
    assert grad[:, 0].tolist() == [float((source == i).sum()) for i in range(3)]


def test_native_gradient():
    h, out, base, source = draw(4, 3, 12, 5)
    h.requires_grad_()
    out.requires_grad_()
    got = torch.autograd.grad(window_restore(h, out, base, source, impl="native").square().sum(), (h, out))
    assert_close(got, torch.autograd.grad(oracle(h, out, base, source).square().sum(), (h, out)))


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_opcheck(impl):
    h, out, base, source = draw(4, 3, 5, 6)
    torch.library.opcheck(_op, (h.requires_grad_(), out.requires_grad_(), base, source, impl))


@pytest.mark.parametrize("dtype", DTYPES[:2], ids=str)
def test_opcheck_of_the_native_op(dtype):
    args = draw(4, 3, 5, 6, dtype)
    torch.library.opcheck(torch.ops.fasttrace.window_restore_.default, (*args, torch.empty(5, 6, dtype=dtype)))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_triton_equals_the_reference(triton_device, shape, dtype, poisoned_memory):
    args = tuple(t.to(triton_device) for t in draw(*shape, dtype))
    got, expected = window_restore(*args, impl="triton"), window_restore_reference(*args)
    # Triton's interpreter truncates to bfloat16, a GPU rounds to nearest.
    ulp = 2.0**-7 if dtype == torch.bfloat16 and triton_device == "cpu" else 0.0
    assert_close(got, expected, rtol=ulp, atol=0.0)


def test_triton_strided_rows_and_nan_outputs(triton_device):
    h, out, base, source = (t.to(triton_device) for t in draw(6, 5, 40, 8))
    expected = window_restore_reference(h, out, base, source)
    wide = torch.cat((h, h), 1)[:, :8]
    column_major = out.t().contiguous().t()
    assert torch.equal(window_restore(wide, column_major, base, source, impl="triton"), expected)
    zeroed, base = torch.full_like(source, -1), base.clamp_min(0)
    assert torch.equal(window_restore(h, out * float("nan"), base, zeroed, impl="triton"), h[base])


def test_triton_rows_out_of_range_are_nan(triton_device):
    h, out, base, source = (t.to(triton_device) for t in draw(6, 5, 7, 8))
    expected = window_restore_reference(h, out, base, source)
    base[1], base[2], source[3], source[4] = 6, -2, 5, -2
    got = window_restore(h, out, base, source, impl="triton")
    assert got[1:5].isnan().all()
    assert torch.equal(got[[0, 5, 6]], expected[[0, 5, 6]])


def test_triton_gradient(triton_device):
    h, out, base, source = (t.to(triton_device) for t in draw(4, 3, 12, 5))
    h.requires_grad_()
    got = torch.autograd.grad(window_restore(h, out, base, source, impl="triton").square().sum(), h)
    wanted = torch.autograd.grad(window_restore(h, out, base, source, impl="reference").square().sum(), h)
    assert_close(got, wanted)


@pytest.mark.gpu
def test_triton_beyond_2_31_elements():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    d, p = 4096, 2**31 // 4096 + 9
    h = torch.randn(3, d, device="cuda", dtype=torch.bfloat16)
    base, source = torch.arange(p, device="cuda") % 3, torch.full((p,), -1, device="cuda")
    got = window_restore(h, h, base, source, impl="triton")
    assert torch.equal(got[-9:], h[base[-9:]])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.ones(3)}, r"h .*, got \(3,\)"),
        ({0: torch.ones(4, 6, dtype=torch.int32)}, "h .*, got .*int32"),
        ({1: torch.ones(3, 5)}, r"expected out to be \(M, 6\) .*, got \(3, 5\) torch.float32"),
        ({1: torch.ones(3, 6).double()}, "out .*, got .*float64"),
        ({2: torch.ones(5)}, r"base .*, got \(5,\) torch.float32"),
        ({3: torch.ones(4, dtype=torch.int64)}, r"source .*, got \(4,\)"),
        ({2: torch.tensor([0, 1, 2, 3, 4])}, "expected base in -1 … 3, got values 0 … 4"),
        ({3: torch.tensor([0, 1, 2, 0, -2])}, "expected source in -1 … 2, got values -2 … 2"),
        ({3: torch.tensor([0, 1, 3, 0, 0])}, "source .*, got values 0 … 3"),
    ],
)
def test_refusals_name_the_argument(change, words):
    args = list(draw(4, 3, 5, 6))
    for i, value in change.items():
        args[i] = value
    with pytest.raises(UserError, match=words):
        window_restore(*args)


def test_a_bfloat16_sum_is_the_same_in_a_vector_and_beside_it() -> None:
    """Ties, NaN, infinities and subnormal numbers, which processors with AVX512_BF16 take for 0 in both places."""
    h = torch.tensor([1.0, 1.0, -1.0, 3e38, torch.inf, torch.nan, 0.0, -0.0, 1e-40, -1e-40, 2e-38, 5.0] * 2).bfloat16()
    out = torch.tensor([2**-8, 3 * 2**-8, 2**-9, 3e38, -torch.inf, 1.0, 0.0, -0.0, 0.0, 0.0, -1.5e-38, 7.0] * 2)
    out, row = out.bfloat16(), torch.zeros(1, dtype=torch.int64)
    together = window_restore(h[None], out[None], row, row, impl="native")[0]
    rows = torch.arange(len(h))
    alone = window_restore(h[:, None], out[:, None], rows, rows, impl="native")[:, 0]
    wanted = h + out
    for found in (together, alone):
        assert found.isnan().equal(wanted.isnan())
    bits = [found.nan_to_num().view(torch.int16) for found in (together, alone)]
    assert torch.equal(*bits)
    normal = wanted.abs() >= torch.finfo(torch.float32).tiny
    assert torch.equal(together[normal], wanted[normal])
    assert (together[~normal].nan_to_num().abs() <= torch.finfo(torch.float32).tiny).all()
