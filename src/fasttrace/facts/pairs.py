"""Pairs: for each fact of a data set, other subjects that can take its subject's place, token for token."""

import hashlib
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, NamedTuple

from fasttrace.errors import UserError
from fasttrace.facts.record import Fact
from fasttrace.facts.tokens import encode_fact, encode_joined

MOST_TRIED = 200  # subjects that are tried for one fact


class _Candidate(NamedTuple):
    """A subject of a relation. place: a hash, by which the subjects are ordered. tokens: its number of tokens at the
    beginning of a text, and after a space. answers: all its true objects in this relation, folded; answer: one."""

    place: str
    subject: str = ""
    tokens: tuple[int, int] = (0, 0)
    answers: frozenset[str] = frozenset()
    answer: str = ""


class Paired(NamedTuple):
    """facts: those that have a counterfactual now, in order. reasons: fact_id → why another fact has none."""

    facts: list[Fact]
    reasons: dict[str, str]

    def filled(self, facts: Sequence[Fact]) -> list[Fact]:
        """The given facts in their order, those that have a counterfactual now with it."""
        by_id = {fact.fact_id: fact for fact in self.facts}
        return [by_id.get(fact.fact_id, fact) for fact in facts]

    def checked(self) -> "Paired":
        """Itself. Raises UserError where no fact has a counterfactual."""
        if self.reasons and not self.facts:
            fact_id, reason = next(iter(self.reasons.items()))
            raise UserError(f"pairs: expected a fact with a counterfactual, got none: '{fact_id}': {reason}")
        return self


def pair_subjects(tokenizer: Any, facts: Sequence[Fact], among: Sequence[Fact], count: int) -> Paired:
    """Give each fact up to `count` counterfactual subjects from the facts in `among`.

    A subject fits if it is of the same relation (without relations: of the same template), has another true object, and
    the prompt with it has the same tokens before and after the subject, and as many in the subject's place. Which of
    them are taken depends on the fact's id and the subjects alone, not on the order of the facts. A fact that has
    counterfactuals keeps them. Of the others, one without a target_false and a counterfactual_answer gets the first
    one's true object as the latter.

    Raises FactError for a fact that cannot be encoded.
    Source: symmetric token replacement, Zhang and Nanda 2023 (arXiv 2309.16042), section 2.
    """
    groups = _groups(tokenizer, among)
    done, reasons = [], {}
    for fact in facts:
        if fact.counterfactuals:
            done.append(fact)
            continue
        group = groups.get(_group(fact), [])
        found: list[_Candidate] = []
        for one in _fitting(tokenizer, fact, group):
            found.append(one)
            if len(found) == count:
                break
        if not found:
            others = min(MOST_TRIED, sum(_differs(fact, one) for one in group))
            where = f"relation {fact.relation}" if fact.relation is not None else "same template"
            why = f"no other subject of the {where} has another true object"
            if others:
                why = f"none of {others} other subjects of the {where} has as many tokens in its place"
            reasons[fact.fact_id] = why
            continue
        subjects = tuple(one.subject for one in found)
        answer = found[0].answer if fact.contrast is None else fact.counterfactual_answer
        done.append(replace(fact, counterfactual_subject=subjects, counterfactual_answer=answer))
    return Paired(done, reasons)


def _group(fact: Fact) -> tuple[str, str]:
    return ("relation", fact.relation) if fact.relation is not None else ("template", fact.prompt)


def _groups(tokenizer: Any, among: Sequence[Fact]) -> dict[tuple[str, str], list[_Candidate]]:
    """The subjects of every relation, in the order of their hashes."""
    answers: dict[tuple[str, str], dict[str, list[str]]] = {}
    for fact in among:
        answers.setdefault(_group(fact), {}).setdefault(fact.subject, []).append(fact.target_true)
    subjects = sorted({subject for group in answers.values() for subject in group})
    size = dict(zip(subjects, _sizes(tokenizer, subjects), strict=True))
    return {
        name: sorted(
            _Candidate(_place(subject), subject, size[subject], frozenset(map(_folded, true)), min(true))
            for subject, true in group.items()
        )
        for name, group in answers.items()
    }


def _sizes(tokenizer: Any, subjects: Sequence[str]) -> list[tuple[int, int]]:
    """The number of tokens of each subject at the beginning of a text, and after a space."""
    if not subjects:
        return []
    both = ([f"{before}{subject}" for subject in subjects] for before in ("", " "))
    bare, spaced = (tokenizer(texts, add_special_tokens=False)["input_ids"] for texts in both)
    return [(len(a), len(b)) for a, b in zip(bare, spaced, strict=True)]


def _fitting(tokenizer: Any, fact: Fact, group: Sequence[_Candidate]) -> Iterator[_Candidate]:
    """The subjects that fit a fact, from a place in their order that follows from the fact's id."""
    own = encode_fact(tokenizer, fact)
    begin, end = own.subject_begin, own.subject_end
    [sizes], spaced = _sizes(tokenizer, [fact.subject]), int(fact.prompt[: fact.subject_span[0]].endswith(" "))
    first = bisect_left(group, _Candidate(_place(fact.fact_id)))
    targets = [target for target in (fact.target_true, fact.contrast) if target is not None]
    scored = tuple(ids for ids in (own.target_true_ids, own.contrast_ids) if ids is not None)
    others = [one for one in (*group[first:], *group[:first]) if _differs(fact, one)]
    # Subjects of as many tokens alone are likely to have as many in place, so they are tried first.
    others.sort(key=lambda one: one.tokens[spaced] != sizes[spaced])
    for one in others[:MOST_TRIED]:
        text = fact.prompt.replace("{}", one.subject, 1)
        other = encode_joined(tokenizer, text, targets, fact.target_prefix)
        around = other.ids[:begin] == own.ids[:begin] and other.ids[end:] == own.ids[end:]
        if len(other.ids) == len(own.ids) and around and other.ids != own.ids and other.targets == scored:
            yield one


def _differs(fact: Fact, one: _Candidate) -> bool:
    return _folded(one.subject) != _folded(fact.subject) and _folded(fact.target_true) not in one.answers


def _folded(text: str) -> str:
    return text.strip().casefold()


def _place(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
