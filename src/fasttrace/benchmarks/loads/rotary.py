"""rotary_ of queries."""

from fasttrace.benchmarks.load import Draw, Load, traffic
from fasttrace.ops.rotary import rotary_, rotary_reference

SHAPES: list[dict[str, int]] = [{}]


def load(draw: Draw, rows: int = 4096, heads: int = 9, head_dim: int = 64) -> Load:
    """x (rows, heads, head_dim); cos and sin (rows, head_dim)."""
    x, angle = draw.normal(rows, heads, head_dim), draw.normal(rows, head_dim // 2).float().repeat(1, 2)
    args = (x, angle.cos().to(x.dtype), angle.sin().to(x.dtype))
    return Load(rotary_, args, rotary_reference, gigabyte=traffic(x, *args))
