"""Cohere's models: attention and MLP in parallel from one LayerNorm without a bias, and a factor of the logits.

Command R and R7B rotate neighbouring dimensions. In Command R7B and Compass, some layers have a sliding window, and
some do not rotate.
"""

from typing import Any

from torch import Tensor
from torch.nn import functional

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder


class CommandBlock(LlamaBlock):
    """input_layernorm → q/k/v, rotary → o_proj, and input_layernorm → act(gate) · up → down_proj."""

    parallel = True
    mlp_norm_name = "input_layernorm"

    def norm(self, module: Any, x: Tensor, rows: Tensor | None = None) -> Tensor:
        x = x if rows is None else x.index_select(0, rows)
        return functional.layer_norm(x, x.shape[-1:], module.weight, None, module.variance_epsilon)


class CommandDecoder(LlamaDecoder):
    """What Cohere's models have in common."""

    norm_kind = "layer"

    def bind(self) -> None:
        super().bind()
        scale = self.config.logit_scale
        self.logit_scale = 1.0 if scale is None else float(scale)


class CohereBlock(CommandBlock):
    """Rotates in float32, as ERNIE does. Where queries and keys are normed, the norms have weights for every head."""

    interleaved = rotates_float32 = True

    def norm_query(self, q: Tensor) -> Tensor:
        return self.attn.q_norm(q.view(-1, self.n_heads, self.head_dim)).view(q.shape) if self._norms_heads() else q

    def norm_key(self, k: Tensor) -> Tensor:
        return self.attn.k_norm(k.view(-1, self.n_kv_heads, self.head_dim)).view(k.shape) if self._norms_heads() else k

    def _norms_heads(self) -> bool:
        return getattr(self.attn, "use_qk_norm", False)


@Decoder.register("cohere")
class CohereDecoder(CommandDecoder):
    """CohereForCausalLM: attention and MLP in parallel from one LayerNorm (Command R and R+)."""

    block: type[LlamaBlock] = CohereBlock

    def rotary(self, positions: Tensor) -> Rotary:
        # Both dimensions of a pair have an entry each, one beside the other.
        return tuple(table[:, ::2].contiguous() for table in super().rotary(positions))


class Cohere2Block(CohereBlock):
    """Command R's block. Only the layers with a sliding window rotate."""

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        return x if self.sliding_window is None else super().rotate(x, rotary)


@Decoder.register("cohere2")
class Cohere2Decoder(CohereDecoder):
    """Cohere2ForCausalLM: Cohere's layout; only layers with a sliding window rotate (Command R7B and A)."""

    block = Cohere2Block


@Decoder.register("cohere_compass_text")
class CohereCompassDecoder(CommandDecoder):
    """CohereCompassForCausalLM, whose rotations are Llama's. A type of layers may have none."""

    block = CommandBlock
    typed_rotary = True
