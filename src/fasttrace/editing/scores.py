"""Scores edits on the same prompts before and after, without changing the weights (paper, section 3.4).

The unedited pass over a fact's prompts runs once. An edit starts at its first changed layer from a copy of those rows,
with the MLP output W k + Λ (u·k) or W k + D k. The edits of a batch share the products of each layer.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fasttrace.editing.delta import Dense, Edit, LowRank
from fasttrace.editing.problems import Problem
from fasttrace.editing.wave import EditWave, Span, Visited, walk
from fasttrace.errors import shown
from fasttrace.facts import EncodedFact, encode_joined, tokens_of
from fasttrace.models.adapter import Decoder
from fasttrace.models.corrupt import Corruption, Subject, embed_corrupted
from fasttrace.models.packed import pack, row_logprob
from fasttrace.ops.rank_one_linear import rank_one_add_

KINDS = ("rewrite", "paraphrase", "neighborhood", "essence")
EDITED, TRUE, FALSE = range(3)  # columns of a prompt's log-probabilities


@dataclass(frozen=True)
class ScoredPrompt:
    """One prompt of a fact: its kind, index within the kind, text, ids, and the targets that are read after it.

    targets: ids of the edit's target, o_true and o_false (None where the fact has none). An essence text is a prompt of
    one token. Its first target is the rest of the text, and its other targets are None. subject: the position of the
    subject, which gets noise if the problem is corrupted.
    """

    kind: str
    index: int
    text: str
    ids: tuple[int, ...]
    targets: tuple[tuple[int, ...] | None, ...]
    subject: Subject | None = None


def scored_prompts(
    model: Decoder,
    fact: EncodedFact,
    problem: Problem,
    noise_target: tuple[int, ...] | None = None,
    essence: Sequence[tuple[int, ...]] = (),
    noised_essence: bool = False,
) -> list[ScoredPrompt]:
    """The fact's prompt, its paraphrases and neighbourhood prompts, each with its targets, and the essence texts.

    noise_target: ids of o_noise, if it is the problem's target. It follows every prompt as it is. essence: token ids of
    each essence text. noised_essence: whether a corrupted problem corrupts the subject in these too, as released.

    Raises ModelError where the model has too few positions for a prompt and its target.
    """
    tokenizer, record = model.tokenizer, fact.fact
    own = [target for target in (record.target_true, record.target_false) if target is not None]

    def row(kind: str, index: int, text: str, subject: Subject | None) -> ScoredPrompt:
        prompt = encode_joined(tokenizer, text, own, record.target_prefix)
        true, false = prompt.targets[0], prompt.targets[1] if len(own) == 2 else None
        edited = {"true": true, "false": false, "noise": noise_target}[problem.target]
        return ScoredPrompt(kind, index, text, prompt.ids, (edited, true, false), subject)

    rows = [row("rewrite", 0, record.text, Subject(fact, fact.subject_begin, fact.subject_end))]
    for kind, prompts in (("paraphrase", record.paraphrases), ("neighborhood", record.neighborhood)):
        for i, text in enumerate(prompts):
            rows.append(row(kind, i, text, _subject_in(model, fact, text) if problem.corrupted else None))
    begun = _subject_in(model, fact, f"{record.subject} is a") if problem.corrupted and noised_essence else None
    for i, tokens in enumerate(essence):
        rows.append(ScoredPrompt("essence", i, tokenizer.decode(tokens), tokens[:1], (tokens[1:], None, None), begun))
    for one in rows:
        longest = max(len(target) for target in one.targets if target is not None)
        model.check_length(len(one.ids) + longest - 1, f"fact '{record.fact_id}' with a target after {shown(one.text)}")
    return rows


def _subject_in(model: Decoder, fact: EncodedFact, text: str) -> Subject | None:
    """The tokens of the subject where it first occurs in a text, or None where it does not."""
    begin = text.find(fact.fact.subject)
    found = None if begin < 0 else tokens_of(model.tokenizer, text, begin, begin + len(fact.fact.subject))
    return None if found is None else Subject(fact, *found)


class Read(NamedTuple):
    """A target that is read at the end of a sequence.

    prompt: index of its prompt. which: its index among the prompt's targets. sequence: index of the sequence within
    the fact. target: its ids.
    """

    prompt: int
    which: int
    sequence: int
    target: tuple[int, ...]


class PromptBatch:
    """The distinct token sequences of several facts' prompts. Targets that share a sequence are read in one pass."""

    def __init__(self, facts: Sequence[Sequence[ScoredPrompt]]) -> None:
        self.sequences: list[tuple[int, ...]] = []
        self.subjects: list[Subject | None] = []
        self.read: list[int] = []  # how many of each sequence's last rows are read
        self.of_fact: list[range] = []  # the sequences of each fact
        self.reads: list[list[Read]] = []  # the targets of each fact
        for prompts in facts:
            seen: dict[tuple[object, ...], int] = {}
            first = len(self.sequences)
            reads = []
            for number, prompt in enumerate(prompts):
                for which, target in enumerate(prompt.targets):
                    if target is None:
                        continue
                    ids = (*prompt.ids, *target[:-1])
                    span = None if prompt.subject is None else (prompt.subject.begin, prompt.subject.end)
                    if (ids, span) not in seen:
                        seen[ids, span] = len(self.sequences) - first
                        self.sequences.append(ids)
                        self.subjects.append(prompt.subject)
                        self.read.append(0)
                    at = seen[ids, span]
                    self.read[first + at] = max(self.read[first + at], len(target))
                    reads.append(Read(number, which, at, target))
            self.reads.append(reads)
            self.of_fact.append(range(first, len(self.sequences)))


class Scorer:
    """Log-probabilities of some facts' prompts: `before` an edit, and `after` any edits of these facts.

    before: per fact, (prompts, 3) float64 log-probabilities, NaN where a prompt has no such target.
    """

    def __init__(
        self,
        model: Decoder,
        facts: Sequence[Sequence[ScoredPrompt]],
        layers: Sequence[int],
        corruption: Corruption | None = None,
    ) -> None:
        """layers: the first layers of the edits that `after` will score."""
        self.model, self.facts = model, list(facts)
        self.batch = PromptBatch(facts)
        packed = pack(model, self.batch.sequences)
        self.begin = np.cumsum(packed.lengths) - packed.lengths
        self.lengths = packed.lengths
        self.entry: dict[int, tuple[Tensor, Tensor, Tensor]] = {}
        entry_layers = set(layers)

        def visit(seen: Visited) -> None:
            if seen.layer in entry_layers:
                self.entry[seen.layer] = seen.resid_mid, seen.key, seen.value

        with torch.no_grad():
            h = walk(model, packed, embed_corrupted(model, packed, self.batch.subjects, corruption), visit)
            ends = np.cumsum(packed.lengths)
            rows = np.concatenate([np.arange(e - r, e) for e, r in zip(ends, self.batch.read, strict=True)])
            h = h[torch.from_numpy(rows).to(h.device)]
            self.before = self._read(h, range(len(self.facts)))

    @torch.no_grad()
    def after(self, edits: Sequence[tuple[int, Edit]]) -> list[np.ndarray]:
        """edits: (index of the fact, edit) → per edit, (prompts, 3) log-probabilities, in the order given.

        An edit that changes nothing gets the values of `before`, because the same rows in another batch may round
        differently.
        """
        result = [self.before[fact] for fact, _ in edits]
        order = [i for i, (_, edit) in enumerate(edits) if edit.changes()]
        if not order:
            return result
        order.sort(key=lambda i: (edits[i][1].first_layer, edits[i][0]))
        spans = []
        for job, number in enumerate(order):
            for s in self.batch.of_fact[edits[number][0]]:
                source, length = int(self.begin[s]), self.lengths[s]
                spans.append(Span(job, source, length, 0, 0, 0, self.batch.read[s]))
        chosen = [edits[number][1] for number in order]
        wave = EditWave(self.model, [edit.first_layer for edit in chosen], spans)

        def enter(layer: int, rows: Tensor, first: int, begin: np.ndarray) -> Tensor:
            resid_mid, key, value = (part[rows] for part in self.entry[layer])
            part = chosen[first : first + len(begin) - 1]
            return resid_mid + self.model.blocks[layer].mlp_add(add_updates(layer, key, value, part, begin))

        def change(layer: int, key: Tensor, value: Tensor, begin: np.ndarray) -> Tensor:
            return add_updates(layer, key, value, chosen[: len(begin) - 1], begin)

        read = self._read(wave.run(enter, change), [edits[number][0] for number in order])
        for number, logp in zip(order, read, strict=True):
            result[number] = logp
        return result

    def _read(self, h: Tensor, facts: Sequence[int]) -> list[np.ndarray]:
        """h: (R, d), the rows to read of the facts' sequences → per fact, (prompts, 3) log-probabilities."""
        rows: list[np.ndarray] = []
        targets: list[int] = []
        count: list[int] = []
        place = 0
        for fact in facts:
            ends = place + np.cumsum([self.batch.read[s] for s in self.batch.of_fact[fact]])
            for read in self.batch.reads[fact]:
                end = ends[read.sequence]
                rows.append(np.arange(end - len(read.target), end))
                targets += read.target
                count.append(len(read.target))
            place = int(ends[-1])
        scored = torch.from_numpy(np.concatenate(rows)).to(h.device)
        logp = row_logprob(self.model, h[scored], torch.tensor(targets, device=h.device)).double().cpu().numpy()
        sums = np.minimum(np.add.reduceat(logp, np.cumsum(count) - np.asarray(count)), 0.0)
        result, at = [], 0
        for fact in facts:
            table = np.full((len(self.facts[fact]), 3), np.nan)
            for read in self.batch.reads[fact]:
                table[read.prompt, read.which] = sums[at]
                at += 1
            result.append(table)
        return result


def add_updates(layer: int, key: Tensor, value: Tensor, edits: Sequence[Edit], begin: np.ndarray) -> Tensor:
    """key: (N, m), value: (N, d) → (N, d), value plus, on rows begin[i] … begin[i + 1] − 1, the update of edits[i] at
    the layer. value may be overwritten."""
    wide = torch.promote_types(value.dtype, torch.float32)
    low = [i for i, edit in enumerate(edits) if isinstance(edit.updates.get(layer), LowRank)]
    dense = [i for i, edit in enumerate(edits) if isinstance(edit.updates.get(layer), Dense)]
    if low:
        rank = max(len(edits[i].updates[layer].key) for i in low)  # type: ignore[union-attr]
        stacks = []
        for name in ("key", "value"):
            parts = [getattr(edits[i].updates[layer], name).to(value.device, wide) for i in low]
            stacks.append(torch.stack([torch.nn.functional.pad(p, (0, 0, 0, rank - len(p))) for p in parts]))
        which = np.full(len(edits), -1)
        which[low] = np.arange(len(low))
        owner = torch.from_numpy(np.repeat(which, np.diff(begin))).to(value.device)
        value = rank_one_add_(value.contiguous(), key, owner, stacks[0], stacks[1])
    for i in dense:
        update = edits[i].updates[layer]
        assert isinstance(update, Dense)
        rows = slice(int(begin[i]), int(begin[i + 1]))
        added = value[rows].to(wide) + key[rows].to(wide) @ update.change.to(value.device, wide).T
        if update.bias is not None:
            added += update.bias.to(value.device, wide)
        value[rows] = added.to(value.dtype)
    return value


def score_row(
    prompts: Sequence[ScoredPrompt], before: np.ndarray, after: np.ndarray, problem: Problem, protocol: str
) -> dict[str, float | bool | None]:
    """The scores of one edit from its log-probabilities (docs/algorithms.md, section 18). before, after: (prompts, 3).

    p and p* are the probabilities of the edit's target before and after the edit.

    rewrite: (p* − p)/(1 − p) on the fact's prompt, or (p − p*)/p if the problem minimises p.
    paraphrase: the mean of the same over the paraphrases.
    neighborhood: 1 − |p* − p|/(.5 + |p − .5|), the mean over prompts. For every problem p is that of o_false (paper,
        sections 3.4 and 5.1), or of the edit's target where the fact has no o_false.
    overall: the mean of these three.
    essence: 1 − clip(ppl* − ppl, 0, 5)/5, with perplexities averaged over the texts. ppl is exp(NLL/(M − 1)) of a text
        of M tokens, of which M − 1 are predicted.
    magnitude: p*(o_false) − p*(o_true).
    success: whether p* of the edit's target exceeds p*(o_true). If the target is o_true: whether p*(o_true) exceeds
        p*(o_false), or is below it if the problem minimises p.

    Protocol "released" reads only the first paraphrase and the first neighbourhood prompt, the latter for the edit's
    target. It floors rewrite and paraphrase at 2e-8, or at 0 if the problem minimises p. Its ppl is exp(NLL/M).
    A score without prompts or targets is None.
    """
    kind = np.array([p.kind for p in prompts])
    p, q = np.exp(before[:, EDITED]), np.exp(after[:, EDITED])
    if problem.minimise:
        gain = np.divide(p - q, p, out=np.zeros_like(p), where=p > 0.0)
    else:
        # A target with p = 1 leaves nothing to gain.
        gain = np.divide(q - p, 1.0 - p, out=np.zeros_like(p), where=p < 1.0)
    if protocol == "released":
        gain = np.maximum(gain, 0.0 if problem.minimise else 2e-8)
    column = EDITED if protocol == "released" or prompts[0].targets[FALSE] is None else FALSE
    p_near, q_near = np.exp(before[:, column]), np.exp(after[:, column])
    kept = 1.0 - np.abs(q_near - p_near) / (0.5 + np.abs(p_near - 0.5))

    def mean(values: np.ndarray, name: str) -> float | None:
        of_kind = values[kind == name]
        if not len(of_kind):
            return None
        return float(of_kind[0] if protocol == "released" else of_kind.mean())

    rewrite, paraphrase, neighborhood = mean(gain, "rewrite"), mean(gain, "paraphrase"), mean(kept, "neighborhood")
    three = [s for s in (rewrite, paraphrase, neighborhood) if s is not None]
    texts = kind == "essence"
    essence = ppl_before = ppl_after = None
    if texts.any():
        tokens = np.array([len(t.targets[EDITED] or ()) for t in prompts])[texts] + (protocol == "released")
        with np.errstate(over="ignore"):
            ppl_before, ppl_after = (float(np.exp(-table[texts, EDITED] / tokens).mean()) for table in (before, after))
        essence = 1.0 - float(np.clip(ppl_after - ppl_before, 0.0, 5.0)) / 5.0
    q_true, q_false = np.exp(after[0, TRUE]), np.exp(after[0, FALSE])
    ahead, behind = (q[0], q_true) if problem.target != "true" else (q_true, q_false)
    if problem.minimise:
        ahead, behind = behind, ahead
    known = not np.isnan(ahead) and not np.isnan(behind)
    return {
        "rewrite": rewrite,
        "paraphrase": paraphrase,
        "neighborhood": neighborhood,
        "essence": essence,
        "overall": sum(three) / 3 if len(three) == 3 else None,
        "p_before": float(p[0]),
        "p_after": float(q[0]),
        "p_true_before": float(np.exp(before[0, TRUE])),
        "p_true_after": float(q_true),
        "magnitude": None if np.isnan(q_false) else float(q_false - q_true),
        "success": bool(ahead > behind) if known else None,
        "ppl_before": ppl_before,
        "ppl_after": ppl_after,
    }


def prompt_row(prompt: ScoredPrompt, before: np.ndarray, after: np.ndarray) -> dict[str, object]:
    """before, after: (3,) log-probabilities → a row of `plan.PROMPTS` without the columns that name the edit."""
    p = [None if np.isnan(x) else float(np.exp(x)) for pair in zip(before, after, strict=True) for x in pair]
    names = ("p_before", "p_after", "p_true_before", "p_true_after", "p_false_before", "p_false_after")
    return {
        "kind": prompt.kind,
        "prompt_index": prompt.index,
        "prompt": prompt.text,
        "target_tokens": len(prompt.targets[0] or ()),
        **dict(zip(names, p, strict=True)),
    }
