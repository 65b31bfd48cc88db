"""DeepSeek 2 and 3, and GLM 4.7 Flash: latent attention, whose keys and values are expanded from one short vector a
token; experts after the first layers, and one shared expert.
"""

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import pad

from fasttrace.models.adapter import Decoder, Rotary
from fasttrace.models.families.llama import LlamaBlock
from fasttrace.models.families.routed import RoutedDecoder, RoutedMlp
from fasttrace.ops.linear import linear
from fasttrace.ops.rms_norm import rms_norm
from fasttrace.ops.rotary import rotary_


class LatentBlock(LlamaBlock):
    """q (maybe through a latent), latent → norm → k and v; part of each query and one key part of all heads rotated.

    Keys are wider than values. Both get the wider one's size here, with zeros that do not count.
    """

    def count_heads(self) -> None:
        self.n_heads = self.n_kv_heads = self.attn.num_heads
        self.head_dim = max(self.attn.qk_head_dim, self.attn.v_head_dim)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        attn = self.attn
        if attn.q_lora_rank is None:
            q = linear(x, attn.q_proj.weight)
        else:
            q = linear(self._normed(linear(x, attn.q_a_proj.weight, attn.q_a_proj.bias), attn.q_a_layernorm),
                       attn.q_b_proj.weight)  # fmt: skip
        q = q.view(-1, self.n_heads, attn.qk_head_dim)
        still, turned = q.split((attn.qk_nope_head_dim, attn.qk_rope_head_dim), dim=-1)
        return self._wide(torch.cat((still, self.rotate(turned.contiguous(), rotary)), dim=-1))

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        attn = self.attn
        both = linear(x, attn.kv_a_proj_with_mqa.weight, attn.kv_a_proj_with_mqa.bias)
        latent, turned = both.split((attn.kv_lora_rank, attn.qk_rope_head_dim), dim=-1)
        expanded = linear(self._normed(latent.contiguous(), attn.kv_a_layernorm), attn.kv_b_proj.weight)
        still, v = expanded.view(len(x), self.n_heads, -1).split((attn.qk_nope_head_dim, attn.v_head_dim), dim=-1)
        shared = self.rotate(turned[:, None].contiguous(), rotary)
        k = torch.cat((still, shared.expand(-1, self.n_heads, -1)), dim=-1)
        return self._wide(k), self._wide(v)

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        cos, sin = rotary
        if not getattr(self.attn.config, "rope_interleave", True):
            return rotary_(x, cos, sin)
        # transformers also moves the pairs apart. That is the same for queries and keys, so no score changes.
        half = x.shape[-1] // 2
        return rotary_(x.to(cos.dtype), cos[:, :half], sin[:, :half], interleaved=True).to(x.dtype)

    def attn_value(self, mixed: Tensor) -> Tensor:
        values = mixed.view(len(mixed), self.n_heads, -1)[..., : self.attn.v_head_dim]
        return super().attn_value(values.flatten(1))

    def weights_per_row(self, d: int) -> tuple[int, int, int]:
        own = {name: part.weight.numel() for name, part in self.attn.named_children() if name.endswith(("proj", "mqa"))}
        key_value = sum(size for name, size in own.items() if name.startswith("kv"))
        return key_value, sum(own.values()) - key_value, super().weights_per_row(d)[2]

    def _wide(self, x: Tensor) -> Tensor:
        return pad(x, (0, self.head_dim - x.shape[-1]))

    def _normed(self, x: Tensor, norm: Any) -> Tensor:
        return rms_norm(x, norm.weight, norm.variance_epsilon)


class RoutedLatentBlock(RoutedMlp, LatentBlock):
    """Latent attention and experts."""


@Decoder.register("deepseek_v3", "glm4_moe_lite")
class DeepseekDecoder(RoutedDecoder):
    """DeepseekV3ForCausalLM, Glm4MoeLiteForCausalLM."""

    block, routed_block = LatentBlock, RoutedLatentBlock


@Decoder.register("deepseek_v2")
class DeepseekV2Decoder(DeepseekDecoder):
    """DeepseekV2ForCausalLM."""

    def rotary(self, positions: Tensor) -> Rotary:
        # Complex numbers of float32, which rotate heads of any dtype.
        turns = self.base.rotary_emb(self.embed_weight[:1], positions[None])[0]
        wide = torch.promote_types(self.dtype, torch.float32)
        return turns.real.to(wide).contiguous(), turns.imag.to(wide).contiguous()
