"""silu_mul_ of a gated MLP."""

import torch
from torch.nn import functional

from fasttrace.benchmarks.load import Draw, Load, traffic
from fasttrace.ops.silu_mul import silu_mul_, silu_mul_reference

SHAPES: list[dict[str, int]] = [{}]


def load(draw: Draw, rows: int = 4096, m: int = 1536) -> Load:
    """gate, up (rows, m)."""
    # The op overwrites its input. With these values a gate of 1 stays 1, so nothing underflows or overflows.
    gate = torch.ones(rows, m, dtype=draw.dtype, device=draw.device)
    up = 1 / functional.silu(gate)
    return Load(silu_mul_, (gate, up), silu_mul_reference, gigabyte=traffic(gate, gate, up))
