"""Families near Llama's layout without a gate in the MLP: Arcee, Apertus, StarCoder2, Nemotron, Jais 2, nanochat."""

from typing import Any

from torch import Tensor

from fasttrace.models.activations import activation
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.llama import LayerNormBlock, LlamaBlock, LlamaDecoder
from fasttrace.models.families.qwen3 import Qwen3Block
from fasttrace.ops.linear import linear
from fasttrace.ops.rms_norm import rms_norm


class UngatedBlock(LlamaBlock):
    """Llama's block with an MLP without a gate: act(up) → down. Families name its modules."""

    mlp_products = 1
    up_name, down_name, act_name = "up_proj", "down_proj", "act_fn"

    def bind_mlp(self) -> None:
        self.up_proj, self.down_proj = (getattr(self.mlp, name) for name in (self.up_name, self.down_name))
        self.act = activation(getattr(self.mlp, self.act_name))

    def mlp_key(self, x: Tensor) -> Tensor:
        return self.act(linear(x, self.up_proj.weight, self.up_proj.bias))

    @property
    def down(self) -> Tensor:
        return self.down_proj.weight

    @property
    def down_bias(self) -> Tensor | None:
        return self.down_proj.bias


@Decoder.register("arcee")
class ArceeDecoder(LlamaDecoder):
    """ArceeForCausalLM: Llama's layout with a squared ReLU in an MLP without a gate."""

    block = UngatedBlock


class ApertusBlock(UngatedBlock, Qwen3Block):
    """Heads are normed as in Qwen 3. The activation, xIELU, has two weights of its own in every layer."""

    attn_norm_name, mlp_norm_name = "attention_layernorm", "feedforward_layernorm"


@Decoder.register("apertus", "apertus1p5_text")
class ApertusDecoder(LlamaDecoder):
    """ApertusForCausalLM and Apertus1p5TextForCausalLM, whose unembedding may have fewer tokens than its embedding."""

    block = ApertusBlock


class UngatedLayerNormBlock(UngatedBlock, LayerNormBlock):
    """LayerNorm → q/k/v, rotary → o_proj; LayerNorm → act(up_proj) → down_proj."""


class Starcoder2Block(UngatedLayerNormBlock):
    """LayerNorm → q/k/v, rotary → o_proj; LayerNorm → act(c_fc) → c_proj."""

    up_name, down_name, act_name = "c_fc", "c_proj", "act"


@Decoder.register("starcoder2")
class Starcoder2Decoder(LlamaDecoder):
    """Starcoder2ForCausalLM: LayerNorms, and an MLP without a gate."""

    norm_kind = "layer"
    block = Starcoder2Block


@Decoder.register("jais2")
class Jais2Decoder(LlamaDecoder):
    """Jais2ForCausalLM: LayerNorms, and an MLP with a squared ReLU."""

    norm_kind = "layer"
    block = UngatedLayerNormBlock


@Decoder.register("nemotron")
class NemotronDecoder(Jais2Decoder):
    """NemotronForCausalLM: LayerNorms whose weights are 1 + w, and an MLP with a squared ReLU."""

    @property
    def final_norm_weight(self) -> Tensor:
        weight: Tensor = self.base.norm.weight
        return weight + 1.0


class NanoChatBlock(UngatedBlock):
    """norm → q/k/v, rotary, norm of every head of q and k → o_proj; norm → act(fc1) → fc2. No norm has weights."""

    up_name, down_name, act_name = "fc1", "fc2", "activation_fn"

    def norm(self, module: Any, x: Tensor, rows: Tensor | None = None) -> Tensor:
        return rms_norm(x, x.new_ones(x.shape[-1]), module.eps, rows=rows)

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        turned = super().rotate(x, rotary)
        # q_norm and k_norm are the same function.
        return self.norm(self.attn.q_norm, turned.flatten(0, 1)).view(turned.shape)


@Decoder.register("nanochat")
class NanoChatDecoder(LlamaDecoder):
    """NanoChatForCausalLM: norms without weights, also of every head of queries and keys, and an MLP without a gate."""

    block = NanoChatBlock

    def bind(self) -> None:
        super().bind()
        self.logit_softcap = self.config.final_logit_softcapping

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        return self.base.norm(x)

    def rotary(self, positions: Tensor) -> Rotary:
        cos, sin = super().rotary(positions)
        return cos, -sin  # it rotates by the negative of other families' angles
