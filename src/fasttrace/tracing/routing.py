"""The choices of the routers in a mixture of experts: where each token of the clean and the corrupted passes goes."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa
import torch

from fasttrace.memory import pack_by_budget
from fasttrace.models.adapter import Decoder
from fasttrace.models.corrupt import embed_base
from fasttrace.models.flops import linear_flops
from fasttrace.models.keys import Keys
from fasttrace.models.packed import Batch, forward
from fasttrace.ops.prefix_attention import Column, Sequences
from fasttrace.tracing.plan import Intervention, Layout, TraceItem, TraceWave

ROUTING = pa.schema(
    [
        ("fact_id", pa.string()),
        ("sample", pa.int32()),
        ("token_index", pa.int32()),
        ("layer", pa.int32()),
        ("expert", pa.int32()),
        ("weight", pa.float64()),
    ]
)


def routing_flops(model: Decoder, item: TraceItem) -> int:
    """FLOPs of the passes of `routing` for one fact."""
    tails = [(item.rows - tail.token, tail.passes) for tail in item.base_tails()]
    total = 0
    for block in model.blocks:
        each = sum(linear_flops(model, block))
        for rows, runs in tails:
            pairs = rows * item.rows - rows * (rows - 1) // 2
            total += runs * (rows * each + 4 * pairs * block.n_heads * block.head_dim)
    return total


@torch.no_grad()
def routing(
    model: Decoder, items: Sequence[TraceItem], sigma: float, noise: str, seed: int, memory_rows: int
) -> pa.Table:
    """Which experts each prompt token of each base pass goes to, at every layer that has experts.

    Returns ROUTING, one row per fact, pass, token, layer and chosen expert. sample is NULL for the clean pass. A
    corrupted pass has rows from its first corrupted token on, because the tokens before it are those of the clean pass.
    weight is the factor of the expert's output. Shared experts serve every token and have no rows.

    The passes are computed once more, whole and without cells, because the sweep leaves rows out of the last layer.

    sigma, noise, seed: see `embed_base`; the noise is that of the sweep. memory_rows: the most rows that share a
    forward. An item is never split.
    """
    parts = [ROUTING.empty_table()]
    for numbers in pack_by_budget(range(len(items)), lambda i: items[i].base_rows(), memory_rows):
        parts.append(_of_one_forward(model, [items[i] for i in numbers], sigma, noise, seed))
    return pa.concat_tables(parts)


def _of_one_forward(model: Decoder, items: list[TraceItem], sigma: float, noise: str, seed: int) -> pa.Table:
    wave = TraceWave([(i, []) for i in range(len(items))], sum(item.base_rows() for item in items))
    layout = Layout(model, items, wave, Intervention())
    with model.entry():
        x, positions = embed_base(model, [item.passes for item in items], sigma, noise, seed)
        h = model.enter(x, positions)
    # A fact's clean pass comes before its corrupted ones.
    sample = np.concatenate([np.arange(-1, item.corrupted) for item in items])
    rows = layout.sequences[:, Column.K_LEN]
    fact, sample = np.repeat(layout.fact, rows), np.repeat(sample, rows)
    in_prompt = layout.position < np.array([len(item.encoded.ids) for item in items])[fact]
    names = pa.array([item.encoded.fact_id for item in items], pa.string())
    tables = [ROUTING.empty_table()]

    def visit(layer: int, keys: Keys) -> None:
        if keys.routing is None:
            return
        experts, weights = (part.cpu().numpy()[in_prompt] for part in _sorted(keys))
        k = experts.shape[1]
        own = np.repeat(np.flatnonzero(in_prompt), k)
        columns = {
            "fact_id": names.take(pa.array(fact[own])),
            "sample": pa.array(sample[own].astype(np.int32), mask=sample[own] < 0),
            "token_index": pa.array(layout.position[own].astype(np.int32)),
            "layer": pa.array(np.full(len(own), layer, dtype=np.int32)),
            "expert": pa.array(experts.reshape(-1).astype(np.int32)),
            "weight": pa.array(weights.reshape(-1)),
        }
        tables.append(pa.table(columns, schema=ROUTING))

    forward(model, Batch(positions, positions, Sequences(layout.sequences), rows.tolist()), h=h, on_key=visit)
    return pa.concat_tables(tables)


def _sorted(keys: Keys) -> tuple[torch.Tensor, torch.Tensor]:
    """(experts, weights) of each row, (N, k), the largest weight first; equal ones by number."""
    assert keys.routing is not None
    experts, order = keys.routing.experts.sort(1)
    weights = keys.routing.weights.double().gather(1, order)
    weights, order = weights.sort(dim=1, descending=True, stable=True)
    return experts.gather(1, order), weights
