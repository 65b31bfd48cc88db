"""Corrupted passes: noise on the subject's token embeddings, or a counterfactual prompt's tokens (docs/algorithms.md,
section 3)."""

import math
import os
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fasttrace.errors import UserError
from fasttrace.facts.load import BUILTIN, load_facts
from fasttrace.facts.tokens import EncodedFact, encode_joined, encode_prompt, tokens_of
from fasttrace.models.adapter import Decoder
from fasttrace.models.packed import Batch, embed, forward, pack, row_logits
from fasttrace.ops.noised_embed import fact_key, noised_embed

# (model type, layers) → the published σ, the standard deviation of the noise.
PUBLISHED_SIGMA = {("gptj", 28): 0.094, ("gpt2", 48): 0.1}
RELEASED_TOKENS, RELEASED_TOP_K = 12, 5  # for `released_output`


def noise_sigma(model: Decoder, sigma: float | str | None, of: str | os.PathLike[str] = BUILTIN) -> float:
    """The σ of a sweep. sigma: a number, "3sd", or None. None is the published value, or "3sd" if there is none.

    "3sd" is 3 × the standard deviation of the embedding entries of the subject tokens of all facts in `of`, to 6
    digits. It does not depend on the facts that are traced, so that parts of a sweep have the same σ.
    of: "builtin", or a file of facts, all of which count.

    Raises UserError where the embeddings do not differ, and FactError for a bad file.
    """
    if sigma is None:
        sigma = PUBLISHED_SIGMA.get((model.config.model_type, model.n_layers), "3sd")
    if sigma == "3sd":
        return _three_deviations(model, os.fspath(of))
    return float(sigma)


def _three_deviations(model: Decoder, of: str) -> float:
    ids = _builtin_subjects(model.tokenizer) if of == BUILTIN else _subject_ids(model.tokenizer, of)
    used, times = np.unique(np.array(ids, dtype=np.int64), return_counts=True)
    with model.entry():
        rows = model.embed_ids(torch.from_numpy(used).to(model.device)).double().cpu().numpy()
    count = len(ids) * rows.shape[1]
    mean = times @ rows.sum(1) / max(count, 1)
    spread = math.sqrt(times @ ((rows - mean) ** 2).sum(1) / max(count - 1, 1))
    if not spread > 0:
        raise UserError(f"sigma '3sd': expected subjects of {of} whose embeddings differ, got none: give σ as a number")
    # σ is part of the run's identity, so it must not depend on the last bits of a sum over threads.
    return float(f"{3.0 * spread:.6g}")


@lru_cache(4)  # half a second
def _builtin_subjects(tokenizer: Any) -> list[int]:
    return _subject_ids(tokenizer, BUILTIN)


def _subject_ids(tokenizer: Any, of: str) -> list[int]:
    """The ids of the subject tokens of all facts of a file, each as often as it occurs."""
    ids: list[int] = []
    for fact in load_facts(of):
        if (tokens := tokens_of(tokenizer, fact.text, *fact.subject_span)) is not None:
            ids += encode_prompt(tokenizer, fact.text)[slice(*tokens)]
    return ids


@dataclass(frozen=True)
class Passes:
    """The clean pass of a fact and its corrupted passes, from which every cell starts.

    fact: the fact. clean: the tokens of the clean pass. corrupted: those of each corrupted pass, as many, and equal to
    the clean ones before `begin`. begin, end: only at the tokens [begin, end) can the input of a corrupted pass differ
    from the clean one. noised: whether it differs there by noise, rather than by its tokens.
    """

    fact: EncodedFact
    clean: tuple[int, ...]
    corrupted: tuple[tuple[int, ...], ...]
    begin: int
    end: int
    noised: bool


def noised_passes(fact: EncodedFact, scored: tuple[int, ...], samples: int) -> Passes:
    """Passes over the prompt and the tokens `scored`, with `samples` corrupted ones that have noise on the subject."""
    clean = (*fact.ids, *scored)
    return Passes(fact, clean, (clean,) * samples, fact.subject_begin, fact.subject_end, noised=True)


def counterfactual_passes(fact: EncodedFact, scored: tuple[int, ...]) -> Passes:
    """As `noised_passes`, with a corrupted pass for each counterfactual prompt of the fact, which has at least one."""
    differ = np.flatnonzero((np.array(fact.counterfactuals) != np.array(fact.ids)).any(0))
    corrupted = tuple((*ids, *scored) for ids in fact.counterfactuals)
    return Passes(fact, (*fact.ids, *scored), corrupted, int(differ[0]), int(differ[-1]) + 1, noised=False)


def embed_base(model: Decoder, passes: Sequence[Passes], sigma: float, noise: str, seed: int) -> tuple[Tensor, Tensor]:
    """Token embeddings of the base rows: for each fact, the rows of the clean pass, then those of every corrupted pass
    from `begin` on.

    noise: "philox" depends only on (seed, fact, sample, token, dimension); "released" is NumPy's RandomState(1),
    started afresh for every fact. sigma, noise and seed play no part where no pass is noised.

    Return (embeddings (N, d) before position embeddings, positions (N,)).
    """
    row_ids, sample, token, key, noised = [], [], [], [], []
    for one in passes:
        t, b, n = len(one.clean), one.begin, len(one.corrupted)
        place = np.concatenate((np.arange(t), np.tile(np.arange(b, t), n)))
        which = np.concatenate((np.full(t, -1), np.repeat(np.arange(n), t - b)))
        row_ids.append(np.concatenate([one.clean, *(ids[b:] for ids in one.corrupted)]))
        sample.append(which)
        token.append(place)
        key.append(np.full(len(place), fact_key(one.fact.fact_id)))
        noised.append(one.noised & (which >= 0) & (place < one.end))
    to = lambda parts: torch.from_numpy(np.concatenate(parts)).to(model.device)  # noqa: E731
    positions = to(token)
    drawn = None
    if noise == "released" and any(one.noised for one in passes):
        shapes = [(len(one.corrupted), one.end - one.begin, model.width) for one in passes if one.noised]
        drawn = np.concatenate([np.random.RandomState(1).randn(*shape).reshape(-1, model.width) for shape in shapes])
    x = _noised(model, to(row_ids), to(noised), to(key), to(sample).clamp_min(0), positions, sigma, seed, drawn)
    return x, positions


def _noised(
    model: Decoder,
    ids: Tensor,
    hit: Tensor,
    key: Tensor,
    sample: Tensor,
    token: Tensor,
    sigma: float,
    seed: int,
    drawn: np.ndarray | None,
) -> Tensor:
    """ids, key, sample, token: (N,) int64, hit: (N,) bool → (N, d), the embeddings with noise where `hit` is true.

    drawn: (number of hits, d) standard normal noise, or None for Philox.
    """
    with model.entry():
        if drawn is not None:
            x = model.embed_ids(ids)
            x[hit] = (x[hit].double() + sigma * torch.from_numpy(drawn).to(model.device)).to(x.dtype)
            return x
        weight, row = model.embed_weight, ids
        if model.embed_scale is not None:
            used, row = row.unique(return_inverse=True)
            weight = model.embed_ids(used)
        return noised_embed(weight, row, torch.where(hit, sigma, 0.0).float(), key, sample, token, seed)


@dataclass(frozen=True)
class Corruption:
    """The noise that corrupts a fact's subject in editing problems.

    sigma: standard deviation of the noise on the subject's token embeddings. noise, seed: as in `embed_base`. sample:
    index of the noise sample, as in tracing. anew: an optimisation draws new samples for each of its forwards, for its
    first one sample 0 and for each later sequence the next one (the released code's Fact Forcing).
    """

    sigma: float
    noise: str = "philox"
    seed: int = 0
    sample: int = 0
    anew: bool = False


@dataclass(frozen=True)
class Subject:
    """The tokens of a packed sequence that get a fact's noise: [begin, end) of the sequence.

    sample: index of the noise sample; None for the corruption's.
    """

    fact: EncodedFact
    begin: int
    end: int
    sample: int | None = None


def own_place(fact: EncodedFact, length: int, sample: int) -> Subject:
    """The tokens of a sequence of `length` tokens at which the fact's own prompt has its subject, whatever is there.

    The released code corrupts these tokens in every sequence of an optimisation.
    """
    return Subject(fact, min(fact.subject_begin, length), min(fact.subject_end, length), sample)


class _ReleasedNoise:
    """RandomState(1).randn(…, count, width), one noise sample after another, in float64."""

    def __init__(self, count: int, width: int) -> None:
        self.shape, self.state = (count, width), np.random.RandomState(1)
        self.samples: list[np.ndarray] = []

    def sample(self, number: int) -> np.ndarray:
        """(count, width), noise sample `number`."""
        while len(self.samples) <= number:
            self.samples.append(self.state.randn(*self.shape))
        return self.samples[number]


_released_noise = lru_cache(8)(_ReleasedNoise)


def embed_corrupted(
    model: Decoder, batch: Batch, subjects: Sequence[Subject | None], corruption: Corruption | None
) -> Tensor:
    """(N, d) input of block 0 for a packed batch whose subjects have noise.

    subjects: one per sequence, None for a sequence without noise. corruption: None for no noise at all.
    The i-th token of a subject gets the noise that tracing gives the i-th subject token of the fact's own prompt,
    whatever its position here.
    """
    if corruption is None or not any(subjects):
        return embed(model, batch.ids, batch.positions)
    n = len(batch.ids)
    hit, key, token, sample = (np.zeros(n, dtype=kind) for kind in (bool, np.int64, np.int64, np.int64))
    drawn = []
    begin = np.cumsum(batch.lengths) - batch.lengths
    for first, subject in zip(begin, subjects, strict=True):
        if subject is None:
            continue
        own, count = subject.fact, subject.end - subject.begin
        number = corruption.sample if subject.sample is None else subject.sample
        rows = slice(first + subject.begin, first + subject.end)
        hit[rows], key[rows], sample[rows] = True, fact_key(own.fact_id), number
        token[rows] = own.subject_begin + np.arange(count)
        if corruption.noise == "released":
            most = max(count, own.subject_end - own.subject_begin)
            drawn.append(_released_noise(most, model.width).sample(number)[:count])
    to = lambda values: torch.from_numpy(values).to(model.device)  # noqa: E731
    x = _noised(
        model,
        batch.ids,
        to(hit),
        to(key),
        to(sample),
        to(token),
        corruption.sigma,
        corruption.seed,
        np.concatenate(drawn) if drawn else None,
    )
    with model.entry():
        return model.enter(x, batch.positions)


@torch.no_grad()
def corrupted_output(
    model: Decoder, facts: Sequence[EncodedFact], lengths: Sequence[int], corruption: Corruption
) -> list[tuple[int, ...]]:
    """o_noise: the greedy continuation of each fact's corrupted prompt, end-of-text tokens included.

    lengths: number of tokens per fact, for which the model has positions. Source: docs/algorithms.md, section 11.
    """
    ids = [list(fact.ids) for fact in facts]
    subjects = [Subject(fact, fact.subject_begin, fact.subject_end) for fact in facts]
    for _ in range(max(lengths, default=0)):
        left = [i for i, tokens in enumerate(ids) if model.room(len(tokens), 1)]
        batch = pack(model, [ids[i] for i in left])
        h = forward(model, batch, h=embed_corrupted(model, batch, [subjects[i] for i in left], corruption))
        best = row_logits(model, h[batch.last_rows.to(h.device)]).argmax(1).tolist()
        for i, token in zip(left, best, strict=True):
            ids[i].append(token)
    return [
        tuple(tokens[len(f.ids) : len(f.ids) + length]) for f, tokens, length in zip(facts, ids, lengths, strict=True)
    ]


@torch.no_grad()
def released_output(model: Decoder, facts: Sequence[EncodedFact], corruption: Corruption) -> list[tuple[int, ...]]:
    """o_noise as in the released code: the prompt's text followed by a continuation, 12 tokens in all.

    Each token of the continuation is drawn among the 5 likeliest after the corrupted prompt. A prompt of 12 tokens or
    more has no continuation. Return the ids of the whole text as a target, with characters normalised (NFKD) and empty
    lines replaced by spaces. The draws depend on corruption.seed and the fact. The released code uses torch's global
    generator, which gives the same distribution but other draws.
    Source: google/belief-localization, experiments/evaluate.py (tracing_reversal); docs/algorithms.md, section 11.
    """
    ids = [list(fact.ids) for fact in facts]
    draws = [np.random.default_rng((corruption.seed, fact_key(fact.fact_id))) for fact in facts]
    while short := [i for i, t in enumerate(ids) if len(t) < RELEASED_TOKENS and model.room(len(t), 1)]:
        batch = pack(model, [ids[i] for i in short])
        subjects = [Subject(facts[i], facts[i].subject_begin, facts[i].subject_end) for i in short]
        h = forward(model, batch, h=embed_corrupted(model, batch, subjects, corruption))
        top = row_logits(model, h[batch.last_rows.to(h.device)]).double().topk(RELEASED_TOP_K)
        for i, p, tokens in zip(short, top.values.softmax(1).cpu().numpy(), top.indices.tolist(), strict=True):
            ids[i].append(tokens[int(draws[i].choice(len(tokens), p=p))])
    texts = [unicodedata.normalize("NFKD", model.tokenizer.decode(tokens, skip_special_tokens=True)) for tokens in ids]
    outputs = []
    for fact, text in zip((one.fact for one in facts), texts, strict=True):
        # With the fact's own targets, so that the prompt's tokens are those of the fact.
        own = [target for target in (fact.target_true, fact.target_false) if target is not None]
        said = text.replace("\n\n", " ")
        outputs.append(encode_joined(model.tokenizer, fact.text, [*own, said], fact.target_prefix).targets[-1])
    return outputs
