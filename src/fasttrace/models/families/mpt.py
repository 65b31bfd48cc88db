"""MPT: ALiBi instead of positions, no biases, q, k and v in one matrix and perhaps clipped."""

import math
from typing import Any

import torch
from torch import Tensor

from fasttrace.models.activations import activation
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Block, Rotary
from fasttrace.ops.linear import linear

# What transformers computes, whatever the config says.
FIXED = {
    "attn_type": "multihead_attention",
    "prefix_lm": False,
    "qk_ln": False,
    "alibi": True,
    "alibi_bias_max": 8,
    "expansion_ratio": 4,
    "no_bias": True,
    "logit_scale": None,
}


def mpt_slopes(heads: int) -> Tensor:
    """(heads,) float32: 2^(−8i/n) for i = 1 … n, with n the smallest power of two from heads on. Of more than heads,
    every other one is taken, from the second on, and then those between them.

    Source: MPT's code (attention.py, build_alibi_bias).
    """
    n = 2 ** math.ceil(math.log2(heads))
    slopes = 1.0 / torch.pow(2, torch.arange(1, n + 1).float() * (8 / n))
    return slopes if n == heads else torch.cat((slopes[1::2], slopes[::2]))[:heads]


class MptBlock(Block):
    """norm_1 → q/k/v → out_proj; norm_2 → act(up_proj) → down_proj."""

    def __init__(self, layer: Any, alibi: Tensor) -> None:
        self.layer = layer
        self.attn, self.mlp = layer.attn, layer.ffn
        self.act = activation(self.mlp.act)
        self.n_heads = self.n_kv_heads = self.attn.n_heads
        self.head_dim = self.attn.head_dim
        self.scale = self.attn.softmax_scale
        self.alibi = alibi
        self.inner = self.n_heads * self.head_dim

    def attn_norm(self, h: Tensor) -> Tensor:
        return self.layer.norm_1(h)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        return self._project(x, slice(None, self.inner))[:, 0]

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k, v = self._project(x, slice(self.inner, None)).unbind(1)
        return k, v

    def _project(self, x: Tensor, rows: slice) -> Tensor:
        """x: (N, d), rows of (queries, keys, values) → (N, 1 to 3 of them, n_heads, head_dim), clipped."""
        out, most = linear(x, self.attn.Wqkv.weight[rows]), self.attn.clip_qkv
        # As in transformers, 0 is no bound.
        return (out.clamp(-most, most) if most else out).view(len(x), -1, self.n_heads, self.head_dim)

    def attn_value(self, mixed: Tensor) -> Tensor:
        return linear(mixed, self.attn.out_proj.weight)

    def mlp_norm(self, h: Tensor) -> Tensor:
        return self.layer.norm_2(h)

    def mlp_key(self, x: Tensor) -> Tensor:
        return self.act(linear(x, self.mlp.up_proj.weight))

    @property
    def down(self) -> Tensor:
        return self.mlp.down_proj.weight


@Decoder.register("mpt")
class MptDecoder(Decoder):
    """MptForCausalLM."""

    norm_kind = "layer"

    @classmethod
    def refusal(cls, config: Any) -> str | None:
        for name, fixed in FIXED.items():
            place = config if hasattr(config, name) else config.attn_config
            if (value := getattr(place, name, fixed)) != fixed:
                return f"transformers itself computes MPT only with {name} = {fixed}, got {value}"
        return None

    def bind(self) -> None:
        alibi = mpt_slopes(self.config.n_heads).to(self.device)
        self.blocks = [MptBlock(layer, alibi) for layer in self.base.blocks]
        self.final_norm = self.base.norm_f

    @property
    def positions(self) -> int | None:
        return int(self.config.max_seq_len)
