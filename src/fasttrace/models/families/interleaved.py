"""Families near Llama's layout that rotate neighbouring dimensions: GLM, Helium, ERNIE 4.5 and Cohere's Command."""

from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from fasttrace.models.adapter import Decoder, Rotary
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

    interleaved = True

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        wide = torch.promote_types(x.dtype, torch.float32)
        return self.turned(x.to(wide), rotary).to(x.dtype)


@Decoder.register("ernie4_5")
class Ernie4_5Decoder(InterleavedDecoder):
    """Ernie4_5ForCausalLM."""

    block = Ernie4_5Block


class CohereBlock(Ernie4_5Block):
    """input_layernorm → q/k/v, perhaps normed, rotary → o_proj, and input_layernorm → act(gate) · up → down_proj.

    The norms are LayerNorms without biases. Those of queries and keys have weights for every head.
    """

    parallel = True
    mlp_norm_name = "input_layernorm"

    def norm(self, module: Any, x: Tensor, rows: Tensor | None = None) -> Tensor:
        x = x if rows is None else x.index_select(0, rows)
        return functional.layer_norm(x, x.shape[-1:], module.weight, None, module.variance_epsilon)

    def norm_query(self, q: Tensor) -> Tensor:
        return self.attn.q_norm(q.view(-1, self.n_heads, self.head_dim)).view(q.shape) if self._norms_heads() else q

    def norm_key(self, k: Tensor) -> Tensor:
        return self.attn.k_norm(k.view(-1, self.n_kv_heads, self.head_dim)).view(k.shape) if self._norms_heads() else k

    def _norms_heads(self) -> bool:
        return getattr(self.attn, "use_qk_norm", False)


@Decoder.register("cohere")
class CohereDecoder(LlamaDecoder):
    """CohereForCausalLM: Command R and R+, Aya."""

    norm_kind = "layer"
    block: type[LlamaBlock] = CohereBlock

    def bind(self) -> None:
        super().bind()
        self.logit_scale = float(self.config.logit_scale)

    def rotary(self, positions: Tensor) -> Rotary:
        # Both dimensions of a pair have an entry each, one beside the other.
        return tuple(table[:, ::2].contiguous() for table in super().rotary(positions))


class Cohere2Block(CohereBlock):
    """Command R's block. Only the layers with a sliding window rotate."""

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        return x if self.sliding_window is None else super().rotate(x, rotary)


@Decoder.register("cohere2")
class Cohere2Decoder(CohereDecoder):
    """Cohere2ForCausalLM: Command R7B and A."""

    block = Cohere2Block
