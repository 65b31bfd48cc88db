"""adam_linf_ against float64 and torch.optim.Adam: ragged and empty items, inactive items, bfloat16 factors."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttrace.errors import UserError
from fasttrace.ops.adam_linf import adam_linf_, adam_linf_reference

DTYPES = [torch.float32, torch.bfloat16]
COUNTS = [(3,), (1, 0, 17), (16, 5, 2, 40), (0, 0)]  # rows of each item
SHAPES = [(1, 1), (3, 5), (5, 33), (33, 64), (4, 131), (38, 2085)]  # the last is larger than a block of the kernel


def draw(counts, d, n, dtypes=(torch.float32, torch.float32), seed=0):
    """Return (delta, m, v, g, k, begin), with moments as after some steps."""
    generator = torch.Generator().manual_seed(seed)
    delta, m, v = (torch.randn(len(counts), d, n, generator=generator) for _ in range(3))
    g, k = (torch.randn(sum(counts), width, generator=generator) for width in (d, n))
    begin = torch.tensor([0, *counts]).cumsum(0)
    return 1e-3 * delta, m, v.square(), g.to(dtypes[0]), k.to(dtypes[1]), begin


def oracle(delta, m, v, g, k, begin, step, lr, limit, beta1=0.9, beta2=0.999, eps=1e-8):
    """Return (delta, m, v) after the step, in new float64 tensors."""
    pairs = zip(begin[:-1].tolist(), begin[1:].tolist(), strict=True)
    G = torch.stack([g[a:b].double().T @ k[a:b].double() for a, b in pairs])
    m = beta1 * m.double() + (1 - beta1) * G
    v = beta2 * v.double() + (1 - beta2) * G.square()
    delta = delta.double() - lr * (m / (1 - beta1**step)) / ((v / (1 - beta2**step)).sqrt() + eps)
    return (delta if limit is None else delta.clamp(-limit, limit)), m, v


def assert_as_good_as_the_reference(impl, args, *step, **options):
    """Assert that each state's largest error against float64 is at most twice the reference's plus a few roundings."""
    wanted = oracle(*args, *step, **options)
    mine, plain = ([t.clone() for t in args[:3]] for _ in range(2))
    assert adam_linf_(*mine, *args[3:], *step, **options, impl=impl) is mine[0]
    adam_linf_reference(*plain, *args[3:], *step, **options)
    for got, reference, exact in zip(mine, plain, wanted, strict=True):
        error, allowed = ((t.double() - exact).abs().max().item() for t in (got, reference))
        assert error <= 2 * allowed + 1e-6 * exact.abs().max().item()


@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize("k_dtype", DTYPES, ids=["k32", "k16"])
@pytest.mark.parametrize("g_dtype", DTYPES, ids=["g32", "g16"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_equals_float64(counts, shape, g_dtype, k_dtype, impl):
    args = draw(counts, *shape, dtypes=(g_dtype, k_dtype))
    assert_as_good_as_the_reference(impl, args, 7, 5e-4, 1.2e-3)


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_other_settings(impl):
    options = {"beta1": 0.0, "beta2": 0.5, "eps": 1e-3}
    assert_as_good_as_the_reference(impl, draw((4, 9), 6, 40), 1, 1e-2, None, **options)


@pytest.mark.parametrize("impl", ["reference", "native"])
@pytest.mark.parametrize("limit", [None, 2e-3])
def test_equals_adam_of_torch_and_a_clamp_over_many_steps(limit, impl):
    counts, d, n, lr = (4, 11), 7, 45, 5e-4
    *_, begin = draw(counts, d, n)
    state = [torch.zeros(2, d, n) for _ in range(3)]
    weight = torch.zeros(2, d, n, requires_grad=True)
    adam = torch.optim.Adam([weight], lr=lr)
    for step in range(1, 26):
        *_, g, k, _ = draw(counts, d, n, seed=step)
        weight.grad = torch.stack([g[a:b].T @ k[a:b] for a, b in ((0, 4), (4, 15))])
        adam.step()
        if limit is not None:
            weight.data.clamp_(-limit, limit)
        adam_linf_(*state, g, k, begin, step, lr, limit, impl=impl)
    assert (state[0] - weight).abs().max() < 1e-3 * lr
    kept = adam.state[weight]
    torch.testing.assert_close(state[1], kept["exp_avg"], rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(state[2], kept["exp_avg_sq"], rtol=1e-5, atol=1e-6)
    if limit is not None:
        assert state[0].abs().max() == torch.tensor(limit)


def check_rest(impl, device="cpu"):
    args = [t.to(device) for t in draw((3, 5, 0, 4), 9, 70)]
    args[-1] = args[-1].cpu()
    active = torch.tensor([True, False, True, False])
    before = [t.clone() for t in args[:3]]
    everyone = [t.clone() for t in before]
    adam_linf_(*args, 2, 1e-3, 1e-3, active=active, impl=impl)
    adam_linf_(*everyone, *args[3:], 2, 1e-3, 1e-3, impl=impl)
    for now, then, all_of_them in zip(args[:3], before, everyone, strict=True):
        assert torch.equal(now[~active], then[~active])
        assert torch.equal(now[active], all_of_them[active])
        assert not torch.equal(now[active], then[active])
    adam_linf_(*args, 3, 1e-3, 1e-3, active=torch.zeros(4, dtype=torch.bool), impl=impl)


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_an_inactive_item_keeps_its_bits(impl):
    check_rest(impl)


@pytest.mark.parametrize("dtype", DTYPES, ids=["32", "16"])
def test_strided_factors(dtype):
    args = draw((3, 8), 6, 37, dtypes=(dtype, dtype))
    plain = [t.clone() for t in args[:3]]
    adam_linf_(*plain, *args[3:], 1, 1e-3, None, impl="native")
    g, k = args[3].T.contiguous().T, torch.cat((args[4], args[4]), 1)[:, :37]
    begin = torch.stack((args[5], args[5]), 1)[:, 0]
    adam_linf_(*args[:3], g, k, begin, 1, 1e-3, None, impl="native")
    assert all(torch.equal(a, b) for a, b in zip(args[:3], plain, strict=True))


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_a_bias_is_a_weight_of_one_column(impl):
    args = draw((5, 2), 12, 1)
    args[4].fill_(1)
    assert_as_good_as_the_reference(impl, args, 3, 1e-3, 5e-4)


@pytest.mark.parametrize("impl", ["reference", "native"])
def test_nan_stays_and_spoils_its_own_item_only(impl):
    args = draw((2, 2), 4, 40)
    args[3][0, 1] = float("nan")
    adam_linf_(*args, 1, 1e-3, 1e-3, impl=impl)
    for state in args[:3]:
        assert state[0, 1].isnan().all()
        assert not state[0, [0, 2, 3]].isnan().any()
        assert not state[1].isnan().any()


@settings(deadline=None, max_examples=40)
@given(
    counts=st.lists(st.integers(0, 20), min_size=1, max_size=4),
    d=st.integers(0, 10),
    n=st.integers(0, 70),
    seed=st.integers(0, 2**31),
)
def test_any_shape(counts, d, n, seed):
    args = draw(counts, d, n, seed=seed)
    if d and n:
        assert_as_good_as_the_reference("native", args, 1 + seed % 30, 1e-3, 2e-3)
    else:
        assert adam_linf_(*args, 1, 1e-3, None, impl="native") is args[0]


@pytest.mark.parametrize("active", [None, torch.tensor([False, True])], ids=["all", "some"])
def test_opcheck(active):
    op = torch.ops.fasttrace.adam_linf_.default
    torch.library.opcheck(op, (*draw((3, 2), 4, 6), active, 1, 1e-3, 1e-3, 0.9, 0.999, 1e-8))


@pytest.mark.parametrize("dtypes", [(a, b) for a in DTYPES for b in DTYPES], ids=str)
@pytest.mark.parametrize("counts", COUNTS, ids=str)
def test_triton_equals_float64(triton_device, counts, dtypes):
    args = [t.to(triton_device) for t in draw(counts, 40, 131, dtypes=dtypes)]
    args[-1] = args[-1].cpu()
    assert_as_good_as_the_reference("triton", args, 7, 5e-4, 1.2e-3)
    assert_as_good_as_the_reference("triton", args, 1, 5e-4, None)


def test_triton_inactive_items(triton_device):
    check_rest("triton", triton_device)


def test_triton_strided_rows_and_one_column(triton_device):
    args = [t.to(triton_device) for t in draw((5, 2), 12, 1)]
    args[3] = torch.cat((args[3], args[3]), 1)[:, :12]
    args[-1] = args[-1].cpu()
    assert_as_good_as_the_reference("triton", args, 3, 1e-3, 5e-4)


@pytest.mark.gpu
def test_triton_beyond_2_31_elements():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    items = 2**31 // (1024 * 1024) + 2
    state = [torch.zeros(items, 1024, 1024, device="cuda") for _ in range(3)]
    g, k = (torch.randn(items, 1024, device="cuda") for _ in range(2))
    adam_linf_(*state, g, k, torch.arange(items + 1), 1, 1e-3, None, impl="triton")
    last = [torch.zeros(1, 1024, 1024, device="cuda") for _ in range(3)]
    adam_linf_(*last, g[-1:], k[-1:], torch.tensor([0, 1]), 1, 1e-3, None, impl="reference")
    torch.testing.assert_close(state[0][-1:], last[0], rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.zeros(4, 6)}, r"expected delta of shape \(P, d, n\), got \(4, 6\)"),
        ({0: torch.zeros(2, 4, 6).double()}, r"delta .*, got \(2, 4, 6\) torch.float64"),
        ({1: torch.zeros(2, 4, 5)}, r"expected m to be \(2, 4, 6\) torch.float32, got \(2, 4, 5\) torch.float32"),
        ({2: torch.zeros(2, 6, 4).mT}, r"expected v to be contiguous, got strides \(24, 1, 4\)"),
        ({3: torch.zeros(5, 6)}, r"expected g of shape \(R, 4\) .*, got \(5, 6\)"),
        ({4: torch.zeros(4, 6)}, r"expected k of shape \(R, 6\) with R the rows of g, got \(4, 6\)"),
        ({4: torch.zeros(5, 6).half()}, r"expected k .*, got torch.float16"),
        ({5: torch.tensor([0, 5])}, r"expected begin to be \(3,\) .*, got \(2,\) torch.int64 on cpu"),
        ({5: torch.tensor([0.0, 3, 5])}, r"begin .*, got \(3,\) torch.float32"),
        ({5: torch.tensor([0, 3, 6])}, r"expected begin to ascend from 0 to 5, the rows of g, got \[0, 3, 6\]"),
        ({5: torch.tensor([0, 7, 5])}, r"begin .*, got \[0, 7, 5\]"),
        ({6: 0}, "expected step to be 1 or more, got 0"),
        ({8: 0.0}, "expected limit to be a positive number or None, got 0.0"),
        ({8: float("nan")}, "limit .*, got nan"),
        ({"active": torch.ones(3, dtype=torch.bool)}, r"active to be \(2,\) .*, got \(3,\) torch.bool on cpu"),
        ({"active": torch.ones(2)}, r"active .*, got \(2,\) torch.float32"),
        ({"beta2": 1.0}, "beta2 < 1, got 1.0"),
        ({"eps": -1e-8}, "eps .*, got -1e-08"),
        ({0: torch.zeros(2, 4, 6, requires_grad=True)}, "delta requires grad"),
        ({"impl": "fast"}, "impl .*, got 'fast'"),
    ],
)
def test_refusals_name_the_argument(change, words):
    args, options = [*draw((3, 2), 4, 6), 1, 1e-3, 1e-3], {}
    for at, value in change.items():
        if isinstance(at, int):
            args[at] = value
        else:
            options[at] = value
    with pytest.raises(UserError, match=words):
        adam_linf_(*args, **options)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({5: torch.tensor([0, 3, 6])}, "expected begin to go from 0 to 5, got 0 to 6"),
        ({5: torch.tensor([0, 7, 5])}, "expected begin to ascend, got 7 followed by 5"),
        ({3: torch.zeros(5, 5)}, r"expected g .*, got g \(5, 5\)"),
        ({7: 0}, "expected step .*, got 0"),
    ],
)
def test_the_op_itself_refuses_in_a_sentence(change, words):
    args = [*draw((3, 2), 4, 6), None, 1, 1e-3, 1e-3, 0.9, 0.999, 1e-8]
    for at, value in change.items():
        args[at] = value
    with pytest.raises(RuntimeError, match="^adam_linf_: " + words):
        torch.ops.fasttrace.adam_linf_(*args)
