"""Where transformers' block has its attention and its MLP: found by names and shapes, for blocks of any kind."""

import inspect
import re
from dataclasses import dataclass
from typing import Any

from torch import nn

# Names of a block's children. A child without a matrix, such as a norm, is neither.
MIXER = re.compile(
    r"(.*_)?(attn|attention|mixer|mamba|ssm|conv|recurrent|retention|rnn|time_mix|temporal_block|mlstm_layer)"
)
MLP = re.compile(r"(.*_)?(mlp|ffn|feed_?forward|moe|channel_mix)(_block)?")
MLP_CLASS = re.compile(r"MLP|MoE|MOE|FeedForward")
# Names of the projection at the end of attention or of an MLP.
PROJECTION = re.compile(r"(.*\.)?(o_proj|out_proj|c_proj|proj_out|down_proj|dense_4h_to_h|dense|wo|w2|fc2)")
FOUND = ("mlp", "attn", "head")  # what a block may lack


@dataclass(frozen=True, eq=False)
class Sublayer:
    """A module whose values an intervention replaces: its (first) output, or its input where `inward`."""

    module: nn.Module
    inward: bool = False


def sublayers(block: nn.Module, what: str) -> tuple[Sublayer, ...]:
    """The modules of transformers' block that are its `what`, or () where it has none that is known.

    what: "block", the whole block. "attn", every module that mixes tokens: attention, a state-space layer, a
    convolution; Falcon-H1 has two side by side, which are replaced together. "mlp", every MLP or mixture of experts.
    "head", the input of attention's output projection. In all cases the value is what the module itself gives. A norm
    or a factor between it and the residual stream is not part of it.
    """
    if what == "block":
        return (Sublayer(block),)
    children = [(name, part) for name, part in block.named_children() if _has_matrix(part)]
    mlps = [part for name, part in children if _is_mlp(name, part)]
    if what == "mlp":
        # OPT and its like have the two products of the MLP in the block itself.
        mlps = mlps or [part for name, part in children if name == "fc2"]
        return tuple(Sublayer(_adds(part)) for part in mlps)
    mixers = [part for name, part in children if MIXER.fullmatch(name) and part not in mlps]
    if what == "attn":
        return tuple(Sublayer(_adds(part)) for part in mixers)
    attention = [part for part in mixers if "Attention" in type(part).__name__]
    projection = _projection(attention[0]) if len(attention) == 1 else None
    return () if projection is None else (Sublayer(projection, inward=True),)


def _has_matrix(part: nn.Module) -> bool:
    return any(weight.ndim > 1 for weight in part.parameters())


def _is_mlp(name: str, part: nn.Module) -> bool:
    # Nemotron-H calls whatever a block has its mixer.
    return bool(MLP.fullmatch(name) or (name == "mixer" and MLP_CLASS.search(type(part).__name__)))


def _adds(part: nn.Module) -> nn.Module:
    """The module that gives what a part adds to the residual stream: its last projection where the part, as BLOOM's and
    MPT's, adds the residual itself."""
    forward: Any = type(part).forward
    own = "residual" in inspect.signature(forward).parameters
    return (_projection(part) or part) if own else part


def _projection(part: nn.Module) -> nn.Module | None:
    """The last projection of attention or of an MLP, or None where no name is known."""
    named = [module for name, module in part.named_modules() if PROJECTION.fullmatch(name)]
    return named[-1] if named else None
