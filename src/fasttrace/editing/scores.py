"""Scores edits on the same prompts before and after, without changing the weights (paper, section 3.4).

The unedited pass over a fact's prompts runs once. An edit starts at its first changed layer from a copy of those rows,
with the MLP output W k + Λ (u·k) or W k + D k. The edits of a batch share the products of each layer.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fasttrace.editing.delta import Dense, Edit, LowRank
from fasttrace.editing.problems import Problem
from fasttrace.editing.wave import EditWave, Span, Visited, walk
from fasttrace.errors import shown
from fasttrace.facts import EncodedFact, Fact, Probe, encode_joined, tokens_of
from fasttrace.facts.probe import NEIGHBORHOOD, PARAPHRASE
from fasttrace.models.adapter import Decoder
from fasttrace.models.corrupt import Corruption, Subject, embed_corrupted
from fasttrace.models.keys import Keys, by_owner
from fasttrace.models.packed import pack, row_logprob
from fasttrace.models.readout import top_tokens
from fasttrace.ops.rank_one_linear import rank_one_add_

EDITED, TRUE, FALSE = range(3)  # columns of a prompt's log-probabilities, where it has no answers of its own


@dataclass(frozen=True)
class ScoredPrompt:
    """One prompt of a fact: its kind, index within the kind, text, ids, and the targets that are read after it.

    targets: ids of the edit's target, o_true and o_false (None where the fact has none), or of each answer of a probe
    that has answers. An essence text is a prompt of one token. Its first target is the rest of the text, and its other
    targets are None. subject: the position of the subject, which gets noise if the problem is corrupted. expect: what
    the edit should do to the answers, None for an essence text. answers: the texts of a probe's own answers. case:
    whether the prompt waits for all edits of the fact's case.
    """

    kind: str
    index: int
    text: str
    ids: tuple[int, ...]
    targets: tuple[tuple[int, ...] | None, ...]
    subject: Subject | None = None
    expect: str | None = None
    answers: tuple[str, ...] = ()
    case: bool = False

    @property
    def of_paper(self) -> bool:
        """Whether the paper's scores read it: not a probe that has answers, waits for a case or expects something else
        than its kind does."""
        usual = {PARAPHRASE: "changed", NEIGHBORHOOD: "unchanged"}.get(self.kind, self.expect)
        return not self.answers and not self.case and self.expect == usual

    @property
    def matched(self) -> range:
        """Which of the targets answer the prompt: the probe's own, o_true for a neighborhood prompt, else the edit's
        target. None of an essence text."""
        if self.answers:
            return range(len(self.answers))
        if self.expect is None:
            return range(0)
        return range(TRUE, TRUE + 1) if self.expect == "unchanged" else range(EDITED, EDITED + 1)


class Reading(NamedTuple):
    """What is read of a fact's prompts in one model.

    logp: (prompts, targets) float64 log-probabilities, NaN where a prompt has no such target. match: (prompts, targets)
    whether each token of the target is the likeliest, as it follows the tokens before it: whether greedy decoding gives
    this target. It is False where a prompt is not answered by that target. texts: the greedy continuation of each
    prompt (`editing.continuations`), None where it is not asked for.
    """

    logp: np.ndarray
    match: np.ndarray
    texts: tuple[str | None, ...] | None = None

    def of(self, prompts: Sequence[int]) -> "Reading":
        """The reading of some of the prompts."""
        texts = None if self.texts is None else tuple(self.texts[i] for i in prompts)
        return Reading(self.logp[list(prompts)], self.match[list(prompts)], texts)

    def lost(self, before: "Reading") -> bool:
        """Whether there is no number where there was one before."""
        return bool((np.isnan(self.logp) & ~np.isnan(before.logp)).any())


def scored_prompts(
    model: Decoder,
    fact: EncodedFact,
    problem: Problem,
    noise_target: tuple[int, ...] | None = None,
    essence: Sequence[tuple[int, ...]] = (),
    noised_essence: bool = False,
    cases: bool = False,
) -> list[ScoredPrompt]:
    """The fact's prompt, its paraphrases, neighborhood prompts and other probes with their targets, and essence texts.

    noise_target: ids of o_noise, if it is the problem's target. It follows every prompt as it is. essence: token ids of
    each essence text. noised_essence: whether a corrupted problem corrupts the subject in these too, as released.
    cases: whether to include the probes that wait for all edits of the fact's case.

    Raises ModelError where the model has too few positions for a prompt and its target.
    """
    tokenizer, record = model.tokenizer, fact.fact
    own = [target for target in (record.target_true, record.target_false) if target is not None]

    def row(kind: str, index: int, text: str, subject: Subject | None) -> ScoredPrompt:
        prompt = encode_joined(tokenizer, text, own, record.target_prefix)
        true, false = prompt.targets[0], prompt.targets[1] if len(own) == 2 else None
        edited = {"true": true, "false": false, "noise": noise_target}[problem.target]
        return ScoredPrompt(kind, index, text, prompt.ids, (edited, true, false), subject)

    def probe(one: Probe, index: int) -> ScoredPrompt:
        subject = _subject_in(model, fact, one.prompt) if problem.corrupted else None
        if not one.answers:
            return replace(row(one.kind, index, one.prompt, subject), expect=one.expect, case=one.after == "case")
        prompt = encode_joined(tokenizer, one.prompt, one.answers, record.target_prefix)
        return ScoredPrompt(
            one.kind,
            index,
            one.prompt,
            prompt.ids,
            prompt.targets,
            subject,
            one.expect,
            one.answers,
            case=one.after == "case",
        )

    first = row("rewrite", 0, record.text, Subject(fact, fact.subject_begin, fact.subject_end))
    rows, count = [replace(first, expect="changed")], Counter[str]()
    for asked in record.every_probe:
        if cases or asked.after == "edit":
            rows.append(probe(asked, count[asked.kind]))
        count[asked.kind] += 1
    begun = _subject_in(model, fact, f"{record.subject} is a") if problem.corrupted and noised_essence else None
    for i, tokens in enumerate(essence):
        rows.append(ScoredPrompt("essence", i, tokenizer.decode(tokens), tokens[:1], (tokens[1:], None, None), begun))
    for one in rows:
        longest = max(len(target) for target in one.targets if target is not None)
        model.check_length(len(one.ids) + longest - 1, f"fact '{record.fact_id}' with a target after {shown(one.text)}")
    return rows


def prompt_count(fact: Fact) -> int:
    """About how many prompts of a fact are scored with two targets each, for estimates of work and memory. A probe with
    more answers counts as several."""
    probes = sum(max(1, -(-len(probe.answers) // 2)) for probe in fact.probes)
    return 1 + len(fact.paraphrases) + len(fact.neighborhood) + probes


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
    """What is read of some facts' prompts: `before` an edit, one Reading per fact, and `after` edits of these facts."""

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
        self.entry: dict[int, tuple[Tensor, Keys, Tensor]] = {}
        entry_layers = set(layers)

        def visit(seen: Visited) -> None:
            if seen.layer in entry_layers:
                self.entry[seen.layer] = seen.resid_mid, seen.keys, seen.value

        with torch.no_grad():
            h = walk(model, packed, embed_corrupted(model, packed, self.batch.subjects, corruption), visit)
            ends = np.cumsum(packed.lengths)
            rows = np.concatenate([np.arange(e - r, e) for e, r in zip(ends, self.batch.read, strict=True)])
            h = h[torch.from_numpy(rows).to(h.device)]
            self.before = self._read(h, range(len(self.facts)))

    @torch.no_grad()
    def after(self, edits: Sequence[tuple[int, Edit]]) -> list[Reading]:
        """edits: (index of the fact, edit) → a Reading per edit, in the order given.

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
            resid_mid, keys, value = self.entry[layer]
            part = chosen[first : first + len(begin) - 1]
            value = add_updates(layer, keys[rows], value[rows], part, begin)
            return resid_mid[rows] + self.model.blocks[layer].mlp_add(value)

        def change(layer: int, keys: Keys, value: Tensor, begin: np.ndarray) -> Tensor:
            return add_updates(layer, keys, value, chosen[: len(begin) - 1], begin)

        read = self._read(wave.run(enter, change), [edits[number][0] for number in order])
        for number, reading in zip(order, read, strict=True):
            result[number] = reading
        return result

    def _read(self, h: Tensor, facts: Sequence[int]) -> list[Reading]:
        """h: (R, d), the rows to read of the facts' sequences → a Reading per fact."""
        rows: list[np.ndarray] = []
        targets: list[int] = []
        count: list[int] = []
        answers: list[bool] = []  # whether each target that is read answers its prompt
        place = 0
        for fact in facts:
            ends = place + np.cumsum([self.batch.read[s] for s in self.batch.of_fact[fact]])
            for read in self.batch.reads[fact]:
                end = ends[read.sequence]
                rows.append(np.arange(end - len(read.target), end))
                targets += read.target
                count.append(len(read.target))
                answers.append(read.which in self.facts[fact][read.prompt].matched)
            place = int(ends[-1])
        every, wanted, begins = np.concatenate(rows), np.array(targets), np.cumsum(count) - np.asarray(count)
        scored, tokens = torch.from_numpy(every).to(h.device), torch.from_numpy(wanted).to(h.device)
        logp = row_logprob(self.model, h[scored], tokens).double().cpu().numpy()
        sums = np.minimum(np.add.reduceat(logp, begins), 0.0)
        compared = np.repeat(answers, count)
        top = np.full(len(h), -1)
        seen = np.unique(every[compared])
        top[seen] = top_tokens(self.model, h[torch.from_numpy(seen).to(h.device)]).cpu().numpy()
        equal = np.logical_and.reduceat(top[every] == wanted, begins) & answers
        result, at = [], 0
        for fact in facts:
            prompts = self.facts[fact]
            shape = len(prompts), max(len(prompt.targets) for prompt in prompts)
            reading = Reading(np.full(shape, np.nan), np.zeros(shape, dtype=bool))
            for read in self.batch.reads[fact]:
                reading.logp[read.prompt, read.which] = sums[at]
                reading.match[read.prompt, read.which] = equal[at]
                at += 1
            result.append(reading)
        return result


def add_updates(layer: int, keys: Keys, value: Tensor, edits: Sequence[Edit], begin: np.ndarray) -> Tensor:
    """keys of N rows, value: (N, d) → (N, d), value plus the update of edits[i] on rows begin[i] … begin[i + 1] − 1.

    The layer is brought. value may be overwritten.
    """
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
        key = keys.of(by_owner([edits[i].updates[layer].experts for i in low], owner))
        value = rank_one_add_(value.contiguous(), key, owner, stacks[0], stacks[1])
    for i in dense:
        update = edits[i].updates[layer]
        assert isinstance(update, Dense)
        rows = slice(int(begin[i]), int(begin[i + 1]))
        key = keys[rows].of(update.experts)
        added = value[rows].to(wide) + key.to(wide) @ update.change.to(value.device, wide).T
        if update.bias is not None:
            added += update.bias.to(value.device, wide)
        value[rows] = added.to(value.dtype)
    return value


def prompt_scores(
    prompts: Sequence[ScoredPrompt], before: Reading, after: Reading, problem: Problem, protocol: str
) -> np.ndarray:
    """The score of each prompt: (prompts,) float64, NaN where it has none (docs/algorithms.md, section 18).

    p and p* are the probabilities of the prompt's target before and after the edit. It is the likeliest of a probe's
    own answers before and after each. Otherwise it is the edit's target, and for a probe that should not change
    o_false, or the edit's target under protocol "released" and where the fact has no o_false.

    A probe that should change: (p* − p)/(1 − p), or (p − p*)/p if the problem minimises p. Answers of its own follow
    from o_false, so it has no score for another target. One that should not: 1 − |p* − p|/(.5 + |p − .5|). A true one:
    p*, but for an edit that takes o_true away, where it has no score. Protocol "released" floors the first at 2e-8, or
    at 0 if the problem minimises p.
    """
    column = EDITED if protocol == "released" or prompts[0].targets[FALSE] is None else FALSE
    p, q, p_near, q_near = (np.exp(one.logp[:, of]) for of in (EDITED, column) for one in (before, after))
    p_own, q_own = own_answers(prompts, before), own_answers(prompts, after)
    own = np.array([bool(one.answers) for one in prompts])
    expect = np.array([one.expect or "" for one in prompts])
    # Answers of a probe's own follow from o_false.
    gained = _gain(p_own, q_own, problem, protocol) if problem.target == "false" else np.full(len(own), np.nan)
    # True answers say nothing of an edit that takes o_true away.
    true = np.full(len(own), np.nan) if problem.minimise or problem.target == "noise" else q_own
    return np.select(
        [expect == "true", expect == "unchanged", expect == "changed"],
        [
            true,
            np.where(own, _kept(p_own, q_own), _kept(p_near, q_near)),
            np.where(own, gained, _gain(p, q, problem, protocol)),
        ],
        np.nan,
    )


def own_answers(prompts: Sequence[ScoredPrompt], reading: Reading) -> np.ndarray:
    """(prompts,) probability of the likeliest of each prompt's own answers, NaN where it has none."""
    found = [row[: len(one.answers)].max(initial=-np.inf) for one, row in zip(prompts, reading.logp, strict=True)]
    return np.where([bool(one.answers) for one in prompts], np.exp(found), np.nan)


def _gain(p: np.ndarray, q: np.ndarray, problem: Problem, protocol: str) -> np.ndarray:
    """The share of the possible gain from p to q, or of the possible loss. Nothing to gain is 0."""
    if problem.minimise:
        gain = np.divide(p - q, p, out=np.zeros_like(p), where=p > 0.0)
    else:
        gain = np.divide(q - p, 1.0 - p, out=np.zeros_like(p), where=p < 1.0)
    return np.maximum(gain, 0.0 if problem.minimise else 2e-8) if protocol == "released" else gain


def _kept(p: np.ndarray, q: np.ndarray) -> np.ndarray:
    return 1.0 - np.abs(q - p) / (0.5 + np.abs(p - 0.5))


def score_row(
    prompts: Sequence[ScoredPrompt], before: Reading, after: Reading, problem: Problem, protocol: str
) -> dict[str, float | bool | None]:
    """The scores of one edit from what is read of its prompts (docs/algorithms.md, section 18).

    rewrite: that of the fact's prompt (`prompt_scores`).
    paraphrase, neighborhood: the mean over the prompts of that kind, without other probes of its name
        (`ScoredPrompt.of_paper`). For every problem, p of the latter is that of o_false (paper, sections 3.4 and 5.1),
        or of the edit's target where there is none.
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
    kind = np.array([one.kind if one.of_paper else "" for one in prompts])
    scores = prompt_scores(prompts, before, after, problem, protocol)
    p, q = np.exp(before.logp[:, EDITED]), np.exp(after.logp[:, EDITED])

    def mean(name: str) -> float | None:
        of_kind = scores[kind == name]
        if not len(of_kind):
            return None
        return float(of_kind[0] if protocol == "released" else of_kind.mean())

    rewrite, paraphrase, neighborhood = mean("rewrite"), mean("paraphrase"), mean("neighborhood")
    three = [s for s in (rewrite, paraphrase, neighborhood) if s is not None]
    texts = kind == "essence"
    essence = ppl_before = ppl_after = None
    if texts.any():
        tokens = np.array([len(t.targets[EDITED] or ()) for t in prompts])[texts] + (protocol == "released")
        with np.errstate(over="ignore"):
            ppl_before, ppl_after = (float(np.exp(-one.logp[texts, EDITED] / tokens).mean()) for one in (before, after))
        essence = 1.0 - float(np.clip(ppl_after - ppl_before, 0.0, 5.0)) / 5.0
    q_true, q_false = np.exp(after.logp[0, TRUE]), np.exp(after.logp[0, FALSE])
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
        "p_true_before": float(np.exp(before.logp[0, TRUE])),
        "p_true_after": float(q_true),
        "magnitude": None if np.isnan(q_false) else float(q_false - q_true),
        "success": bool(ahead > behind) if known else None,
        "ppl_before": ppl_before,
        "ppl_after": ppl_after,
    }
