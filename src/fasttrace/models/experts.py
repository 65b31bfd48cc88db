"""The routed experts of a layer: every row goes to the few that its router chooses, and rows with one expert share one
product.

transformers (from 5.0) keeps a layer's experts in two tensors, one for gate and up and one for down. The router is the
model's own module, so that the choice is the model's own to the last bit.
"""

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fasttrace.ops.linear import linear
from fasttrace.ops.silu_mul import silu_mul_

SHARED, NONE = -1, -2  # stand for the shared expert, and for no expert, among the numbers of experts


@dataclass(frozen=True, eq=False)
class Routing:
    """Which experts each row goes to. experts: (N, k) int64. weights: (N, k), the factor of each one's output."""

    experts: Tensor
    weights: Tensor

    def __getitem__(self, rows: Any) -> "Routing":
        """That of some rows: (n,) int64, bool or a slice."""
        return Routing(self.experts[rows], self.weights[rows])

    def groups(self) -> Iterator[tuple[int, Tensor, Tensor]]:
        """Yield (expert, rows (n,), weights (n, 1)) of every expert that has rows, in ascending order."""
        order = self.experts.flatten().argsort(stable=True)
        rows = order // self.experts.shape[1]
        chosen, counts = self.experts.flatten().unique(return_counts=True)
        weights = self.weights.flatten()[order, None]
        parts = zip(chosen.tolist(), rows.split(counts.tolist()), weights.split(counts.tolist()), strict=True)
        yield from parts

    def weight_of(self, experts: Tensor) -> Tensor:
        """experts: (N,) int64 → (N,), the factor of this expert's output in each row, 0 where the row does not go
        there."""
        return torch.where(self.experts == experts[:, None], self.weights, 0).sum(1)


class Experts:
    """The experts of one layer. m is the width of their keys.

    module: transformers' experts, whose parameters are read at every call, because they may be offloaded.
    changed: expert → down-projection that it has in place of the module's, as in a view of an edited model.
    count, per_row: how many there are, and how many a row goes to. weigh_input: whether a row's weight multiplies the
    expert's input instead of its output (Llama 4). transposed: whether the matrices are stored as (in, out); None asks
    the module.
    """

    def __init__(self, module: Any, per_row: int, *, weigh_input: bool = False, transposed: bool | None = None) -> None:
        self.module, self.per_row, self.weigh_input = module, per_row, weigh_input
        self.count = int(module.num_experts)
        self.transposed = module.is_transposed if transposed is None else transposed
        act = getattr(module, "act_fn", None)
        plain = getattr(module, "is_concatenated", True) and not getattr(module, "has_bias", False)
        self.silu = plain and type(act).__name__ in ("SiLU", "SiLUActivation")
        self.changed: Mapping[int | None, Tensor] = {}

    def with_changed(self, changed: Mapping[int | None, Tensor]) -> "Experts":
        """The same experts, some with other down-projections. changed: expert → (d, m)."""
        view = copy.copy(self)
        view.changed = {**self.changed, **changed}
        return view

    @property
    def down_shape(self) -> tuple[int, int]:
        """(d, m), the shape of an expert's down-projection."""
        _, first, second = self.module.down_proj.shape
        return (second, first) if self.transposed else (first, second)

    def down(self, expert: int) -> Tensor:
        """The expert's down-projection (d, m), a view of the parameter unless it is changed."""
        if expert in self.changed:
            return self.changed[expert]
        weight: Tensor = self.module.down_proj[expert]
        return weight.t() if self.transposed else weight

    def down_bias(self, expert: int) -> Tensor | None:
        """(d,) bias of the expert's down-projection, or None."""
        bias = getattr(self.module, "down_proj_bias", None)
        return None if bias is None else bias[expert]

    def key(self, expert: int, x: Tensor) -> Tensor:
        """x: (n, d) → (n, m), the input of the expert's down-projection."""
        both: Tensor = self.module.gate_up_proj[expert]
        both = both.t() if self.transposed else both
        if self.silu:
            gate, up = both.chunk(2)  # rows of the (out, in) matrix
            return silu_mul_(linear(x, gate), linear(x, up))
        bias = getattr(self.module, "gate_up_proj_bias", None)
        key: Tensor = self.module._apply_gate(linear(x, both, None if bias is None else bias[expert]))
        return key

    def weighted_key(self, expert: int, x: Tensor, weight: Tensor) -> Tensor:
        """x: (n, d), weight: (n, 1) → (n, m) κ, so that the down-projection of κ is what the expert adds, but for its
        bias."""
        if self.weigh_input:
            return self.key(expert, x * weight.to(x.dtype))
        return (self.key(expert, x) * weight).to(x.dtype)

    def contribution(self, expert: int, x: Tensor, weight: Tensor) -> Tensor:
        """x: (n, d), weight: (n, 1) → (n, d), what the expert adds to the layer's MLP output."""
        if self.weigh_input:
            return linear(self.key(expert, x * weight.to(x.dtype)), self.down(expert), self.down_bias(expert))
        value = linear(self.key(expert, x), self.down(expert), self.down_bias(expert))
        return (value * weight).to(x.dtype)

    def output(self, x: Tensor, routing: Routing) -> Tensor:
        """x: (N, d) → (N, d), the sum of the contributions of each row's experts."""
        out = torch.zeros_like(x)
        for expert, rows, weight in routing.groups():
            out = out.index_add_(0, rows, self.contribution(expert, x.index_select(0, rows), weight))
        return out
