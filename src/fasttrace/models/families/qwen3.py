"""Qwen 3: Llama's layout, with every head of the queries and keys normed before it is rotated."""

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder


class Qwen3Block(LlamaBlock):
    """Llama's block with q_norm and k_norm, whose (head_dim,) weights are the same for all heads."""

    def norm_query(self, q: Tensor) -> Tensor:
        return self.norm(self.attn.q_norm, q.view(-1, self.head_dim)).view(q.shape)

    def norm_key(self, k: Tensor) -> Tensor:
        return self.norm(self.attn.k_norm, k.view(-1, self.head_dim)).view(k.shape)


@Decoder.register("qwen3")
class Qwen3Decoder(LlamaDecoder):
    """Qwen3ForCausalLM."""

    block = Qwen3Block
