"""The interface of one layer of a decoder model, whose steps a family's file in `families/` writes down.

Rows are packed: every tensor is (N, …) with one row per token, whichever sequence the token belongs to. Only
attention depends on the sequences (see `packed.py`).
"""

import functools
from abc import ABC, abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from fasttrace.models.experts import Experts
from fasttrace.models.keys import DownProjections
from fasttrace.models.placement import device_of, is_frozen
from fasttrace.models.quantised import as_shapes, quantised
from fasttrace.ops.linear import linear

# Position tables of a family's blocks, (N, …) with one row per token: the cos and sin that rotate queries and keys, or
# the attention biases of falcon-rw. Empty if the blocks need none.
Rotary = tuple[Tensor, ...]


class Block(DownProjections, ABC):
    """One layer: attention and MLP, each reading and adding to the residual stream.

    Weights may be offloaded until the layer runs (`Decoder.layers`), so methods read them from their modules at every
    call and keep none.

    layer: the transformers module that contains all the block's weights.
    n_heads, n_kv_heads, head_dim: the attention's sizes.
    scale: factor of the attention scores.
    sliding_window: number of tokens that a query sees, itself included, or None for all.
    softcap: bound of the absolute attention scores, or None.
    alibi: (H,) float32, the amount by which a head's scores fall per token of distance, or None.
    sinks: (H,), one more score of each head's softmax, or None.
    parallel: whether the MLP reads the block's input instead of the residual after attention, as in GPT-J.
    mlp_products: number of d × m matrix products that compute the keys, 2 in a gated MLP.
    experts: the layer's routed experts, or None where one MLP serves all rows. mixture: the module that routes to them.
    shared: the module of the expert that serves all rows beside them, or None.
    """

    layer: Any
    n_heads: int
    n_kv_heads: int
    head_dim: int
    scale: float
    sliding_window: int | None = None
    softcap: float | None = None
    alibi: Tensor | None = None
    sinks: Tensor | None = None
    parallel: bool = False
    mlp_products: int = 1
    experts: Experts | None = None
    mixture: Any = None
    shared: Any = None

    @property
    def device(self) -> torch.device:
        """Device on which the block computes."""
        return device_of(self.layer)

    @functools.cached_property
    def frozen(self) -> bool:
        """Whether the stored weights are read-only, and there only while the layer is brought (`Decoder.brought`)."""
        return is_frozen(self.layer)

    @property
    def is_brought(self) -> bool:
        """Whether the down-projection is there to be computed with."""
        return next(quantised(self.layer), None) is None and not self.down.is_meta

    @contextmanager
    def held(self) -> Iterator[None]:
        """While the body runs, what the block derives from its weights is kept. The layer is brought."""
        yield

    @abstractmethod
    def attn_norm(self, h: Tensor) -> Tensor:
        """h: (N, d) residual → (N, d) input of attention."""

    @abstractmethod
    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        """x: (N, d) → queries (N, n_heads, head_dim), positions applied."""

    @abstractmethod
    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        """x: (N, d) → keys and values, each (N, n_kv_heads, head_dim), positions applied to the keys."""

    @abstractmethod
    def attn_value(self, mixed: Tensor) -> Tensor:
        """mixed: (N, n_heads * head_dim) → (N, d), the attention module's output."""

    def attn_add(self, value: Tensor) -> Tensor:
        """value: (N, d) attention output → (N, d), what it adds to the residual, any norm after attention included."""
        return value

    def attn_out(self, mixed: Tensor) -> Tensor:
        """mixed: (N, n_heads * head_dim) → (N, d), what attention adds to the residual."""
        return self.attn_add(self.attn_value(mixed))

    @abstractmethod
    def mlp_norm(self, h: Tensor) -> Tensor:
        """h: (N, d) residual (after attention, or the block's input where `parallel`) → (N, d) MLP input."""

    def mlp_norm_rows(self, h: Tensor, rows: Tensor) -> Tensor:
        """h: (N, d), rows: (n,) int64 → (n, d), `mlp_norm` of these rows. Families override it to avoid the copy."""
        return self.mlp_norm(h.index_select(0, rows))

    @abstractmethod
    def mlp_key(self, x: Tensor) -> Tensor:
        """x: (N, d) MLP input → keys (N, m), the input of the down-projection."""

    @property
    @abstractmethod
    def down(self) -> Tensor:
        """The down-projection's weight as a (d, m) view of the parameter."""

    @functools.cached_property
    def down_shape(self) -> tuple[int, int]:
        """(d, m), the shape of `down`, which is known also while the layer is not brought."""
        with as_shapes(self.layer):
            d, m = self.down.shape
        return d, m

    @property
    def down_bias(self) -> Tensor | None:
        """(d,) bias of the down-projection, or None."""
        return None

    @property
    def key_width(self) -> int:
        """Width m of the down-projection's input; that of one expert where rows are routed."""
        return self.down_shape[1]

    @property
    def n_experts(self) -> int:
        """Number of the layer's experts, a shared one included, which comes last; 0 where one MLP serves all rows."""
        return 0

    def weights_per_row(self, d: int) -> tuple[int, int, int]:
        """How many weights a row is multiplied with for its key and value, for its query and attention output, and in
        the MLP. d: width of the residual stream."""
        key_value = 2 * d * self.n_kv_heads * self.head_dim
        query_out = 2 * d * self.n_heads * self.head_dim
        return key_value, query_out, d * self.key_width * (self.mlp_products + 1)

    def mlp_value(self, key: Tensor) -> Tensor:
        """key: (N, m) → (N, d), the MLP module's output."""
        return linear(key, self.down, self.down_bias)

    def mlp_output(self, x: Tensor, chosen_by: Tensor | None = None) -> Tensor:
        """x: (N, d) MLP input → (N, d), the MLP module's output.

        chosen_by: (N, d), the MLP input by which a router chooses, or None for x.
        """
        return self.mlp_value(self.mlp_key(x))

    def expert_output(self, x: Tensor, experts: Tensor) -> Tensor:
        """x: (N, d) MLP input, experts: (N,) int64 → (N, d), what one expert each adds to the MLP's output.

        It is 0 in a row that does not go to the expert, and in a layer without experts.
        """
        return torch.zeros_like(x)

    def mlp_add(self, value: Tensor) -> Tensor:
        """value: (N, d) MLP output → (N, d), what it adds to the residual, any norm after the MLP included."""
        return value
