"""StableLM: Llama's layout with LayerNorms and part of each head rotated, in some models with parallel sub-layers."""

from typing import Any

import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.families.llama import LayerNormBlock, LlamaDecoder


class StableLmBlock(LayerNormBlock):
    """Llama's block with LayerNorms. In a parallel block both sub-layers read one norm.

    With `config.qk_layernorm`, every head of the queries and keys has a norm of its own.
    """

    def __init__(self, layer: Any, sliding_window: int | None) -> None:
        super().__init__(layer, sliding_window)
        self.parallel = layer.use_parallel_residual
        if self.parallel:
            self.mlp_norm_name = self.attn_norm_name

    def norm_query(self, q: Tensor) -> Tensor:
        return self._by_head(self.attn.q_layernorm.norms, q) if self.attn.qk_layernorm else q

    def norm_key(self, k: Tensor) -> Tensor:
        return self._by_head(self.attn.k_layernorm.norms, k) if self.attn.qk_layernorm else k

    def _by_head(self, norms: Any, x: Tensor) -> Tensor:
        heads = x.view(len(x), -1, self.head_dim).unbind(1)
        return torch.cat([norm(head) for norm, head in zip(norms, heads, strict=True)], dim=1)


@Decoder.register("stablelm")
class StableLmDecoder(LlamaDecoder):
    """StableLmForCausalLM."""

    norm_kind = "layer"
    block = StableLmBlock
