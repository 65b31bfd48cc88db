"""OPT: learned positions that begin at the table's third row, LayerNorms before the sub-layers, a ReLU in the MLP."""

from typing import Any

from torch import Tensor

from fasttrace.models.activations import activation
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.ops.linear import linear


class OPTBlock(Block):
    """self_attn_layer_norm → q/k/v → out_proj; final_layer_norm → act(fc1) → fc2."""

    def __init__(self, layer: Any) -> None:
        self.layer, self.attn = layer, layer.self_attn
        self.act = activation(layer.activation_fn)
        self.n_heads = self.n_kv_heads = self.attn.num_heads
        self.head_dim = self.attn.head_dim
        self.scale = self.attn.scaling

    def attn_norm(self, h: Tensor) -> Tensor:
        return self.layer.self_attn_layer_norm(h)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        return self._heads(x, self.attn.q_proj)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        return self._heads(x, self.attn.k_proj), self._heads(x, self.attn.v_proj)

    def _heads(self, x: Tensor, projection: Any) -> Tensor:
        return linear(x, projection.weight, projection.bias).view(-1, self.n_heads, self.head_dim)

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.out_proj.weight, self.attn.out_proj.bias)

    def mlp_norm(self, h: Tensor) -> Tensor:
        return self.layer.final_layer_norm(h)

    def mlp_key(self, x: Tensor) -> Tensor:
        return self.act(linear(x, self.layer.fc1.weight, self.layer.fc1.bias))

    @property
    def down(self) -> Tensor:
        return self.layer.fc2.weight

    @property
    def down_bias(self) -> Tensor | None:
        return self.layer.fc2.bias


@Decoder.register("opt")
class OPTDecoder(Decoder):
    """OPTForCausalLM."""

    norm_kind = "layer"

    @classmethod
    def refusal(cls, config: Any) -> str | None:
        if not config.do_layer_norm_before or config._remove_final_layer_norm:
            return "it norms the residual stream itself after every sub-layer, or has no final norm (as opt-350m)"
        if config.word_embed_proj_dim != config.hidden_size:
            return (
                f"expected embeddings as wide as the residual stream ({config.hidden_size}), "
                f"got {config.word_embed_proj_dim} projected to that"
            )
        return None

    def bind(self) -> None:
        self.blocks = [OPTBlock(layer) for layer in self.base.decoder.layers]
        self.final_norm = self.base.decoder.final_layer_norm

    def enter(self, x: Tensor, positions: Tensor) -> Tensor:
        table = self.base.decoder.embed_positions
        return x + table.weight[positions + table.offset]
