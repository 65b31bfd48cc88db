"""second_moment_ against the float64 product: shapes around panel and block edges, long sums, layouts."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttrace.errors import UserError
from fasttrace.ops.second_moment import second_moment_, second_moment_reference

IMPLS = ["reference", "native"]


def oracle(K: torch.Tensor) -> torch.Tensor:
    return K.double().T @ K.double()


def relative_error(C: torch.Tensor, wanted: torch.Tensor) -> float:
    """Largest error of an entry, divided by the geometric mean of its two diagonal entries."""
    scale = wanted.diagonal().sqrt().clamp_min(1e-30)
    return ((C.double() - wanted).abs() / (scale[:, None] * scale[None, :])).max().item()


def keys(n: int, m: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, m, generator=torch.Generator().manual_seed(seed)).to(dtype)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("key_dtype", [torch.float32, torch.bfloat16], ids=["K32", "K16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["C32", "C64"])
@pytest.mark.parametrize(
    ("n", "m"),
    [(1, 1), (2, 3), (31, 7), (32, 48), (33, 49), (65, 96), (100, 143), (1023, 50), (1025, 97), (2100, 5)],
)
def test_equals_float64(n: int, m: int, dtype: torch.dtype, key_dtype: torch.dtype, impl: str) -> None:
    K = keys(n, m, key_dtype)
    C = torch.zeros(m, m, dtype=dtype)
    assert second_moment_(C, K, impl=impl) is C
    assert relative_error(C, oracle(K)) < 5e-7
    if impl == "native":
        assert torch.equal(C, C.T)


def test_adds_to_c_even_if_c_is_not_symmetric() -> None:
    K, start = keys(70, 61), keys(61, 61, seed=1).double()
    C = start.clone()
    second_moment_(C, K, impl="native")
    assert torch.allclose(C, start + oracle(K), rtol=0, atol=2e-5)
    assert torch.allclose(C - C.T, start - start.T, rtol=0, atol=1e-12)


def test_does_not_drift_over_300_000_tokens() -> None:
    """The mean of K is far from zero, as for keys of an MLP, so every sum keeps growing."""
    C, wanted = torch.zeros(24, 24, dtype=torch.float64), torch.zeros(24, 24, dtype=torch.float64)
    for seed in range(60):
        K = keys(5000, 24, seed=seed) * 0.1 + 0.7
        second_moment_(C, K, impl="native")
        wanted += oracle(K)
    assert relative_error(C, wanted) < 3e-7


def test_float32_sum_rounds_once_a_call() -> None:
    """40 blocks in one call round C once, so the error is one float32 rounding and that of the products."""
    K = keys(40 * 1024 + 13, 20) * 0.1 + 0.7
    C = torch.zeros(20, 20)
    second_moment_(C, K, impl="native")
    assert relative_error(C, oracle(K)) < 4e-7


def test_one_row_a_thousand_times_larger() -> None:
    K = keys(4096, 16)
    K[0] *= 1e3
    C = torch.zeros(16, 16, dtype=torch.float64)
    second_moment_(C, K, impl="native")
    assert relative_error(C, oracle(K)) < 1e-6


@pytest.mark.parametrize("constant", [0.1, 1 / 3, 0.7, 1.1])
def test_equal_keys_do_not_all_round_one_way(constant: float) -> None:
    K = torch.full((10_000, 3), constant)
    C = torch.zeros(3, 3, dtype=torch.float64)
    second_moment_(C, K, impl="native")
    assert relative_error(C, oracle(K)) < 1e-6


@pytest.mark.parametrize("layout", ["transposed", "slice of columns", "every other column", "some rows, reversed"])
def test_any_strides_of_keys(layout: str) -> None:
    wide = keys(130, 160)
    K = {
        "transposed": wide.T[:, :60],
        "slice of columns": wide[:, 11:71],
        "every other column": wide[:, ::2],
        "some rows, reversed": wide.flip(0)[::3],
    }[layout]
    C = torch.zeros(K.shape[1], K.shape[1], dtype=torch.float64)
    second_moment_(C, K, impl="native")
    assert relative_error(C, oracle(K)) < 5e-7


def test_writes_nothing_outside_c() -> None:
    guarded = torch.full((51 * 51 + 128,), float("nan"), dtype=torch.float64)
    C = guarded[64 : 64 + 51 * 51].view(51, 51)
    C.zero_()
    second_moment_(C, keys(40, 51), impl="native")
    assert torch.isfinite(C).all()
    assert guarded[:64].isnan().all()
    assert guarded[-64:].isnan().all()


def test_nan_key_reaches_its_row_and_column_only() -> None:
    K = keys(40, 100)
    K[7, 3] = float("nan")
    C = torch.zeros(100, 100, dtype=torch.float64)
    second_moment_(C, K, impl="native")
    touched = torch.zeros(100, 100, dtype=torch.bool)
    touched[3, :] = touched[:, 3] = True
    assert torch.equal(C.isnan(), touched)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize(("n", "m"), [(0, 5), (5, 0), (0, 0)])
def test_nothing_to_add(n: int, m: int, impl: str) -> None:
    C = torch.ones(m, m)
    second_moment_(C, torch.zeros(n, m), impl=impl)
    assert torch.equal(C, torch.ones(m, m))


def test_does_not_depend_on_the_number_of_threads() -> None:
    K, before = keys(1500, 200), torch.get_num_threads()
    sums = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            sums.append(second_moment_(torch.zeros(200, 200, dtype=torch.float64), K, impl="native"))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*sums)


@settings(deadline=None, max_examples=40)
@given(n=st.integers(1, 90), m=st.integers(1, 120), seed=st.integers(0, 2**31), bfloat16=st.booleans())
def test_any_shape(n: int, m: int, seed: int, bfloat16: bool) -> None:
    K = keys(n, m, torch.bfloat16 if bfloat16 else torch.float32, seed)
    native = second_moment_(torch.zeros(m, m, dtype=torch.float64), K, impl="native")
    reference = second_moment_reference(torch.zeros(m, m, dtype=torch.float64), K)
    assert relative_error(native, reference) < 1e-6


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("key_dtype", [torch.float32, torch.bfloat16], ids=["K32", "K16"])
@pytest.mark.parametrize(("n", "m"), [(1, 1), (33, 49), (2100, 1300)])  # the last is larger than one group of tiles
def test_on_a_gpu(n: int, m: int, key_dtype: torch.dtype) -> None:
    for K in (keys(n, m, key_dtype), keys(n, m, key_dtype) * 0.1 + 0.7, torch.full((n, m), 1 / 3, dtype=key_dtype)):
        C = torch.zeros(m, m, dtype=torch.float64, device="cuda")
        second_moment_(C, K.cuda(), impl="native")
        assert relative_error(C.cpu(), oracle(K)) < 6e-7
        assert torch.equal(C, C.T)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_opcheck(dtype: torch.dtype) -> None:
    for key_dtype in (torch.float32, torch.bfloat16):
        arguments = (torch.zeros(9, 9, dtype=dtype), keys(5, 9, key_dtype))
        torch.library.opcheck(torch.ops.fasttrace.second_moment_.default, arguments)


@pytest.mark.parametrize(
    ("C", "K", "sentence"),
    [
        (torch.zeros(3, 4), torch.zeros(2, 4), r"expected C to be a square matrix \(m, m\), got shape \(3, 4\)"),
        (torch.zeros(4, 4), torch.zeros(2, 3), r"expected K of shape \(n, 4\) to match C, got \(2, 3\)"),
        (torch.zeros(4, 4), torch.zeros(4), r"expected K .*, got \(4,\)"),
        (torch.zeros(4, 4).half(), torch.zeros(2, 4), r"expected C .*, got torch.float16"),
        (torch.zeros(4, 4), torch.zeros(2, 4).double(), r"expected K .*, got torch.float64"),
        (torch.zeros(4, 8)[:, ::2], torch.zeros(2, 4), r"expected C to be contiguous, got strides \(8, 2\)"),
        (torch.zeros(4, 4), torch.zeros(2, 4, requires_grad=True), r"K requires grad"),
    ],
)
def test_refusals_name_the_argument(C: torch.Tensor, K: torch.Tensor, sentence: str) -> None:
    with pytest.raises(UserError, match=sentence):
        second_moment_(C, K)


def test_the_op_itself_refuses_in_a_sentence() -> None:
    with pytest.raises(RuntimeError, match=r"^second_moment_: expected K of shape \(n, 4\) to match C, got \(2, 3\)"):
        torch.ops.fasttrace.second_moment_(torch.zeros(4, 4), torch.zeros(2, 3))


def test_triton_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="impl='triton'"):
        second_moment_(torch.zeros(2, 2), torch.zeros(1, 2), impl="triton")
