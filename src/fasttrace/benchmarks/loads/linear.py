"""linear at the products of a model, forward and with its gradient, beside torch.nn.functional.linear."""

from torch import Tensor
from torch.nn import functional

from fasttrace.benchmarks.load import Draw, Load, gradient, traffic
from fasttrace.ops.linear import linear

PRODUCTS = [(576, 576), (576, 192), (576, 1536), (1536, 576)]  # k, m
SHAPES = [{"rows": rows, "k": k, "m": m} for k, m in (*PRODUCTS, (576, 49152)) for rows in (64, 210, 1024, 4096)]
SHAPES += [{"rows": rows, "k": k, "m": m, "gradient_too": 1} for k, m in PRODUCTS for rows in (64, 210, 1024)]


def load(draw: Draw, rows: int = 1024, k: int = 576, m: int = 1536, gradient_too: int = 0) -> Load:
    """x (rows, k), w (m, k)."""
    x, w = draw.normal(rows, k), draw.normal(m, k)
    if not gradient_too:
        gigaflop = 2e-9 * rows * k * m
        y = draw.normal(rows, m)
        return Load(linear, (x, w), _plain, {"linear": _plain}, gigabyte=traffic(x, w, y), gigaflop=gigaflop)
    upstream = draw.normal(rows, m)
    op, plain = gradient(linear, upstream), gradient(_plain, upstream)
    args, gigabyte = (x.requires_grad_(), w), traffic(x, x, w, upstream)
    return Load(op, args, None, {"linear": plain}, gigabyte=gigabyte, gigaflop=4e-9 * rows * k * m, grad=True)


def _plain(x: Tensor, w: Tensor) -> Tensor:
    return functional.linear(x, w)
