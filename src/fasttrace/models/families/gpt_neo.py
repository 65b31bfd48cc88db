"""GPT-Neo: GPT-2's layout with unscaled attention scores; local layers attend only to a window of tokens."""

from typing import Any

from torch import Tensor

from fasttrace.models.activations import activation
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.ops.linear import linear


class GPTNeoBlock(Block):
    """ln_1 → q/k/v → out_proj; ln_2 → act(c_fc) → c_proj."""

    scale = 1.0

    def __init__(self, layer: Any, config: Any) -> None:
        self.layer = layer
        self.attn, self.mlp = layer.attn.attention, layer.mlp
        self.act = activation(self.mlp.act)
        self.n_heads = self.n_kv_heads = self.attn.num_heads
        self.head_dim = self.attn.head_dim
        self.sliding_window = config.window_size if layer.attn.attention_type == "local" else None

    def attn_norm(self, h: Tensor) -> Tensor:
        return self.layer.ln_1(h)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        return linear(x, self.attn.q_proj.weight).view(-1, self.n_heads, self.head_dim)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        shape = (-1, self.n_heads, self.head_dim)
        return linear(x, self.attn.k_proj.weight).view(shape), linear(x, self.attn.v_proj.weight).view(shape)

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.out_proj.weight, self.attn.out_proj.bias)

    def mlp_norm(self, h: Tensor) -> Tensor:
        return self.layer.ln_2(h)

    def mlp_key(self, x: Tensor) -> Tensor:
        return self.act(linear(x, self.mlp.c_fc.weight, self.mlp.c_fc.bias))

    @property
    def down(self) -> Tensor:
        return self.mlp.c_proj.weight

    @property
    def down_bias(self) -> Tensor | None:
        return self.mlp.c_proj.bias


@Decoder.register("gpt_neo")
class GPTNeoDecoder(Decoder):
    """GPTNeoForCausalLM."""

    norm_kind = "layer"

    def bind(self) -> None:
        self.blocks = [GPTNeoBlock(layer, self.config) for layer in self.base.h]
        self.final_norm = self.base.ln_f

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.base.wpe.weight[positions]
