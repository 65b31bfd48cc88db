"""OLMo 2: norms after the sub-layers instead of before them, and norms of whole query and key projections."""

from typing import Any

import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder, Rotary
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder
from fasttrace.ops.rms_norm import rms_norm


def _norm(module: Any, x: Tensor) -> Tensor:
    """x: (N, d) → (N, d), OLMo's RMS norm, which rounds once, after the weight.

    The op also rounds before the weight, which changes nothing only in float32 and float64.
    """
    if x.dtype in (torch.float32, torch.float64):
        return rms_norm(x, module.weight, module.variance_epsilon)
    normed: Tensor = module(x)
    return normed


class Olmo2Block(LlamaBlock):
    """q/k/v, norm of q and k, rotary → o_proj → norm; act(gate) · up → down_proj → norm."""

    def attn_norm(self, h: Tensor) -> Tensor:
        return h

    def norm_query(self, q: Tensor) -> Tensor:
        return _norm(self.attn.q_norm, q)

    def norm_key(self, k: Tensor) -> Tensor:
        return _norm(self.attn.k_norm, k)

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        return super().rotate(x.to(rotary[0].dtype), rotary).to(x.dtype)

    def attn_add(self, value: Tensor) -> Tensor:
        return _norm(self.layer.post_attention_layernorm, value)

    def mlp_norm(self, h: Tensor) -> Tensor:
        return h

    def mlp_norm_rows(self, h: Tensor, rows: Tensor) -> Tensor:
        return h.index_select(0, rows)

    def mlp_add(self, value: Tensor) -> Tensor:
        return _norm(self.layer.post_feedforward_layernorm, value)


@Decoder.register("olmo2")
class Olmo2Decoder(LlamaDecoder):
    """Olmo2ForCausalLM."""

    block = Olmo2Block

    def rotary(self, positions: Tensor) -> Rotary:
        cos, sin = super().rotary(positions)
        # transformers leaves these in float32 and rotates bfloat16 heads in float32.
        wide = torch.promote_types(self.dtype, torch.float32)
        return cos.to(wide), sin.to(wide)
