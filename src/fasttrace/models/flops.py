"""FLOPs of a block's products with weights, from their shapes, and the rate at which this machine computes them."""

import statistics
import time
from collections.abc import Callable
from itertools import pairwise

import torch

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block
from fasttrace.models.packed import attend, bring, mlp, pack

ROWS = 2048  # rows of a block that is timed


def linear_flops(model: Decoder, block: Block) -> tuple[int, int, int]:
    """FLOPs per row of the (key and value, query and attention-output, MLP) products."""
    key_value, query_out, mlp = block.weights_per_row(model.width)
    return 2 * key_value, 2 * query_out, 2 * mlp


@torch.no_grad()
def block_rate(model: Decoder, rows: int = ROWS, rounds: int = 9) -> float:
    """FLOP/s of a whole block with attention, norms and activations, over `rows` rows in sequences of 8.

    The median of so many rounds, after two more.
    """
    sequences = max(1, rows // 8)
    [rate] = [_rate(model, block, [[0] * 8] * sequences, rounds) for _, block in model.layers([model.n_layers // 2])]
    return rate


def _rate(model: Decoder, block: Block, sequences: list[list[int]], rounds: int) -> float:
    batch = pack(model, sequences)
    rotary = bring(model.rotary(batch.positions), block.device)
    rows, pairs = 8 * len(sequences), 8 * 9 // 2 * len(sequences)
    h = torch.randn(rows, model.width, device=block.device).to(model.dtype)
    seconds = median_seconds(model, lambda: mlp(block, attend(block, h, rotary, batch.sequences)), rounds)
    return (rows * sum(linear_flops(model, block)) + pairs * 4 * block.n_heads * block.head_dim) / seconds


def median_seconds(model: Decoder, call: Callable[[], object], rounds: int) -> float:
    """Median seconds of a call on the model's device, after two calls that do not count."""
    ends = []
    for _ in range(rounds + 2):
        call()
        if model.device.type == "cuda":
            torch.cuda.synchronize(model.device)
        ends.append(time.perf_counter())
    return statistics.median(b - a for a, b in pairwise(ends[1:]))
