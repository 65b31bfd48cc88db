"""bit_sums of a weight, beside the sum of its numbers, which reads as much."""

import torch

from fasttrace.benchmarks.load import Draw, Load, traffic
from fasttrace.ops.bit_sums import bit_sums

SHAPES = [{"vocab": 49152, "d": 576}, {"vocab": 576, "d": 1536}]  # SmolLM2-135M: the embedding, a matrix of an MLP


def load(draw: Draw, vocab: int = 49152, d: int = 576) -> Load:
    """weight (vocab, d)."""
    weight = draw.normal(vocab, d)
    # torch.compile would draw the random factors anew in each call.
    return Load(bit_sums, (weight,), None, yardsticks={"sum": torch.sum}, gigabyte=traffic(weight))
