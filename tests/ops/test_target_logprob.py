"""target_logprob: against one float64 softmax, its gradient, extreme logits, block borders."""

import importlib

import pytest
import torch
from torch.nn import functional

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.target_logprob import _op, target_logprob

module = importlib.import_module("fasttrace.ops.target_logprob")
DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
CAPS = [None, 2.0]
NORMS = [("rms", False, False), ("layer", True, True), ("layer", False, False)]
EPS = 1e-5
needs_native = pytest.mark.skipif(native.unavailable_reason() is not None, reason=f"{native.unavailable_reason()}")


def draw(rows, d, vocab, dtype=torch.float32, kind="rms", bias=False, norm_bias=True, scale=1.0):
    g = torch.Generator().manual_seed(rows + d + vocab)

    def normal(*shape):
        return torch.randn(*shape, generator=g).to(dtype)

    shift = normal(d) if kind == "layer" and norm_bias else None
    target = torch.randint(0, vocab, (rows,), generator=g)
    unembed = normal(vocab, d) * scale
    h, norm_weight, shift_v = normal(rows, d), 1 + 0.1 * normal(d), normal(vocab) if bias else None
    return h, norm_weight, shift, EPS, kind, unembed, shift_v, target


def oracle(h, norm_weight, norm_bias, eps, kind, unembed, bias, target, softcap=None):
    """One softmax over whole rows, in the dtype of the arguments."""
    if kind == "rms":
        x = functional.rms_norm(h, h.shape[1:], norm_weight, eps)
    else:
        x = functional.layer_norm(h, h.shape[1:], norm_weight, norm_bias, eps)
    logits = functional.linear(x, unembed, bias)
    if softcap is not None:
        logits = softcap * (logits / softcap).tanh()
    return logits.log_softmax(-1).gather(1, target[:, None])[:, 0]


def cast(args, change):
    return tuple(change(a) if isinstance(a, torch.Tensor) and a.is_floating_point() else a for a in args)


def assert_as_exact_as_whole_rows(got, args):
    """Assert an error of at most twice the oracle's in the same dtype, plus some roundings."""
    exact = oracle(*cast(args, torch.Tensor.double))
    dtype = args[0].dtype
    assert got.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
    assert got.shape == exact.shape
    if len(exact):
        own = (oracle(*args).double() - exact).abs().max()
        rounding = 4 * torch.finfo(got.dtype).eps * (1 + exact.abs().max())
        assert (got.double() - exact).abs().max() <= 2 * own + rounding


@pytest.fixture
def small_blocks(monkeypatch):
    """Make blocks so small that rows and vocabulary fill several, some of them in part."""
    monkeypatch.setattr(module, "ROW_BLOCK", 4)
    monkeypatch.setattr(module, "VOCAB_BLOCK", 16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("kind", "bias", "norm_bias"), NORMS)
@pytest.mark.parametrize(("rows", "d", "vocab"), [(1, 1, 2), (3, 7, 16), (9, 33, 97), (0, 4, 5)])
@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.usefixtures("small_blocks", "poisoned_memory")
def test_reference_equals_float64(softcap, rows, d, vocab, kind, bias, norm_bias, dtype):
    args = (*draw(rows, d, vocab, dtype, kind, bias, norm_bias), softcap)
    assert_as_exact_as_whole_rows(target_logprob(*args), args)


def test_every_target_beside_a_block_border(small_blocks):
    args = list(draw(33, 5, 33))
    args[7] = torch.arange(33)
    assert_as_exact_as_whole_rows(target_logprob(*args), args)


@pytest.mark.parametrize("scale", [1e-3, 1.0, 300.0])
def test_the_probabilities_of_a_row_sum_to_one(scale, small_blocks):
    args = list(draw(1, 12, 40, torch.float64, scale=scale))
    args[0], args[7] = args[0].expand(40, -1), torch.arange(40)
    logprob = target_logprob(*args)
    assert (logprob <= 0).all()
    assert abs(float(logprob.exp().sum()) - 1) < 1e-12


@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_gradient_in_float64(kind, softcap, small_blocks):
    args = [*draw(6, 5, 37, torch.float64, kind, bias=True), softcap]
    args[0].requires_grad_()
    torch.autograd.gradcheck(lambda h: target_logprob(h, *args[1:]), (args[0],))


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize("kind", ["rms", "layer"])
@pytest.mark.parametrize("softcap", CAPS)
def test_gradient_is_as_exact_as_that_of_whole_rows(softcap, kind, dtype, small_blocks, poisoned_memory):
    args = (*draw(9, 24, 101, dtype, kind, bias=True), softcap)
    upstream = torch.linspace(-1, 1, 9)

    def grad(run, args):
        leaf = args[0].clone().requires_grad_()
        logprob = run(leaf, *args[1:])
        (g,) = torch.autograd.grad(logprob, leaf, upstream.to(logprob.dtype))
        return g

    exact = grad(oracle, cast(args, torch.Tensor.double))
    own = (grad(oracle, args).double() - exact).abs().max()
    got = grad(target_logprob, args)
    assert got.dtype == dtype
    # p = exp(logit − total): half an ulp of a total of 16 … 32 nats is 16 half ulps of p.
    rounding = 16 * torch.finfo(torch.float32).eps + torch.finfo(dtype).eps
    assert (got.double() - exact).abs().max() <= 2 * own + rounding * exact.abs().max()


def test_gradient_of_an_unused_row_is_zero():
    args = draw(3, 6, 11)
    leaf = args[0].clone().requires_grad_()
    (g,) = torch.autograd.grad(target_logprob(leaf, *args[1:])[1], leaf)
    assert g[1].abs().sum() > 0
    assert (g[[0, 2]] == 0).all()


def test_a_second_derivative_is_refused():
    args = draw(3, 6, 11)
    leaf = args[0].clone().requires_grad_()
    p = target_logprob(leaf, *args[1:]).exp().sum()
    (g,) = torch.autograd.grad(p, leaf, create_graph=True)
    with pytest.raises(RuntimeError, match="autograd"):
        torch.autograd.grad(g.sum(), leaf)


def test_an_infinite_logit_gives_the_same_with_and_without_a_gradient(small_blocks):
    args = list(draw(2, 6, 40))
    args[5][21, :] = torch.inf
    args[0], args[7] = args[0].abs(), torch.tensor([3, 39])
    leaf = args[0].clone().requires_grad_()
    assert target_logprob(*args).tolist() == target_logprob(leaf, *args[1:]).tolist() == [-torch.inf] * 2


def test_strided_rows():
    args = list(draw(8, 6, 11))
    expected = target_logprob(*args)
    args[0] = torch.stack((args[0], args[0] * float("nan")), 1)[:, 0]
    args[5] = args[5].t().contiguous().t()
    torch.testing.assert_close(target_logprob(*args), expected)


@pytest.mark.parametrize("kind", ["rms", "layer"])
def test_opcheck(kind):
    args = draw(3, 6, 11, kind=kind, bias=True)
    for softcap in CAPS:
        torch.library.opcheck(_op, (args[0].requires_grad_(), *args[1:], softcap, "reference", True))


@needs_native
def test_opcheck_of_native():
    args = draw(3, 6, 11, torch.bfloat16, bias=True)
    torch.library.opcheck(_op, (args[0].requires_grad_(), *args[1:], 2.0, "native", True))


@needs_native
@pytest.mark.parametrize(("kind", "bias", "norm_bias"), NORMS)
@pytest.mark.parametrize(("rows", "d", "vocab"), [(1, 1, 2), (3, 7, 16), (140, 48, 2051), (17, 576, 300), (0, 4, 5)])
@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.usefixtures("poisoned_memory")
def test_native_equals_float64(softcap, rows, d, vocab, kind, bias, norm_bias):
    """An error of at most twice that of float32 products, plus some roundings of the result."""
    args = (*draw(rows, d, vocab, torch.bfloat16, kind, bias, norm_bias), softcap)

    def run(impl):
        leaf = args[0].clone().requires_grad_()
        logprob = target_logprob(leaf, *args[1:], impl=impl)
        (g,) = torch.autograd.grad(logprob, leaf, torch.linspace(-1, 1, rows))
        return logprob.detach(), g

    # The reference in float64, on the norm rounded to bfloat16.
    norm = module._norm(*args[:5]).double().requires_grad_()
    logits = functional.linear(norm, args[5].double(), None if args[6] is None else args[6].double())
    capped = logits if softcap is None else softcap * (logits / softcap).tanh()
    exact = capped.log_softmax(-1).gather(1, args[7][:, None])[:, 0]
    (exact_x,) = torch.autograd.grad(exact, norm, torch.linspace(-1, 1, rows).double())
    exact_h = module._norm_backward(exact_x, args[0].double(), args[1].double(), EPS, kind)
    (own, own_h), (got, got_h) = run("reference"), run("native")
    assert got.dtype == torch.float32
    assert got_h.dtype == torch.bfloat16
    if rows:
        eps = torch.finfo(torch.float32).eps
        assert (got - exact).abs().max() <= 2 * (own - exact).abs().max() + 4 * eps * (1 + exact.abs().max())
        rounding = torch.finfo(torch.bfloat16).eps / 8  # beside the final rounding, which both have
        assert (got_h - exact_h).abs().max() <= (own_h - exact_h).abs().max() + rounding * exact_h.abs().max()


@needs_native
def test_native_does_not_depend_on_the_number_of_threads():
    args = draw(150, 40, 5000, torch.bfloat16, bias=True)
    found = []
    for threads in (1, 2, 4):
        torch.set_num_threads(threads)
        leaf = args[0].clone().requires_grad_()
        logprob = target_logprob(leaf, *args[1:], impl="native")
        found.append((logprob, *torch.autograd.grad(logprob.sum(), leaf)))
    for one in found[1:]:
        assert all(torch.equal(a, b) for a, b in zip(one, found[0], strict=True))


@needs_native
def test_native_extreme_logits_and_strides():
    args = list(draw(33, 16, 300, torch.bfloat16, scale=100.0))
    args[7][:2] = torch.tensor([299, 0])
    for softcap in (None, 30.0):
        once = target_logprob(*args, softcap, impl="native")
        assert_as_exact_as_whole_rows(once, (*args, softcap))
        turned = [*args[:5], args[5].t().contiguous().t(), *args[6:], softcap]
        assert torch.equal(target_logprob(*turned, impl="native"), once)


@needs_native
@pytest.mark.parametrize("softcap", CAPS)
def test_native_nan_and_infinity(softcap):
    args = list(draw(4, 6, 70, torch.bfloat16, bias=True))
    args[0][1] = torch.nan
    assert target_logprob(*args, softcap, impl="native").isnan().tolist() == [False, True, False, False]
    args[0][1] = 1.0
    args[6][5] = -torch.inf  # a token that is never next
    args[7][:] = 7
    found, wanted = (target_logprob(*args, softcap, impl=impl) for impl in ("native", "reference"))
    torch.testing.assert_close(found, wanted)
    args[6][5] = torch.inf
    found, wanted = (target_logprob(*args, softcap, impl=impl) for impl in ("native", "reference"))
    torch.testing.assert_close(found, wanted)


def test_auto_takes_native_where_the_processor_multiplies_bfloat16(monkeypatch):
    taken = []
    monkeypatch.setattr(module, "_op", lambda *args: (taken.append(args[-2]), None))
    for faster in (False, True):
        monkeypatch.setattr(module, "NATIVE_IS_FASTER", faster)
        for dtype in (torch.bfloat16, torch.float32):
            target_logprob(*draw(3, 6, 11, dtype))
    available = native.unavailable_reason() is None
    assert taken == ["reference", "reference", "native" if available else "reference", "reference"]


@pytest.mark.parametrize("dtype", DTYPES[:3], ids=str)
@pytest.mark.parametrize(("kind", "bias", "norm_bias"), NORMS)
@pytest.mark.parametrize(("rows", "d", "vocab"), [(1, 1, 2), (140, 48, 2051), (0, 4, 5)])
@pytest.mark.parametrize("softcap", CAPS)
@pytest.mark.usefixtures("poisoned_memory")
def test_triton_equals_float64(triton_device, monkeypatch, softcap, rows, d, vocab, kind, bias, norm_bias, dtype):
    # The rows are computed in two parts, the second shorter.
    monkeypatch.setattr(importlib.import_module("fasttrace.kernels.target_logprob"), "LOGIT_BYTES", 0)
    args = (*draw(rows, d, vocab, dtype, kind, bias, norm_bias), softcap)
    assert_as_exact_as_whole_rows(run_triton(triton_device, args), args)


def run_triton(device, args):
    moved = (a.to(device) if isinstance(a, torch.Tensor) else a for a in args)
    return target_logprob(*moved, impl="triton").cpu()


def test_triton_extreme_logits_and_strides(triton_device):
    args = list(draw(5, 16, 300, scale=100.0))
    assert_as_exact_as_whole_rows(run_triton(triton_device, args), args)
    assert_as_exact_as_whole_rows(run_triton(triton_device, [*args, 30.0]), [*args, 30.0])
    args[5] = args[5].t().contiguous().t()
    assert_as_exact_as_whole_rows(run_triton(triton_device, args), args)


def test_triton_gradient(triton_device):
    args = [a.to(triton_device) if isinstance(a, torch.Tensor) else a for a in draw(5, 16, 70)]
    args[0].requires_grad_()
    for softcap in CAPS:
        got = torch.autograd.grad(target_logprob(*args, softcap, impl="triton").sum(), args[0])
        wanted = torch.autograd.grad(target_logprob(*args, softcap, impl="reference").sum(), args[0])
        torch.testing.assert_close(got, wanted)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("rows", [1, 100, 700])
def test_triton_on_a_gpu_at_the_size_of_a_model(rows, dtype):
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    args = draw(rows, 1600, 50257, dtype, "layer", scale=0.05)
    assert_as_exact_as_whole_rows(run_triton("cuda", args), args)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({0: torch.ones(6)}, r"expected h .*, got \(6,\)"),
        ({0: torch.ones(3, 6, dtype=torch.int64)}, "expected h .*int64"),
        ({1: torch.ones(5)}, r"expected norm_weight of shape \(6,\), got \(5,\)"),
        ({1: torch.ones(6).double()}, "expected norm_weight to be torch.float32 to match h, got torch.float64"),
        ({2: torch.ones(6)}, "expected norm_bias to be None"),
        ({4: "batch"}, "expected kind .*, got 'batch'"),
        ({5: torch.ones(11, 5)}, r"expected unembed of shape \(V, 6\), got \(11, 5\)"),
        ({5: torch.ones(11, 6, requires_grad=True)}, "unembed requires grad"),
        ({6: torch.ones(6)}, r"expected bias of shape \(11,\), got \(6,\)"),
        ({7: torch.ones(2, dtype=torch.int64)}, r"expected target to be \(3,\) torch.int64, got \(2,\)"),
        ({7: torch.ones(3)}, "expected target .*float32"),
        ({7: torch.tensor([0, 11, 1])}, "expected target in 0 … 10, got values 0 … 11"),
        ({7: torch.tensor([0, -1, 1])}, "expected target in 0 … 10, got values -1"),
    ],
)
def test_refusals_name_the_argument(change, words):
    args = list(draw(3, 6, 11))
    for i, value in change.items():
        args[i] = value
    with pytest.raises(UserError, match=words):
        target_logprob(*args)


def test_a_softcap_that_is_not_positive_is_refused():
    with pytest.raises(UserError, match=r"expected softcap to be a positive number or None, got 0\.0"):
        target_logprob(*draw(3, 6, 11), softcap=0.0)


def test_triton_refuses_float64():
    with pytest.raises(UserError, match=r"impl='triton' was asked for, but .*float64; possible: reference"):
        target_logprob(*draw(3, 6, 11, torch.float64), impl="triton")


@needs_native
def test_native_refuses_float32():
    with pytest.raises(UserError, match=r"impl='native' was asked for, but .*float32; possible: reference"):
        target_logprob(*draw(3, 6, 11), impl="native")


@pytest.mark.gpu
def test_a_target_outside_the_vocabulary_is_nan_on_a_gpu():
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    args = list(draw(4, 6, 11))
    args[7] = torch.tensor([0, 11, -1, 10])
    assert run_triton("cuda", args).isnan().tolist() == [False, True, True, False]
