"""SmolLM3: Llama's layout; some layers apply no rotation (NoPE)."""

from torch import Tensor

from fasttrace.models.adapter import Decoder, Rotary
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder


class SmolLM3Block(LlamaBlock):
    """Each attention module knows whether it rotates; `config.no_rope_layers` is 1 for the layers that do."""

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        return super().rotate(x, rotary) if self.attn.use_rope else x


@Decoder.register("smollm3")
class SmolLM3Decoder(LlamaDecoder):
    """SmolLM3ForCausalLM."""

    block = SmolLM3Block
