"""What a caller may have set in torch, as fasttrace needs it: gradients, and the precision of products."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, ParamSpec, TypeVar

import torch

P = ParamSpec("P")
R = TypeVar("R")


def with_autograd(function: Callable[P, R]) -> Callable[P, R]:
    """The function or generator, with gradients on also under the caller's `torch.no_grad` or `inference_mode`."""
    return torch.inference_mode(False)(torch.enable_grad()(function))


@contextmanager
def exact_products(tf32: bool) -> Iterator[None]:
    """While the body runs, matrix products have the dtype of their operands, or use TF32 on CUDA where it is asked for.

    What the caller set with `torch.autocast` and `torch.set_float32_matmul_precision` is restored afterwards.
    """
    mkldnn: Any = torch.backends.mkldnn
    wanted = ((torch.backends.cuda.matmul, "tf32" if tf32 else "ieee"), (mkldnn.matmul, "ieee"))
    now = [matmul.fp32_precision for matmul, _ in wanted]
    # "none" is a setting that was never made, and is as exact as "ieee".
    changes = [
        (matmul, new, old)
        for (matmul, new), old in zip(wanted, now, strict=True)
        if new != old and {new, old} != {"ieee", "none"}
    ]
    with ExitStack() as stack:
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        try:
            # Unlike allow_tf32, this setting can be restored to "never set".
            for matmul, new, _ in changes:
                matmul.fp32_precision = new
            yield
        finally:
            for matmul, _, old in changes:
                matmul.fp32_precision = old
