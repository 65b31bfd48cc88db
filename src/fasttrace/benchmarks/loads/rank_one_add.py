"""rank_one_add_: what edits add to the outputs of a down-projection, without the product itself."""

from fasttrace.benchmarks.load import Draw, Load, traffic
from fasttrace.benchmarks.loads import rank_one_linear
from fasttrace.ops.rank_one_linear import rank_one_add_, rank_one_add_reference

SHAPES = rank_one_linear.SHAPES


def load(draw: Draw, rows: int = 2048, m: int = 1536, d: int = 576, width: int = 1, prompt: int = 16) -> Load:
    """y (rows, d), x (rows, m); each edit has `width` keys (m,) and values (d,)."""
    x, y = draw.normal(rows, m), draw.normal(rows, d)
    edit, key, value = rank_one_linear.edits(draw, rows, m, d, width, prompt)
    gigabyte = traffic(y, y, x, edit, key, value)
    return Load(rank_one_add_, (y, x, edit, key, value), rank_one_add_reference, gigabyte=gigabyte)
