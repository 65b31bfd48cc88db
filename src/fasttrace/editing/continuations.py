"""Scores by generation: the greedy continuation of every scored prompt under an edit, as text.

Each row of a batch belongs to one edit, whose update is added to the MLP's output of that row, as in `editing.scores`.
So edits of many facts generate together, and no weight changes.
"""

from collections.abc import Sequence

import numpy as np
from torch import Tensor

from fasttrace.editing.delta import Edit
from fasttrace.editing.prompts import answers_of
from fasttrace.editing.scores import ScoredPrompt, add_updates
from fasttrace.memory import pack_by_budget
from fasttrace.models.adapter import Decoder
from fasttrace.models.corrupt import Corruption, embed_corrupted
from fasttrace.models.generate import greedy_tokens
from fasttrace.models.keys import Keys
from fasttrace.models.packed import Batch
from fasttrace.models.stops import cut
from fasttrace.models.texts import is_cut, text_after, token_bytes
from fasttrace.settings.generate import Stop

Texts = tuple[str | None, ...]  # of a fact's prompts; None where a prompt is not continued


def continuations(
    model: Decoder,
    prompts: Sequence[Sequence[ScoredPrompt]],
    *,
    length: int,
    stop: Stop | None,
    memory: int,
    edits: Sequence[Edit] | None = None,
    corruption: Corruption | None = None,
) -> list[Texts]:
    """The greedy continuation of each prompt of each fact, or of each edit: a text per prompt.

    Prompts that expect nothing (essence texts) have none. Where the model has no position left, the text is "".

    prompts: the prompts of each edit's fact, or of each fact where there are no edits. length: most new tokens. stop:
    where a text ends early (`models.stops`), which is never inside an answer. memory: bytes for the texts that are
    generated together. corruption: noise on the subject in every prompt, or None.
    """
    asked = [[i for i, one in enumerate(mine) if one.expect is not None] for mine in prompts]
    found: list[list[str | None]] = [[None] * len(mine) for mine in prompts]
    longest = max((len(mine[i].ids) for mine, some in zip(prompts, asked, strict=True) for i in some), default=0)
    size = (longest + length) * token_bytes(model)
    for group in pack_by_budget(range(len(prompts)), lambda n: max(1, len(asked[n])) * size, memory):
        rows = [(n, i) for n in group for i in asked[n]]
        if not rows:
            continue
        chosen = [prompts[n][i] for n, i in rows]
        change = None if edits is None else _Change([edits[n] for n in group], [len(asked[n]) for n in group])

        def embedded(batch: Batch, chosen: Sequence[ScoredPrompt] = chosen) -> Tensor:
            return embed_corrupted(model, batch, [one.subject for one in chosen], corruption)

        ids = [list(one.ids) for one in chosen]
        answers = [answers_of(one, model.tokenizer) for one in chosen]
        done = None if stop is None else is_cut(model, stop, answers)
        new = greedy_tokens(model, ids, length, done=done, change=change, embedded=embedded)
        for (n, i), before, tokens, mine in zip(rows, ids, new, answers, strict=True):
            found[n][i] = cut(text_after(model, before, tokens), stop, mine)
    return [tuple(texts) for texts in found]


class _Change:
    """The updates of several edits, each for its own texts. `counts`: how many texts each edit has, in order."""

    def __init__(self, edits: Sequence[Edit], counts: Sequence[int]) -> None:
        self.edits = edits
        self.first = np.append(0, np.cumsum(counts))  # the first text of each edit

    def __call__(self, layer: int, keys: Keys, value: Tensor, begin: np.ndarray) -> Tensor:
        """begin: (texts + 1,), the first row of each text → the MLP's output (N, d) with the edits."""
        if not any(layer in edit.updates for edit in self.edits):
            return value
        return add_updates(layer, keys, value, self.edits, begin[self.first])
