"""SmolLM3: Llama's layout, some of whose layers turn nothing (NoPE)."""

from torch import Tensor

from fasttrace.models.adapter import Decoder, Rotary
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder


class SmolLM3Block(LlamaBlock):
    """`config.no_rope_layers` holds 1 for the layers that do turn; the attention module knows its own."""

    def turn(self, x: Tensor, rotary: Rotary) -> Tensor:
        return super().turn(x, rotary) if self.attn.use_rope else x


@Decoder.register("smollm3")
class SmolLM3Decoder(LlamaDecoder):
    """SmolLM3ForCausalLM."""

    block = SmolLM3Block
