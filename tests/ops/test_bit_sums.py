"""bit_sums: every impl has the same sums to the bit, known ones among them, and any change of a weight shows."""

import numpy as np
import pytest
import torch

from fasttrace.errors import UserError
from fasttrace.ops.bit_sums import bit_sums

DTYPES = [torch.float16, torch.bfloat16, torch.float32, torch.float64]
OTHERS = [torch.float8_e4m3fn, torch.int8, torch.bool, torch.int16, torch.int64, torch.complex64]
# Numbers: beside a sum, beside the eight sums that the kernel takes together, and for several threads.
LENGTHS = (0, 1, 2, 4095, 4096, 4097, 8191, 8 * 4096, 8 * 4096 + 1, 17 * 4096 + 5, 100 * 4096 - 1)
ALL = torch.randint(0, 256, (16 * 101 * 4096,), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)


def numbers(dtype, offset, count):
    """`count` numbers of random bits that begin `offset` numbers into their storage."""
    return ALL.view(dtype)[offset : offset + count]


@pytest.fixture
def threads():
    """torch.set_num_threads, undone afterwards."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", [*DTYPES, *OTHERS], ids=str)
@pytest.mark.parametrize("impl", ["native", "reference"])
def test_one_number_may_have_any_stride(dtype, impl):
    """torch calls it contiguous, and yet refuses to view it."""
    weight = numbers(dtype, 1, 3)
    for one, same in ((weight[:1:2], 1), (weight.as_strided((1, 1), (3, 2)), 1), (weight[:0:2], 0)):
        assert bit_sums(one, impl=impl).equal(bit_sums(weight[:same], impl="reference"))


@pytest.mark.parametrize("dtype", [*DTYPES, *OTHERS], ids=str)
def test_native_equals_the_reference(dtype, threads, poisoned_memory):
    for length in LENGTHS:
        for offset in (0, 1, 2, 3):
            weight = numbers(dtype, offset, length)
            wanted = bit_sums(weight, impl="reference")
            for count in (1, 3):
                threads(count)
                assert bit_sums(weight, impl="native").equal(wanted), (length, offset, count)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_only_the_order_of_the_numbers_counts_not_where_they_are(dtype):
    whole = numbers(dtype, 0, 6 * 70 * 90).view(6, 70, 90)
    for weight in (whole.mT, whole[:, ::2], whole[..., 3:8], whole[0, 0, 0], whole[:, :1].expand(6, 70, 90)):
        wanted = bit_sums(weight.clone(memory_format=torch.contiguous_format))
        for impl in ("reference", "native"):
            assert bit_sums(weight, impl=impl).equal(wanted)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_weights_may_begin_at_any_byte(dtype):
    weight = numbers(dtype, 0, 5000)
    mapped = np.concatenate([np.zeros(1, np.uint8), weight.view(torch.uint8).numpy()])
    moved = torch.frombuffer(mapped, dtype=dtype, offset=1)
    assert moved.data_ptr() % 2 != weight.data_ptr() % 2
    for impl in ("reference", "native"):
        assert bit_sums(moved, impl=impl).equal(bit_sums(weight))


@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize(
    ("dtype", "first", "sums"),
    [
        (torch.float32, 0, [4897965124311420928, 757693633768613888]),
        (torch.float64, 0, [8354646059704564736, -5785671050926494720, -8181792732347043328]),
        (torch.bfloat16, 0, [1133158576341253341]),
        (torch.bfloat16, 1, [-52320936136954964, -2298444782477814121]),
        (torch.int8, 0, [3612326213175540290, 4660896093095271501]),
    ],
)
def test_known_sums(dtype, first, sums, impl):
    """Stores keep hashes of these sums. If they changed, every model would have another identity than before."""
    weight = torch.arange(5000).to(dtype).requires_grad_(dtype.is_floating_point)
    assert bit_sums(weight[first:], impl=impl).tolist() == sums


def wholly(function):
    return lambda weight: weight.copy_(function(weight))


def at(index, function):
    return lambda weight: weight[index].copy_(function(weight[index]))


@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sums_show_whole_weights_that_change_together(dtype):
    weight = torch.randn((50, 4096), generator=torch.Generator().manual_seed(0)).to(dtype)
    changes = {
        "negated": wholly(torch.neg),
        "doubled": wholly(lambda w: 2 * w),
        "one row negated": at(7, torch.neg),
        "odd columns negated": at((slice(None), slice(1, None, 2)), torch.neg),
        "two numbers negated": at((7, slice(1, 4, 2)), torch.neg),
        "rows exchanged": wholly(lambda w: w.flip(0)),
        "columns exchanged": wholly(lambda w: w.flip(1)),
        "neighbours exchanged": at((7, slice(1, 3)), lambda w: w.flip(0)),
        "zero": wholly(torch.zeros_like),
        "the same number everywhere": wholly(lambda w: torch.full_like(w, 2)),
    }
    found = {"unchanged": bit_sums(weight)}
    for name, change in changes.items():
        change(changed := weight.clone())
        found[name] = bit_sums(changed)
    assert len({tuple(sums.tolist()) for sums in found.values()}) == len(found)


@pytest.mark.parametrize("shape", [(5,), (6,), (3, 5), (3, 8), (4097,), (0,), ()])
@pytest.mark.parametrize("dtype", DTYPES)
def test_the_sums_show_a_change_of_any_one_number(shape, dtype):
    whole = torch.randn((2, *shape), generator=torch.Generator().manual_seed(0)).to(dtype)
    for weight in whole:  # the second begins inside the storage
        before = bit_sums(weight)
        for i in (*range(min(weight.numel(), 30)), *range(30, weight.numel(), 419)):
            changed = weight.clone()
            changed.view(-1)[i] = changed.view(-1)[i].nextafter(torch.tensor(9.0, dtype=dtype))
            assert not bit_sums(changed).equal(before)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_gpu_has_the_same_sums(dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    for length in LENGTHS:
        weight = numbers(dtype, 0, length)
        assert bit_sums(weight.cuda()).cpu().equal(bit_sums(weight))


def test_opcheck():
    words = [numbers(dtype, 0, 4099) for dtype in (torch.int8, torch.int16, torch.int32)]
    factors, sums = numbers(torch.int64, 0, 4096), torch.zeros(2, dtype=torch.int64)
    for one in words:
        torch.library.opcheck(torch.ops.fasttrace.bit_sums_.default, (one, factors, sums))


def test_refusals_name_the_argument():
    with pytest.raises(UserError, match=r"^bit_sums: expected a strided weight, got torch\.sparse_coo"):
        bit_sums(torch.eye(3).to_sparse())
    with pytest.raises(UserError, match=r"^bit_sums: impl='native' .* for the CPU, weight is on meta"):
        bit_sums(torch.ones(3, device="meta"), impl="native")
    with pytest.raises(UserError, match=r"^bit_sums: impl='triton' .* no such implementation"):
        bit_sums(torch.ones(3), impl="triton")
    words, factors, sums = (torch.zeros(n, dtype=torch.int64) for n in (8192, 4096, 3))
    words, op = words.int(), torch.ops.fasttrace.bit_sums_
    wrong = {
        "expected words to be contiguous int8, int16 or int32": [
            (words.long(), factors, sums),
            (words[::2], factors, sums),
            (words[None], factors, sums),
        ],
        "expected factors to be contiguous int64": [(words, factors.int(), sums)],
        r"expected factors of shape \(4096,\), got \(4095,\)": [(words, factors[1:], sums)],
        "expected sums to be contiguous int64": [(words, factors, sums.int())],
        r"expected sums of shape \(3,\) to match words, got \(2,\)": [(words, factors, sums[1:])],
    }
    for sentence, calls in wrong.items():
        for arguments in calls:
            with pytest.raises(RuntimeError, match=f"^bit_sums: {sentence}"):
                op(*arguments)
