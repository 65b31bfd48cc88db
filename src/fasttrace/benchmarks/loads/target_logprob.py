"""target_logprob and its gradient, beside whole rows of logits."""

import torch
from torch import Tensor
from torch.nn import functional

from fasttrace.benchmarks.load import Draw, Load, Way, gradient, traffic
from fasttrace.ops.target_logprob import target_logprob

SHAPES = [
    {"rows": 16, "gradient_too": 0},
    {"rows": 512, "gradient_too": 0},
    {"rows": 16, "gradient_too": 1},
    {"rows": 128, "gradient_too": 1},
]
EPS = 1e-5


def load(draw: Draw, rows: int = 512, d: int = 576, vocab: int = 49152, gradient_too: int = 0) -> Load:
    """h (rows, d), an RMS norm, unembedding (vocab, d)."""
    h, weight, unembed = draw.normal(rows, d), torch.ones_like(draw.normal(d)), 0.05 * draw.normal(vocab, d)
    args = (h, weight, unembed, draw.below(vocab, rows))
    op: Way = _op
    whole: Way = _whole_rows
    if gradient_too:
        h.requires_grad_()
        op, whole = gradient(op), gradient(whole)
    return Load(
        op,
        args,
        whole,
        {"whole_rows": whole},
        gigabyte=traffic(h, unembed),
        # Native computes the logits twice instead of keeping them. The second time is not counted.
        gigaflop=(4 if gradient_too else 2) * rows * vocab * d / 1e9,
        grad=bool(gradient_too),
    )


def _op(h: Tensor, weight: Tensor, unembed: Tensor, target: Tensor, impl: str = "auto") -> Tensor:
    return target_logprob(h, weight, None, EPS, "rms", unembed, None, target, impl=impl)


def _whole_rows(h: Tensor, weight: Tensor, unembed: Tensor, target: Tensor) -> Tensor:
    logits = functional.linear(functional.rms_norm(h, h.shape[1:], weight, EPS), unembed)
    return logits.float().log_softmax(-1).gather(1, target[:, None])[:, 0]
