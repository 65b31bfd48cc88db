"""Essence texts: texts of the unedited model about a subject, to measure an edit's side effects.

Each subject gets five continuations of "{subject} is a". They are sampled once for (model, dtype, seed) and stored on
disk, so that every method, problem and layer is scored on the same texts (docs/algorithms.md, section 18).
"""

import json
from collections.abc import Collection, Sequence
from pathlib import Path

import torch

from fasttrace.cache import cache_root, content_key
from fasttrace.errors import UserError, shown
from fasttrace.facts import encode_prompt
from fasttrace.models.adapter import Decoder
from fasttrace.models.generate import continue_tokens
from fasttrace.ops.noised_embed import fact_key
from fasttrace.places import replacing

TEXTS, TOKENS, TOP_K = 5, 100, 5
BATCH = 16  # subjects sampled together


def essence_texts(
    model: Decoder,
    subjects: Sequence[str],
    *,
    seed: int = 0,
    texts: int = TEXTS,
    tokens: int = TOKENS,
    cache_dir: str | Path | None = None,
    wanted: Collection[str] | None = None,
) -> list[list[tuple[int, ...]]]:
    """Token ids of every subject's texts, or only of those of the subjects that are wanted, in the order of `subjects`.

    Each text is `tokens` long with "{subject} is a" included, or as long as the model has positions. Subjects are drawn
    in batches, which do not depend on what is wanted.

    Tokens are drawn among the 5 likeliest that are not special. The texts depend only on (model, dtype, seed, subject,
    texts, tokens). Raises UserError where a file in the cache is damaged, or "{subject} is a" leaves no token to draw.
    """
    tokens = model.room(1, tokens)
    folder = cache_root(cache_dir) / "essence"
    paths, model_hash = {}, model.model_hash  # read once: it sums every weight
    for subject in dict.fromkeys(subjects):
        identity = {
            "format": 1,
            "model": model_hash,
            "dtype": model.dtype_name,
            "seed": seed,
            "texts": texts,
            "tokens": tokens,
            "top_k": TOP_K,
            "subject": subject,
        }
        paths[subject] = folder / f"{content_key(identity)}.json"
    allowed = torch.ones(model.vocab_size, dtype=torch.bool)
    special = [i for i in {*model.tokenizer.all_special_ids, *model.tokenizer.added_tokens_decoder} if i < len(allowed)]
    allowed[special] = False
    folder.mkdir(parents=True, exist_ok=True)
    for i in range(0, len(paths), BATCH):
        part = list(paths)[i : i + BATCH]
        missing = [subject for subject in part if not paths[subject].is_file()]
        if not missing or (wanted is not None and not {*wanted} & {*missing}):
            continue
        # The whole batch is drawn again, because a smaller one may round differently and so draw another token.
        prompts = [essence_prompt(model, subject, tokens) for subject in part]
        rows = [prompt for prompt in prompts for _ in range(texts)]
        seeds = [(seed, fact_key(subject)) for subject in part]
        drawn = continue_tokens(
            model,
            rows,
            tokens - min(map(len, prompts)),
            seeds=seeds,
            per_seed=texts,
            top_k=TOP_K,
            allowed=allowed,
            total=tokens,
        )
        for subject in missing:
            number = part.index(subject)
            ids = [[*prompts[number], *drawn[number * texts + t]] for t in range(texts)]
            with replacing(paths[subject]) as draft:
                draft.write_text(json.dumps({"subject": subject, "ids": ids}))
    return [_read(paths[subject], texts) for subject in subjects if wanted is None or subject in wanted]


def essence_prompt(model: Decoder, subject: str, tokens: int = TOKENS) -> list[int]:
    """Token ids of "{subject} is a". Raises UserError where a text of `tokens` tokens has none left to draw."""
    prompt, most = encode_prompt(model.tokenizer, f"{subject} is a"), model.room(1, tokens)
    if len(prompt) >= most:
        raise UserError(f"{shown(f'{subject} is a')}: expected fewer than {most} tokens, got {len(prompt)}")
    return prompt


def _read(path: Path, texts: int) -> list[tuple[int, ...]]:
    try:
        ids = json.loads(path.read_text())["ids"]
        result = [tuple(int(i) for i in text) for text in ids]
        good = len(result) == texts and all(len(text) > 1 for text in result)
    except (ValueError, KeyError, TypeError):
        good = False
    if not good:
        raise UserError(f"essence file '{path}' is damaged: delete it and run again to sample its texts again")
    return result
