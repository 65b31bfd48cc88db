"""CodeGen: GPT-J's layout with one matrix for q, v and k, in the four parts that it was trained in."""

from typing import Any

import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.gptj import GPTJBlock
from fasttrace.ops.linear import linear
from fasttrace.ops.rotary import partial_rotary_


class CodeGenBlock(GPTJBlock):
    """ln_1 → q/k/v, rotary → out_proj, and ln_1 → act(fc_in) → fc_out.

    Each of the four parts of qkv_proj contains the rows of its queries, its values and its keys. The rows of all
    queries are gathered, as in `HeadwiseBlock`.
    """

    def __init__(self, layer: Any, config: Any) -> None:
        super().__init__(layer, config)
        self.parts = (self.attn.mp_num, 3, -1)

    def query(self, x: Tensor, rotary: Rotary) -> Tensor:
        return self._rotate(self._project(x, 0), rotary)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k, v = self._project(x, 2), self._project(x, 1)
        return self._rotate(k, rotary), v.view(-1, self.n_heads, self.head_dim)

    def _project(self, x: Tensor, number: int) -> Tensor:
        """x: (N, d) → (N, d), the queries (number 0), the values (1) or the keys (2) of all heads."""
        return linear(x, self.attn.qkv_proj.weight.unflatten(0, self.parts)[:, number].flatten(0, 1))

    def _rotate(self, x: Tensor, rotary: Rotary) -> Tensor:
        cos, sin = rotary
        # transformers may leave the table in float32, and then rotates heads of any dtype in float32.
        heads = x.view(-1, self.n_heads, self.head_dim).to(torch.promote_types(x.dtype, cos.dtype))
        return partial_rotary_(heads, cos.to(heads.dtype), sin.to(heads.dtype), interleaved=True).to(x.dtype)


@Decoder.register("codegen")
class CodeGenDecoder(Decoder):
    """CodeGenForCausalLM."""

    norm_kind = "layer"

    def bind(self) -> None:
        self.blocks = [CodeGenBlock(layer, self.config) for layer in self.base.h]
        self.final_norm = self.base.ln_f

    def rotary(self, positions: Tensor) -> Rotary:
        # Older releases of transformers keep the table in every attention module.
        table = (self.base.rotary_emb if hasattr(self.base, "rotary_emb") else self.base.h[0].attn).embed_positions
        sin, cos = table.to(positions.device)[positions].chunk(2, dim=-1)
        return cos, sin
