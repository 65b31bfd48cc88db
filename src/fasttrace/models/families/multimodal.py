"""Text decoders that transformers has only inside multimodal models: those of Qwen 2-VL, 2.5-VL, 2.5-Omni and 3-VL, of
Emu3 and of Phi-4 multimodal. They are Qwen 2, Qwen 3, Llama and Phi-3.

Qwen's have a position for time, one for height and one for width. The three of a text token are equal.
"""

from typing import Any

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.llama import LlamaDecoder
from fasttrace.models.families.phi3 import Phi3Decoder
from fasttrace.models.families.qwen3 import Qwen3Block
from fasttrace.models.families.routed import RoutedDecoder, RoutedMlp


@Decoder.register("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text")
class Qwen2VLDecoder(LlamaDecoder):
    """Qwen2VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration, Qwen2_5OmniThinkerForConditionalGeneration
    given text: Qwen 2's layout, with a position for time, height and width, which are equal for text."""

    def rotary(self, positions: Tensor) -> Rotary:
        cos, sin = self.base.rotary_emb(self.like(positions), positions.expand(3, 1, -1))
        # Older releases of transformers return the tables of time, height and width, which are equal here.
        return cos.flatten(0, -3)[0], sin.flatten(0, -3)[0]


@Decoder.register("qwen3_vl_text")
class Qwen3VLDecoder(Qwen2VLDecoder):
    """Qwen3VLForConditionalGeneration given text: Qwen 3's layout, with positions as in Qwen 2-VL."""

    block = Qwen3Block


class Qwen3VLMoeBlock(RoutedMlp, Qwen3Block):
    """Qwen 3's block with experts."""


@Decoder.register("qwen3_vl_moe_text")
class Qwen3VLMoeDecoder(RoutedDecoder, Qwen3VLDecoder):
    """Qwen3VLMoeForConditionalGeneration given text: Qwen 3-VL's decoder with experts."""

    block, routed_block = Qwen3Block, Qwen3VLMoeBlock


@Decoder.register("emu3_text_model")
class Emu3Decoder(LlamaDecoder):
    """Emu3ForCausalLM, Emu3ForConditionalGeneration given text: Llama's layout."""


@Decoder.register("phi4_multimodal")
class Phi4MultimodalDecoder(Phi3Decoder):
    """Phi4MultimodalForCausalLM given text: Phi-3's layout."""

    def __init__(self, hf: Any, tokenizer: Any, name: str) -> None:
        super().__init__(hf, tokenizer, name)
        # The towers for images and sounds are parts of the base.
        self._entry = [self.base.embed_tokens]
