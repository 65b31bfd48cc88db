"""SmolLM3: Llama's layout, with some layers that do not rotate (NoPE)."""

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder


class SmolLM3Block(LlamaBlock):
    """Llama's block, which rotates only if its attention has `use_rope`, a 1 in `config.no_rope_layers`."""

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        return super().rotate(x, rotary) if self.attn.use_rope else x


@Decoder.register("smollm3")
class SmolLM3Decoder(LlamaDecoder):
    """SmolLM3ForCausalLM."""

    block = SmolLM3Block
