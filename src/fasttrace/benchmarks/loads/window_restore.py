"""window_restore on the rows of a wave, with every seventh row restored, beside the residual sum alone."""

from torch import Tensor

from fasttrace.benchmarks.load import Draw, Load, traffic
from fasttrace.ops.window_restore import window_restore, window_restore_reference

SHAPES = [{"rows": 4096, "d": 576}, {"rows": 8192, "d": 4096}]  # SmolLM2-135M, GPT-J


def load(draw: Draw, rows: int = 4096, d: int = 576) -> Load:
    """h, out (rows, d)."""
    h, out = draw.normal(rows, d), draw.normal(rows, d)
    base, source = draw.arange(rows), draw.arange(rows)
    source[::7] = min(3, rows - 1)
    args, gigabyte = (h, out, base, source), traffic(h, out, h, base, source)
    return Load(window_restore, args, window_restore_reference, yardsticks={"add_only": _add}, gigabyte=gigabyte)


def _add(h: Tensor, out: Tensor, base: Tensor, source: Tensor) -> Tensor:
    return h + out
