"""The contexts over which a fact's key is averaged: the bare prompt, and the prompt after sampled texts."""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fasttrace.cache import cache_root, content_key
from fasttrace.errors import UserError
from fasttrace.models.adapter import Decoder
from fasttrace.models.generate import continue_tokens, prefix_ids, sample_tokens, start_ids
from fasttrace.places import replacing
from fasttrace.settings.methods import METHODS

SHORT_TOKENS, LONG_TOKENS = 5, 10
BEGINNINGS = ("The", "Therefore", "Because", "I", "You")
TOP_K = 5
ROUNDS = 20


def method_contexts(model: Decoder, method: str, count: int, *, seed: int = 0) -> list[str]:
    """The bare template and `count` templates with sampled prefixes, as the method has them.

    ROME's prefixes have no given beginning, and half of them are short. Those of MEMIT, and of the methods that share
    its engine, are begun by five words. Source: docs/algorithms.md, section 12, Contexts.
    """
    if METHODS[method].spread:
        return sample_contexts(model, seed=seed, short=0, long=0, begun=count)
    return sample_contexts(model, seed=seed, short=count // 2, long=count - count // 2)


def sample_contexts(
    model: Decoder,
    *,
    seed: int = 0,
    cache_dir: str | Path | None = None,
    short: int = 10,
    long: int = 10,
    begun: int = 0,
) -> list[str]:
    """Prompt templates with one "{}" each: the bare "{}", then `short`, `long` and `begun` templates "<prefix>. {}".

    The prefixes have 5 tokens (`short`) or 10 (`long`, `begun`). The model draws each token among its 5 likeliest. It
    draws `short` and `long` prefixes after `models.generate.start_ids`. A `begun` prefix begins with The, Therefore,
    Because, I or You, in turn, and this word counts among its 10 tokens. The templates are drawn once for (model,
    dtype, seed, short, long, begun) and stored as JSON in cache_dir (default as in `second_moments`), so later runs get
    the same strings.

    Tokens that are not printable text by themselves (parts of a character, line breaks, special tokens) or contain a
    brace are never drawn. Prefixes are drawn in rounds, at most 20, until enough are distinct and the tokenizer encodes
    each as the tokens that were drawn. If there are still too few, other prefixes are used. These may repeat, or be
    encoded as more or fewer than 5 or 10 tokens.

    Raises UserError for a negative count or seed, a damaged cache file, and a model without a token that may be drawn.
    Source: Meng et al. 2022 (arXiv 2202.05262), section 3.1, step 1; for `begun`, the code of arXiv 2210.07229;
    docs/algorithms.md, section 12, Contexts.
    """
    for name, value in (("seed", seed), ("short", short), ("long", long), ("begun", begun)):
        if value < 0:
            raise UserError(f"sample_contexts: {name}: expected at least 0, got {value}")
    settings: dict[str, Any] = {
        "format": 1,
        "model": model.model_hash,
        "dtype": model.dtype_name,
        "seed": seed,
        "top_k": TOP_K,
        "start": start_ids(model),
        "lengths": [[short, SHORT_TOKENS], [long, LONG_TOKENS]],
    }
    if begun:
        settings["begun"] = [begun, LONG_TOKENS, *BEGINNINGS]
    path = cache_root(cache_dir) / "contexts" / f"{content_key(settings)}.json"
    if path.is_file():
        return _read(path, short + long + begun)
    allowed = drawable(model)
    prefixes: list[str] = []
    for count, length in ((short, SHORT_TOKENS), (long, LONG_TOKENS)):
        prefixes += _prefixes(model, count, length, seed, allowed)
    prefixes += _begun(model, begun, seed, allowed)
    contexts = ["{}", *(f"{prefix}. {{}}" for prefix in prefixes)]
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps({"settings": settings, "contexts": contexts}, ensure_ascii=False, indent=1)
    with replacing(path) as draft:
        draft.write_bytes(text.encode())
    return contexts


def drawable(model: Decoder) -> Tensor:
    """(V,) bool on the CPU: tokens that are printable text by themselves, not special and without braces.

    Raises UserError if the model has no such token.
    """
    tokenizer = model.tokenizer
    count = min(len(tokenizer), model.vocab_size)
    texts = tokenizer.batch_decode([[i] for i in range(count)], clean_up_tokenization_spaces=False)
    special = {*tokenizer.all_special_ids, *tokenizer.added_tokens_decoder}
    allowed = torch.zeros(model.vocab_size, dtype=torch.bool)
    allowed[:count] = torch.tensor([_fits(text) and i not in special for i, text in enumerate(texts)])
    if not bool(allowed.any()):
        raise UserError(f"model '{model.name}' has no printable token, so contexts cannot be sampled")
    return allowed


def _fits(text: str) -> bool:
    return bool(text) and not set("{}\ufffd") & set(text) and text.isprintable()


def _prefixes(model: Decoder, count: int, length: int, seed: int, allowed: Tensor) -> list[str]:
    tokenizer: Any = model.tokenizer
    kept: list[str] = []
    spare: list[str] = []
    for number in range(ROUNDS if count else 0):
        drawn = sample_tokens(model, count, length, seed=(seed, length, number), top_k=TOP_K, allowed=allowed)
        for ids in drawn.tolist():
            text = tokenizer.decode(ids, clean_up_tokenization_spaces=False)
            whole = bool(text.strip()) and tokenizer(text, add_special_tokens=False).input_ids == ids
            (kept if whole and text not in kept else spare).append(text)
        if len(kept) >= count:
            break
    return (kept + spare)[:count]


def _begun(model: Decoder, count: int, seed: int, allowed: Tensor) -> list[str]:
    """`count` prefixes of LONG_TOKENS tokens, each begun by its word of BEGINNINGS."""
    tokenizer: Any = model.tokenizer
    added = prefix_ids(tokenizer)
    words = [tokenizer(BEGINNINGS[i % len(BEGINNINGS)], add_special_tokens=False).input_ids for i in range(count)]
    kept: dict[int, str] = {}
    spare: list[str] = []
    for number in range(ROUNDS if count else 0):
        rows, seeds = [[*added, *word] for word in words], [(seed, LONG_TOKENS, number, len(BEGINNINGS))]
        drawn = continue_tokens(
            model,
            rows,
            LONG_TOKENS - min(map(len, words)),
            seeds=seeds,
            per_seed=count,
            top_k=TOP_K,
            allowed=allowed,
            total=len(added) + LONG_TOKENS,
        )
        texts = [
            tokenizer.decode([*word, *ids], clean_up_tokenization_spaces=False)
            for word, ids in zip(words, drawn, strict=True)
        ]
        spare = spare or texts
        for place, (word, ids, text) in enumerate(zip(words, drawn, texts, strict=True)):
            whole = tokenizer(text, add_special_tokens=False).input_ids == [*word, *ids]
            if place not in kept and whole and text not in kept.values():
                kept[place] = text
        if len(kept) == count:
            break
    return [kept.get(place, text) for place, text in enumerate(spare)]


def _read(path: Path, prefixes: int) -> list[str]:
    try:
        contexts = json.loads(path.read_text(encoding="utf-8"))["contexts"]
        good = len(contexts) == prefixes + 1 and contexts[0] == "{}"
        good = good and all(c.count("{}") == 1 for c in contexts)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError):
        good = False
    if not good:
        raise UserError(f"contexts file '{path}' is damaged: delete it and run again to sample the contexts again")
    return [str(context) for context in contexts]
