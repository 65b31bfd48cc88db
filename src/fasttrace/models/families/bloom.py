"""BLOOM: ALiBi instead of positions, a LayerNorm after the embedding, and one matrix for q, k and v, head by head."""

import math
from typing import Any

import torch
from torch import Tensor

from fasttrace.models.activations import activation
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.gpt_neox import HeadwiseBlock
from fasttrace.ops.linear import linear


def alibi_slopes(heads: int) -> Tensor:
    """(heads,) float32: 2^(−8i/n) for i = 1 … n, with n the largest power of two up to heads. The remaining heads get
    every other slope of 2n heads, from the first on.

    Source: Press et al. 2022 (arXiv 2108.12409), section 3, and its code where heads is not a power of two.
    """
    n = 2 ** math.floor(math.log2(heads))
    # As in transformers, the base is rounded to float32 before the power is taken, which magnifies its rounding error.
    base, between = (torch.tensor(2.0 ** (-8.0 / m), dtype=torch.float32) for m in (n, 2 * n))
    return torch.cat((base ** torch.arange(1, n + 1), between ** (1 + 2 * torch.arange(heads - n))))


class BloomBlock(HeadwiseBlock):
    """input_layernorm → q/k/v → dense; post_attention_layernorm → gelu(dense_h_to_4h) → dense_4h_to_h."""

    def __init__(self, layer: Any, alibi: Tensor) -> None:
        self.layer = layer
        self.attn, self.mlp = layer.self_attention, layer.mlp
        self.act = activation(self.mlp.gelu_impl)
        self.fused = self.attn.query_key_value
        self.n_heads = self.n_kv_heads = self.attn.num_heads
        self.head_dim = self.attn.head_dim
        self.scale = self.attn.inv_norm_factor
        self.alibi = alibi

    def attn_norm(self, h: Tensor) -> Tensor:
        return self.layer.input_layernorm(h)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        return self.project(x, slice(0, 1))[:, :, 0]

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k, v = self.project(x, slice(1, 3)).unbind(2)
        return k, v

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.dense.weight, self.attn.dense.bias)

    def mlp_norm(self, h: Tensor) -> Tensor:
        return self.layer.post_attention_layernorm(h)

    def mlp_key(self, x: Tensor) -> Tensor:
        return self.act(linear(x, self.mlp.dense_h_to_4h.weight, self.mlp.dense_h_to_4h.bias))

    @property
    def down(self) -> Tensor:
        return self.mlp.dense_4h_to_h.weight

    @property
    def down_bias(self) -> Tensor | None:
        return self.mlp.dense_4h_to_h.bias


@Decoder.register("bloom")
class BloomDecoder(Decoder):
    """BloomForCausalLM."""

    norm_kind = "layer"

    @classmethod
    def refusal(cls, config: Any) -> str | None:
        if config.apply_residual_connection_post_layernorm:
            return "it adds its sub-layers to the normed residual stream (apply_residual_connection_post_layernorm)"
        return None

    def bind(self) -> None:
        alibi = alibi_slopes(self.config.n_head).to(self.device)
        self.blocks = [BloomBlock(layer, alibi) for layer in self.base.h]
        self.final_norm = self.base.ln_f

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.base.word_embeddings_layernorm(x)
