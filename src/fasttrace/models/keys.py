"""The down-projections of a layer, and the keys that they read at some rows."""

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fasttrace.models.experts import NONE, Routing


class DownProjections:
    """What edits and second moments need of a block: its down-projections, and what they read.

    At a dense layer there is one, and it has no number. A layer with experts has one of each.
    """

    @property
    @abstractmethod
    def down(self) -> Tensor: ...

    @property
    @abstractmethod
    def down_shape(self) -> tuple[int, int]: ...

    @abstractmethod
    def mlp_key(self, x: Tensor) -> Tensor: ...

    @abstractmethod
    def mlp_value(self, key: Tensor) -> Tensor: ...

    def keys_and_value(self, x: Tensor, chosen_by: Tensor | None = None) -> tuple["Keys", Tensor]:
        """x: (N, d) MLP input → its keys, and (N, d), the MLP module's output. chosen_by: as in `Block.mlp_output`."""
        key = self.mlp_key(x)
        return Keys(self, key), self.mlp_value(key)

    def weighted_keys(self, x: Tensor, routing: Routing, experts: Tensor) -> Tensor:
        """x: (N, d), experts: (N, S) → (N, S·m), the keys of a layer with experts, as `Keys.of` describes them."""
        raise NotImplementedError

    def keys_of(self, expert: int, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
        """x: (N, d) → (n,) the rows that go to an expert, and (n, m) their weighted keys. All go to the shared one."""
        raise NotImplementedError

    def down_of(self, expert: int | None) -> Tensor:
        """The down-projection of an expert, or of a dense layer (None), as a (d, m) view of the parameter."""
        return self.down

    def down_shape_of(self, experts: Sequence[int]) -> tuple[int, int]:
        """(d, S·m), the shape of the down-projections of S experts side by side; `down_shape` at a dense layer, which
        has none."""
        return self.down_shape


@dataclass(frozen=True, eq=False)
class Keys:
    """The keys of N rows at one layer, which is brought.

    dense: (N, m), or None where rows are routed. There, the keys of an expert are *weighted*: they have the factor of
    the expert's output, and are 0 in rows that do not go to it. So the sum over experts of W_e κ_e is what experts
    without biases add. They are computed when they are asked for, from x (N, d), the MLP's input, and the routing.
    """

    block: DownProjections
    dense: Tensor | None = None
    x: Tensor | None = None
    routing: Routing | None = None

    def __getitem__(self, rows: Any) -> "Keys":
        """Those of some rows: (n,) int64, bool or a slice."""
        dense, x = (None if part is None else part[rows] for part in (self.dense, self.x))
        return Keys(self.block, dense, x, None if self.routing is None else self.routing[rows])

    def of(self, experts: Sequence[int] | Tensor = ()) -> Tensor:
        """(N, m) at a dense layer, which has no experts. Else (N, S·m), the weighted keys of S experts.

        experts: the same S for all rows, or (N, S) int64, each row's own, where NONE stands for none: its keys are 0.
        """
        if self.dense is not None:
            return self.dense
        assert self.x is not None
        assert self.routing is not None
        if not isinstance(experts, Tensor):
            if not len(experts):
                return self.x[:, :0]
            experts = torch.tensor(list(experts), device=self.x.device).expand(len(self.x), -1)
        return self.block.weighted_keys(self.x, self.routing, experts)

    def of_one(self, expert: int | None) -> Tensor:
        """(n, m), the keys of a dense layer (None), or the weighted keys of an expert in the rows that go to it."""
        if self.dense is not None:
            return self.dense
        assert self.x is not None
        assert self.routing is not None
        assert expert is not None
        return self.block.keys_of(expert, self.x, self.routing)[1]


def by_owner(experts: Sequence[Sequence[int]], owner: Tensor) -> Tensor:
    """The experts of each row for `Keys.of`: (N, S) int64. experts: those of each owner, the same number S of each.
    owner: (N,) int64, which one a row belongs to, or −1 for none."""
    table = torch.tensor([*experts, [NONE] * len(experts[0])], dtype=torch.int64, device=owner.device)
    return table[owner]
