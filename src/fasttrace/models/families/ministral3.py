"""Ministral 3: Llama's layout, with queries that grow with their position."""

import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder


class Ministral3Block(LlamaBlock):
    """Llama's block. A query is multiplied by the third table's entry for its position."""

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        return super().query(x, rotary) * rotary[2][:, None, None]


@Decoder.register("ministral3")
class Ministral3Decoder(LlamaDecoder):
    """Ministral3ForCausalLM."""

    block = Ministral3Block

    def rotary(self, positions: Tensor) -> Rotary:
        rope = self.config.rope_parameters
        periods = torch.floor(positions / rope["original_max_position_embeddings"])
        growth = 1 + rope["llama_4_scaling_beta"] * torch.log(1 + periods)
        return *super().rotary(positions), growth.to(self.dtype)
