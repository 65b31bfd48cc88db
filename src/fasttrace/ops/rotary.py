"""rotary_: queries or keys turned by the angles of their positions."""

import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.ops import native
from fasttrace.ops.dispatch import choose


def rotary_(x: Tensor, cos: Tensor, sin: Tensor, impl: str = "auto") -> Tensor:
    """Each head's dimension i with dimension i + hd/2, turned by the row's angle.

        y[i] = x[i] cos[i] − x[i + hd/2] sin[i],   y[i + hd/2] = x[i + hd/2] cos[i + hd/2] + x[i] sin[i + hd/2]

    x: (N, H, hd) float32, bfloat16, float16 or float64, hd even. cos, sin: (N, hd) dtype of x. Products and sum
    are each rounded to that dtype, as transformers rounds them.
    impl: "reference" is torch, on any device; "native" is the CPU's (float32 and bfloat16, x contiguous);
    "auto" takes native where it applies.
    Returns x itself, written; where autograd records a gradient, a new tensor, by the reference, and x stays.

    Raises UserError for shapes and dtypes unlike these, and for an impl that cannot be had here.
    Source: Su et al. 2021 (arXiv 2104.09864), section 3.4.2; halves paired as the Llama family pairs them.
    """
    if x.dim() != 3 or x.shape[2] % 2 or not x.dtype.is_floating_point:
        found = f"{tuple(x.shape)} {x.dtype}"
        raise UserError(f"rotary_: x is {found}, (N, H, hd) floating point with hd even was wanted")
    for name, table in (("cos", cos), ("sin", sin)):
        if table.shape != (x.shape[0], x.shape[2]) or table.dtype != x.dtype:
            found, wanted = f"{tuple(table.shape)} {table.dtype}", f"({x.shape[0]}, {x.shape[2]}) {x.dtype}"
            raise UserError(f"rotary_: {name} is {found}, {wanted} was wanted")
    why = native.row_op_reason(x, cos, sin)
    if why is None and not x.is_contiguous():
        why = f"the compiled kernel takes x contiguous, and its strides are {x.stride()}"
    if choose("rotary_", impl, {"reference": None, "native": why}, x, cos, sin) == "native":
        torch.ops.fasttrace.rotary_(x, cos.contiguous(), sin.contiguous())
        return x
    turned = rotary_reference(x, cos, sin)
    return turned if turned.requires_grad else x.copy_(turned)


def partial_rotary_(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """`rotary_` of the first dimensions of every head, as many as cos and sin (N, r) have; the others stay.

    x: (N, H, hd), r ≤ hd. Returns x itself, written; where autograd records a gradient, a new tensor.
    """
    turned = cos.shape[-1]
    if turned == x.shape[-1]:
        return rotary_(x, cos, sin)
    first = rotary_(x[..., :turned], cos, sin)
    return torch.cat((first, x[..., turned:]), dim=-1) if first.requires_grad else x


def rotary_reference(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """The definition of `rotary_`, into a new tensor; same arguments."""
    half = x.shape[-1] // 2
    crossed = torch.cat((-x[..., half:], x[..., :half]), dim=-1)
    return x * cos[:, None, :] + crossed * sin[:, None, :]


def _fake(x: Tensor, cos: Tensor, sin: Tensor) -> None:
    """An in-place op makes nothing, so tracing needs nothing from it."""


if native.unavailable_reason() is None:
    torch.library.register_fake("fasttrace::rotary_")(_fake)
