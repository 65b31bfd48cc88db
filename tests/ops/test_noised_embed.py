"""noised_embed: Philox against published vectors, normals against N(0, 1), rows that depend only on their keys."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from fasttrace.errors import UserError
from fasttrace.ops.noised_embed import _op, fact_key, noised_embed, normals, philox4x32

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
ANSWERS = [  # Random123, kat_vectors: philox4x32, 10 rounds
    ([0] * 4, [0] * 2, [0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8]),
    ([0xFFFFFFFF] * 4, [0xFFFFFFFF] * 2, [0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD]),
    (
        [0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344],
        [0xA4093822, 0x299F31D0],
        [0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1],
    ),
]


def philox_oracle(counter, key):
    """Philox4x32-10 in Python integers, one counter at a time."""
    c, k = list(counter), list(key)
    for _ in range(10):
        p0, p1 = c[0] * 0xD2511F53, c[2] * 0xCD9E8D57
        c = [(p1 >> 32) ^ c[1] ^ k[0], p1 % 2**32, (p0 >> 32) ^ c[3] ^ k[1], p0 % 2**32]
        k = [(k[0] + 0x9E3779B9) % 2**32, (k[1] + 0xBB67AE85) % 2**32]
    return c


def noise_oracle(seed, fact, sample, token, d):
    """Noise z of one row in float64, as the docstring of noised_embed defines it."""
    z = []
    for quad in range(math.ceil(d / 4)):
        counter = (quad, token + 65536 * sample, fact % 2**32, fact // 2**32)
        u = [(w + 0.5) / 2**32 for w in philox_oracle(counter, (seed % 2**32, seed // 2**32))]
        for a, b in ((u[0], u[1]), (u[2], u[3])):
            r = math.sqrt(-2 * math.log(a))
            z += [r * math.cos(2 * math.pi * b), r * math.sin(2 * math.pi * b)]
    return torch.tensor(z[:d], dtype=torch.float64)


def draw(rows, d, dtype=torch.float32, device="cpu"):
    g = torch.Generator().manual_seed(rows * 1000 + d)
    integers = lambda high: torch.randint(0, high, (rows,), generator=g)  # noqa: E731
    weight = torch.randn(97, d, generator=g).to(dtype)
    sigma = torch.rand(rows, generator=g) * (torch.rand(rows, generator=g) < 0.7)
    row = (integers(97), sigma, integers(2**62), integers(65536), integers(65536))
    return tuple(t.to(device) for t in (weight, *row))


@pytest.mark.parametrize(("counter", "key", "words"), ANSWERS)
def test_philox_known_answers(counter, key, words):
    assert philox_oracle(counter, key) == words
    got = philox4x32(tuple(torch.tensor([w]) for w in counter), tuple(key))
    assert [int(w) for w in got] == words


def test_philox_on_random_counters():
    rng = np.random.default_rng(0)
    counters = rng.integers(0, 2**32, (4, 50))
    got = torch.stack(philox4x32(tuple(torch.from_numpy(counters)), (123456789, 2**32 - 5)))
    assert got.T.tolist() == [philox_oracle(map(int, c), (123456789, 2**32 - 5)) for c in counters.T]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "d"), [(1, 1), (5, 3), (7, 64), (3, 577)])
def test_reference_equals_the_oracle(rows, d, dtype, poisoned_memory):
    weight, ids, sigma, fact, sample, token = draw(rows, d, dtype)
    got = noised_embed(weight, ids, sigma, fact, sample, token, 2**40 + 3)
    assert got.dtype == dtype
    for i in range(rows):
        z = noise_oracle(2**40 + 3, int(fact[i]), int(sample[i]), int(token[i]), d)
        exact = weight[ids[i]].double() + float(sigma[i]) * z
        # z is rounded to float32. The sum is rounded to float32 and then to the dtype.
        eps = torch.finfo(torch.float32).eps + torch.finfo(dtype).eps
        bound = eps * (exact.abs() + float(sigma[i]) * z.abs())
        assert ((got[i].double() - exact).abs() <= bound).all()


def test_rows_without_sigma_are_the_embeddings_bit_for_bit():
    weight = torch.tensor([[0.0, -0.0, float("inf"), -1.5], [float("nan"), 1.0, 2.0, 3.0]])
    zero = torch.zeros(2, dtype=torch.int64)
    got = noised_embed(weight, torch.tensor([1, 0]), torch.zeros(2), zero, zero, zero, 0)
    assert torch.equal(got.view(torch.int32), weight[[1, 0]].view(torch.int32))


def test_a_row_depends_on_neither_batch_nor_order():
    weight, *row = draw(300, 33)
    whole = noised_embed(weight, *row, 5)
    order = torch.randperm(300, generator=torch.Generator().manual_seed(0))
    assert torch.equal(noised_embed(weight, *(t[order] for t in row), 5), whole[order])
    assert torch.equal(noised_embed(weight, *(t[17:18] for t in row), 5), whole[17:18])


def test_a_wider_row_begins_with_the_narrower_one():
    one = torch.ones(1, dtype=torch.int64)
    assert torch.equal(normals(one, one, one, 3, 50)[:, :7], normals(one, one, one, 3, 7))


def test_normals_are_standard_normal():
    n = 1000
    zero = torch.zeros(n, dtype=torch.int64)
    z = normals(zero + fact_key("a"), zero, torch.arange(n), 0, 100).double().numpy()
    assert stats.kstest(z.ravel(), "norm").pvalue > 1e-3
    assert abs(z.mean()) < 4 / math.sqrt(z.size)
    assert abs(z.var() - 1) < 4 * math.sqrt(2 / z.size)
    # Neighboring dimensions, neighboring tokens, dimensions two apart.
    for a, b in ((z[:, :-1], z[:, 1:]), (z[:-1], z[1:]), (z[:, :-2], z[:, 2:])):
        assert abs(np.corrcoef(a.ravel(), b.ravel())[0, 1]) < 4 / math.sqrt(a.size)


@pytest.mark.parametrize("changed", ["fact", "fact high", "sample", "token", "seed", "seed high", "swap"])
def test_another_seed_fact_sample_or_token_gives_independent_noise(changed):
    names = {"fact": 12345, "sample": 3, "token": 7, "seed": 11}
    other = dict(names)
    if changed == "swap":
        other |= {"sample": 7, "token": 3}
    elif changed.endswith("high"):
        other[changed.split()[0]] += 2**32
    else:
        other[changed] += 1

    def noise(name):
        keys = (torch.tensor([name[key]]) for key in ("fact", "sample", "token"))
        return normals(*keys, name["seed"], 100_000)[0].double().numpy()

    a, b = noise(names), noise(other)
    assert abs(np.corrcoef(a, b)[0, 1]) < 4 / math.sqrt(len(a))
    assert stats.kstest((a - b) / math.sqrt(2), "norm").pvalue > 1e-3


def test_fact_key_is_stable_and_63_bits():
    assert fact_key("known_1000:7") == 2581897540940475311
    keys = [fact_key(str(i)) for i in range(5000)]
    assert len(set(keys)) == 5000
    assert max(keys) < 2**63
    assert min(keys) >= 0
    assert max(keys) > 2**62


def test_opcheck():
    torch.library.opcheck(_op, (*draw(5, 6), 1, "reference"))


@pytest.mark.parametrize("seed", [0, 1, 2**31, 2**63 - 1])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "d"), [(1, 1), (6, 13), (3, 1030), (0, 8)])
def test_triton_equals_the_reference(triton_device, rows, d, dtype, seed, poisoned_memory):
    args = draw(rows, d, dtype)
    expected = noised_embed(*args, seed, impl="reference").double()
    got = noised_embed(*(t.to(triton_device) for t in args), seed, impl="triton").cpu()
    assert got.dtype == dtype
    # The interpreter truncates to bfloat16. A GPU's log and cosine may differ from the CPU's in the last of
    # 53 bits, which shows after rounding to float32 once in some 10^8 values.
    ulp = 2.0**-7 if dtype == torch.bfloat16 and triton_device == "cpu" else 0.0
    assert_close(got.double(), expected, rtol=ulp, atol=0.0)


def test_triton_strided_weight(triton_device):
    weight, *row = (t.to(triton_device) for t in draw(4, 12))
    expected = noised_embed(weight, *row, 9, impl="reference")
    wide = torch.cat((weight, weight), 1)[:, :12]
    for strided in (wide, weight.t().contiguous().t()):
        assert_close(noised_embed(strided, *row, 9, impl="triton"), expected, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.ones(4)}, r"weight .*, got \(4,\)"),
        ({0: torch.ones(4, 4, dtype=torch.int64)}, "weight to be .* floating point .*, got .*int64"),
        ({1: torch.ones(2, 1, dtype=torch.int64)}, r"ids .*, got \(2, 1\)"),
        ({1: torch.tensor([0, 97])}, "expected ids in 0 … 96, got values 0 … 97"),
        ({1: torch.tensor([-1, 0])}, "ids .*, got values -1"),
        ({2: torch.ones(2).double()}, "sigma .*, got .*float64"),
        ({3: torch.ones(3, dtype=torch.int64)}, r"fact_key to be \(2,\) torch.int64, got \(3,\)"),
        ({4: torch.tensor([0, 65536])}, "sample .*, got values 0 … 65536"),
        ({5: torch.tensor([65536, 0])}, "token .*, got values"),
        ({6: -1}, "seed .*, got -1"),
        ({6: 2**63}, "seed .*, got 9223372036854775808"),
        ({0: torch.ones(97, 4, requires_grad=True)}, "weight requires grad"),
    ],
)
def test_refusals_name_the_argument(change, words):
    args = [*draw(2, 4), 0]
    for i, value in change.items():
        args[i] = value
    with pytest.raises(UserError, match=words):
        noised_embed(*args)


def test_a_weight_that_requires_grad_is_fine_without_grad():
    weight, *row = draw(2, 4)
    with torch.no_grad():
        expected = noised_embed(weight, *row, 0)
        assert torch.equal(noised_embed(weight.requires_grad_(), *row, 0), expected)
