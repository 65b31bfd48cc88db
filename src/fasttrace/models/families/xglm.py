"""XGLM and BioGPT: OPT's blocks after scaled embeddings, with computed positions in XGLM and learned ones in BioGPT."""

from typing import Any

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.families.opt import OPTBlock


@Decoder.register("xglm")
class XGLMDecoder(Decoder):
    """XGLMForCausalLM: OPT's blocks after scaled embeddings with sinusoids."""

    norm_kind = "layer"

    def bind(self) -> None:
        self.blocks = [OPTBlock(layer) for layer in self.base.layers]
        self.final_norm = self.base.layer_norm
        self.embed_scale = self.base.embed_tokens.embed_scale

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        module = self.base.embed_positions
        return x + self.table(module).to(x.device)[positions + module.offset]

    def table(self, module: Any) -> Tensor:
        """(positions, d), the vectors that are added to the embeddings, of which the first `offset` are not used."""
        table: Tensor = module.weights
        return table


@Decoder.register("biogpt")
class BioGptDecoder(XGLMDecoder):
    """BioGptForCausalLM: OPT's blocks after scaled embeddings with learned positions."""

    def table(self, module: Any) -> Tensor:
        table: Tensor = module.weight
        return table
