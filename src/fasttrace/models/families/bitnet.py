"""BitNet with plain weights: Llama's layout, with norms before the two output projections."""

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder


class BitNetBlock(LlamaBlock):
    """norm → q/k/v, rotary → norm → o_proj; norm → norm of act(gate) · up → down_proj."""

    def attn_value(self, mixed: Tensor) -> Tensor:
        return super().attn_value(self.norm(self.attn.attn_sub_norm, mixed))

    def mlp_key(self, x: Tensor) -> Tensor:
        return self.norm(self.mlp.ffn_sub_norm, super().mlp_key(x))


@Decoder.register("bitnet")
class BitNetDecoder(LlamaDecoder):
    """BitNetForCausalLM."""

    block = BitNetBlock
