"""rank_one_linear on a down-projection, with one edit per `prompt` rows, beside the unedited product."""

from torch import Tensor

from fasttrace.benchmarks.load import Draw, Load
from fasttrace.ops.linear import linear
from fasttrace.ops.rank_one_linear import rank_one_linear

SHAPES = [
    {"rows": rows, "m": m, "d": d, "width": width}
    for rows, m, d in ((2048, 1536, 576), (512, 14336, 4096))
    for width in (1, 5)
]


def load(draw: Draw, rows: int = 2048, m: int = 1536, d: int = 576, width: int = 1, prompt: int = 16) -> Load:
    """x (rows, m), W (d, m); each edit has `width` keys (m,) and values (d,)."""
    x, W = draw.normal(rows, m), draw.normal(d, m)
    args = (x, W, None, *edits(draw, rows, m, d, width, prompt))
    gigaflop = 2e-9 * rows * (m * d + width * (m + d))
    return Load(rank_one_linear, args, _definition, yardsticks={"product_only": _product}, gigaflop=gigaflop)


def edits(draw: Draw, rows: int, m: int, d: int, width: int, prompt: int) -> tuple[Tensor, Tensor, Tensor]:
    """edit (rows,), key (edits, width, m) and value (edits, width, d), float32."""
    edit = draw.arange(rows) // prompt
    count = -(-rows // prompt)
    key, value = (draw.normal(count, width, size).float() / m for size in (m, d))
    return edit, key, value


def _definition(x: Tensor, W: Tensor, bias: None, edit: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return rank_one_linear(x, W, bias, edit, key, value, impl="reference")


def _product(x: Tensor, W: Tensor, bias: None, edit: Tensor, key: Tensor, value: Tensor) -> Tensor:
    return linear(x, W, bias)
