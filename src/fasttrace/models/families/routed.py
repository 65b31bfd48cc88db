"""Mixtures of experts whose attention is that of a dense family: Mixtral, Qwen 2 and 3 MoE, OLMoE, MiniMax M2, GLM 4.5,
dots.llm1, Solar Open, Hunyuan 3.

A router gives each row to a few experts. Their outputs are added with the router's weights. In some models a shared
expert serves every row, too.
"""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from fasttrace.errors import ModelError
from fasttrace.models.adapter import Decoder
from fasttrace.models.block import Rotary
from fasttrace.models.experts import NONE, SHARED, Experts, Routing
from fasttrace.models.families.llama import LlamaBlock, LlamaDecoder
from fasttrace.models.families.qwen3 import Qwen3Block
from fasttrace.models.keys import Keys
from fasttrace.ops.linear import linear
from fasttrace.ops.silu_mul import silu_mul_


class RoutedMlp(LlamaBlock):
    """A block whose MLP is a mixture of experts: experts of the router's choice, and a shared one where there is one.

    The block's MLP output is the whole mixture's. It has no single key and no single down-projection.

    shared_name: the mixture's shared expert, if it has one.
    """

    experts: Experts
    shared_name: str = "shared_experts"

    def bind_mlp(self) -> None:
        super().bind_mlp()
        self.mixture = self.mlp
        self.router = self.mlp.gate if hasattr(self.mlp, "gate") else self.mlp.router
        self.experts = Experts(self.mlp.experts, self.router.top_k)

    @property
    def shared(self) -> Any:
        """The shared expert, or None."""
        return getattr(self.mlp, self.shared_name, None)

    def route(self, x: Tensor) -> Routing:
        """x: (N, d) MLP input → the experts that the router chooses."""
        _, weights, experts = self.router(x)
        return Routing(experts, weights)

    def mlp_output(self, x: Tensor, chosen_by: Tensor | None = None) -> Tensor:
        return self._output(x, self.route(x if chosen_by is None else chosen_by))

    def _output(self, x: Tensor, routing: Routing) -> Tensor:
        out = self.experts.output(x, routing)
        return out if self.shared is None else out.add_(self.shared_output(x))

    def keys_and_value(self, x: Tensor, chosen_by: Tensor | None = None) -> tuple[Keys, Tensor]:
        routing = self.route(x if chosen_by is None else chosen_by)
        return Keys(self, x=x, routing=routing), self._output(x, routing)

    def weighted_keys(self, x: Tensor, routing: Routing, experts: Tensor) -> Tensor:
        _, m = self.down_shape_of([int(experts.max())])
        keys = x.new_zeros((*experts.shape, m))
        for expert in experts.unique().tolist():
            if expert == NONE:
                continue
            rows, slots = (experts == expert).nonzero(as_tuple=True)
            goes, key = self.keys_of(expert, x[rows], routing[rows])
            keys[rows[goes], slots[goes]] = key
        return keys.flatten(1)

    def keys_of(self, expert: int, x: Tensor, routing: Routing) -> tuple[Tensor, Tensor]:
        if expert == SHARED:
            key, weight = self.shared_key(x), self.shared_weight(x)
            return torch.arange(len(x), device=x.device), key if weight is None else key * weight
        where = (routing.experts == expert).nonzero(as_tuple=True)
        return where[0], self.experts.weighted_key(expert, x[where[0]], routing.weights[where][:, None])

    def shared_key(self, x: Tensor) -> Tensor:
        """x: (N, d) → (N, m), the input of the shared expert's down-projection."""
        shared = self.shared
        gate, up = (linear(x, part.weight, part.bias) for part in (shared.gate_proj, shared.up_proj))
        return silu_mul_(gate, up) if self.silu else shared.act_fn(gate) * up

    def shared_weight(self, x: Tensor) -> Tensor | None:
        """x: (N, d) → (N, 1), the factor of the shared expert's output in each row, or None for 1."""
        return None

    def shared_output(self, x: Tensor) -> Tensor:
        """x: (N, d) → (N, d), what the shared expert adds."""
        value = linear(self.shared_key(x), self.down_of(SHARED), self.shared.down_proj.bias)
        weight = self.shared_weight(x)
        return value if weight is None else value * weight

    def down_of(self, expert: int | None) -> Tensor:
        if expert is None:
            raise self._no_single("down-projection")
        if expert != SHARED:
            return self.experts.down(expert)
        own: Tensor = self.shared.down_proj.weight
        return self.experts.changed.get(SHARED, own)

    def down_shape_of(self, experts: Sequence[int]) -> tuple[int, int]:
        each = [self._shared_shape if expert == SHARED else self.experts.down_shape for expert in experts]
        return each[0][0], sum(m for _, m in each)

    @property
    def down_bias(self) -> None:
        return None  # of no single down-projection; those of experts are not edited

    @property
    def down_shape(self) -> tuple[int, int]:
        raise self._no_single("down-projection")

    @property
    def _shared_shape(self) -> tuple[int, int]:
        d, m = self.shared.down_proj.weight.shape
        return d, m

    @property
    def is_brought(self) -> bool:
        return not self.experts.module.down_proj.is_meta

    @property
    def n_experts(self) -> int:
        return self.experts.count + (self.shared is not None)

    def expert_output(self, x: Tensor, experts: Tensor) -> Tensor:
        out, weight = torch.zeros_like(x), self.route(x).weight_of(experts)
        routed = weight.nonzero()[:, 0]
        only = Routing(experts[routed, None], weight[routed, None])
        out[routed] = self.experts.output(x[routed], only)
        if self.shared is not None:
            rows = (experts == self.experts.count).nonzero()[:, 0]
            out[rows] = self.shared_output(x[rows])
        return out

    @property
    def key_width(self) -> int:
        return self.experts.down_shape[1]

    def weights_per_row(self, d: int) -> tuple[int, int, int]:
        key_value, query_out, of_one = super().weights_per_row(d)
        mlp = of_one * self.experts.per_row + d * self.experts.count
        return key_value, query_out, mlp + sum(w.numel() for w in self._always_used())

    def _always_used(self) -> list[Tensor]:
        """The matrices of the MLP that every row is multiplied with, beside the router's."""
        return [] if self.shared is None else [w for w in self.shared.parameters() if w.ndim == 2]

    def mlp_key(self, x: Tensor) -> Tensor:
        raise self._no_single("key")

    @property
    def down(self) -> Tensor:
        raise self._no_single("down-projection")

    def _no_single(self, what: str) -> ModelError:
        return ModelError(f"expected a layer with one {what}, got a mixture of {self.experts.count} experts")


class RoutedDecoder(LlamaDecoder):
    """A decoder some or all of whose layers are mixtures of experts.

    block, routed_block: the blocks of the other layers, and of these.
    """

    routed_block: type[RoutedMlp] = RoutedMlp

    def block_of(self, layer: Any) -> type[LlamaBlock]:
        mlp = getattr(layer, self.block.mlp_name)
        return self.routed_block if hasattr(mlp, "experts") else self.block


@Decoder.register("mixtral")
class MixtralDecoder(RoutedDecoder):
    """MixtralForCausalLM: Mistral's layout with experts."""


class Qwen2MoeBlock(RoutedMlp):
    """Qwen 2's block, with a shared expert whose output has a factor between 0 and 1 of its own."""

    shared_name = "shared_expert"

    def shared_weight(self, x: Tensor) -> Tensor:
        return linear(x, self.mlp.shared_expert_gate.weight).sigmoid()

    def _always_used(self) -> list[Tensor]:
        return [*super()._always_used(), self.mlp.shared_expert_gate.weight]


@Decoder.register("qwen2_moe")
class Qwen2MoeDecoder(RoutedDecoder):
    """Qwen2MoeForCausalLM: Qwen 2's layout with experts, and a shared one whose output has a factor of its own."""

    routed_block = Qwen2MoeBlock


class Qwen3MoeBlock(RoutedMlp, Qwen3Block):
    """Qwen 3's block with experts."""


@Decoder.register("qwen3_moe")
class Qwen3MoeDecoder(RoutedDecoder):
    """Qwen3MoeForCausalLM: Qwen 3's layout with experts."""

    block, routed_block = Qwen3Block, Qwen3MoeBlock


class WideNormBlock(RoutedMlp):
    """A block with experts that norms whole query and key projections, and may clip them (OLMoE, MiniMax M2)."""

    def norm_query(self, q: Tensor) -> Tensor:
        return self._clipped(self.norm(self.attn.q_norm, q))

    def norm_key(self, k: Tensor) -> Tensor:
        return self._clipped(self.norm(self.attn.k_norm, k))

    def _clipped(self, x: Tensor) -> Tensor:
        bound = getattr(self.attn.config, "clip_qkv", None)
        return x if bound is None else x.clamp(-bound, bound)

    def key_value(self, x: Tensor, rotary: Rotary) -> tuple[Tensor, Tensor]:
        k, v = super().key_value(x, rotary)
        return k, self._clipped(v)


@Decoder.register("olmoe")
class OlmoeDecoder(RoutedDecoder):
    """OlmoeForCausalLM: experts, and norms of whole query and key projections, which may be clipped."""

    routed_block = WideNormBlock


class BiasedRouter(RoutedMlp):
    """A block whose router chooses by its scores plus a bias that the layer keeps."""

    def route(self, x: Tensor) -> Routing:
        _, weights, experts = self.router(x, self.mlp.e_score_correction_bias)
        return Routing(experts, weights)


class MiniMaxM2Block(BiasedRouter, WideNormBlock):
    """OLMoE's block with such a router."""


@Decoder.register("minimax_m2")
class MiniMaxM2Decoder(RoutedDecoder):
    """MiniMaxM2ForCausalLM: OLMoE's layout with a bias on the router's choice, and part of each head rotated."""

    routed_block = MiniMaxM2Block


class Glm4MoeBlock(Qwen3Block):
    """Qwen 3's block, in which the norms of the heads may be missing."""

    def norm_query(self, q: Tensor) -> Tensor:
        return super().norm_query(q) if hasattr(self.attn, "q_norm") else q

    def norm_key(self, k: Tensor) -> Tensor:
        return super().norm_key(k) if hasattr(self.attn, "k_norm") else k


class RoutedGlm4MoeBlock(RoutedMlp, Glm4MoeBlock):
    """The same with experts."""


@Decoder.register("glm4_moe", "dots1", "solar_open")
class Glm4MoeDecoder(RoutedDecoder):
    """Glm4MoeForCausalLM, Dots1ForCausalLM, SolarOpenForCausalLM: experts after the first layers, and a shared one."""

    block, routed_block = Glm4MoeBlock, RoutedGlm4MoeBlock


class HYV3Block(BiasedRouter, Qwen3Block):
    """Qwen 3's block with such a router."""


@Decoder.register("hy_v3")
class HYV3Decoder(RoutedDecoder):
    """HYV3ForCausalLM: Qwen 3's layout with experts, a shared one, and a bias on the router's choice."""

    block, routed_block = Qwen3Block, HYV3Block
