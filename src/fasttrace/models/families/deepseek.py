"""DeepSeek 2 and 3, and GLM 4.7 Flash: latent attention, experts after the first layers, and a shared expert."""

import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.latent import LatentBlock, YoutuDecoder
from fasttrace.models.families.routed import RoutedDecoder, RoutedMlp


class DeepseekBlock(RoutedMlp, LatentBlock):
    """Latent attention and experts."""


@Decoder.register("deepseek_v3", "glm4_moe_lite")
class DeepseekDecoder(RoutedDecoder, YoutuDecoder):
    """DeepseekV3ForCausalLM, Glm4MoeLiteForCausalLM: latent attention, experts after the first layers, and a shared
    one."""

    block, routed_block = LatentBlock, DeepseekBlock


class DeepseekV2Block(LatentBlock):
    """Latent attention that always rotates neighbours."""

    def count_heads(self) -> None:
        super().count_heads()
        self.interleaved = True


class RoutedDeepseekV2Block(RoutedMlp, DeepseekV2Block):
    """The same with experts."""


@Decoder.register("deepseek_v2")
class DeepseekV2Decoder(RoutedDecoder):
    """DeepseekV2ForCausalLM: latent attention, experts after the first layers, and a shared one."""

    block, routed_block = DeepseekV2Block, RoutedDeepseekV2Block

    def rotary(self, positions: Tensor) -> Rotary:
        # Complex numbers of float32, which rotate heads of any dtype.
        turns = self.base.rotary_emb(self.like(positions), positions[None])[0]
        wide = torch.promote_types(self.dtype, torch.float32)
        return turns.real.to(wide).contiguous(), turns.imag.to(wide).contiguous()
