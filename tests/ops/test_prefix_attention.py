"""prefix_attention: reference, native and Triton against a float64 loop over every query."""

import itertools
import os

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttrace.errors import UserError
from fasttrace.ops.prefix_attention import Column, Sequences, prefix_attention

H, HKV, HD = 6, 2, 20


def plain(q, k, v, table, scale, window, softcap=None, alibi=None, sinks=None):
    """One softmax for each query and head, in float64."""
    q, k, v = q.double(), k.double(), v.double()
    share = q.shape[1] // k.shape[1]
    out = torch.full((q.shape[0], q.shape[1], q.shape[2]), float("nan"), dtype=torch.float64)
    for q0, qn, a, an, b, bn, t, tn in table.tolist():
        rows = [*range(a, a + an), *range(b, b + bn), *range(t, t + tn)]
        for i in range(qn):
            last = len(rows) - qn + i
            seen = rows[max(0, last - window + 1) if window else 0 : last + 1]
            for h in range(q.shape[1]):
                score = scale * k[seen, h // share] @ q[q0 + i, h]
                if softcap is not None:
                    score = softcap * (score / softcap).tanh()
                if alibi is not None:
                    score = score + alibi[h].double() * torch.arange(1 - len(seen), 1)
                if sinks is None:
                    weights = score.softmax(0)
                else:
                    weights = torch.cat((score, sinks[h : h + 1].double())).softmax(0)[:-1]
                out[q0 + i, h] = weights @ v[seen, h // share]
    return out.flatten(1)


def example(shapes, seed=0, hd=HD):
    """Random q, k, v and table of sequences (q_len, first_len, second_len, k_len), whose parts begin at random rows."""
    rng = np.random.default_rng(seed)
    n = max(40, max(sum(s[1:]) for s in shapes))
    q_len = np.array([s[0] for s in shapes])
    rows = []
    for q0, (queries, *lengths) in zip(np.cumsum(q_len) - q_len, shapes, strict=True):
        rows.append([q0, queries])
        for length in lengths:
            rows[-1] += [rng.integers(n - length + 1), length]
    table = np.array(rows, dtype=np.int64)
    g = torch.Generator().manual_seed(seed)
    q = torch.randn(int(q_len.sum()), H, hd, generator=g)
    k, v = (torch.randn(n, HKV, hd, generator=g) for _ in range(2))
    return q, k, v, table


SHAPES = [(1, 0, 0, 1), (3, 2, 0, 3), (2, 2, 4, 5), (7, 0, 0, 7), (1, 3, 1, 1), (3, 5, 2, 3)]


SLOPES = torch.linspace(0.9, 0.05, H)
SINKS = torch.linspace(-3.0, 4.0, H)  # from far below the scores to above them all
EXTRAS = [{}, {"softcap": 0.7}, {"alibi": SLOPES}, {"sinks": SINKS}, {"softcap": 0.7, "alibi": SLOPES, "sinks": SINKS}]


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: "+".join(extra) or "plain")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("hd", [20, 64])
@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_float64(impl, dtype, hd, window, extra):
    q, k, v, table = example(SHAPES, hd=hd)
    q, k, v = (x.to(dtype) for x in (q, k, v))
    expected = plain(q, k, v, table, 0.3, window, **extra)
    found = prefix_attention(q, k, v, Sequences(table), 0.3, sliding_window=window, impl=impl, **extra)
    assert found.dtype == dtype
    limit = 1e-5 if dtype == torch.float32 else 3e-2
    assert float((found.double() - expected).abs().max()) < limit


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: "+".join(extra) or "plain")
@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("hd", [20, 64])
def test_triton_against_float64(triton_device, hd, window, extra, poisoned_memory):
    # The last sequence has more queries than one program handles, and more keys than one block.
    q, k, v, table = example([*SHAPES, (9, 20, 9, 30)], hd=hd)
    expected = plain(q, k, v, table, 0.3, window, **extra)
    moved = {name: x.to(triton_device) if name in ("alibi", "sinks") else x for name, x in extra.items()}
    q, k, v = (x.to(triton_device) for x in (q, k, v))
    found = prefix_attention(q, k, v, Sequences(table), 0.3, sliding_window=window, impl="triton", **moved)
    assert float((found.cpu().double() - expected).abs().max()) < 1e-5


@pytest.mark.parametrize("window", [None, 2])
@pytest.mark.parametrize("heads", [2, 6])
def test_triton_stacks_the_key_heads_of_short_sequences(triton_device, heads, window, poisoned_memory):
    # Two to eight key heads in a program. With three key heads the last program has fewer.
    q, k, v, table = example([(1, 0, 0, 1), (2, 0, 1, 2), (1, 1, 1, 2), (2, 1, 0, 3)])
    q, k, v = q[:, :heads], k[:, :1].repeat(1, 3, 1), v[:, :1].repeat(1, 3, 1)
    q = torch.cat((q, q[:, :1].repeat(1, -heads % 3, 1)), 1)
    k[:, 1:] += torch.randn(len(k), 2, HD, generator=torch.Generator().manual_seed(1))
    v[:, 1:] -= k[:, :2]
    expected = plain(q, k, v, table, 0.3, window)
    q, k, v = (x.to(triton_device) for x in (q, k, v))
    found = prefix_attention(q, k, v, Sequences(table), 0.3, sliding_window=window, impl="triton")
    assert float((found.cpu().double() - expected).abs().max()) < 1e-5


def test_triton_without_rows(triton_device):
    q, k, v, _ = example(SHAPES)
    nothing = prefix_attention(
        q[:0].to(triton_device), k.to(triton_device), v.to(triton_device), Sequences(np.zeros((0, 8), np.int64)), 1.0,
        impl="triton",
    )  # fmt: skip
    assert nothing.shape == (0, H * HD)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("hd", [20, 64, 128, 256])
def test_triton_on_a_gpu_at_the_size_of_a_wave(hd, dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    rng = np.random.default_rng(hd)
    shapes = [(int(q), int(a), int(b), int(q)) for q, a, b in rng.integers(1, 12, (4000, 3))]
    q, k, v, table = (x.to(dtype) if isinstance(x, torch.Tensor) else x for x in example(shapes, hd=hd))
    expected = prefix_attention(q.double(), k.double(), v.double(), Sequences(table), 0.1)
    own = prefix_attention(q.cuda(), k.cuda(), v.cuda(), Sequences(table), 0.1, impl="reference")
    found = prefix_attention(q.cuda(), k.cuda(), v.cuda(), Sequences(table), 0.1, impl="triton")
    limit = 2 * (own.cpu().double() - expected).abs().max() + 4 * torch.finfo(dtype).eps
    assert (found.cpu().double() - expected).abs().max() <= limit


@settings(max_examples=30, deadline=None)
@given(st.lists(st.tuples(st.integers(1, 9), *[st.integers(0, 9)] * 3), min_size=1, max_size=8), st.integers(0, 99))
def test_native_equals_reference_on_any_shapes(shapes, seed):
    q, k, v, table = example([(q_len, a, b, q_len + extra) for q_len, a, b, extra in shapes], seed)
    one, two = (prefix_attention(q, k, v, Sequences(table), 0.2, impl=i) for i in ("reference", "native"))
    torch.testing.assert_close(one, two, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: "+".join(extra) or "plain")
def test_reference_in_float64_is_the_plain_loop(extra):
    q, k, v, table = example(SHAPES)
    q, k, v = (x.double() for x in (q, k, v))
    found = prefix_attention(q, k, v, Sequences(table), 0.3, sliding_window=4, **extra)
    torch.testing.assert_close(found, plain(q, k, v, table, 0.3, 4, **extra), rtol=0, atol=1e-13)


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_scores_far_past_the_cap(impl):
    q, k, v, table = example(SHAPES)
    found = prefix_attention(1e4 * q, k, v, Sequences(table), 1.0, softcap=0.5, impl=impl)
    expected = plain(1e4 * q, k, v, table, 1.0, None, softcap=0.5)
    torch.testing.assert_close(found.double(), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: "+".join(extra) or "plain")
def test_reference_has_the_gradient_of_the_plain_loop(extra):
    q, k, v, table = example(SHAPES, hd=8)
    leaves = [x.double().requires_grad_(True) for x in (q, k, v)]
    weight = torch.randn(q.shape[0], H * 8, dtype=torch.float64)
    found = torch.autograd.grad((prefix_attention(*leaves, Sequences(table), 0.3, **extra) * weight).sum(), leaves)
    expected = torch.autograd.grad((plain(*leaves, table, 0.3, None, **extra) * weight).sum(), leaves)
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b)


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one core")
@pytest.mark.parametrize("extra", EXTRAS, ids=lambda extra: "+".join(extra) or "plain")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_reference_and_its_gradient_have_the_same_bits_with_any_number_of_threads(dtype, extra):
    before = torch.get_num_threads()
    try:
        for q_len, prefix in itertools.product((1, 2, 3, 5, 6, 9, 31), (1, 11, 12, 28, 29, 133)):
            q, k, v, table = example([(q_len, prefix, 0, q_len)] * 3, hd=64)
            leaves = [x.to(dtype).requires_grad_(True) for x in (q, k, v)]
            weight = torch.randn(q.shape[0], H * 64).to(dtype)
            found = []
            for threads in (1, 2):
                torch.set_num_threads(threads)
                out = prefix_attention(*leaves, Sequences(table), 0.3, **extra)
                found.append((out, *torch.autograd.grad((out * weight).sum(), leaves)))
            assert all(torch.equal(a, b) for a, b in zip(*found, strict=True)), (q_len, prefix)
    finally:
        torch.set_num_threads(before)


def test_bad_arguments_are_refused_in_a_sentence():
    q, k, v, table = example(SHAPES)
    with pytest.raises(UserError, match=r"expected q \(Nq, H, hd\), .*, got q \("):
        prefix_attention(q, k[:, :, :3], v, Sequences(table), 1.0)
    with pytest.raises(UserError, match="expected q with the 17 rows of sequences, got 16"):
        prefix_attention(q[:-1], k, v, Sequences(table), 1.0)
    for alibi, found in ((SLOPES[1:], r"\(5,\) torch.float32"), (SLOPES.double(), r"\(6,\) torch.float64")):
        with pytest.raises(UserError, match=rf"expected alibi to be \(6,\) torch.float32, got {found}"):
            prefix_attention(q, k, v, Sequences(table), 1.0, alibi=alibi)
    for sinks, found in ((SINKS[1:], r"\(5,\) torch.float32"), (SINKS.double(), r"\(6,\) torch.float64")):
        with pytest.raises(
            UserError, match=rf"expected sinks to be \(6,\) torch.float32 or torch.float32, got {found}"
        ):
            prefix_attention(q, k, v, Sequences(table), 1.0, sinks=sinks)
    for softcap in (0.0, -1.0):
        with pytest.raises(UserError, match=rf"expected softcap to be a positive number or None, got {softcap}"):
            prefix_attention(q, k, v, Sequences(table), 1.0, softcap=softcap)
    with pytest.raises(UserError, match="no gradient"):
        prefix_attention(q.requires_grad_(True), k, v, Sequences(table), 1.0, impl="native")
    wrong = table.copy()
    wrong[2, Column.K_BEGIN] = 10_000
    with pytest.raises(RuntimeError, match=r"expected rows of sequence 2 within the .*, got rows outside"):
        prefix_attention(q.detach(), k, v, Sequences(wrong), 1.0, impl="native")


def test_nan_stays_and_reaches_only_queries_that_attend_to_it():
    q, k, v = torch.randn(5, 2, 16), torch.randn(5, 1, 16), torch.randn(5, 1, 16)
    q[1, 0, 3] = float("nan")
    k[4] = float("nan")
    out = prefix_attention(q, k, v, Sequences.whole([5]), 0.25, impl="native").view(5, 2, 16)
    assert out[1, 0].isnan().all()
    assert out[4].isnan().all()
    assert not out[0].isnan().any()
    assert not out[1, 1].isnan().any()
    assert not out[2:4].isnan().any()
