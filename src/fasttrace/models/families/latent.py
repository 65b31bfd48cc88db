"""Multi-head latent attention in dense models: Youtu and MiniCPM3.

Keys and values come from one low-rank projection of the input, and queries may. A part of each key, the one that is
rotated, is the same for all heads. Source: DeepSeek-AI 2024 (arXiv 2405.04434), section 2.1.
"""

from typing import Any

import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.interleaved import InterleavedDecoder
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder
from fasttrace.ops.linear import linear


class LatentBlock(LlamaBlock):
    """Llama's block with latent attention.

    A head's dimensions are the rotated ones, then the others. Queries and keys, or values, are filled with zeros up to
    the wider of both. Zeros change no score, and what they become is cut off before o_proj.
    """

    def count_heads(self) -> None:
        attn = self.attn
        self.n_heads = self.n_kv_heads = attn.num_heads
        self.head_dim = max(attn.qk_head_dim, attn.v_head_dim)
        # Neighbours that are rotated as a pair give the same scores wherever transformers puts them in the head.
        self.interleaved = getattr(attn.config, "rope_interleave", False)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        attn = self.attn
        if attn.q_lora_rank is None:
            q = linear(x, attn.q_proj.weight)
        else:
            low = linear(x, attn.q_a_proj.weight, attn.q_a_proj.bias)
            q = linear(self.norm(attn.q_a_layernorm, low), attn.q_b_proj.weight)
        plain, turned = q.view(-1, self.n_heads, attn.qk_head_dim).split(self._parts(), dim=-1)
        return self._filled(self.rotate(turned, rotary), plain)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        attn = self.attn
        low = linear(x, attn.kv_a_proj_with_mqa.weight, attn.kv_a_proj_with_mqa.bias)
        latent, turned = low.split((attn.kv_lora_rank, attn.qk_rope_head_dim), dim=-1)
        kv = linear(self.norm(attn.kv_a_layernorm, latent.contiguous()), attn.kv_b_proj.weight)
        plain, v = kv.unflatten(1, (self.n_heads, -1)).split((attn.qk_nope_head_dim, attn.v_head_dim), dim=-1)
        shared = self.rotate(turned[:, None], rotary).expand(-1, self.n_heads, -1)
        return self._filled(shared, plain), self._filled(v)

    def _parts(self) -> tuple[int, int]:
        return self.attn.qk_nope_head_dim, self.attn.qk_rope_head_dim

    def _filled(self, *parts: Tensor) -> Tensor:
        """The parts of every head one after another, with zeros up to `head_dim`."""
        width = sum(part.shape[-1] for part in parts)
        zeros = parts[0].new_zeros(*parts[0].shape[:-1], self.head_dim - width)
        return torch.cat((*parts, zeros), dim=-1)

    def attn_value(self, mixed: Tensor) -> Tensor:
        heads = mixed.unflatten(1, (self.n_heads, -1))
        return super().attn_value(heads[..., : self.attn.v_head_dim].flatten(1))

    def weights_per_row(self, d: int) -> tuple[int, int, int]:
        attn, mlp = self.attn, super().weights_per_row(d)[2]
        queries = (attn.q_proj,) if attn.q_lora_rank is None else (attn.q_a_proj, attn.q_b_proj)
        key_value = sum(part.weight.numel() for part in (attn.kv_a_proj_with_mqa, attn.kv_b_proj))
        return key_value, sum(part.weight.numel() for part in (*queries, attn.o_proj)), mlp


@Decoder.register("youtu")
class YoutuDecoder(InterleavedDecoder):
    """YoutuForCausalLM: Llama's layout with latent attention."""

    block = LatentBlock

    def rotary(self, positions: Tensor) -> Rotary:
        return super().rotary(positions) if self.config.rope_interleave else LlamaDecoder.rotary(self, positions)


class MiniCPM3Block(LatentBlock):
    """What attention and the MLP add is multiplied by a factor that falls with the number of layers."""

    def __init__(self, layer: Any, sliding_window: int | None) -> None:
        super().__init__(layer, sliding_window)
        self.residual_multiplier = layer.residual_scale


@Decoder.register("minicpm3")
class MiniCPM3Decoder(LlamaDecoder):
    """MiniCPM3ForCausalLM: latent attention, and factors of what attention and the MLP add, and of the logits."""

    block = MiniCPM3Block

    def bind(self) -> None:
        super().bind()
        # transformers divides the final rows instead of the logits.
        self.logit_scale = 1.0 / self.config.logits_scaling
