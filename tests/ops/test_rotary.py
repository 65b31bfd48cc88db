"""rotary_ against a complex product in float64 and transformers' own function: in place, rounding, gradients."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.models.llama.modeling_llama import apply_rotary_pos_emb

from fasttrace.errors import UserError
from fasttrace.ops.rotary import partial_rotary_, rotary_, rotary_reference

IMPLS = ["reference", "native"]
DTYPES = [torch.float32, torch.bfloat16]
SHAPES = [(1, 1, 2), (3, 2, 6), (4, 1, 34), (5, 9, 64), (300, 3, 80)]


def draw(n, heads, hd, dtype=torch.float32, seed=0):
    g = torch.Generator().manual_seed(seed)
    angle = 50 * torch.rand(n, hd // 2, generator=g, dtype=torch.float64)
    angle = torch.cat((angle, angle), 1)
    return torch.randn(n, heads, hd, generator=g).to(dtype), angle.cos().to(dtype), angle.sin().to(dtype)


def oracle(x, cos, sin):
    """Multiply the pairs, as complex numbers, by cos + i sin in float64."""
    half = x.shape[2] // 2
    x, cos, sin = x.double(), cos.double()[:, None, :half], sin.double()[:, None, :half]
    turned = torch.complex(x[..., :half], x[..., half:]) * torch.complex(cos, sin)
    return torch.cat((turned.real, turned.imag), -1)


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_equals_float64_in_place(shape, dtype, impl, poisoned_memory):
    x, cos, sin = draw(*shape, dtype)
    wanted = oracle(x, cos, sin)
    # Each product is rounded, so errors are relative to the pair, not to a sum that may cancel.
    scale = (x.double().square() + x.double().roll(shape[2] // 2, -1).square()).sqrt()
    assert rotary_(x, cos, sin, impl=impl) is x
    assert x.dtype == dtype
    assert ((x.double() - wanted).abs() <= 1.5 * torch.finfo(dtype).eps * scale).all()


@pytest.mark.parametrize("impl", IMPLS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_rounds_as_transformers_does(dtype, impl):
    x, cos, sin = draw(300, 9, 64, dtype)
    theirs, _ = apply_rotary_pos_emb(x.transpose(0, 1)[None], x.transpose(0, 1)[None], cos[None], sin[None])
    theirs = theirs[0].transpose(0, 1)
    got = rotary_(x.clone(), cos, sin, impl=impl)
    if dtype == torch.bfloat16 or impl == "reference":
        assert torch.equal(got, theirs)
    else:
        torch.testing.assert_close(got, theirs, rtol=0, atol=5e-7)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("hd", [8, 20])
def test_part_of_a_head_is_rotated_and_the_rest_stays(hd, dtype):
    first, cos, sin = draw(7, 3, 8, dtype)
    rest = torch.randn(7, 3, hd - 8).to(dtype)
    expected = torch.cat((rotary_reference(first, cos, sin), rest), -1)
    # Queries and keys that are slices of a fused product are not contiguous.
    x = torch.stack((first.new_zeros(7, 3, hd), torch.cat((first, rest), -1)), 2)[:, :, 1]
    leaf = x.clone().requires_grad_()
    torch.testing.assert_close(partial_rotary_(leaf * 1, cos, sin), expected)
    assert torch.equal(leaf, x)
    found = partial_rotary_(x, cos, sin)
    assert found is x
    torch.testing.assert_close(found, expected)


def test_both_halves_of_the_tables_are_read():
    x, cos, sin = draw(5, 2, 8)
    other = (torch.randn(5, 8), torch.randn(5, 8))
    assert not torch.allclose(rotary_reference(x, *other), rotary_reference(x, cos, sin))
    torch.testing.assert_close(rotary_(x.clone(), *other, impl="native"), rotary_reference(x, *other))


def neighbours(x, cos, sin):
    """Multiply dimensions 2i and 2i + 1, as complex numbers, by cos + i sin in float64."""
    pairs = torch.view_as_complex(x.double().unflatten(2, (-1, 2)).contiguous())
    return torch.view_as_real(pairs * torch.complex(cos.double(), sin.double())[:, None]).flatten(2)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_neighbours_are_rotated(shape, dtype, poisoned_memory):
    x, cos, sin = draw(*shape, dtype)
    cos, sin = cos[:, : shape[2] // 2], sin[:, : shape[2] // 2]
    wanted, scale = neighbours(x, cos, sin), x.double().abs().max()
    assert rotary_(x, cos, sin, interleaved=True) is x
    assert ((x.double() - wanted).abs() <= 1.5 * torch.finfo(dtype).eps * scale).all()


def test_neighbours_round_as_transformers_does():
    from transformers.models.gptj.modeling_gptj import apply_rotary_pos_emb as of_gptj

    for dtype in DTYPES:
        x, cos, sin = draw(30, 3, 16, dtype)
        cos, sin = cos[:, :8], sin[:, :8]
        theirs = of_gptj(x[None], sin[None], cos[None])[0]
        assert torch.equal(rotary_(x, cos, sin, interleaved=True), theirs)


@pytest.mark.parametrize("interleaved", [False, True])
@pytest.mark.parametrize("shape", [(0, 2, 4), *SHAPES], ids=str)
def test_triton_rounds_as_the_reference(triton_device, rounded_dtypes, shape, interleaved, poisoned_memory):
    for dtype in rounded_dtypes:
        x, cos, sin = (t.to(triton_device) for t in draw(*shape, dtype))
        if interleaved:
            cos, sin = (t[:, : shape[2] // 2] for t in (cos, sin))
        wanted = rotary_reference(x, cos, sin, interleaved=interleaved)
        # Part of every head is rotated, and the other part must stay.
        wide = torch.cat((x, torch.ones_like(x)), 2)
        part = wide[..., : shape[2]]
        assert rotary_(part, cos, sin, interleaved=interleaved, impl="triton") is part
        assert rotary_(x, cos, sin, interleaved=interleaved, impl="triton") is x
        assert torch.equal(x, wanted)
        assert torch.equal(part, wanted)
        assert (wide[..., shape[2] :] == 1).all()


@settings(deadline=None, max_examples=40)
@given(st.integers(0, 30), st.integers(1, 5), st.integers(1, 50), st.integers(0, 99))
def test_any_shape(n, heads, half, seed):
    x, cos, sin = draw(n, heads, 2 * half, seed=seed)
    wanted = rotary_reference(x, cos, sin)
    torch.testing.assert_close(rotary_(x, cos, sin, impl="native"), wanted, rtol=0, atol=1e-6)


def test_strides():
    x, cos, sin = draw(6, 3, 8)
    wanted = rotary_reference(x, cos, sin)
    tables = [torch.cat((t, t), 1)[:, :8] for t in (cos, sin)]
    assert torch.allclose(rotary_(x.clone(), *tables, impl="native"), wanted, atol=1e-6)
    wide = torch.cat((x, x), 2)[:, :, :8]
    with pytest.raises(UserError, match="needs a contiguous x"):
        rotary_(wide, cos, sin, impl="native")
    assert rotary_(wide, cos, sin) is wide
    assert torch.equal(wide, wanted)


def test_gradients_leave_x_as_it_was():
    x, cos, sin = (t.double() for t in draw(4, 2, 6))
    x.requires_grad_()
    before = x.detach().clone()
    weight = torch.randn_like(before)
    y = rotary_(x, cos, sin)
    assert y is not x
    assert torch.equal(x, before)
    (got,) = torch.autograd.grad((y * weight).sum(), x)
    (wanted,) = torch.autograd.grad((oracle(x, cos, sin) * weight).sum(), x)
    torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)


def test_forward_gradients_and_torch_func():
    (x, cos, sin), (other, _, _) = draw(4, 2, 6), draw(4, 2, 6, seed=1)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x.clone(), other.clone())
        found = torch.autograd.forward_ad.unpack_dual(rotary_(dual, cos, sin)).tangent
    torch.testing.assert_close(found, rotary_reference(other, cos, sin))
    # The rotation is linear, so the product of its gradient with x is that of its result with `other`.
    slope = torch.func.grad(lambda x: (rotary_(x, cos, sin) * other).sum())(x)
    torch.testing.assert_close((slope * x).sum(), (rotary_reference(x, cos, sin) * other).sum())


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_opcheck(dtype):
    torch.library.opcheck(torch.ops.fasttrace.rotary_.default, draw(4, 2, 6, dtype))


@pytest.mark.parametrize(
    ("change", "impl", "words"),
    [
        ({0: torch.ones(3, 4)}, "auto", r"got \(3, 4\)"),
        ({0: torch.ones(3, 2, 5)}, "auto", "hd even, got"),
        ({1: torch.ones(3, 2)}, "auto", r"expected cos to be \(3, 4\) torch.float32, got \(3, 2\)"),
        ({2: torch.ones(3, 4).double()}, "auto", "expected sin .*float64"),
        ({0: torch.ones(3, 2, 4, requires_grad=True)}, "native", "no gradient"),
        ({}, "triton", "Triton needs CUDA tensors"),
    ],
)
def test_refusals_name_the_argument(change, impl, words):
    args = [torch.ones(3, 2, 4), torch.ones(3, 4), torch.ones(3, 4)]
    for i, value in change.items():
        args[i] = value
    with pytest.raises(UserError, match=words):
        rotary_(*args, impl=impl)


def test_the_op_itself_refuses_in_a_sentence():
    with pytest.raises(RuntimeError, match=r"^rotary_: expected cos and sin of shape \(3, 4\), got \(3, 2\)"):
        torch.ops.fasttrace.rotary_(torch.ones(3, 2, 4), torch.ones(3, 4), torch.ones(3, 2))
