"""Llama 4 (text): experts whose inputs are weighted, a shared expert, layers that do not rotate, norms of heads after
the rotation.
"""

from typing import Any

import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.experts import Experts, Routing
from fasttrace.models.families.llama import LlamaBlock
from fasttrace.models.families.routed import RoutedDecoder, RoutedMlp
from fasttrace.ops.rms_norm import rms_norm


class Llama4Block(LlamaBlock):
    """Llama's block with complex rotations. Layers that do not rotate scale their queries by position instead."""

    mlp_name = "feed_forward"
    interleaved = True

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        q = super().query(x, rotary)
        if self.attn.attn_temperature_tuning and not self.attn.use_rope:
            q = (q * rotary[2][:, None]).to(q.dtype)
        return q

    def rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        if not self.attn.use_rope:
            return x
        turned = super().rotate(x, rotary)
        return self.attn.qk_norm(turned) if hasattr(self.attn, "qk_norm") else turned

    def norm(self, module: Any, x: Tensor, rows: Tensor | None = None) -> Tensor:
        return rms_norm(x, module.weight, module.eps, rows=rows)


class RoutedLlama4Block(RoutedMlp, Llama4Block):
    """The same with experts. The router's sigmoid multiplies an expert's input, not its output."""

    shared_name = "shared_expert"

    def bind_mlp(self) -> None:
        LlamaBlock.bind_mlp(self)
        self.mixture, self.router = self.mlp, self.mlp.router
        self.experts = Experts(self.mlp.experts, self.router.top_k, transposed=True, weigh_input=True)

    def route(self, x: Tensor) -> Routing:
        weights, logits = self.router(x)
        chosen = logits.topk(self.router.top_k, dim=1).indices
        return Routing(chosen, weights.gather(1, chosen))


@Decoder.register("llama4_text")
class Llama4Decoder(RoutedDecoder):
    """Llama4ForCausalLM."""

    block, routed_block = Llama4Block, RoutedLlama4Block

    def bind(self) -> None:
        self.base = self.base.model  # the class names another part as its base
        super().bind()

    @property
    def positions(self) -> int | None:
        most = super().positions
        chunked = "chunked_attention" in self.config.layer_types
        # Attention of a longer sequence is cut into chunks, which packed sequences are not.
        return min(most, self.config.attention_chunk_size) if chunked and most else most

    def rotary(self, positions: Tensor) -> Rotary:
        turns = self.base.rotary_emb(self.embed_weight[:1], positions[None])[0]
        wide = torch.promote_types(self.dtype, torch.float32)
        scale = torch.log1p(torch.floor((positions.to(wide) + 1.0) / self.config.floor_scale))
        scale = scale * self.config.attn_scale + 1.0
        return turns.real.to(wide).contiguous(), turns.imag.to(wide).contiguous(), scale[:, None]
