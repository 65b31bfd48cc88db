"""Granite and HyperCLOVA X: Llama's layout with factors of the embeddings, the attention scores, what is added to the
residual stream, and the logits.
"""

from typing import Any

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder


class GraniteBlock(LlamaBlock):
    """Llama's block. What attention and the MLP add is multiplied by `config.residual_multiplier`."""

    def __init__(self, layer: Any, sliding_window: int | None) -> None:
        super().__init__(layer, sliding_window)
        self.residual_multiplier = layer.residual_multiplier


@Decoder.register("granite")
class GraniteDecoder(LlamaDecoder):
    """GraniteForCausalLM."""

    block: type[LlamaBlock] = GraniteBlock

    def bind(self) -> None:
        super().bind()
        self.logit_scale = 1.0 / self.config.logits_scaling

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        return x * self.base.embedding_multiplier


class HyperCLOVAXBlock(GraniteBlock):
    """Granite's block. With `config.use_post_norm`, what is added is normed before it is multiplied."""

    def __init__(self, layer: Any, sliding_window: int | None) -> None:
        super().__init__(layer, sliding_window)
        if self.attn.config.use_post_norm:
            self.attn_post_name, self.mlp_post_name = "post_norm1", "post_norm2"


@Decoder.register("hyperclovax")
class HyperCLOVAXDecoder(GraniteDecoder):
    """HyperCLOVAXForCausalLM."""

    block = HyperCLOVAXBlock

    def bind(self) -> None:
        super().bind()
        self.logit_scale = float(self.config.logits_scaling)
