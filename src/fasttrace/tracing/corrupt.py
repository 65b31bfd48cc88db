"""Noise on the subject's token embeddings: how large, and which numbers (ALGORITHMS, section 1)."""

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.facts.tokens import EncodedFact
from fasttrace.models.adapter import Decoder
from fasttrace.ops.noised_embed import fact_key, noised_embed

NOISES = ("philox", "released")

# σ as published: (model type, layers) → standard deviation added to the embeddings.
PUBLISHED_SIGMA = {("gptj", 28): 0.094, ("gpt2", 48): 0.1}


def noise_sigma(model: Decoder, facts: Sequence[EncodedFact], sigma: float | str | None) -> float:
    """σ of a sweep: the number given, "3sd", or None for the published value where there is one, else 3sd.

    3sd = 3 × the standard deviation of the embedding entries of every subject token of the facts, to 6 digits.

    Raises UserError where sigma is neither, not finite or not positive.
    """
    if sigma is None:
        sigma = PUBLISHED_SIGMA.get((model.config.model_type, model.n_layers), "3sd")
    if sigma == "3sd":
        ids = [i for fact in facts for i in fact.ids[fact.subject_begin : fact.subject_end]]
        if not ids:
            raise UserError("sigma '3sd' needs at least one fact with a subject token")
        with model.entry():
            spread = float(model.embed_ids(torch.tensor(ids, device=model.device)).double().std())
        # σ names the run, so it must not hang on the last bits of a sum over threads.
        return float(f"{3.0 * spread:.6g}")
    try:
        value = float(sigma)
    except (TypeError, ValueError):
        value = float("nan")
    if not np.isfinite(value) or value <= 0:
        raise UserError(f"sigma {sigma!r} is neither a positive number nor '3sd'")
    return value


def embed_base(
    model: Decoder,
    facts: Sequence[EncodedFact],
    ids: Sequence[Sequence[int]],
    samples: int,
    sigma: float,
    noise: str,
    seed: int,
) -> tuple[Tensor, Tensor]:
    """Token embeddings of the base rows: for each fact its clean pass, then the corrupted tokens b … T'-1 of
    every sample.

    Returns (embeddings (N, d) before position embeddings, positions (N,)). "philox" noise depends on (seed,
    fact, sample, token, dimension) only; "released" is numpy's RandomState(1) made afresh for every fact.

    Raises UserError for an unknown noise.
    """
    if noise not in NOISES:
        raise UserError(f"noise '{noise}' is not one of {', '.join(NOISES)}")
    row_ids, sample, token, key, noised = [], [], [], [], []
    for fact, tokens in zip(facts, ids, strict=True):
        t, b, e = len(tokens), fact.subject_begin, fact.subject_end
        length = t + samples * (t - b)
        place = np.concatenate((np.arange(t), np.tile(np.arange(b, t), samples)))
        which = np.concatenate((np.full(t, -1), np.repeat(np.arange(samples), t - b)))
        row_ids.append(np.asarray(tokens)[place])
        sample.append(which)
        token.append(place)
        key.append(np.full(length, fact_key(fact.fact.fact_id)))
        noised.append((which >= 0) & (place >= b) & (place < e))
    to = lambda parts: torch.from_numpy(np.concatenate(parts)).to(model.device)  # noqa: E731
    positions, hit = to(token), to(noised)
    with model.entry():
        if noise == "released":
            x = model.embed_ids(to(row_ids))
            shapes = [(samples, f.subject_end - f.subject_begin, model.width) for f in facts]
            drawn = [np.random.RandomState(1).randn(*shape).reshape(-1, model.width) for shape in shapes]
            x[hit] = (x[hit].double() + sigma * torch.from_numpy(np.concatenate(drawn)).to(model.device)).to(x.dtype)
            return x, positions
        weight, row = model.embed_weight, to(row_ids)
        if model.embed_scale is not None:
            used, row = row.unique(return_inverse=True)
            weight = model.embed_ids(used)
        spread = torch.where(hit, sigma, 0.0).float()
        x = noised_embed(weight, row, spread, to(key), to(sample).clamp_min(0), positions, seed)
        return x, positions
