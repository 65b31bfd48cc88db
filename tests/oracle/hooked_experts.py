"""Mixtures of experts the obvious way: transformers' own modules, hooks on the mixture and its router, and a loop over
rows and experts. It uses nothing of fasttrace's engine (docs/algorithms.md, section 14)."""

import contextlib
from dataclasses import dataclass

import torch
from hooked_rome import find_last_subject_token
from hooked_trace import mlp_modules
from torch.nn.functional import silu

SHARED = -1


@dataclass
class Row:
    """What is seen of one row at a layer. experts, weights: the router's. x, out: the mixture's input and output."""

    x: torch.Tensor
    out: torch.Tensor
    experts: list[int]
    weights: list[torch.Tensor]


def shared_module(mlp):
    return getattr(mlp, "shared_experts", None) or getattr(mlp, "shared_expert", None)


def expert_weight(mlp, expert):
    """(d, m) view of an expert's down-projection."""
    if expert == SHARED:
        return shared_module(mlp).down_proj.weight
    weight = mlp.experts.down_proj[expert]
    return weight.t() if getattr(mlp.experts, "is_transposed", False) else weight


def weighted_key(mlp, row, expert):
    """(m,) κ of one row: the key of the expert times its weight, or zeros where the row does not go there."""
    x = row.x
    if expert == SHARED:
        shared = shared_module(mlp)
        key = silu(shared.gate_proj(x)) * shared.up_proj(x)
        return key * mlp.shared_expert_gate(x).sigmoid() if hasattr(mlp, "shared_expert_gate") else key
    if expert not in row.experts:
        return torch.zeros(expert_weight(mlp, expert).shape[1], dtype=x.dtype)
    weight, experts = row.weights[row.experts.index(expert)], mlp.experts
    if hasattr(experts, "gate_up_proj_bias"):  # GPT-OSS
        both = x @ experts.gate_up_proj[expert] + experts.gate_up_proj_bias[expert]
        gate, up = both[0::2].clamp(max=experts.limit), both[1::2].clamp(-experts.limit, experts.limit)
        return weight * (up + 1) * gate * torch.sigmoid(gate * experts.alpha)
    gate, up = (experts.gate_up_proj[expert] @ x).chunk(2)
    return weight * silu(gate) * up


def mixture_output(mlp, row):
    """(d,) Σ W_e κ_e with the biases: what `out` has to be."""
    chosen = [*row.experts, *([SHARED] if shared_module(mlp) is not None else [])]
    out = sum(expert_weight(mlp, e) @ weighted_key(mlp, row, e) for e in chosen)
    if hasattr(mlp.experts, "down_proj_bias"):
        out = out + sum(w * mlp.experts.down_proj_bias[e] for e, w in zip(row.experts, row.weights, strict=True))
    return out


@contextlib.contextmanager
def seen_rows(hf, layer):
    """Yield a list to which every forward adds the rows of a layer's mixture."""
    mlp = mlp_modules(hf)[layer]
    router, found, now = getattr(mlp, "gate", None) or mlp.router, [], {}

    def routed(module, args, out):
        now["weights"], now["experts"] = out[1], out[2]

    def done(module, args, out):
        out = (out[0] if isinstance(out, tuple) else out).reshape(-1, out[0].shape[-1])
        rows = zip(args[0].reshape(out.shape), out, now["experts"].tolist(), now["weights"], strict=True)
        found.extend(Row(x, y, experts, list(weights)) for x, y, experts, weights in rows)

    hooks = [router.register_forward_hook(routed), mlp.register_forward_hook(done)]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def rows_of(hf, ids, layer):
    with torch.no_grad(), seen_rows(hf, layer) as rows:
        hf(torch.tensor([ids]))
    return rows


def key_and_value_of(hf, tokenizer, subject, layer, experts):
    """For `hooked_rome`: text → the experts' weighted keys one after another (S·m,) and the mixture's output (d,), both
    at the last subject token."""

    def read(text):
        row = rows_of(hf, tokenizer(text)["input_ids"], layer)[find_last_subject_token(tokenizer, text, subject)]
        mlp = mlp_modules(hf)[layer]
        with torch.no_grad():
            return torch.cat([weighted_key(mlp, row, expert) for expert in experts]), row.out

    return read
