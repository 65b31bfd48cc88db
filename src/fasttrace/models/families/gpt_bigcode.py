"""GPT-BigCode (SantaCoder, StarCoder): GPT-2 with plain Linears and, usually, one key and value for all heads."""

from typing import Any

from torch import Tensor

from fasttrace.models.activations import activation
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.falcon import GroupedBlock
from fasttrace.models.families.gpt2 import GPT2Decoder
from fasttrace.ops.linear import linear


class GPTBigCodeBlock(GroupedBlock):
    """ln_1 → c_attn → c_proj; ln_2 → act(c_fc) → c_proj. Without `multi_query`, every head is a group of its own."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.attn, self.mlp = layer.attn, layer.mlp
        self.act = activation(self.mlp.act)
        self.n_heads, self.n_kv_heads = self.attn.num_heads, self.attn.kv_heads
        self.head_dim = self.rows = self.attn.head_dim
        self.fused = self.attn.c_attn
        self.scale = self.attn.scaling

    def attn_norm(self, h: Tensor) -> Tensor:
        return self.layer.ln_1(h)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        return self.project(x, slice(None, -2)).flatten(1, 2)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k, v = self.project(x, slice(-2, None)).unbind(2)
        return k, v

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.c_proj.weight, self.attn.c_proj.bias)

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


@Decoder.register("gpt_bigcode")
class GPTBigCodeDecoder(GPT2Decoder):
    """GPTBigCodeForCausalLM."""

    def bind(self) -> None:
        self.blocks = [GPTBigCodeBlock(layer) for layer in self.base.h]
        self.final_norm = self.base.ln_f
