"""Llama and similar models: rotary positions, RMS norms, gated MLP. SmolLM2, Llama 1–3, Mistral, Qwen2."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.ops.linear import linear
from fasttrace.ops.rms_norm import rms_norm
from fasttrace.ops.rotary import partial_rotary_
from fasttrace.ops.silu_mul import silu_mul_


class LlamaBlock(Block):
    """attention norm → q/k/v, rotary → o_proj; MLP norm → act(gate) · up → down_proj.

    Families that differ in a step override it: `norm`, `norm_query` and `norm_key` before the rotation, `rotate`, or
    the two halves of the MLP. Those that differ in where their norms are name them.

    mlp_name: the layer's MLP.
    attn_norm_name, mlp_norm_name: the layer's norms before attention and the MLP, or None for none.
    attn_post_name, mlp_post_name: the norms of what attention and the MLP add to the residual, or None.
    residual_multiplier: factor of what is added to the residual, after those norms.
    interleaved: whether the rotation pairs neighbouring dimensions (see `rotary_`).
    rotates_float32: whether narrower queries and keys are converted to float32 for the rotation.
    tables: the tables of `Decoder.rotary` that rotate this block's queries and keys, or None where nothing does.
    attn_name, mlp_name: the layer's attention and MLP.
    """

    mlp_products = 2
    mlp_name: str = "mlp"
    attn_norm_name: str | None = "input_layernorm"
    mlp_norm_name: str | None = "post_attention_layernorm"
    attn_post_name: str | None = None
    mlp_post_name: str | None = None
    residual_multiplier: float = 1.0
    interleaved = False
    rotates_float32 = False
    tables: slice | None = slice(0, 2)
    attn_name, mlp_name = "self_attn", "mlp"

    def __init__(self, layer: Any, sliding_window: int | None) -> None:
        self.layer = layer
        self.attn, self.mlp = getattr(layer, self.attn_name), getattr(layer, self.mlp_name)
        self.scale = self.attn.scaling
        self.sliding_window = sliding_window
        self.bind_mlp()
        self.count_heads()

    def bind_mlp(self) -> None:
        """Set what the MLP's steps need."""
        self.silu = getattr(self.attn.config, "hidden_act", None) in ("silu", "swish")

    def count_heads(self) -> None:
        """Set `head_dim`, `n_heads` and `n_kv_heads`."""
        self.head_dim = self.attn.head_dim
        self.n_heads = self.attn.q_proj.weight.shape[0] // self.head_dim
        self.n_kv_heads = self.attn.k_proj.weight.shape[0] // self.head_dim

    def norm(self, module: Any, x: Tensor, rows: Tensor | None = None) -> Tensor:
        """x: (N, k), rows: (n,) int64, or None for all → (n, k), what the norm `module` gives for these rows."""
        return rms_norm(x, module.weight, module.variance_epsilon, rows=rows)

    def _named_norm(self, name: str | None, x: Tensor, rows: Tensor | None = None) -> Tensor:
        if name is not None:
            return self.norm(getattr(self.layer, name), x, rows)
        return x if rows is None else x.index_select(0, rows)

    def attn_norm(self, h: Tensor) -> Tensor:
        return self._named_norm(self.attn_norm_name, h)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        q = self.norm_query(linear(x, self.attn.q_proj.weight, self.attn.q_proj.bias))
        return self.rotate(q.view(-1, self.n_heads, self.head_dim), rotary)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k = self.norm_key(linear(x, self.attn.k_proj.weight, self.attn.k_proj.bias))
        v = linear(x, self.attn.v_proj.weight, self.attn.v_proj.bias)
        shape = (-1, self.n_kv_heads, self.head_dim)
        return self.rotate(k.view(shape), rotary), v.view(shape)

    def norm_query(self, q: Tensor) -> Tensor:
        """q: (N, n_heads * head_dim), as projected → the same shape, normed in families that norm queries."""
        return q

    def norm_key(self, k: Tensor) -> Tensor:
        """k: (N, n_kv_heads * head_dim), as projected → the same shape, normed in families that norm keys."""
        return k

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        """x: (N, H, head_dim) queries or keys → the same shape, positions applied to as many dimensions as the tables
        have."""
        if self.tables is None:
            return x
        given, (cos, sin) = x, rotary[self.tables]
        if self.rotates_float32:
            given = x.to(torch.promote_types(x.dtype, torch.float32))
        # transformers computes the products in the wider dtype of both factors.
        wide = torch.promote_types(given.dtype, cos.dtype)
        return partial_rotary_(given.to(wide), cos.to(wide), sin.to(wide), interleaved=self.interleaved).to(x.dtype)

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.o_proj.weight, self.attn.o_proj.bias)

    def attn_add(self, value: Tensor) -> Tensor:
        return self._multiplied(self._named_norm(self.attn_post_name, value))

    def mlp_norm(self, h: Tensor) -> Tensor:
        return self._named_norm(self.mlp_norm_name, h)

    def mlp_norm_rows(self, h: Tensor, rows: Tensor) -> Tensor:
        return self._named_norm(self.mlp_norm_name, h, rows)

    def mlp_add(self, value: Tensor) -> Tensor:
        return self._multiplied(self._named_norm(self.mlp_post_name, value))

    def _multiplied(self, value: Tensor) -> Tensor:
        return value if self.residual_multiplier == 1.0 else value * self.residual_multiplier

    def mlp_key(self, x: Tensor) -> Tensor:
        gate = linear(x, self.mlp.gate_proj.weight, self.mlp.gate_proj.bias)
        up = linear(x, self.mlp.up_proj.weight, self.mlp.up_proj.bias)
        return silu_mul_(gate, up) if self.silu else self.mlp.act_fn(gate) * up

    @property
    def down(self) -> Tensor:
        return self.mlp.down_proj.weight

    @property
    def down_bias(self) -> Tensor | None:
        return self.mlp.down_proj.bias


class LayerNormBlock(LlamaBlock):
    """Llama's block with LayerNorms, or others that are computed as their module computes them."""

    def norm(self, module: Any, x: Tensor, rows: Tensor | None = None) -> Tensor:
        normed: Tensor = module(x if rows is None else x.index_select(0, rows))
        return normed


@Decoder.register("llama", "mistral", "qwen2", "ministral", "cwm", "seed_oss", "exaone", "internlm3", "iquestcoder")
class LlamaDecoder(Decoder):
    """LlamaForCausalLM, MistralForCausalLM, Qwen2ForCausalLM, MinistralForCausalLM, CwmForCausalLM,
    SeedOssForCausalLM: rotary positions, RMS norms, gated MLP.

    typed_rotary: whether `rotary_emb` has tables for each of `config.layer_types`, which it takes as an argument.
    """

    norm_kind = "rms"
    block = LlamaBlock
    typed_rotary = False

    def bind(self) -> None:
        self.kinds: list[str] = []
        if self.typed_rotary:
            self.kinds = sorted(k for k in set(self.config.layer_types) if self.config.rope_parameters[k] is not None)
        self.blocks = [self.make_block(layer, i) for i, layer in enumerate(self.base.layers)]
        self.final_norm = self.last_norm()
        # An embedding module that scales rounds its factor to the model's dtype.
        scale = getattr(self.hf.get_input_embeddings(), "embed_scale", None)
        self.embed_scale = None if scale is None else float(scale.to(self.dtype))

    def last_norm(self) -> nn.Module:
        """The module that is to be `final_norm`."""
        norm: nn.Module = self.base.norm
        return norm

    def make_block(self, layer: Any, number: int) -> LlamaBlock:
        """The block of a transformers layer, given its number."""
        block = self.block_of(layer)(layer, self._sliding_window(number))
        if self.typed_rotary:
            block.tables = pair_of_tables(self.kinds, self.config.layer_types[number])
        return block

    def block_of(self, layer: Any) -> type[LlamaBlock]:
        """The class of a transformers layer's block, in families that have several."""
        return self.block

    def _sliding_window(self, layer: int) -> int | None:
        # A config file may have settings that the config's class does not have. The model does not read those.
        declared = [hasattr(type(self.config), name) for name in ("layer_types", "sliding_window")]
        if declared[0] and self.config.layer_types and self.config.layer_types[layer] != "sliding_attention":
            return None
        return self.config.sliding_window if declared[1] else None

    def rotary(self, positions: Tensor) -> Rotary:
        if not self.typed_rotary:
            return self.tables_of(self.base.rotary_emb, positions)
        return sum((self.tables_of(self.base.rotary_emb, positions, kind) for kind in self.kinds), ())

    def tables_of(self, rotary_emb: Any, positions: Tensor, *kind: str) -> Rotary:
        """The cos and sin, each (N, rotary dims), that a transformers module gives for positions (N,)."""
        cos, sin = rotary_emb(self.like(positions), positions[None], *kind)
        return cos[0], sin[0]


def pair_of_tables(kinds: Sequence[Any], kind: Any) -> slice | None:
    """Where in the tables of all `kinds`, two each, those of `kind` are, or None where it is not one of them."""
    return slice(2 * kinds.index(kind), 2 * kinds.index(kind) + 2) if kind in kinds else None
