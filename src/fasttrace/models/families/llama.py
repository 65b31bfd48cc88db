"""Llama and similar models: rotary positions, RMS norms, gated MLP. SmolLM2, Llama 1–3, Mistral, Qwen2."""

from typing import Any

import torch
from torch import Tensor

from fasttrace.models.adapter import Block, Decoder, Rotary
from fasttrace.ops.linear import linear
from fasttrace.ops.rms_norm import rms_norm
from fasttrace.ops.rotary import rotary_
from fasttrace.ops.silu_mul import silu_mul_


class LlamaBlock(Block):
    """attention norm → q/k/v, rotary → o_proj; MLP norm → act(gate) · up → down_proj.

    Families that differ in a step override it: `norm_query` and `norm_key` before the rotation, `rotate`, the norms,
    or the two halves of the MLP.
    """

    mlp_products = 2

    def __init__(self, layer: Any, sliding_window: int | None) -> None:
        self.layer = layer
        self.attn, self.mlp = layer.self_attn, layer.mlp
        self.head_dim = self.attn.head_dim
        self.scale = self.attn.scaling
        self.sliding_window = sliding_window
        self.silu = getattr(self.attn.config, "hidden_act", None) in ("silu", "swish")
        self.count_heads()

    def count_heads(self) -> None:
        """Set `n_heads` and `n_kv_heads`."""
        self.n_heads = self.attn.q_proj.weight.shape[0] // self.head_dim
        self.n_kv_heads = self.attn.k_proj.weight.shape[0] // self.head_dim

    def attn_norm(self, h: Tensor) -> Tensor:
        norm = self.layer.input_layernorm
        return rms_norm(h, norm.weight, norm.variance_epsilon)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        q = self.norm_query(linear(x, self.attn.q_proj.weight, self.attn.q_proj.bias))
        return self.rotate(q.view(-1, self.n_heads, self.head_dim), rotary)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k = self.norm_key(linear(x, self.attn.k_proj.weight, self.attn.k_proj.bias))
        v = linear(x, self.attn.v_proj.weight, self.attn.v_proj.bias)
        shape = (-1, self.n_kv_heads, self.head_dim)
        return self.rotate(k.view(shape), rotary), v.view(shape)

    def norm_query(self, q: Tensor) -> Tensor:
        """q: (N, n_heads * head_dim), as projected → the same shape, normed in families that norm queries."""
        return q

    def norm_key(self, k: Tensor) -> Tensor:
        """k: (N, n_kv_heads * head_dim), as projected → the same shape, normed in families that norm keys."""
        return k

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        """x: (N, H, head_dim) queries or keys → the same shape, positions applied."""
        cos, sin = rotary
        return rotary_(x, cos, sin)

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.o_proj.weight, self.attn.o_proj.bias)

    def mlp_norm(self, h: Tensor) -> Tensor:
        norm = self.layer.post_attention_layernorm
        return rms_norm(h, norm.weight, norm.variance_epsilon)

    def mlp_norm_rows(self, h: Tensor, rows: Tensor) -> Tensor:
        norm = self.layer.post_attention_layernorm
        return rms_norm(h, norm.weight, norm.variance_epsilon, rows=rows)

    def mlp_key(self, x: Tensor) -> Tensor:
        gate = linear(x, self.mlp.gate_proj.weight, self.mlp.gate_proj.bias)
        up = linear(x, self.mlp.up_proj.weight, self.mlp.up_proj.bias)
        return silu_mul_(gate, up) if self.silu else self.mlp.act_fn(gate) * up

    @property
    def down(self) -> Tensor:
        return self.mlp.down_proj.weight

    @property
    def down_bias(self) -> Tensor | None:
        return self.mlp.down_proj.bias


@Decoder.register("llama", "mistral", "qwen2")
class LlamaDecoder(Decoder):
    """LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM."""

    norm_kind = "rms"
    block = LlamaBlock

    def bind(self) -> None:
        self.blocks = [self.make_block(layer, i) for i, layer in enumerate(self.base.layers)]
        self.final_norm = self.base.norm

    def make_block(self, layer: Any, number: int) -> LlamaBlock:
        """The block of a transformers layer, given its number."""
        return self.block(layer, self._sliding_window(number))

    def _sliding_window(self, layer: int) -> int | None:
        types = getattr(self.config, "layer_types", None)
        if types is not None and types[layer] != "sliding_attention":
            return None
        return getattr(self.config, "sliding_window", None)

    def rotary(self, positions: Tensor) -> Rotary:
        # rotary_emb reads only the dtype and device of `like`. The embedding itself may be on another device.
        like = torch.empty(0, dtype=self.dtype, device=positions.device)
        cos, sin = self.base.rotary_emb(like, positions[None])
        return cos[0], sin[0]
