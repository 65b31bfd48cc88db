"""OLMo 2 and 3: norms after the sub-layers instead of before them, and norms of whole query and key projections. OLMo 3
has sliding windows in some layers. EXAONE 4 has its norms in the same places, and norms heads as Qwen 3 does.
"""

from typing import Any

import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder
from fasttrace.models.families.qwen3 import Qwen3Block
from fasttrace.ops.rms_norm import rms_norm


class PostNormBlock(LlamaBlock):
    """q/k/v, rotary → o_proj → norm; act(gate) · up → down_proj → norm."""

    attn_norm_name, mlp_norm_name = None, None
    attn_post_name, mlp_post_name = "post_attention_layernorm", "post_feedforward_layernorm"


class RoundOnceBlock(LlamaBlock):
    """Llama's block with norms that round once, after the weight."""

    def norm(self, module: Any, x: Tensor, rows: Tensor | None = None) -> Tensor:
        # The op also rounds before the weight, which changes nothing only in float32 and float64.
        if x.dtype in (torch.float32, torch.float64):
            return rms_norm(x, module.weight, module.variance_epsilon, rows=rows)
        normed: Tensor = module(x if rows is None else x.index_select(0, rows))
        return normed


class Olmo2Block(PostNormBlock, RoundOnceBlock):
    """The whole query and key projections are normed before they are rotated."""

    def norm_query(self, q: Tensor) -> Tensor:
        return self.norm(self.attn.q_norm, q)

    def norm_key(self, k: Tensor) -> Tensor:
        return self.norm(self.attn.k_norm, k)


@Decoder.register("olmo2")
class Olmo2Decoder(LlamaDecoder):
    """Olmo2ForCausalLM: norms after the sub-layers, and of whole query and key projections."""

    block = Olmo2Block


@Decoder.register("olmo3")
class Olmo3Decoder(LlamaDecoder):
    """Olmo3ForCausalLM: OLMo 2's layout with sliding windows in some layers."""

    block = Olmo2Block
    typed_rotary = True


class Exaone4Block(PostNormBlock, Qwen3Block):
    """In a model with sliding windows, the layers without one do not rotate."""

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        turns = self.attn.sliding_window is None or self.attn.is_sliding
        return super().rotate(x, rotary) if turns else x


@Decoder.register("exaone4")
class Exaone4Decoder(LlamaDecoder):
    """Exaone4ForCausalLM."""

    block = Exaone4Block
