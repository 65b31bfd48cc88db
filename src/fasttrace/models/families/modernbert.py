"""ModernBERT's decoder (Ettin): LayerNorms, sliding windows in most layers, one more layer before the unembedding."""

from typing import Any

from torch import Tensor, nn

from fasttrace.models.adapter import Decoder
from fasttrace.models.families.llama import LayerNormBlock, LlamaDecoder
from fasttrace.models.families.phi3 import GateUpBlock
from fasttrace.ops.linear import linear


class ModernBertBlock(LayerNormBlock, GateUpBlock):
    """attn_norm → q/k/v, rotary → Wo; mlp_norm → act(gate) · up, whose rows Wi stacks → Wo. The first layer's attention
    reads the embeddings, which are normed already."""

    attn_name, mlp_norm_name = "attn", "mlp_norm"
    gate_up_name, act_name = "Wi", "act"
    rotates_float32 = True

    def __init__(self, layer: Any, sliding_window: int | None) -> None:
        super().__init__(layer, sliding_window)
        self.attn_norm_name = None if isinstance(layer.attn_norm, nn.Identity) else "attn_norm"

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.Wo.weight, self.attn.Wo.bias)

    @property
    def down(self) -> Tensor:
        return self.mlp.Wo.weight

    @property
    def down_bias(self) -> Tensor | None:
        return self.mlp.Wo.bias


@Decoder.register("modernbert-decoder")
class ModernBertDecoder(LlamaDecoder):
    """ModernBertDecoderForCausalLM: the base's final norm → act(dense) → norm → unembedding."""

    norm_kind = "layer"
    block = ModernBertBlock
    typed_rotary = True

    @classmethod
    def refusal(cls, config: Any) -> str | None:
        return None if config.local_attention else "its layers of sliding attention have no window (local_attention)"

    def last_norm(self) -> nn.Module:
        norm: nn.Module = self.hf.lm_head.norm
        return norm

    def _sliding_window(self, layer: int) -> int | None:
        window: int | None = self.base.layers[layer].attn.sliding_window
        return window

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.base.embeddings.norm(x)

    @property
    def exit_modules(self) -> tuple[nn.Module, ...]:
        return self.base.final_norm, self.hf.lm_head, self.hf.get_output_embeddings()

    def leave(self, h: Tensor) -> Tensor:
        head = self.hf.lm_head
        return head.act(linear(self.base.final_norm(h), head.dense.weight, head.dense.bias))
