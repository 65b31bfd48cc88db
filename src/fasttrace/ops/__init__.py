"""The compiled steps of tracing and editing: one module per op, each with its definition in plain torch.

Importing this loads no Triton and needs no compiled extension: an op looks for its implementation when it is called.
"""

from fasttrace.ops.adam_linf import adam_linf_
from fasttrace.ops.bit_sums import bit_sums
from fasttrace.ops.gelu_tanh import gelu_tanh_
from fasttrace.ops.linear import linear
from fasttrace.ops.noised_embed import fact_key, noised_embed
from fasttrace.ops.rank_one import rank_one_
from fasttrace.ops.rank_one_linear import rank_one_add_, rank_one_linear
from fasttrace.ops.rms_norm import rms_norm
from fasttrace.ops.rotary import rotary_
from fasttrace.ops.second_moment import second_moment_
from fasttrace.ops.silu_mul import silu_mul_
from fasttrace.ops.target_logprob import target_logprob
from fasttrace.ops.window_restore import window_restore

__all__ = [
    "adam_linf_",
    "bit_sums",
    "fact_key",
    "gelu_tanh_",
    "linear",
    "noised_embed",
    "rank_one_",
    "rank_one_add_",
    "rank_one_linear",
    "rms_norm",
    "rotary_",
    "second_moment_",
    "silu_mul_",
    "target_logprob",
    "window_restore",
]
