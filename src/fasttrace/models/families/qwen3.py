"""Qwen 3: Llama's layout; every head of the queries and keys is normed before it is rotated."""

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder
from fasttrace.ops.rms_norm import rms_norm


class Qwen3Block(LlamaBlock):
    """q_norm and k_norm share their (head_dim,) weights over heads."""

    def norm_query(self, q: Tensor) -> Tensor:
        norm = self.attn.q_norm
        return rms_norm(q.view(-1, self.head_dim), norm.weight, norm.variance_epsilon).view(q.shape)

    def norm_key(self, k: Tensor) -> Tensor:
        norm = self.attn.k_norm
        return rms_norm(k.view(-1, self.head_dim), norm.weight, norm.variance_epsilon).view(k.shape)


@Decoder.register("qwen3")
class Qwen3Decoder(LlamaDecoder):
    """Qwen3ForCausalLM."""

    block = Qwen3Block
