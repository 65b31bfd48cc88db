"""rotary_ of queries."""

from torch import Tensor

from fasttrace.benchmarks.load import Draw, Load, traffic
from fasttrace.ops.rotary import rotary_, rotary_reference

SHAPES = [{"interleaved": 0}, {"interleaved": 1}]


def load(draw: Draw, rows: int = 4096, heads: int = 9, head_dim: int = 64, interleaved: int = 0) -> Load:
    """x (rows, heads, head_dim); cos and sin (rows, head_dim), or half as wide with interleaved 1."""
    x, angle = draw.normal(rows, heads, head_dim), draw.normal(rows, head_dim // 2).float()
    if interleaved:
        args = (x, angle.cos().to(x.dtype), angle.sin().to(x.dtype))
        return Load(_neighbours, args, _reference_neighbours, gigabyte=traffic(x, *args))
    angle = angle.repeat(1, 2)
    args = (x, angle.cos().to(x.dtype), angle.sin().to(x.dtype))
    return Load(rotary_, args, rotary_reference, gigabyte=traffic(x, *args))


def _neighbours(x: Tensor, cos: Tensor, sin: Tensor, impl: str = "auto") -> Tensor:
    return rotary_(x, cos, sin, interleaved=True, impl=impl)


def _reference_neighbours(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    return rotary_reference(x, cos, sin, interleaved=True)
