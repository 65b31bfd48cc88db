"""OLMo: Llama's layout with LayerNorms without weights, and queries, keys and values that may be clipped."""

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.families.llama import LayerNormBlock, LlamaDecoder


class OlmoBlock(LayerNormBlock):
    """norm → q/k/v, each clipped to ± `config.clip_qkv`, rotary → o_proj; norm → act(gate) · up → down_proj."""

    def norm_query(self, q: Tensor) -> Tensor:
        return self._clipped(q)

    def norm_key(self, k: Tensor) -> Tensor:
        return self._clipped(k)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k, v = super().key_value(x, rotary)
        return k, self._clipped(v)

    def _clipped(self, x: Tensor) -> Tensor:
        most = self.attn.config.clip_qkv
        return x if most is None else x.clamp(-most, most)


@Decoder.register("olmo")
class OlmoDecoder(LlamaDecoder):
    """OlmoForCausalLM."""

    norm_kind = "layer"
    block = OlmoBlock

    @property
    def norm_eps(self) -> float:
        return 1e-5  # a constant of OlmoLayerNorm
