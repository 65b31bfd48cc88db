"""The rows of the scored prompts: what is stored of each, before and after an edit."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa

from fasttrace.editing.answers import exact_match, prefix_match
from fasttrace.editing.judge import Judge, Judgement, Question, judged
from fasttrace.editing.problems import Problem
from fasttrace.editing.scores import EDITED, FALSE, TRUE, Reading, ScoredPrompt, own_answers, prompt_scores

NOTHING = Judgement()  # of a judge that was not asked
_P_COLUMNS = [f"{name}_{when}" for name in ("p", "p_true", "p_false") for when in ("before", "after")]
PROMPT_COLUMNS = [
    ("kind", pa.string()),
    ("prompt_index", pa.int32()),
    ("prompt", pa.string()),
    ("target_tokens", pa.int32()),
    *((name, pa.float64()) for name in _P_COLUMNS),
    ("expect", pa.string()),
    ("answer", pa.string()),
    ("match_before", pa.bool_()),
    ("match_after", pa.bool_()),
    ("score", pa.float64()),
    *((f"generated_{when}", pa.string()) for when in ("before", "after")),
    *((f"{name}_{when}", pa.bool_()) for name in ("exact", "prefix") for when in ("before", "after")),
    ("judged_after", pa.bool_()),
    ("judge_error", pa.string()),
    ("answers", pa.list_(pa.string())),
]


def prompt_rows(
    prompts: Sequence[ScoredPrompt],
    before: Reading,
    after: Reading,
    problem: Problem,
    protocol: str,
    tokenizer: Any,
    judgements: Mapping[Question, Judgement],
) -> Iterator[dict[str, Any]]:
    """A row of PROMPT_COLUMNS per prompt.

    p_before and p_after are of the edit's target, or of the likeliest of the probe's own answers before and after.
    answer: the likeliest of them after the edit. target_tokens: the number of its tokens, or the target's.
    match_before, match_after: whether greedy decoding gives the edit's target, for a neighborhood prompt o_true, and
    for a probe with answers one of them. generated_before, generated_after: the greedy continuation. exact_*, prefix_*:
    whether it is one of these answers, or begins with one (`editing.answers`). answers: their texts, where there is a
    continuation. judgements: what a judge says of the continuations after the edit.
    """
    scores = prompt_scores(prompts, before, after, problem, protocol)
    asked = questions_of(prompts, after, tokenizer)
    own = own_answers(prompts, before), own_answers(prompts, after)
    for i, prompt in enumerate(prompts):
        best = 0 if not prompt.answers else int(np.argmax(after.logp[i, : len(prompt.answers)]))
        columns = [np.exp(one.logp[i, column]) for column in (EDITED, TRUE, FALSE) for one in (before, after)]
        if prompt.answers:
            columns = [own[0][i], own[1][i], *[np.nan] * 4]
        matches = [bool(one.match[i, prompt.matched].any()) for one in (before, after)]
        yield {
            "kind": prompt.kind,
            "prompt_index": prompt.index,
            "prompt": prompt.text,
            "target_tokens": len(prompt.targets[best] or ()),
            **{name: None if np.isnan(p) else float(p) for name, p in zip(_P_COLUMNS, columns, strict=True)},
            "expect": prompt.expect,
            "answer": prompt.answers[best] if prompt.answers else None,
            "match_before": matches[0] if prompt.expect else None,
            "match_after": matches[1] if prompt.expect else None,
            "score": None if np.isnan(scores[i]) else float(scores[i]),
            **_generated(prompt, answers_of(prompt, tokenizer), i, before, after),
            **(NOTHING if (question := asked[i]) is None else judgements.get(question, NOTHING))._asdict(),
        }


def questions_of(prompts: Sequence[ScoredPrompt], after: Reading, tokenizer: Any) -> list[Question | None]:
    """The question to a judge about each prompt, None where there is no text or no answer."""
    texts = after.texts or [None] * len(prompts)
    answers = [tuple(answers_of(one, tokenizer)) for one in prompts]
    found = zip(prompts, answers, texts, strict=True)
    return [None if text is None or not own else (one.text, own, text) for one, own, text in found]


def judgements_of(
    judge: Judge | None, read: Iterable[tuple[Sequence[ScoredPrompt], Reading]], tokenizer: Any
) -> dict[Question, Judgement]:
    """What a judge says of every continuation of a prompt that has answers. read: prompts and their readings."""
    if judge is None:
        return {}
    asked = (one for prompts, after in read for one in questions_of(prompts, after, tokenizer))
    return judged(judge, [one for one in asked if one is not None])


def answers_of(prompt: ScoredPrompt, tokenizer: Any) -> list[str]:
    """The texts that answer a prompt: the probe's own answers, or the edit's target or o_true (`matched`)."""
    if prompt.answers:
        return list(prompt.answers)
    targets = (prompt.targets[i] for i in prompt.matched)
    return [tokenizer.decode(target, skip_special_tokens=True).strip() for target in targets if target is not None]


def _generated(prompt: ScoredPrompt, answers: Sequence[str], i: int, before: Reading, after: Reading) -> dict[str, Any]:
    """The columns of PROMPT_COLUMNS about generated text, None where there is none."""
    columns: dict[str, Any] = {"answers": None}
    for when, one in (("before", before), ("after", after)):
        text = None if one.texts is None else one.texts[i]
        columns[f"generated_{when}"] = text
        if text is not None:
            columns["answers"] = list(answers)
        columns[f"exact_{when}"] = exact_match(text, answers) if text is not None and answers else None
        columns[f"prefix_{when}"] = prefix_match(text, answers) if text is not None and answers else None
    return columns
