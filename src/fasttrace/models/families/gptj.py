"""GPT-J: attention and MLP in parallel from one LayerNorm; part of each head is rotated in interleaved pairs."""

from typing import Any

from torch import Tensor

from fasttrace.models.activations import activation
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.ops.linear import linear
from fasttrace.ops.rotary import partial_rotary_


class GPTJBlock(Block):
    """ln_1 → q/k/v, rotary → out_proj, and ln_1 → act(fc_in) → fc_out."""

    parallel = True

    def __init__(self, layer: Any, config: Any) -> None:
        self.layer = layer
        self.attn, self.mlp = layer.attn, layer.mlp
        self.act = activation(self.mlp.act)
        self.n_heads = self.n_kv_heads = config.n_head
        self.head_dim = config.n_embd // config.n_head
        self.scale = self.head_dim**-0.5

    def attn_norm(self, h: Tensor) -> Tensor:
        return self.layer.ln_1(h)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        return self._rotate(linear(x, self.attn.q_proj.weight), rotary)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k = self._rotate(linear(x, self.attn.k_proj.weight), rotary)
        return k, linear(x, self.attn.v_proj.weight).view(-1, self.n_heads, self.head_dim)

    def _rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        """x: (N, d) queries or keys → (N, H, hd), with the first 2r dims of each head rotated in place. cos and sin are
        (N, r)."""
        return partial_rotary_(x.view(-1, self.n_heads, self.head_dim), *rotary, interleaved=True)

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.out_proj.weight)

    def mlp_norm(self, h: Tensor) -> Tensor:
        return self.layer.ln_1(h)

    def mlp_key(self, x: Tensor) -> Tensor:
        return self.act(linear(x, self.mlp.fc_in.weight, self.mlp.fc_in.bias))

    @property
    def down(self) -> Tensor:
        return self.mlp.fc_out.weight

    @property
    def down_bias(self) -> Tensor | None:
        return self.mlp.fc_out.bias


@Decoder.register("gptj")
class GPTJDecoder(Decoder):
    """GPTJForCausalLM."""

    norm_kind = "layer"

    def bind(self) -> None:
        self.blocks = [GPTJBlock(layer, self.config) for layer in self.base.h]
        self.final_norm = self.base.ln_f

    def rotary(self, positions: Tensor) -> Rotary:
        # Older releases of transformers keep the table in every attention module.
        table = (self.base.rotary_emb if hasattr(self.base, "rotary_emb") else self.base.h[0].attn).embed_positions
        sin, cos = table.to(positions.device, self.dtype)[positions].chunk(2, dim=-1)
        return cos, sin
