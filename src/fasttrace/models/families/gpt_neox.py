"""GPT-NeoX and Pythia: attention and MLP (usually in parallel), each with a LayerNorm; one matrix for q, k and v, head
by head; part of each head rotated.
"""

from typing import Any

from torch import Tensor

from fasttrace.models.activations import activation
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.ops.linear import linear
from fasttrace.ops.rotary import partial_rotary_


class HeadwiseBlock(Block):
    """A block whose fused matrix contains, for one head after another, the rows of its query, its key and its value.

    The rows of all queries are not one strided view, so each product gathers them first. That copies d × d
    numbers, which takes little time compared with a product of a few hundred rows or more. A permanent copy would
    increase the block's weights by a fourth. Subclasses set `fused` (the Linear), n_heads and head_dim.
    """

    fused: Any

    def project(self, x: Tensor, parts: slice) -> Tensor:
        """x: (N, d) → (N, H, len(parts), hd), with `parts` a slice of (query, key, value)."""
        heads = (self.n_heads, 3, self.head_dim)
        weight = self.fused.weight.unflatten(0, heads)[:, parts].flatten(0, 2)
        bias = self.fused.bias
        if bias is not None:
            bias = bias.unflatten(0, heads)[:, parts].flatten()
        return linear(x, weight, bias).view(len(x), self.n_heads, -1, self.head_dim)


class GPTNeoXBlock(HeadwiseBlock):
    """input_layernorm → q/k/v, rotary → dense; post_attention_layernorm → act(dense_h_to_4h) → dense_4h_to_h."""

    def __init__(self, layer: Any, config: Any) -> None:
        self.layer = layer
        self.attn, self.mlp = layer.attention, layer.mlp
        self.act = activation(self.mlp.act)
        self.fused = self.attn.query_key_value
        self.n_heads = self.n_kv_heads = config.num_attention_heads
        self.head_dim = config.hidden_size // config.num_attention_heads
        self.scale = self.head_dim**-0.5
        self.parallel = config.use_parallel_residual

    def attn_norm(self, h: Tensor) -> Tensor:
        return self.layer.input_layernorm(h)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        return partial_rotary_(self.project(x, slice(0, 1))[:, :, 0], *rotary)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k, v = self.project(x, slice(1, 3)).unbind(2)
        return partial_rotary_(k, *rotary), v

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.dense.weight, self.attn.dense.bias)

    def mlp_norm(self, h: Tensor) -> Tensor:
        return self.layer.post_attention_layernorm(h)

    def mlp_key(self, x: Tensor) -> Tensor:
        return self.act(linear(x, self.mlp.dense_h_to_4h.weight, self.mlp.dense_h_to_4h.bias))

    @property
    def down(self) -> Tensor:
        return self.mlp.dense_4h_to_h.weight

    @property
    def down_bias(self) -> Tensor | None:
        return self.mlp.dense_4h_to_h.bias


@Decoder.register("gpt_neox")
class GPTNeoXDecoder(Decoder):
    """GPTNeoXForCausalLM."""

    norm_kind = "layer"

    def bind(self) -> None:
        self.blocks = [GPTNeoXBlock(layer, self.config) for layer in self.base.layers]
        self.final_norm = self.base.final_layer_norm

    def rotary(self, positions: Tensor) -> Rotary:
        cos, sin = self.base.rotary_emb(self.like(positions), positions[None])
        return cos[0], sin[0]
