"""Gemma 2 and Gemma 3 (text): norms before and after both sub-layers, with weights 1 + w; scaled embeddings; sliding
windows in some layers. Gemma 2 caps scores and logits. Gemma 3 norms heads and has one rotation per layer type.
"""

from typing import Any

import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder, Rotary
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder
from fasttrace.ops.rms_norm import rms_norm


def _norm(module: Any, x: Tensor) -> Tensor:
    """x: (N, d) → (N, d), x · (1 + w) / rms(x) in float32 for every dtype of x, as in the module.

    The op rounds elsewhere for other dtypes, so it is used only for float32.
    """
    if x.dtype == torch.float32:
        return rms_norm(x, 1.0 + module.weight, module.eps)
    normed: Tensor = module(x)
    return normed


class Gemma2Block(LlamaBlock):
    """norm → q/k/v, rotary, capped scores → o_proj → norm; norm → act(gate) · up → down_proj → norm."""

    def __init__(self, layer: Any, sliding_window: int | None) -> None:
        super().__init__(layer, sliding_window)
        self.softcap = self.attn.attn_logit_softcapping

    def attn_norm(self, h: Tensor) -> Tensor:
        return _norm(self.layer.input_layernorm, h)

    def attn_add(self, value: Tensor) -> Tensor:
        return _norm(self.layer.post_attention_layernorm, value)

    def mlp_norm(self, h: Tensor) -> Tensor:
        return _norm(self.layer.pre_feedforward_layernorm, h)

    def mlp_norm_rows(self, h: Tensor, rows: Tensor) -> Tensor:
        return self.mlp_norm(h.index_select(0, rows))

    def mlp_add(self, value: Tensor) -> Tensor:
        return _norm(self.layer.post_feedforward_layernorm, value)


@Decoder.register("gemma2")
class Gemma2Decoder(LlamaDecoder):
    """Gemma2ForCausalLM: norms with weights 1 + w before and after both sub-layers, scaled embeddings, sliding windows
    in every second layer, capped scores and logits."""

    block = Gemma2Block

    @classmethod
    def refusal(cls, config: Any) -> str | None:
        if getattr(config, "use_bidirectional_attention", False):
            return "its attention is not causal (use_bidirectional_attention)"
        return None

    def bind(self) -> None:
        super().bind()
        # The embedding module rounds its scale to the model's dtype. In older releases of transformers the model scales
        # the embeddings itself.
        scale = getattr(self.base.embed_tokens, "embed_scale", None)
        self.embed_scale = None if scale is None else float(scale.to(self.dtype))
        self.logit_softcap = self.config.final_logit_softcapping

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        if self.embed_scale is not None:
            return x
        return x * torch.tensor(self.config.hidden_size**0.5, dtype=x.dtype)

    @property
    def final_norm_weight(self) -> Tensor:
        weight: Tensor = self.base.norm.weight
        return (1.0 + weight.to(torch.promote_types(self.dtype, torch.float32))).to(self.dtype)


class Gemma3Block(Gemma2Block):
    """Gemma 2's block without caps. It norms every head of q and k and rotates them by the tables of its layer type."""

    def __init__(self, layer: Any, sliding_window: int | None, kind: int) -> None:
        super().__init__(layer, sliding_window)
        self.softcap = None  # transformers' attention has the setting but does not read it
        self.tables = slice(2 * kind, 2 * kind + 2)

    def norm_query(self, q: Tensor) -> Tensor:
        return _norm(self.attn.q_norm, q.view(-1, self.head_dim)).view(q.shape)

    def norm_key(self, k: Tensor) -> Tensor:
        return _norm(self.attn.k_norm, k.view(-1, self.head_dim)).view(k.shape)

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        return super().rotate(x, rotary[self.tables])


@Decoder.register("gemma3_text")
class Gemma3Decoder(Gemma2Decoder):
    """Gemma3ForCausalLM: Gemma 2's layout without caps; heads of queries and keys are normed, and each layer type has a
    rotation of its own."""

    def bind(self) -> None:
        types = self.config.layer_types
        self.kinds = sorted(set(types))
        super().bind()

    def make_block(self, layer: Any, number: int) -> Gemma3Block:
        return Gemma3Block(layer, self._sliding_window(number), self.kinds.index(self.config.layer_types[number]))

    def rotary(self, positions: Tensor) -> Rotary:
        rotary_emb = self.base.rotary_emb
        tables = [rotary_emb(self.embed_weight[:1], positions[None], kind) for kind in self.kinds]
        return tuple(table[0] for pair in tables for table in pair)
