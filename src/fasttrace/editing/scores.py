"""Scoring edits: the same prompts before and after, without touching the weights (paper, section 3.4).

The unedited pass of a fact's prompts advances through the layers once; after layer ℓ every edit at ℓ enters
as a copy of those rows whose MLP output is W k + Λ (u·k). Thousands of edits share each layer's products.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fasttrace.editing.problems import Problem
from fasttrace.editing.rome import RankOne
from fasttrace.facts import EncodedFact, encode_prompt, encode_target
from fasttrace.models.adapter import Decoder
from fasttrace.models.packed import attend, embed, mlp, pack, row_logprob
from fasttrace.ops.prefix_attention import Sequences

KINDS = ("rewrite", "paraphrase", "neighborhood")


@dataclass(frozen=True)
class ScoredPrompt:
    """One prompt of a fact: its kind, number within the kind, text, ids, and the ids of both targets."""

    kind: str
    index: int
    text: str
    ids: tuple[int, ...]
    edited: tuple[int, ...]
    true: tuple[int, ...]


def scored_prompts(model: Decoder, fact: EncodedFact, problem: Problem) -> list[ScoredPrompt]:
    """The fact's prompt, every paraphrase and every neighbourhood prompt, with targets as they follow each."""
    tokenizer, record = model.tokenizer, fact.fact
    rows = [ScoredPrompt("rewrite", 0, record.text, fact.ids, problem.target_ids(fact), fact.target_true_ids)]
    assert record.target_false is not None
    for kind, prompts in (("paraphrase", record.paraphrases), ("neighborhood", record.neighborhood)):
        for i, text in enumerate(prompts):
            edited, true = (tuple(encode_target(tokenizer, text, t)) for t in (record.target_false, record.target_true))
            rows.append(ScoredPrompt(kind, i, text, tuple(encode_prompt(tokenizer, text)), edited, true))
    return rows


class PromptBatch:
    """The distinct row sequences of several facts' prompts; targets that share a sequence are read off it together."""

    def __init__(self, facts: Sequence[Sequence[ScoredPrompt]]) -> None:
        self.prompts = list(facts)
        self.sequences: list[tuple[int, ...]] = []
        self.of_fact: list[range] = []  # sequences of each fact, one after another
        # Every (fact, prompt, which target): its sequence and target ids.
        self.reads: list[tuple[int, tuple[int, ...]]] = []
        for prompts in facts:
            seen: dict[tuple[int, ...], int] = {}
            first = len(self.sequences)
            for prompt in prompts:
                for target in (prompt.edited, prompt.true):
                    ids = (*prompt.ids, *target[:-1])
                    if ids not in seen:
                        seen[ids] = len(self.sequences)
                        self.sequences.append(ids)
                    self.reads.append((seen[ids], target))
            self.of_fact.append(range(first, len(self.sequences)))


@torch.no_grad()
def score_edits(
    model: Decoder, facts: Sequence[Sequence[ScoredPrompt]], edits: Sequence[tuple[int, RankOne]]
) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """p of both targets on every prompt, before and after each edit.

    facts: each fact's scored prompts. edits: (fact number, edit).
    Returns (before: fact → (prompts, 2), after: edit → (prompts, 2)); columns: the edit's target, o_true.
    """
    wanted = PromptBatch(facts)
    batch = pack(model, wanted.sequences)
    begin = np.cumsum(batch.lengths) - batch.lengths
    order = sorted(range(len(edits)), key=lambda i: edits[i][1].layer)
    h = embed(model, batch.ids, batch.positions)
    n_base, table, position = h.shape[0], batch.sequences.table, batch.positions
    at = 0
    for layer, block in enumerate(model.blocks):
        rotary = model.rotary(position)
        middle = h + attend(block, h, rotary, Sequences(table))
        residual = h if block.parallel else middle
        entering = []
        while at < len(order) and edits[order[at]][1].layer == layer:
            entering.append(order[at])
            at += 1
        if not entering:
            h = middle + mlp(block, residual)
            continue
        key = block.mlp_key(block.mlp_norm(residual[:n_base]))
        value = block.mlp_value(key)
        parts = [middle[:n_base] + block.mlp_add(value), middle[n_base:] + mlp(block, residual[n_base:])]
        for number in entering:
            fact, edit = edits[number]
            of = wanted.of_fact[fact]
            rows = slice(int(begin[of.start]), int(begin[of.stop - 1]) + batch.lengths[of.stop - 1])
            start = sum(p.shape[0] for p in parts)
            changed = _edited_value(key[rows], value[rows], edit)
            parts.append(middle[rows] + block.mlp_add(changed))
            mine = batch.sequences.table[of.start : of.stop].copy()
            mine[:, [0, 6]] += start - rows.start
            table = np.concatenate((table, mine))
            position = torch.cat((position, batch.positions[rows]))
        h = torch.cat(parts)
    p = _read(model, h, wanted, table, [fact for fact, _ in (edits[i] for i in order)])
    sizes = [2 * len(prompts) for prompts in facts]
    starts = np.cumsum([0, *sizes])
    before = [p[starts[f] : starts[f + 1]].reshape(-1, 2) for f in range(len(facts))]
    after: list[np.ndarray] = [np.empty(0)] * len(edits)
    place = int(starts[-1])
    for number in order:
        size = sizes[edits[number][0]]
        after[number] = p[place : place + size].reshape(-1, 2)
        place += size
    return before, after


def _edited_value(key: Tensor, value: Tensor, edit: RankOne) -> Tensor:
    """key: (N, m), value: (N, d) = W k → (W + Λuᵀ) k, the rank-one part in float32 or wider."""
    wide = torch.promote_types(value.dtype, torch.float32)
    along = key.to(wide) @ edit.key.to(key.device, wide)
    return (value.to(wide) + along[:, None] * edit.value.to(key.device, wide)).to(value.dtype)


def _read(model: Decoder, h: Tensor, wanted: PromptBatch, table: np.ndarray, edit_facts: Sequence[int]) -> np.ndarray:
    """p of every read: first all facts' unedited, then each edit's in order of entry."""
    reads_of: list[list[tuple[int, tuple[int, ...]]]] = []
    at = 0
    for prompts, of in zip(wanted.prompts, wanted.of_fact, strict=True):
        mine = wanted.reads[at : at + 2 * len(prompts)]
        reads_of.append([(s - of.start, target) for s, target in mine])
        at += 2 * len(prompts)
    ends = table[:, 6] + table[:, 7]
    rows: list[np.ndarray] = []
    targets: list[int] = []
    count: list[int] = []
    first = 0
    # A sequence of the pack belongs to the facts in order, then to the edits in order of entry.
    for fact in [*range(len(wanted.prompts)), *edit_facts]:
        for s, target in reads_of[fact]:
            end = int(ends[first + s])
            rows.append(np.arange(end - len(target), end))
            targets += target
            count.append(len(target))
        first += len(wanted.of_fact[fact])
    where = torch.from_numpy(np.concatenate(rows)).to(h.device)
    logp = row_logprob(model, h[where], torch.tensor(targets, device=h.device)).double().cpu().numpy()
    begin = np.cumsum(count) - np.asarray(count)
    return np.exp(np.minimum(np.add.reduceat(logp, begin), 0.0))


def score_row(
    prompts: Sequence[ScoredPrompt], before: np.ndarray, after: np.ndarray, protocol: str
) -> dict[str, float | bool | None]:
    """Scores of one edit from its probabilities (ALGORITHMS, section 6). before, after: (prompts, 2).

    rewrite, paraphrase: (p* − p)/(1 − p), the mean over paraphrases. neighborhood: 1 − |p* − p|/(.5 + |p − .5|),
    the mean over prompts. overall: the mean of the three. protocol "released" reads only the first paraphrase
    and neighbourhood prompt, and floors rewrite and paraphrase at 2e-8. A score without prompts is None.
    """
    kind = np.array([p.kind for p in prompts])
    p, q = before[:, 0], after[:, 0]
    # A target that is certain already leaves nothing to gain.
    gain = np.divide(q - p, 1.0 - p, out=np.zeros_like(p), where=p < 1.0)
    if protocol == "released":
        gain = np.maximum(gain, 2e-8)
    kept = 1.0 - np.abs(q - p) / (0.5 + np.abs(p - 0.5))

    def mean(values: np.ndarray, name: str) -> float | None:
        mine = values[kind == name]
        if not len(mine):
            return None
        return float(mine[0] if protocol == "released" else mine.mean())

    rewrite, paraphrase, neighborhood = mean(gain, "rewrite"), mean(gain, "paraphrase"), mean(kept, "neighborhood")
    three = [s for s in (rewrite, paraphrase, neighborhood) if s is not None]
    return {
        "rewrite": rewrite,
        "paraphrase": paraphrase,
        "neighborhood": neighborhood,
        "overall": sum(three) / 3 if len(three) == 3 else None,
        "p_before": float(p[0]),
        "p_after": float(q[0]),
        "p_true_before": float(before[0, 1]),
        "p_true_after": float(after[0, 1]),
        "magnitude": float(after[0, 0] - after[0, 1]),
        "success": bool(after[0, 0] > after[0, 1]),
    }
