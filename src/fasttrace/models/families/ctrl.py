"""CTRL: embeddings scaled by √d plus sinusoids, LayerNorms before the sub-layers, a ReLU in the MLP."""

from typing import Any

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.ops.linear import linear


class CTRLBlock(Block):
    """layernorm1 → Wq/Wk/Wv → dense; layernorm2 → relu(ffn.0) → ffn.2."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.attn = layer, layer.multi_head_attention
        self.into, self.act, self.back = layer.ffn
        self.n_heads = self.n_kv_heads = self.attn.num_heads
        self.head_dim = self.attn.d_model_size // self.n_heads
        self.scale = self.head_dim**-0.5

    def attn_norm(self, h: Tensor) -> Tensor:
        return self.layer.layernorm1(h)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        return self._heads(x, self.attn.Wq)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        return self._heads(x, self.attn.Wk), self._heads(x, self.attn.Wv)

    def _heads(self, x: Tensor, projection: Any) -> Tensor:
        return linear(x, projection.weight, projection.bias).view(-1, self.n_heads, self.head_dim)

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.dense.weight, self.attn.dense.bias)

    def mlp_norm(self, h: Tensor) -> Tensor:
        return self.layer.layernorm2(h)

    def mlp_key(self, x: Tensor) -> Tensor:
        return self.act(linear(x, self.into.weight, self.into.bias))

    @property
    def down(self) -> Tensor:
        return self.back.weight

    @property
    def down_bias(self) -> Tensor | None:
        return self.back.bias


@Decoder.register("ctrl")
class CTRLDecoder(Decoder):
    """CTRLLMHeadModel."""

    norm_kind = "layer"

    def bind(self) -> None:
        self.blocks = [CTRLBlock(layer) for layer in self.base.h]
        self.final_norm = self.base.layernorm

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        table = self.base.pos_encoding.to(x.device, x.dtype)
        return x * self.config.n_embd**0.5 + table[positions]
