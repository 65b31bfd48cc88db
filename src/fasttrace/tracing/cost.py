"""The cost of a sweep before it runs: FLOPs as the wavefront computes them, waves, memory and the machine's rates."""

from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch

from fasttrace.models.adapter import Decoder
from fasttrace.models.flops import ROWS, linear_flops, median_seconds
from fasttrace.models.hooked import HookedDecoder
from fasttrace.models.packed import mlp_rows
from fasttrace.models.quantised import weight_tensors
from fasttrace.ops.linear import linear
from fasttrace.tracing.plan import Cell, Intervention, Tail, TraceItem, bytes_per_row, split_waves


@dataclass(frozen=True)
class Cost:
    """The cost of a sweep, if every fact is traced.

    facts, waves: how many. cells: cells of the grids. computed: distinct cells among them, as in `TraceItem.cells`, or
    the verified ones with method="attribution". rows: rows of the largest wave.
    flops: the least work, with every fact in one wave (multiply and add count one each).
    wave_flops: flops plus the base passes that a fact spread over several waves computes again.
    weight_bytes: weights read, once per wave.
    activation_bytes: rows read and written, some 30 widths per row and layer.
    peak_bytes: the weights and the largest wave.
    """

    facts: int
    cells: int
    computed: int
    waves: int
    rows: int
    flops: int
    wave_flops: int
    weight_bytes: int
    activation_bytes: int
    peak_bytes: int


class Work(NamedTuple):
    """FLOPs of the blocks' products, of attention and of the unembedding. rows: rows times layers."""

    products: int
    attention: int
    unembed: int
    rows: int

    @property
    def flops(self) -> int:
        """The sum of all FLOPs."""
        return self.products + self.attention + self.unembed


def pass_work(
    model: Decoder,
    item: TraceItem,
    intervention: Intervention,
    cells: tuple[Cell, ...] | list[Cell],
    *,
    base: bool,
    compare: bool = False,
) -> Work:
    """The work of some cells of a fact. base: whether its clean and corrupted passes count too. compare: whether KL
    divergences are measured."""
    n_layers, k, length = model.n_layers, len(item.targets), item.rows
    tails: list[Tail] = [*item.base_tails()] if base else []
    tails += [item.cell_tail(cell) for cell in cells if item.sees(model, cell, intervention)]
    if not tails:
        return Work(0, 0, 0, 0)
    first, runs, start, stop, lead = np.array([tail[:5] for tail in tails], dtype=np.int64).T
    module = intervention.module
    tail = length - first
    products = attention = moved = 0
    for layer, block in enumerate(model.blocks):
        last = layer == n_layers - 1
        key_value, query_out, mlp_cost = linear_flops(model, block)
        kept = np.minimum(tail, k) if last else tail
        leading = np.maximum(0, lead - (tail - kept))
        replaced = np.where(stop > layer, leading, 0)
        queries = kept - (replaced if module in ("attn", "block") else 0)
        mlps = kept - (replaced if module in ("mlp", "block") else 0)
        pairs = queries * length - queries * (queries - 1) // 2
        active = runs * (start < layer)
        products += int((active * (tail * key_value + queries * query_out + mlps * mlp_cost)).sum())
        attention += int((active * pairs).sum()) * 4 * block.n_heads * block.head_dim
        moved += int((active * tail).sum())
        if module in ("attn", "head"):
            # A cell's own tokens enter between attention and MLP, with head outputs that are projected once more.
            between = int((runs * (start == layer) * leading).sum())
            projection = 2 * block.n_heads * block.head_dim * model.width if module == "head" else 0
            products += between * (projection + (0 if block.parallel else mlp_cost))
    # A compared row is multiplied once more with the unembedding.
    unembed = 2 * model.width * model.vocab_size * int((runs * (np.minimum(tail, k) + compare)).sum())
    return Work(products, attention, unembed, moved)


def item_flops(model: Decoder, item: TraceItem, intervention: Intervention, *, compare: bool = False) -> int:
    """FLOPs of one fact in one wave: its clean and corrupted passes and its cells, with attention and unembedding."""
    return pass_work(model, item, intervention, item.cells, base=True, compare=compare).flops


def sweep_cost(
    model: Decoder,
    items: list[TraceItem],
    intervention: Intervention,
    memory: int,
    cells: int,
    *,
    compare: bool = False,
) -> Cost:
    """The cost of tracing `items` with `memory` bytes for activations. cells: cells of the reported grids. compare: as
    for `pass_work`."""
    waves = split_waves(items, memory // bytes_per_row(model))
    flops = sum(item_flops(model, item, intervention, compare=compare) for item in items)
    wave_flops = moved = 0
    for wave in waves:
        for number, its_cells in wave.items:
            work = pass_work(model, items[number], intervention, its_cells, base=True, compare=compare)
            wave_flops += work.flops
            moved += work.rows
    size = model.embed_weight.element_size()
    weights = weight_bytes(model)
    largest = max((wave.rows for wave in waves), default=0)
    keys = 2 * min(mlp_rows(model.blocks[0], model.embed_weight), largest) * model.key_width * size
    return Cost(
        facts=len(items),
        cells=cells,
        computed=sum(len(item.cells) for item in items),
        waves=len(waves),
        rows=largest,
        flops=flops,
        wave_flops=wave_flops,
        weight_bytes=weights * len(waves),
        activation_bytes=30 * moved * model.width * size,
        peak_bytes=weights + largest * bytes_per_row(model) + keys,
    )


def screen_flops(model: Decoder, item: TraceItem, intervention: Intervention, verified: tuple[Cell, ...]) -> int:
    """FLOPs of one fact's estimates: the base passes forward and backward (to activations only), and verified cells."""
    base = pass_work(model, item, intervention, (), base=True).flops
    return 2 * base + (item_flops(model, replace(item, cells=verified), intervention) if verified else 0)


def screen_cost(
    model: Decoder, items: list[TraceItem], intervention: Intervention, memory: int, cells: int, verify_top: int
) -> Cost:
    """As `sweep_cost`, for estimates. The verify_top earliest cells represent those that will be verified."""
    chosen = [replace(item, cells=item.cells[:verify_top]) for item in items]
    exact = sweep_cost(model, chosen, intervention, memory, cells)
    more = sum(screen_flops(model, item, intervention, ()) for item in items)
    if not verify_top:
        return replace(exact, flops=more, wave_flops=more, computed=0)
    return replace(exact, flops=exact.flops + more, wave_flops=exact.wave_flops + more)


def weight_bytes(model: Decoder) -> int:
    """Bytes of the model's weights as they are stored."""
    return sum(weight.nbytes for weight in weight_tensors(model.hf))


@torch.no_grad()
def gemm_peak(model: Decoder) -> float:
    """FLOP/s of a block's largest product, (2048, d) by (d, m): the best of three medians of 20 calls.

    For a model without an adapter, m is the longest side of a matrix of its first layer.
    """
    m = _longest_side(model) if isinstance(model, HookedDecoder) else model.key_width
    x = torch.randn(ROWS, model.width, device=model.device).to(model.dtype)
    w = torch.randn(m, model.width, device=model.device).to(model.dtype)
    best = min(median_seconds(model, lambda: linear(x, w), 20) for _ in range(3))
    return 2 * ROWS * model.width * m / best


def _longest_side(model: Decoder) -> int:
    sides = [max(weight.shape) for weight in model.layer_modules[0].parameters() if weight.ndim == 2]
    return max(sides, default=model.width)
