"""Granite and HyperCLOVA X: Llama's layout with factors of the embeddings, the attention scores, what is added to the
residual stream, and the logits. Granite 4 is in transformers' class for mixtures and state spaces, without either.
"""

from typing import Any

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder, pair_of_tables
from fasttrace.models.families.phi3 import GateUpBlock


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


class GraniteSwaBlock(GraniteBlock):
    """Granite's block with sinks: transformers multiplies each head's output by sigmoid(log Σ exp(scores) − sink). One
    more score without a value does the same."""

    @property
    def sinks(self) -> Tensor:  # type: ignore[override]
        return self.attn.sinks


@Decoder.register("granite_swa")
class GraniteSwaDecoder(GraniteDecoder):
    """GraniteSWAForCausalLM. Every layer has a base of its rotation, or 0 for no rotation."""

    block = GraniteSwaBlock

    def make_block(self, layer: Any, number: int) -> LlamaBlock:
        block, bases = super().make_block(layer, number), self.config.layer_rope_theta
        block.tables = pair_of_tables(sorted({base for base in bases if base}), bases[number])
        return block

    def rotary(self, positions: Tensor) -> Rotary:
        return sum((self.tables_of(part, positions) for part in self.base.rotary_embs), ())


class Granite4Block(GraniteBlock, GateUpBlock):
    """Granite's block with gate and up in one matrix."""

    mlp_name, gate_up_name, act_name = "shared_mlp", "input_linear", "activation"

    @property
    def down(self) -> Tensor:
        return self.mlp.output_linear.weight

    @property
    def down_bias(self) -> None:
        return None


@Decoder.register("granitemoehybrid")
class Granite4Decoder(GraniteDecoder):
    """GraniteMoeHybridForCausalLM with attention in every layer and no experts: Granite 4 Micro, 1B and 350M."""

    block = Granite4Block

    @classmethod
    def refusal(cls, config: Any) -> str | None:
        if set(config.layers_block_type) & {"linear_attention", "mamba"}:
            return "some of its layers are state-space layers (Mamba) instead of attention"
        if config.num_local_experts:
            return f"its MLPs are mixtures of {config.num_local_experts} experts"
        return None

    def make_block(self, layer: Any, number: int) -> LlamaBlock:
        block = super().make_block(layer, number)
        if self.base.rotary_emb is None:
            block.tables = None
        return block

    def rotary(self, positions: Tensor) -> Rotary:
        return () if self.base.rotary_emb is None else super().rotary(positions)
