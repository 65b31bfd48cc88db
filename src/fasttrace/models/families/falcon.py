"""Falcon: rotary positions with heads that share keys (7B, 40B, 180B), or ALiBi with one key per head (falcon-rw).

Queries that share a key and a value are a group. There is one group with `multi_query`, and one per head in falcon-rw.
"""

from typing import Any

import torch
from torch import Tensor

from fasttrace.models.activations import activation
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.models.families.bloom import alibi_slopes
from fasttrace.ops.linear import linear
from fasttrace.ops.rotary import rotary_


class GroupedBlock(Block):
    """A block whose fused matrix contains, for one group after another, the rows of its queries, its key and its value.

    The rows of one group are contiguous and read in place. Those of several groups are gathered (see `HeadwiseBlock`).
    Subclasses set `fused` (the Linear), n_kv_heads, the number of groups, and `rows`, a head's rows in the matrix.
    """

    fused: Any
    rows: int

    def project(self, x: Tensor, parts: slice) -> Tensor:
        """x: (N, d) → (N, groups, len(parts), rows), with `parts` a slice of (queries of a group, key, value)."""
        groups = (self.n_kv_heads, -1, self.rows)
        weight = self.fused.weight.unflatten(0, groups)[:, parts].flatten(0, 2)
        bias = None if self.fused.bias is None else self.fused.bias.unflatten(0, groups)[:, parts].flatten()
        return linear(x, weight, bias).view(len(x), self.n_kv_heads, -1, self.rows)


class FalconBlock(GroupedBlock):
    """norm → q/k/v, rotary → dense; norm → act(dense_h_to_4h) → dense_4h_to_h.

    In a parallel block both norms read the block's input and may be one module.
    """

    def __init__(self, layer: Any, config: Any) -> None:
        self.layer = layer
        self.attn, self.mlp = layer.self_attention, layer.mlp
        self.act = activation(self.mlp.act)
        self.n_heads, self.n_kv_heads = self.attn.num_heads, self.attn.num_kv_heads
        self.head_dim = self.rows = self.attn.head_dim
        self.fused = self.attn.query_key_value
        self.scale = self.attn.inv_norm_factor
        self.parallel = config.new_decoder_architecture or config.parallel_attn
        self.attn_layernorm = layer.ln_attn if hasattr(layer, "ln_attn") else layer.input_layernorm
        self.mlp_layernorm = self.attn_layernorm
        for name in ("ln_mlp", "post_attention_layernorm"):
            self.mlp_layernorm = getattr(layer, name, self.mlp_layernorm)

    def attn_norm(self, h: Tensor) -> Tensor:
        return self.attn_layernorm(h)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        cos, sin = rotary
        return rotary_(self.project(x, slice(None, -2)).flatten(1, 2), cos, sin)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k, v = self.project(x, slice(-2, None)).unbind(2)
        cos, sin = rotary
        return rotary_(k, cos, sin), v

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.dense.weight, self.attn.dense.bias)

    def mlp_norm(self, h: Tensor) -> Tensor:
        return self.mlp_layernorm(h)

    def mlp_key(self, x: Tensor) -> Tensor:
        return self.act(linear(x, self.mlp.dense_h_to_4h.weight, self.mlp.dense_h_to_4h.bias))

    @property
    def down(self) -> Tensor:
        return self.mlp.dense_4h_to_h.weight

    @property
    def down_bias(self) -> Tensor | None:
        return self.mlp.dense_4h_to_h.bias


class FalconAlibiBlock(FalconBlock):
    """A Falcon block with ALiBi. Its bias is rounded to bfloat16, as in transformers and in Falcon's training.

    A rounded bias does not fall linearly with distance, so `Block.alibi` cannot express it. It depends only on the
    key's position and the head, so every key gets it as one more dimension. Queries have a 1 there, and values a 0.
    """

    def __init__(self, layer: Any, config: Any) -> None:
        super().__init__(layer, config)
        self.head_dim += 1

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        q = self.project(x, slice(None, -2)).flatten(1, 2)
        return torch.cat((q, q.new_ones(*q.shape[:2], 1)), dim=-1)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k, v = self.project(x, slice(-2, None)).unbind(2)
        (alibi,) = rotary
        return torch.cat((k, alibi[:, :, None]), dim=-1), torch.cat((v, torch.zeros_like(v[..., :1])), dim=-1)

    def attn_value(self, mixed: Tensor) -> Tensor:
        return super().attn_value(mixed.unflatten(1, (self.n_heads, -1))[..., :-1].flatten(1))


@Decoder.register("falcon")
class FalconDecoder(Decoder):
    """FalconForCausalLM."""

    norm_kind = "layer"

    @classmethod
    def refusal(cls, config: Any) -> str | None:
        if config.alibi and (config.new_decoder_architecture or config.multi_query):
            return "expected one key per head with ALiBi, got heads that share keys"
        return None

    def bind(self) -> None:
        block = FalconAlibiBlock if self.config.alibi else FalconBlock
        self.blocks = [block(layer, self.config) for layer in self.base.h]
        self.final_norm = self.base.ln_f

    def rotary(self, positions: Tensor) -> Rotary:
        if self.config.alibi:
            slopes = alibi_slopes(self.config.num_attention_heads).to(positions.device)
            # Slopes and products are bfloat16, whatever the model's dtype.
            return ((positions[:, None] * slopes.bfloat16()).to(self.dtype),)
        cos, sin = self.base.rotary_emb(self.like(positions), positions[None])
        return cos[0], sin[0]
