"""Mixtures of experts over other dense families: ERNIE 4.5, EXAONE, FlexOLMo, HunYuan, Granite and Phi 3.5."""

from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.models.families.granite import GraniteBlock, GraniteDecoder
from fasttrace.models.families.hunyuan import HunYuanBlock
from fasttrace.models.families.interleaved import Ernie4_5Block, Ernie4_5Decoder
from fasttrace.models.families.llama import LayerNormBlock, LlamaBlock
from fasttrace.models.families.olmo2 import Olmo2Block
from fasttrace.models.families.qwen3 import Qwen3Block
from fasttrace.models.families.routed import RoutedDecoder, RoutedMlp


class Ernie4_5MoeBlock(RoutedMlp, Ernie4_5Block):
    """ERNIE 4.5's block with experts."""


@Decoder.register("ernie4_5_moe")
class Ernie4_5MoeDecoder(RoutedDecoder, Ernie4_5Decoder):
    """Ernie4_5_MoeForCausalLM: ERNIE 4.5's layout with experts and perhaps a shared one."""

    block, routed_block = Ernie4_5Block, Ernie4_5MoeBlock


class ExaoneMoeBlock(Qwen3Block):
    """Qwen 3's block. In a model with sliding windows, the layers without one do not rotate."""

    def rotate(self, x: Tensor, rotary: tuple[Tensor, ...]) -> Tensor:
        turns = self.attn.sliding_window is None or self.attn.is_sliding
        return super().rotate(x, rotary) if turns else x


class RoutedExaoneMoeBlock(RoutedMlp, ExaoneMoeBlock):
    """The same with experts."""


@Decoder.register("exaone_moe")
class ExaoneMoeDecoder(RoutedDecoder):
    """ExaoneMoeForCausalLM: Qwen 3's layout with experts and a shared one; layers without a window may not rotate."""

    block, routed_block = ExaoneMoeBlock, RoutedExaoneMoeBlock


class FlexOlmoBlock(RoutedMlp, Olmo2Block):
    """OLMo 2's block with experts."""


@Decoder.register("flex_olmo")
class FlexOlmoDecoder(RoutedDecoder):
    """FlexOlmoForCausalLM: OLMo 2's layout with experts."""

    routed_block = FlexOlmoBlock


class HunYuanMoeBlock(RoutedMlp, HunYuanBlock):
    """HunYuan's block with experts and a shared one."""

    shared_name = "shared_mlp"


@Decoder.register("hunyuan_v1_moe")
class HunYuanMoeDecoder(RoutedDecoder):
    """HunYuanMoEV1ForCausalLM: HunYuan's layout with experts and a shared one."""

    routed_block = HunYuanMoeBlock


class GraniteMoeBlock(RoutedMlp, GraniteBlock):
    """Granite's block with experts."""

    mlp_name = "block_sparse_moe"


@Decoder.register("granitemoe")
class GraniteMoeDecoder(GraniteDecoder):
    """GraniteMoeForCausalLM: Granite's layout with experts."""

    block: type[LlamaBlock] = GraniteMoeBlock


class PhimoeBlock(RoutedMlp, LayerNormBlock):
    """Llama's block with LayerNorms and experts."""


@Decoder.register("phimoe")
class PhimoeDecoder(RoutedDecoder):
    """PhimoeForCausalLM: Mixtral's layout with LayerNorms."""

    norm_kind = "layer"
    routed_block = PhimoeBlock
