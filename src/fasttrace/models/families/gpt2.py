"""GPT-2: learned positions, LayerNorm, one matrix for q, k and v, and weights stored as (in, out) by Conv1D."""

from typing import Any

from torch import Tensor

from fasttrace.models.activations import activation
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.ops.linear import linear


class GPT2Block(Block):
    """ln_1 → c_attn → c_proj; ln_2 → act(c_fc) → c_proj."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.attn, self.mlp = layer.attn, layer.mlp
        self.act = activation(self.mlp.act)
        self.n_heads = self.n_kv_heads = self.attn.num_heads
        self.head_dim = self.attn.head_dim
        self.scale = self.attn.scaling
        self.inner = self.n_heads * self.head_dim

    def attn_norm(self, h: Tensor) -> Tensor:
        return self.layer.ln_1(h)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        weight, bias = self.attn.c_attn.weight, self.attn.c_attn.bias
        q = linear(x, weight[:, : self.inner].t(), bias[: self.inner])
        return q.view(-1, self.n_heads, self.head_dim)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        weight, bias = self.attn.c_attn.weight, self.attn.c_attn.bias
        kv = linear(x, weight[:, self.inner :].t(), bias[self.inner :])
        k, v = kv.view(-1, 2, self.n_heads, self.head_dim).unbind(1)
        return k, v

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.c_proj.weight.t(), self.attn.c_proj.bias)

    def mlp_norm(self, h: Tensor) -> Tensor:
        return self.layer.ln_2(h)

    def mlp_key(self, x: Tensor) -> Tensor:
        return self.act(linear(x, self.mlp.c_fc.weight.t(), self.mlp.c_fc.bias))

    @property
    def down(self) -> Tensor:
        return self.mlp.c_proj.weight.t()

    @property
    def down_bias(self) -> Tensor | None:
        return self.mlp.c_proj.bias


@Decoder.register("gpt2")
class GPT2Decoder(Decoder):
    """GPT2LMHeadModel, also of GPT-SW3."""

    norm_kind = "layer"

    def bind(self) -> None:
        self.blocks = [GPT2Block(layer) for layer in self.base.h]
        self.final_norm = self.base.ln_f

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        return x + self.base.wpe.weight[positions]
