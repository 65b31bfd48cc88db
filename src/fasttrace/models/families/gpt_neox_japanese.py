"""GPT-NeoX-Japanese: GPT-NeoX in sequence and without biases, but for one after the last layer's attention."""

from typing import Any

from torch import Tensor

from fasttrace.models.activations import activation
from fasttrace.models.adapter import Decoder
from fasttrace.models.families.gpt_neox import GPTNeoXBlock, GPTNeoXDecoder


class GPTNeoXJapaneseBlock(GPTNeoXBlock):
    """GPT-NeoX's block. The bias of the last layer is added to what the attention module gives."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer
        self.attn, self.mlp = layer.attention, layer.mlp
        self.act = activation(self.mlp.act)
        self.fused = self.attn.query_key_value
        self.n_heads = self.n_kv_heads = self.attn.num_attention_heads
        self.head_dim = self.attn.head_size
        self.scale = 1 / self.attn.norm_factor

    def attn_add(self, value: Tensor) -> Tensor:
        return value if self.attn.dense_bias is None else value + self.attn.dense_bias


@Decoder.register("gpt_neox_japanese")
class GPTNeoXJapaneseDecoder(GPTNeoXDecoder):
    """GPTNeoXJapaneseForCausalLM."""

    def bind(self) -> None:
        self.blocks = [GPTNeoXJapaneseBlock(layer) for layer in self.base.layers]
        self.final_norm = self.base.final_layer_norm
