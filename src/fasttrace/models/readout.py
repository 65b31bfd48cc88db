"""What is read from the next-token distributions of single rows, beside the log-probability of a token: the logits of
some tokens, the likeliest token, and KL divergences. No row's V logits are held whole."""

import torch
from torch import Tensor

from fasttrace.models.adapter import Decoder
from fasttrace.ops.linear import linear

ROW_BLOCK, VOCAB_BLOCK = 256, 8192  # logits at a time, as in ops.target_logprob
TOKEN_ROWS = 1024  # rows whose tokens' unembeddings are gathered together


def token_logits(model: Decoder, h: Tensor, tokens: Tensor) -> Tensor:
    """h: (R, d) residual before the final norm, tokens: (R, k) int64 → (R, k) logits of these tokens.

    They are float32 (float64 for float64 rows), on `model.unembed_device`. The unembedding is not read beyond them.
    Differentiable w.r.t. h.
    """
    with model.head():
        x, tokens = _normed(model, h), tokens.to(model.unembed_device)
        parts = []
        for first in range(0, len(x), TOKEN_ROWS):
            some = tokens[first : first + TOKEN_ROWS]
            rows = model.unembed_weight[some].to(x.dtype)
            logits = (rows * x[first : first + TOKEN_ROWS, None]).sum(2)
            if model.unembed_bias is not None:
                logits = logits + model.unembed_bias[some].to(x.dtype)
            parts.append(model.finish_logits(logits))
        return torch.cat(parts) if parts else x.new_empty((0, tokens.shape[1]))


@torch.no_grad()
def top_tokens(model: Decoder, h: Tensor) -> Tensor:
    """h: (R, d) residual before the final norm → (R,) int64, the likeliest next token, the lowest of several."""
    with model.head():
        x = _normed(model, h)
        parts = []
        for first in range(0, len(x), ROW_BLOCK):
            rows = x[first : first + ROW_BLOCK]
            best = rows.new_full((len(rows),), -torch.inf)
            token = torch.zeros(len(rows), dtype=torch.int64, device=rows.device)
            for begin in range(0, model.vocab_size, VOCAB_BLOCK):
                value, place = _logits(model, rows, begin).max(1)
                higher = value > best
                best = torch.where(higher, value, best)
                token = torch.where(higher, place + begin, token)
            parts.append(token)
        return torch.cat(parts) if parts else torch.zeros(0, dtype=torch.int64, device=x.device)


@torch.no_grad()
def divergence(model: Decoder, h: Tensor, of: Tensor) -> Tensor:
    """h: (R, d) residual before the final norm, of: (R,) int64 rows of h → (R,) KL(p_of ‖ p), in nats.

    p is the next-token distribution of a row, and p_of that of the row which `of` names for it. The result is float32
    (float64 for float64 rows), at least 0, on `model.unembed_device`.

    KL = Σ_v w_v (a_v − b_v) / Σ_v w_v − log Σ exp(a) + log Σ exp(b), with a the logits of the row named, b the row's
    own and w = exp(a − max a). One pass over the unembedding computes all three sums. w is kept relative to the largest
    logit so far, and scaled down where a later block has a larger one.
    """
    with model.head():
        x = _normed(model, h)
        named, place = of.to(x.device).unique(return_inverse=True)
        result = x.new_empty(len(x))
        for first in range(0, len(x), ROW_BLOCK):
            rows = slice(first, first + ROW_BLOCK)
            used, here = place[rows].unique(return_inverse=True)
            result[rows] = _divergence(model, x[named[used]], x[rows], here)
        # Of a row from itself it is 0, where a sum may round.
        return result.clamp_min_(0.0).masked_fill_(of.to(x.device) == torch.arange(len(x), device=x.device), 0.0)


def _divergence(model: Decoder, given: Tensor, x: Tensor, of: Tensor) -> Tensor:
    """given: (G, d), x: (R, d) rows after the final norm, of: (R,) places in `given` → (R,) KL(p_of ‖ p)."""
    top = given.new_full((len(given),), -torch.inf, dtype=torch.float64)
    total, apart = torch.zeros_like(top), x.new_zeros(len(x), dtype=torch.float64)
    sums, own_sums = [], []
    for begin in range(0, model.vocab_size, VOCAB_BLOCK):
        a, b = _logits(model, given, begin).double(), _logits(model, x, begin).double()
        sums.append(a.logsumexp(1))
        own_sums.append(b.logsumexp(1))
        higher = torch.maximum(top, a.amax(1))
        shrunk, weights = torch.exp(top - higher), torch.exp(a - higher[:, None])
        total = total * shrunk + weights.sum(1)
        apart = apart * shrunk[of] + (weights[of] * (a[of] - b)).sum(1)
        top = higher
    whole, own = torch.stack(sums).logsumexp(0), torch.stack(own_sums).logsumexp(0)
    return apart / total[of] - whole[of] + own


def _normed(model: Decoder, h: Tensor) -> Tensor:
    """The rows after the final norm, as the model rounds them, in float32 or wider."""
    x = model.final_norm(model.leave(h.to(model.norm_device))).to(model.unembed_device)
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _logits(model: Decoder, x: Tensor, begin: int) -> Tensor:
    """(rows, ≤ VOCAB_BLOCK) logits of the tokens from `begin` on."""
    block, bias = slice(begin, begin + VOCAB_BLOCK), model.unembed_bias
    raw = linear(x, model.unembed_weight[block].to(x.dtype), None if bias is None else bias[block].to(x.dtype))
    return model.finish_logits(raw)
