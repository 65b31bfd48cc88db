"""GPT-OSS: experts with biases and a clamped gate, biases in attention, a sink in each head's softmax, sliding windows
in every other layer.
"""

import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.llama import LlamaBlock
from fasttrace.models.families.routed import RoutedDecoder, RoutedMlp


class GptOssBlock(RoutedMlp):
    """Llama's block with sinks. transformers' experts apply the clamped gate."""

    @property
    def sinks(self) -> Tensor:  # type: ignore[override]
        return self.attn.sinks


@Decoder.register("gpt_oss")
class GptOssDecoder(RoutedDecoder):
    """GptOssForCausalLM."""

    block, routed_block = LlamaBlock, GptOssBlock

    def rotary(self, positions: Tensor) -> Rotary:
        cos, sin = super().rotary(positions)
        return torch.cat((cos, cos), dim=-1), torch.cat((sin, sin), dim=-1)
