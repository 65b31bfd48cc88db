"""The text decoders of Qwen 2-VL, 2.5-VL, 2.5-Omni and 3-VL: Qwen 2 and Qwen 3 with a position for time, height and
width each. The three positions of a text token are equal.
"""

import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder, Rotary
from fasttrace.models.families.llama import LlamaDecoder
from fasttrace.models.families.qwen3 import Qwen3Block


@Decoder.register("qwen2_vl_text", "qwen2_5_vl_text", "qwen2_5_omni_text")
class Qwen2VLDecoder(LlamaDecoder):
    """Qwen2VLForConditionalGeneration, Qwen2_5_VLForConditionalGeneration, Qwen2_5OmniThinkerForConditionalGeneration,
    given text."""

    def rotary(self, positions: Tensor) -> Rotary:
        like = torch.empty(0, dtype=self.dtype, device=positions.device)  # rotary_emb reads its dtype and device
        cos, sin = self.base.rotary_emb(like, positions.expand(3, 1, -1))
        # Older releases of transformers return the tables of time, height and width, which are equal here.
        return cos.flatten(0, -3)[0], sin.flatten(0, -3)[0]


@Decoder.register("qwen3_vl_text")
class Qwen3VLDecoder(Qwen2VLDecoder):
    """Qwen3VLForConditionalGeneration, given text."""

    block = Qwen3Block
