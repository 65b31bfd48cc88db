"""Every op on random shapes, dtypes, offsets and strides: each implementation against the definition in float64.

Triton kernels run in Triton's interpreter, in another process (test_interpreter.py), and on a GPU.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from fasttrace.benchmarks import TILED
from fasttrace.errors import UserError
from fasttrace.ops import (
    adam_linf_,
    bit_sums,
    gelu_tanh_,
    linear,
    native,
    noised_embed,
    rank_one_,
    rank_one_add_,
    rank_one_linear,
    rms_norm,
    rotary_,
    second_moment_,
    silu_mul_,
    target_logprob,
    window_restore,
)
from fasttrace.ops.prefix_attention import Sequences, prefix_attention

Call = Callable[[str], Tensor]
FUZZ = settings(
    max_examples=20, deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)  # fmt: skip


class Drawn:
    """Arguments drawn by hypothesis: values from a seed, in random memory layouts."""

    def __init__(self, data: st.DataObject, device: str, dtypes: list[torch.dtype]) -> None:
        self.draw, self.device = data.draw, device
        self.dtype = self.draw(st.sampled_from(dtypes))
        self.generator = torch.Generator().manual_seed(self.draw(st.integers(0, 2**31)))

    def size(self, low: int, high: int) -> int:
        return self.draw(st.integers(low, high))

    def flag(self) -> bool:
        return self.draw(st.booleans())

    def placed(self, x: Tensor) -> Tensor:
        """The same values behind an offset, with gaps between rows and between elements, in either order of axes."""
        gaps, offset = [self.size(0, 2) for _ in x.shape], self.size(0, 3)
        order = list(range(x.ndim))
        if self.flag():
            order.reverse()
        stride, step = [0] * x.ndim, 1
        for axis in reversed(order):
            stride[axis] = step * (1 + (gaps[axis] == 2))
            step = stride[axis] * max(x.shape[axis], 1) + (gaps[axis] == 1)
        # The gaps hold NaN, or for integers an index that no row has, so that reading them shows.
        filler = math.nan if x.is_floating_point() else -(2**40)
        whole = torch.full((offset + step + 1,), filler, dtype=x.dtype, device=self.device)
        view = whole.as_strided(x.shape, stride, offset)
        view.copy_(x)
        return view

    def normal(self, *shape: int, dtype: torch.dtype | None = None) -> Tensor:
        return self.placed(torch.randn(*shape, generator=self.generator).to(dtype or self.dtype))

    def below(self, low: int, high: int, n: int) -> Tensor:
        return self.placed(torch.randint(low, high, (n,), generator=self.generator))


def double(x: Tensor) -> Tensor:
    """A contiguous copy on the CPU, in float64 if x is floating-point."""
    x = x.detach().cpu().contiguous()
    return x.double() if x.is_floating_point() else x


# Each function of_… returns (call, exact): call(impl) gives the op's result, and exact is this result in float64.


def of_noised_embed(drawn: Drawn) -> tuple[Call, Tensor]:
    n, d = drawn.size(0, 9), drawn.size(1, 70)
    weight, sigma = drawn.normal(23, d), drawn.placed(torch.rand(n, generator=drawn.generator))
    rows = [drawn.below(0, high, n) for high in (23, 2**62, 65536, 65536)]
    ids, *names = rows
    seed = drawn.size(0, 2**63 - 1)
    exact = noised_embed(double(weight), ids.cpu(), sigma.cpu(), *(x.cpu() for x in names), seed, impl="reference")
    return lambda impl: noised_embed(weight, ids, sigma, *names, seed, impl=impl), exact


def of_window_restore(drawn: Drawn) -> tuple[Call, Tensor]:
    n, m, p, d = drawn.size(1, 9), drawn.size(0, 9), drawn.size(0, 20), drawn.size(1, 70)
    h, out = drawn.normal(n, d), drawn.normal(m, d)
    base, source = drawn.below(-1, n, p), drawn.below(-1, m, p)
    exact = window_restore(double(h), double(out), double(base), double(source), impl="reference")
    return lambda impl: window_restore(h, out, base, source, impl=impl), exact


def of_target_logprob(drawn: Drawn) -> tuple[Call, Tensor]:
    n, d, vocab = drawn.size(0, 9), drawn.size(1, 50), drawn.size(1, 200)
    kind = "layer" if drawn.flag() else "rms"
    h, weight, unembed, target = drawn.normal(n, d), drawn.normal(d), drawn.normal(vocab, d), drawn.below(0, vocab, n)
    shift = drawn.normal(d) if kind == "layer" and drawn.flag() else None
    bias = drawn.normal(vocab) if drawn.flag() else None
    cap = 3.0 if drawn.flag() else None
    wide = [None if x is None else double(x) for x in (h, weight, shift, unembed, bias, target)]
    exact = target_logprob(*wide[:3], 1e-5, kind, *wide[3:], cap, impl="reference")
    return lambda impl: target_logprob(h, weight, shift, 1e-5, kind, unembed, bias, target, cap, impl=impl), exact


def of_prefix_attention(drawn: Drawn) -> tuple[Call, Tensor]:
    rows, kv_heads, share, head_dim = drawn.size(20, 40), drawn.size(1, 3), drawn.size(1, 3), drawn.size(1, 40)
    table, queries = [], 0
    for _ in range(drawn.size(1, 6)):
        tail, first, second = drawn.size(1, 20), drawn.size(0, 20), drawn.size(0, 20)
        q_len = drawn.size(1, tail)
        at = [drawn.size(0, rows - length) for length in (first, second, tail)]
        table.append((queries, q_len, at[0], first, at[1], second, at[2], tail))
        queries += q_len
    sequences = Sequences(np.array(table, dtype=np.int64))
    heads = kv_heads * share
    q = drawn.normal(queries, heads, head_dim)
    k, v = drawn.normal(rows, kv_heads, head_dim), drawn.normal(rows, kv_heads, head_dim)
    each = {name: torch.rand(heads, generator=drawn.generator) for name in ("alibi", "sinks") if drawn.flag()}
    options = {
        "sliding_window": drawn.size(1, 12) if drawn.flag() else None,
        "softcap": 2.0 if drawn.flag() else None,
    }
    exact = prefix_attention(double(q), double(k), double(v), sequences, 0.3, impl="reference", **options, **each)
    moved = {name: of_heads.to(drawn.device) for name, of_heads in each.items()}
    return lambda impl: prefix_attention(q, k, v, sequences, 0.3, impl=impl, **options, **moved), exact


def of_linear(drawn: Drawn) -> tuple[Call, Tensor]:
    n, k, m = drawn.size(0, 40), drawn.size(1, 70), drawn.size(1, 70)
    x, w = drawn.normal(n, k), drawn.normal(m, k)
    bias = drawn.normal(m) if drawn.flag() else None
    exact = double(x) @ double(w).T + (0 if bias is None else double(bias))
    return lambda impl: linear(x, w, bias, impl=impl), exact


def of_rms_norm(drawn: Drawn) -> tuple[Call, Tensor]:
    n, d = drawn.size(1, 20), drawn.size(1, 90)
    x, weight = drawn.normal(n, d), drawn.normal(d)
    rows = drawn.below(0, n, drawn.size(0, 9)) if drawn.flag() else None
    wide = double(x) if rows is None else double(x)[rows.cpu()]
    exact = double(weight) * wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt()
    return lambda impl: rms_norm(x, weight, 1e-5, rows=rows, impl=impl), exact


def of_rotary(drawn: Drawn) -> tuple[Call, Tensor]:
    n, heads, half = drawn.size(0, 20), drawn.size(1, 4), drawn.size(1, 40)
    x, cos, sin = drawn.normal(n, heads, 2 * half), drawn.normal(n, 2 * half), drawn.normal(n, 2 * half)
    wide = double(x)
    crossed = torch.cat((-wide[..., half:], wide[..., :half]), 2)
    exact = wide * double(cos)[:, None] + crossed * double(sin)[:, None]
    interleaved = drawn.flag()
    if interleaved:
        cos, sin = cos[:, :half], sin[:, :half]
        turned = torch.view_as_complex(wide.unflatten(2, (half, 2)).contiguous())
        exact = torch.view_as_real(turned * torch.complex(double(cos), double(sin))[:, None]).flatten(2)

    def run(impl: str) -> Tensor:
        order = torch.contiguous_format if impl == "triton" else torch.preserve_format
        return rotary_(x.clone(memory_format=order), cos, sin, interleaved=interleaved, impl=impl)

    return run, exact


def of_silu_mul(drawn: Drawn) -> tuple[Call, Tensor]:
    n, m = drawn.size(0, 20), drawn.size(1, 90)
    gate, up = drawn.normal(n, m), drawn.normal(n, m)
    exact = double(gate) * double(gate).sigmoid() * double(up)

    def run(impl: str) -> Tensor:
        # The Triton kernel needs a contiguous tensor; "auto" skips it for other layouts.
        order = torch.contiguous_format if impl == "triton" else torch.preserve_format
        return silu_mul_(gate.clone(memory_format=order), up, impl=impl)

    return run, exact


def of_gelu_tanh(drawn: Drawn) -> tuple[Call, Tensor]:
    x = drawn.normal(drawn.size(0, 20), drawn.size(1, 90))
    exact = double(x) * torch.sigmoid(1.5957691216057308 * (double(x) + 0.044715 * double(x) ** 3))

    def run(impl: str) -> Tensor:
        # The Triton kernel needs a contiguous tensor; "auto" skips it for other layouts.
        order = torch.contiguous_format if impl == "triton" else torch.preserve_format
        return gelu_tanh_(x.clone(memory_format=order), impl=impl)

    return run, exact


def of_second_moment(drawn: Drawn) -> tuple[Call, Tensor]:
    n, m = drawn.size(1, 60), drawn.size(1, 60)
    K = drawn.normal(n, m)
    wide = torch.float64 if drawn.flag() else torch.float32
    exact = double(K).T @ double(K)
    return lambda impl: second_moment_(torch.zeros(m, m, dtype=wide, device=K.device), K, impl=impl), exact


def of_rank_one(drawn: Drawn) -> tuple[Call, Tensor]:
    d, m = drawn.size(1, 60), drawn.size(1, 60)
    W, u, v = drawn.normal(d, m), drawn.normal(d), drawn.normal(m)
    exact = double(W) + 0.5 * torch.outer(double(u), double(v))
    return lambda impl: rank_one_(W.clone(), u, v, 0.5, impl=impl), exact


def edits(drawn: Drawn, n: int, m: int, d: int) -> tuple[Tensor, Tensor, Tensor, Callable[[Tensor], Tensor]]:
    """Return edit, key, value, and a function x → what they add, in float64."""
    count, width = drawn.size(1, 4), drawn.size(1, 3)
    edit = drawn.below(-1, count, n)
    key, value = drawn.normal(count, width, m, dtype=torch.float32), drawn.normal(count, width, d, dtype=torch.float32)

    def added(x: Tensor) -> Tensor:
        at = edit.cpu()
        along = torch.einsum("nm,nwm->nw", double(x), double(key)[at]) * (at >= 0)[:, None]
        return torch.einsum("nw,nwd->nd", along, double(value)[at])

    return edit, key, value, added


def of_rank_one_linear(drawn: Drawn) -> tuple[Call, Tensor]:
    n, m, d = drawn.size(0, 30), drawn.size(1, 40), drawn.size(1, 40)
    x, W, bias = drawn.normal(n, m), drawn.normal(d, m), drawn.normal(d) if drawn.flag() else None
    edit, key, value, added = edits(drawn, n, m, d)
    exact = double(x) @ double(W).T + added(x) + (0 if bias is None else double(bias))
    return lambda impl: rank_one_linear(x, W, bias, edit, key, value, impl=impl), exact


def of_rank_one_add(drawn: Drawn) -> tuple[Call, Tensor]:
    n, m, d = drawn.size(0, 30), drawn.size(1, 40), drawn.size(1, 40)
    x, y = drawn.normal(n, m), drawn.normal(n, d)
    edit, key, value, added = edits(drawn, n, m, d)
    exact = double(y) + added(x)
    rows = y.contiguous()
    return lambda impl: rank_one_add_(rows.clone(), x, edit, key, value, impl=impl), exact


def of_adam_linf(drawn: Drawn) -> tuple[Call, Tensor]:
    items, d, n, rows = drawn.size(1, 3), drawn.size(1, 40), drawn.size(1, 60), drawn.size(0, 30)
    state = [torch.randn(items, d, n, generator=drawn.generator) for _ in range(3)]
    state[2].square_().add_(0.1)
    g, k = drawn.normal(rows, d), drawn.normal(rows, n)
    cuts = sorted(drawn.size(0, rows) for _ in range(items - 1))
    begin = torch.tensor([0, *cuts, rows])
    options = {"step": 3, "lr": 0.1, "limit": 1.5 if drawn.flag() else None}

    def run(impl: str, wide: bool = False) -> Tensor:
        cast = double if wide else (lambda x: x.to(drawn.device))
        delta, m, v = (cast(x).clone() for x in state)
        if wide:
            ends = zip(begin[:-1].tolist(), begin[1:].tolist(), strict=True)
            G = torch.stack([double(g)[a:b].T @ double(k)[a:b] for a, b in ends])
            m, v = 0.9 * m + 0.1 * G, 0.999 * v + 0.001 * G * G
            delta = delta - 0.1 * (m / (1 - 0.9**3)) / ((v / (1 - 0.999**3)).sqrt() + 1e-8)
            limit = options["limit"] or math.inf
            return delta.clamp(-limit, limit)
        return adam_linf_(delta, m, v, g, k, begin, **options, impl=impl)

    return run, run("", wide=True)


def slopes(call: Callable[[str], Tensor], leaves: list[Tensor], grad: Tensor, impl: str) -> Tensor:
    return torch.cat([slope.flatten() for slope in torch.autograd.grad(call(impl), leaves, grad)])


def of_rms_norm_gradient(drawn: Drawn) -> tuple[Call, Tensor]:
    n, d = drawn.size(1, 20), drawn.size(1, 90)
    x, weight, grad = drawn.normal(n, d).requires_grad_(), drawn.normal(d), drawn.normal(n, d)
    wide = double(x).requires_grad_()
    normed = double(weight) * wide / (wide.square().mean(1, keepdim=True) + 1e-5).sqrt()
    exact = slopes(lambda _: normed, [wide], double(grad), "")
    return lambda impl: slopes(lambda impl: rms_norm(x, weight, 1e-5, impl=impl), [x], grad, impl), exact


def of_silu_mul_gradient(drawn: Drawn) -> tuple[Call, Tensor]:
    n, m = drawn.size(0, 20), drawn.size(1, 90)
    gate, up, grad = drawn.normal(n, m).requires_grad_(), drawn.normal(n, m).requires_grad_(), drawn.normal(n, m)
    wide = [double(gate).requires_grad_(), double(up).requires_grad_()]
    exact = slopes(lambda _: wide[0] * wide[0].sigmoid() * wide[1], wide, double(grad), "")
    return lambda impl: slopes(lambda impl: silu_mul_(gate, up, impl=impl), [gate, up], grad, impl), exact


HALF = [torch.float32, torch.bfloat16]
OPS: dict[str, tuple[Callable[[Drawn], tuple[Call, Tensor]], list[torch.dtype]]] = {
    "noised_embed": (of_noised_embed, [*HALF, torch.float16]),
    "window_restore": (of_window_restore, HALF),
    "target_logprob": (of_target_logprob, HALF),
    "prefix_attention": (of_prefix_attention, HALF),
    "linear": (of_linear, HALF),
    "rms_norm": (of_rms_norm, HALF),
    "rotary_": (of_rotary, HALF),
    "silu_mul_": (of_silu_mul, HALF),
    "gelu_tanh_": (of_gelu_tanh, HALF),
    "second_moment_": (of_second_moment, HALF),
    "rank_one_": (of_rank_one, HALF),
    "rank_one_linear": (of_rank_one_linear, HALF),
    "rank_one_add_": (of_rank_one_add, HALF),
    "adam_linf_": (of_adam_linf, HALF),
}
GRADIENTS = {"rms_norm": (of_rms_norm_gradient, HALF), "silu_mul_": (of_silu_mul_gradient, HALF)}


def check(call: Call, exact: Tensor, impl: str) -> None:
    """Assert an error of at most twice the reference's in the same dtype, plus 8 roundings (float32's or coarser)."""
    own, found = call("reference"), call(impl)
    assert found.shape == exact.shape
    assert found.dtype == own.dtype
    if exact.numel():
        unit = max(torch.finfo(found.dtype).eps, torch.finfo(torch.float32).eps)
        limit = 2 * (double(own) - exact).abs().max() + 8 * unit * (1 + exact.abs().max())
        gap = (double(found) - exact).abs().max()
        assert gap <= limit, f"{impl} is {gap} off, {limit} was allowed"


@pytest.mark.parametrize("op", OPS)
@FUZZ
@given(data=st.data())
def test_reference_and_auto(op: str, data: st.DataObject) -> None:
    made, dtypes = OPS[op]
    drawn = Drawn(data, "cpu", dtypes)
    call, exact = made(drawn)
    check(call, exact, "auto")
    # The reference differs from float64 by no more than roundings of the inputs' dtype.
    if exact.numel():
        gap = (double(call("reference")) - exact).abs().max()
        assert gap <= 64 * torch.finfo(drawn.dtype).eps * (1 + exact.abs().max())


@pytest.mark.parametrize("op", GRADIENTS)
@FUZZ
@given(data=st.data())
def test_gradients(op: str, data: st.DataObject) -> None:
    made, dtypes = GRADIENTS[op]
    call, exact = made(Drawn(data, "cpu", dtypes))
    check(call, exact, "auto")


@pytest.mark.skipif(native.unavailable_reason() is not None, reason=f"{native.unavailable_reason()}")
@FUZZ
@given(data=st.data())
def test_native_scores(data: st.DataObject) -> None:
    """A processor without products of bfloat16 takes them for "auto" nowhere."""
    call, exact = of_target_logprob(Drawn(data, "cpu", [torch.bfloat16]))
    check(call, exact, "native")


@pytest.mark.skipif(native.unavailable_reason() is not None, reason=f"{native.unavailable_reason()}")
@FUZZ
@given(data=st.data())
def test_native_sums_of_bits(data: st.DataObject) -> None:
    """They are exact, so float64 and `check` have no part in this."""
    drawn = Drawn(data, "cpu", [*HALF, torch.float16, torch.float64])
    weight = drawn.normal(drawn.size(0, 9), drawn.size(1, 3000))
    assert bit_sums(weight, impl="native").equal(bit_sums(weight, impl="reference"))


@pytest.mark.parametrize("op", TILED)
@FUZZ
@given(data=st.data())
def test_triton(triton_device: str, op: str, data: st.DataObject) -> None:
    made, dtypes = OPS[op]
    if triton_device == "cpu" and op in ("prefix_attention", "target_logprob", "rms_norm", "rotary_", "silu_mul_"):
        dtypes = [torch.float32]  # the interpreter multiplies bfloat16 bit patterns as integers, and truncates results
    call, exact = made(Drawn(data, triton_device, dtypes))
    check(call, exact, "triton")


@pytest.mark.gpu
@pytest.mark.parametrize("op", OPS)
@FUZZ
@given(data=st.data())
def test_auto_on_a_gpu(op: str, data: st.DataObject) -> None:
    if not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    made, dtypes = OPS[op]
    call, exact = made(Drawn(data, "cuda", dtypes))
    check(call, exact, "auto")


# Names with which an error message may begin, for an op that calls others.
NAMES = {"rank_one_linear": "rank_one_linear|rank_one_add_|linear"}


# adam_linf_ copies its state at every call, so its refusals are tested in test_adam_linf.py.
@pytest.mark.parametrize("op", [op for op in OPS if op != "adam_linf_"])
@FUZZ
@given(data=st.data())
def test_wrong_arguments_are_refused_in_a_sentence(op: str, data: st.DataObject) -> None:
    """A complex tensor, or one with a dimension too many, is refused in a sentence that names the op."""
    made, dtypes = OPS[op]
    call, _ = made(Drawn(data, "cpu", dtypes))
    # The op's tensors are in the closure of `call`. The changed one is restored afterwards.
    cells = [cell for cell in getattr(call, "__closure__", ()) if isinstance(cell.cell_contents, Tensor)]
    cell = data.draw(st.sampled_from(cells))
    right = cell.cell_contents
    # The ops excluded here take tensors of any number of dimensions.
    deeper = op not in ("linear", "rotary_", "silu_mul_", "gelu_tanh_") and data.draw(st.booleans())
    cell.cell_contents = right[None] if deeper else right.to(torch.complex64)
    try:
        with pytest.raises(UserError, match=f"^({NAMES.get(op, op)}): "):
            call(data.draw(st.sampled_from(["auto", "reference"])))
    finally:
        cell.cell_contents = right
