"""Phi-1 and Phi-2: attention and MLP in parallel from one LayerNorm, biases everywhere, part of each head rotated."""

from typing import Any

from torch import Tensor

from fasttrace.models.activations import activation
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.ops.linear import linear
from fasttrace.ops.rotary import partial_rotary_


class PhiBlock(Block):
    """input_layernorm → q/k/v, rotary → dense, and input_layernorm → act(fc1) → fc2."""

    parallel = True

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.attn, self.mlp = layer.self_attn, layer.mlp
        self.act = activation(self.mlp.activation_fn)
        self.head_dim = self.attn.head_dim
        self.n_heads = self.attn.q_proj.weight.shape[0] // self.head_dim
        self.n_kv_heads = self.attn.k_proj.weight.shape[0] // self.head_dim
        self.scale = self.attn.scaling

    def attn_norm(self, h: Tensor) -> Tensor:
        return self.layer.input_layernorm(h)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        q = self._heads(x, self.attn.q_proj)
        return partial_rotary_(self.attn.q_layernorm(q) if self.attn.qk_layernorm else q, *rotary)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k = self._heads(x, self.attn.k_proj)
        k = partial_rotary_(self.attn.k_layernorm(k) if self.attn.qk_layernorm else k, *rotary)
        return k, self._heads(x, self.attn.v_proj)

    def _heads(self, x: Tensor, projection: Any) -> Tensor:
        return linear(x, projection.weight, projection.bias).unflatten(1, (-1, self.head_dim))

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.dense.weight, self.attn.dense.bias)

    def mlp_norm(self, h: Tensor) -> Tensor:
        return self.layer.input_layernorm(h)

    def mlp_key(self, x: Tensor) -> Tensor:
        return self.act(linear(x, self.mlp.fc1.weight, self.mlp.fc1.bias))

    @property
    def down(self) -> Tensor:
        return self.mlp.fc2.weight

    @property
    def down_bias(self) -> Tensor | None:
        return self.mlp.fc2.bias


@Decoder.register("phi")
class PhiDecoder(Decoder):
    """PhiForCausalLM."""

    norm_kind = "layer"

    def bind(self) -> None:
        self.blocks = [PhiBlock(layer) for layer in self.base.layers]
        self.final_norm = self.base.final_layernorm

    def rotary(self, positions: Tensor) -> Rotary:
        cos, sin = self.base.rotary_emb(self.like(positions), positions[None])
        return cos[0], sin[0]
