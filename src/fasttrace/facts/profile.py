"""What a data set is made of, and what to look at in it before a run: counts, lengths in tokens, and odd facts."""

import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from statistics import median
from typing import Any

from fasttrace.errors import FactError
from fasttrace.facts.probe import NEIGHBORHOOD, PARAPHRASE
from fasttrace.facts.record import Fact
from fasttrace.facts.tokens import EncodedFact, encoded_or_refused

FIRST = 5  # ids that are named of the facts that have something in common
_ODD = re.compile("[\x00-\x1f\x7f-\x9f\ufffd]")
_REPLACED = "\ufffd"


@dataclass(frozen=True)
class Spread:
    """The least, the median and the greatest of some numbers."""

    min: int
    median: float
    max: int


@dataclass(frozen=True)
class Counted:
    """How many facts have a value. None: those without one."""

    value: str | None
    facts: int


@dataclass(frozen=True)
class ProbeCount:
    """Probes of a kind. facts: how many facts have one."""

    kind: str
    expect: str
    probes: int
    facts: int


@dataclass(frozen=True)
class Noticed:
    """Facts that have something in common. first: the ids of the first few. why: of the first, in words."""

    facts: int = 0
    first: tuple[str, ...] = ()
    why: str | None = None


@dataclass(frozen=True)
class Profile:
    """What a data set is made of. Lengths are in tokens, and None where there is nothing to measure.

    facts: their number. relations, sources, subjects_found: the facts by `Fact.relation`, `source` and `subject_found`,
        the most frequent value first.
    prompt_tokens: (T) of the prompts, with a BOS where the tokenizer adds one. true_tokens: (K) of o_true as it follows
        the prompt. false_tokens: of `Fact.contrast`, o_false or the counterfactual answer.
    probes: the probes by kind and by what is expected of them, with paraphrases and neighborhood prompts.
    cases: number of cases. case_edits: the facts of a case.
    refused: facts that no trace or edit accepts, because `encode_fact` raises.
    unknown: facts with a part of their prompt or targets that the tokenizer does not know.
    replaced: facts with U+FFFD, which stands for a damaged character. control: facts with control characters, such as
        line breaks. Both are looked for in every text of a fact.
    duplicates: the ids of facts with the same prompt and subject, a list for each.
    same_first_token: facts whose o_true and contrast begin with the same token. Metrics of the first token are then the
        same for both.
    cut_subjects: facts with a token that has a part of the subject and something else, besides a space.
    misfits: facts with a counterfactual that a trace leaves out.
    """

    facts: int
    relations: tuple[Counted, ...]
    sources: tuple[Counted, ...]
    subjects_found: tuple[Counted, ...]
    prompt_tokens: Spread | None
    true_tokens: Spread | None
    false_tokens: Spread | None
    probes: tuple[ProbeCount, ...]
    cases: int
    case_edits: Spread | None
    refused: Noticed
    unknown: Noticed
    replaced: Noticed
    control: Noticed
    duplicates: tuple[tuple[str, ...], ...]
    same_first_token: Noticed
    cut_subjects: Noticed
    misfits: Noticed


def profile(tokenizer: Any, facts: Sequence[Fact]) -> Profile:
    """Profile facts. Prompts, targets and counterfactuals are tokenised, other probes are not.

    tokenizer: a fast transformers tokenizer. Raises ModelError for one without character offsets.
    """
    refused: dict[str, str] = {}
    encoded: list[EncodedFact] = []
    for fact, one in zip(facts, encoded_or_refused(tokenizer, facts), strict=True):
        if isinstance(one, FactError):
            refused[fact.fact_id] = str(one)
        else:
            encoded.append(one)
    cases = Counter(fact.case_id for fact in facts if fact.case_id is not None)
    odd = {fact.fact_id: set(_ODD.findall(_every_text(fact))) for fact in facts}
    misfits = {one.fact_id: one.misfits[0] for one in encoded if one.misfits}
    contrasts = [one.contrast_ids for one in encoded if one.contrast_ids is not None]
    return Profile(
        facts=len(facts),
        relations=_counted(fact.relation for fact in facts),
        sources=_counted(fact.source for fact in facts),
        subjects_found=_counted(fact.subject_found for fact in facts),
        prompt_tokens=_spread(len(one.ids) for one in encoded),
        true_tokens=_spread(len(one.target_true_ids) for one in encoded),
        false_tokens=_spread(map(len, contrasts)),
        probes=_probes(facts),
        cases=len(cases),
        case_edits=_spread(cases.values()),
        refused=_noticed(refused, next(iter(refused.values()), None)),
        unknown=_noticed(one.fact_id for one in encoded if _unknown(tokenizer, one)),
        replaced=_noticed(name for name, found in odd.items() if _REPLACED in found),
        control=_noticed(name for name, found in odd.items() if found - {_REPLACED}),
        duplicates=_duplicates(facts),
        same_first_token=_noticed(
            one.fact_id for one in encoded if one.contrast_ids and one.contrast_ids[0] == one.target_true_ids[0]
        ),
        cut_subjects=_noticed(one.fact_id for one in encoded if one.subject_cut),
        misfits=_noticed(misfits, next(iter(misfits.values()), None)),
    )


def _unknown(tokenizer: Any, one: EncodedFact) -> bool:
    """Whether the tokenizer does not know a part of the prompt or a target."""
    unknown = tokenizer.unk_token_id
    # A BOS that the tokenizer adds may be its token for what it does not know, too.
    added = 1 if unknown is not None and one.ids[0] == unknown == tokenizer.bos_token_id else 0
    return unknown in (*one.ids[added:], *one.target_true_ids, *(one.contrast_ids or ()))


# ---- counts -----------------------------------------------------------------------------------------------


def _spread(numbers: Iterable[int]) -> Spread | None:
    every = sorted(numbers)
    return Spread(every[0], median(every), every[-1]) if every else None


def _counted(values: Iterable[str | None]) -> tuple[Counted, ...]:
    return tuple(Counted(value, n) for value, n in Counter(values).most_common())


def _probes(facts: Sequence[Fact]) -> tuple[ProbeCount, ...]:
    """The probes by kind and expectation, without making those that a fact keeps as plain texts."""
    probes: Counter[tuple[str, str]] = Counter()
    with_one: Counter[tuple[str, str]] = Counter()
    for fact in facts:
        own = Counter((one.kind, str(one.expect)) for one in fact.probes)
        own[PARAPHRASE, "changed"] += len(fact.paraphrases)
        own[NEIGHBORHOOD, "unchanged"] += len(fact.neighborhood)
        probes.update(own)
        with_one.update(name for name, n in own.items() if n)
    return tuple(ProbeCount(*name, n, with_one[name]) for name, n in probes.most_common() if n)


def _duplicates(facts: Sequence[Fact]) -> tuple[tuple[str, ...], ...]:
    same: dict[tuple[str, str], dict[str, None]] = {}
    for fact in facts:
        same.setdefault((fact.text, fact.subject), {})[fact.fact_id] = None
    return tuple(tuple(ids) for ids in same.values() if len(ids) > 1)


def _noticed(ids: Iterable[str], why: str | None = None) -> Noticed:
    every = list(ids)
    return Noticed(len(every), tuple(every[:FIRST]), why)


def _every_text(fact: Fact) -> str:
    """All that a model or a tokenizer reads of a fact, in one text."""
    own = (fact.text, fact.target_true, fact.target_false, fact.counterfactual_answer, fact.target_prefix)
    probes = (text for one in fact.probes for text in (one.prompt, *one.answers))
    return " ".join(filter(None, (*own, *fact.counterfactuals, *fact.paraphrases, *fact.neighborhood, *probes)))
