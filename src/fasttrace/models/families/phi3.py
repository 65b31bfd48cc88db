"""Phi-3: Llama's layout with q, k and v in one matrix, gate and up in another, and part of each head rotated."""

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder
from fasttrace.ops.linear import linear
from fasttrace.ops.silu_mul import silu_mul_


class GateUpBlock(LlamaBlock):
    """Llama's block with one matrix that stacks the rows of gate and up. Families name the MLP's modules."""

    gate_up_name, act_name = "gate_up_proj", "activation_fn"

    def mlp_key(self, x: Tensor) -> Tensor:
        both, m = getattr(self.mlp, self.gate_up_name), self.down.shape[1]
        halves = slice(None, m), slice(m, None)
        gate, up = (linear(x, both.weight[half], None if both.bias is None else both.bias[half]) for half in halves)
        return silu_mul_(gate, up) if self.silu else getattr(self.mlp, self.act_name)(gate) * up


class Phi3Block(GateUpBlock):
    """qkv_proj stacks the rows of queries, keys and values."""

    def count_heads(self) -> None:
        self.head_dim = self.attn.head_dim
        self.n_heads = self.attn.config.num_attention_heads
        self.n_kv_heads = self.attn.config.num_key_value_heads
        self.queries = self.n_heads * self.head_dim

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        q = linear(x, self.attn.qkv_proj.weight[: self.queries])
        return self.rotate(q.view(-1, self.n_heads, self.head_dim), rotary)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        kv = linear(x, self.attn.qkv_proj.weight[self.queries :])
        k, v = kv.view(-1, 2, self.n_kv_heads, self.head_dim).unbind(1)
        return self.rotate(k, rotary), v


@Decoder.register("phi3")
class Phi3Decoder(LlamaDecoder):
    """Phi3ForCausalLM: Llama's layout with q, k and v in one matrix, gate and up in another, and part of each head
    rotated. Phi-3 mini, medium and Phi-4."""

    block = Phi3Block
