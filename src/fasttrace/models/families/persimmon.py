"""Persimmon: GPT-NeoX's matrices with sequential sub-layers and a norm for the heads of queries and keys."""

from typing import Any

from torch import Tensor

from fasttrace.models.activations import activation
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.gpt_neox import GPTNeoXBlock, GPTNeoXDecoder
from fasttrace.ops.rotary import partial_rotary_


class PersimmonBlock(GPTNeoXBlock):
    """input_layernorm → q/k/v, norms, rotary → dense; post_attention_layernorm → act(dense_h_to_4h) → dense_4h_to_h."""

    def __init__(self, layer: Any, config: Any) -> None:
        self.layer = layer
        self.attn, self.mlp = layer.self_attn, layer.mlp
        self.act = activation(self.mlp.act)
        self.fused = self.attn.query_key_value
        self.n_heads = self.n_kv_heads = self.attn.num_heads
        self.head_dim, self.scale = self.attn.head_dim, self.attn.scaling

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        q = self.project(x, slice(0, 1))[:, :, 0]
        return partial_rotary_(self.attn.q_layernorm(q) if self.attn.qk_layernorm else q, *rotary)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k, v = self.project(x, slice(1, 3)).unbind(2)
        return partial_rotary_(self.attn.k_layernorm(k) if self.attn.qk_layernorm else k, *rotary), v


@Decoder.register("persimmon")
class PersimmonDecoder(GPTNeoXDecoder):
    """PersimmonForCausalLM."""

    def bind(self) -> None:
        self.blocks = [PersimmonBlock(layer, self.config) for layer in self.base.layers]
        self.final_norm = self.base.final_layernorm
