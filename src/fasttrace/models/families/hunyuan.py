"""HunYuan (dense): Llama's layout, with every head of the queries and keys normed after it is rotated."""

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder


class HunYuanBlock(LlamaBlock):
    """Llama's block with query_layernorm and key_layernorm, whose (head_dim,) weights are the same for all heads."""

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        q = super().query(x, rotary)
        return self.norm(self.attn.query_layernorm, q.flatten(0, 1)).view(q.shape)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k, v = super().key_value(x, rotary)
        return self.norm(self.attn.key_layernorm, k.flatten(0, 1)).view(k.shape), v


@Decoder.register("hunyuan_v1_dense")
class HunYuanDecoder(LlamaDecoder):
    """HunYuanDenseV1ForCausalLM."""

    block = HunYuanBlock
