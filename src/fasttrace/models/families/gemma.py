"""Gemma 1, 2, 3 (text) and VaultGemma: norms with weights 1 + w, and scaled embeddings.

All but the first have sliding windows in some layers. Gemma 2 and 3 also norm what their sub-layers add. Gemma 2 and
VaultGemma cap scores and logits. Gemma 3 norms heads and has one rotation per layer type.
"""

from typing import Any

import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder
from fasttrace.models.families.qwen3 import Qwen3Block
from fasttrace.ops.rms_norm import rms_norm


class GemmaBlock(LlamaBlock):
    """Llama's block with Gemma's norms."""

    def norm(self, module: Any, x: Tensor, rows: Tensor | None = None) -> Tensor:
        # The module computes x · (1 + w) / rms(x) in float32 also for narrower dtypes of x. The op rounds elsewhere for
        # these, so it is used only for float32 and float64.
        if x.dtype in (torch.float32, torch.float64):
            return rms_norm(x, 1.0 + module.weight, module.eps, rows=rows)
        normed: Tensor = module(x if rows is None else x.index_select(0, rows))
        return normed


@Decoder.register("gemma")
class GemmaDecoder(LlamaDecoder):
    """GemmaForCausalLM."""

    block: type[LlamaBlock] = GemmaBlock

    @classmethod
    def refusal(cls, config: Any) -> str | None:
        if getattr(config, "use_bidirectional_attention", False):
            return "its attention is not causal (use_bidirectional_attention)"
        return None

    def bind(self) -> None:
        super().bind()
        self.logit_softcap = getattr(self.config, "final_logit_softcapping", None)

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.embed_scale is not None:
            return x
        # In older releases of transformers the model scales the embeddings itself.
        return x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype)

    @property
    def final_norm_weight(self) -> Tensor:
        weight: Tensor = self.base.norm.weight
        return (1.0 + weight.to(torch.promote_types(self.dtype, torch.float32))).to(self.dtype)


class VaultGemmaBlock(GemmaBlock):
    """norm → q/k/v, rotary, capped scores → o_proj; norm → act(gate) · up → down_proj."""

    mlp_norm_name = "pre_feedforward_layernorm"

    def __init__(self, layer: Any, sliding_window: int | None) -> None:
        super().__init__(layer, sliding_window)
        self.softcap = self.attn.attn_logit_softcapping


@Decoder.register("vaultgemma")
class VaultGemmaDecoder(GemmaDecoder):
    """VaultGemmaForCausalLM: Gemma's layout with capped scores and logits."""

    block = VaultGemmaBlock


class Gemma2Block(VaultGemmaBlock):
    """norm → q/k/v, rotary, capped scores → o_proj → norm; norm → act(gate) · up → down_proj → norm."""

    attn_post_name, mlp_post_name = "post_attention_layernorm", "post_feedforward_layernorm"


@Decoder.register("gemma2")
class Gemma2Decoder(GemmaDecoder):
    """Gemma2ForCausalLM: Gemma's norms before and after both sub-layers, sliding windows in every second layer, capped
    scores and logits."""

    block = Gemma2Block


class Gemma3Block(Gemma2Block, Qwen3Block):
    """Gemma 2's block without caps. It norms every head of q and k and rotates them by the tables of its layer type."""

    def __init__(self, layer: Any, sliding_window: int | None) -> None:
        super().__init__(layer, sliding_window)
        self.softcap = None  # transformers' attention has the setting but does not read it


@Decoder.register("gemma3_text")
class Gemma3Decoder(GemmaDecoder):
    """Gemma3ForCausalLM: Gemma 2's layout without caps; heads of queries and keys are normed, and each layer type has a
    rotation of its own."""

    block = Gemma3Block
    typed_rotary = True
