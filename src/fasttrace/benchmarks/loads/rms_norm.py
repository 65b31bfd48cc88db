"""rms_norm of rows, all or by index."""

from torch import Tensor
from torch.nn import functional

from fasttrace.benchmarks.load import Draw, Load, traffic
from fasttrace.ops.rms_norm import rms_norm, rms_norm_reference

SHAPES = [{"by_index": 0}, {"by_index": 1}]
EPS = 1e-5


def load(draw: Draw, rows: int = 4096, d: int = 576, by_index: int = 0) -> Load:
    """x (rows, d); with by_index 1, rows are given by index, each of them eight times."""
    x, weight = draw.normal(rows, d), draw.normal(d)
    if not by_index:
        return Load(rms_norm, (x, weight, EPS), rms_norm_reference, {"rms_norm": _torch}, gigabyte=traffic(x, x))
    return Load(_of, (x, weight, draw.arange(rows) // 8 * 8), _reference_of, gigabyte=traffic(x, x))


def _of(x: Tensor, weight: Tensor, rows: Tensor, impl: str = "auto") -> Tensor:
    return rms_norm(x, weight, EPS, rows=rows, impl=impl)


def _reference_of(x: Tensor, weight: Tensor, rows: Tensor) -> Tensor:
    return rms_norm_reference(x, weight, EPS, rows=rows)


def _torch(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    return functional.rms_norm(x, x.shape[1:], weight, eps)
