"""Families near Llama's layout that rotate neighbouring dimensions: GLM, Helium and ERNIE 4.5."""

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder
from fasttrace.models.families.olmo2 import RoundOnceBlock
from fasttrace.models.families.phi3 import GateUpBlock


class InterleavedDecoder(LlamaDecoder):
    """A decoder whose blocks are interleaved, while `rotary_emb` gives the entry of a pair twice, in two halves."""

    def rotary(self, positions: Tensor) -> Rotary:
        return tuple(table[:, : table.shape[1] // 2].contiguous() for table in super().rotary(positions))


class GlmBlock(GateUpBlock):
    """Llama's block with gate and up in one matrix, and part of each head rotated."""

    interleaved = True


@Decoder.register("glm")
class GlmDecoder(InterleavedDecoder):
    """GlmForCausalLM."""

    block = GlmBlock


class Glm4Block(GlmBlock):
    """GLM's block, which also norms what its sub-layers add."""

    attn_post_name, mlp_post_name = "post_self_attn_layernorm", "post_mlp_layernorm"


@Decoder.register("glm4")
class Glm4Decoder(InterleavedDecoder):
    """Glm4ForCausalLM."""

    block = Glm4Block


class HeliumBlock(RoundOnceBlock):
    """Llama's block with OLMo 2's norms."""

    interleaved = True


@Decoder.register("helium")
class HeliumDecoder(InterleavedDecoder):
    """HeliumForCausalLM."""

    block = HeliumBlock


class Ernie4_5Block(LlamaBlock):
    """Llama's block, which rotates in float32 or wider."""

    interleaved = rotates_float32 = True


@Decoder.register("ernie4_5")
class Ernie4_5Decoder(InterleavedDecoder):
    """Ernie4_5ForCausalLM."""

    block = Ernie4_5Block
