"""One fact (s, r, o): the record that every loader returns and everything downstream reads."""

import hashlib
import json
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from itertools import islice
from typing import Annotated, Any

from fasttrace.errors import FactError, shown
from fasttrace.facts.probe import NEIGHBORHOOD, PARAPHRASE, Probe, probes_of
from fasttrace.settings.arguments import names_checked
from fasttrace.settings.base import check_names
from fasttrace.settings.kinds import MOST_CHARACTERS, MOST_ITEMS, Kind, items_of
from fasttrace.show.words import visible

# The fields that are several texts, and what they are.
_TEXTS = {
    "paraphrases": "whole prompts",
    "neighborhood": "whole prompts",
    "counterfactual_subject": "subjects",
    "counterfactual_prompt": "whole prompts",
}
_REQUIRED = ("prompt", "subject", "target_true")
_OPTIONAL = ("target_false", "relation", "target_prefix", "counterfactual_answer", "case_id")  # a string, or None
_STRINGS = (*_OPTIONAL, "fact_id", "source", "subject_found")
_SURROGATE = re.compile("[\ud800-\udfff]")  # what bytes that are not UTF-8 become


@names_checked
@dataclass(frozen=True, slots=True, repr=False)
class Fact:
    """A factual prompt with its true and false targets (paper, section 3.1).

    prompt: template with exactly one "{}" in place of the subject.
    subject: s, as it appears in the prompt.
    target_true, target_false: o_true and o_false, without a leading space.
    relation: name of r, or None.
    paraphrases, neighborhood: whole prompts, subjects already in place.
    fact_id: the data set's own id, or a hash of (prompt, subject, target_true, and target_prefix where it is given).
    source: the data set it came from.
    target_prefix: what stands between every prompt of this fact and its targets. None: what each prompt's own end asks
        for, usually a space (`joint`).
    counterfactual_subject: other subjects to put in the template's place, as corrupted prompts: none, one or several.
    counterfactual_prompt: whole corrupted prompts, for those that differ elsewhere: none, one or several.
    counterfactual_answer: the answer to the first counterfactual. With corruption "counterfactual", a trace takes it as
        o_false where there is none.
    probes: what else to ask after an edit. A paraphrase and a neighborhood prompt without answers are probes, too, in
        their own fields; `every_probe` has all.
    case_id, case_edits: the case whose facts are edited together before the probes that wait for it (`Probe.after`),
        and the number of its facts. None and 1 for a fact by itself.
    subject_found: how the subject's place in the prompt is known: "template", or how it was searched for
        (docs/algorithms.md, section 2).
    meta: other fields of the data set's record, as JSON values. They do not tell facts apart.

    Raises FactError where a field is not of its type, or has more than 100,000 characters, where a text is empty, where
    the targets are equal, a counterfactual prompt is the prompt itself or occurs twice, a probe waits for a case that
    the fact does not have, or prompt does not have exactly one "{}".
    """

    prompt: str
    subject: str
    target_true: str
    target_false: str | None = None
    relation: str | None = None
    paraphrases: tuple[str, ...] = ()
    neighborhood: tuple[str, ...] = ()
    fact_id: str = field(default="")
    source: str = "own"
    target_prefix: str | None = None
    counterfactual_subject: tuple[str, ...] = ()
    counterfactual_prompt: tuple[str, ...] = ()
    counterfactual_answer: str | None = None
    probes: tuple[Probe, ...] = ()
    case_id: str | None = None
    case_edits: int = 1
    # repr=False: no part of what tells facts apart (`identity_text`, recall.py).
    subject_found: str = field(default="template", compare=False, repr=False)
    meta: Mapping[str, Any] = field(default_factory=dict, compare=False, repr=False)

    def __post_init__(self) -> None:
        for name in _REQUIRED:
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise FactError(f"field '{name}' of a fact: expected a non-empty string, got {shown(value)}")
        for name in _STRINGS:
            value = getattr(self, name)
            if not isinstance(value, str) and (value is not None or name not in _OPTIONAL):
                raise FactError(f"field '{name}' of a fact: expected a string, got {shown(value)}")
        for name in _TEXTS:
            value = getattr(self, name)
            if not isinstance(value, tuple) or value:
                object.__setattr__(self, name, _texts(name, value))
        if not isinstance(self.probes, tuple) or self.probes:
            self._sort_probes()
        self._check_case()
        own = [self.prompt, self.subject, self.target_true]
        own += [text or "" for text in (self.target_false, self.target_prefix, self.counterfactual_answer)]
        own += [text for name in _TEXTS for text in getattr(self, name)]
        own += [text for probe in self.probes for text in (probe.prompt, *probe.answers)]
        if (longest := max(map(len, own))) > MOST_CHARACTERS:
            raise FactError(f"a fact: expected at most {MOST_CHARACTERS} characters in a text, got {longest}")
        if _SURROGATE.search("".join(own)):
            raise FactError(f"a fact: expected text in UTF-8, got other bytes in {shown(self.prompt)}")
        if self.prompt.count("{}") != 1:
            places = self.prompt.count("{}")
            raise FactError(f"prompt {shown(self.prompt)}: expected one '{{}}' for the subject, got {places}")
        for name in ("target_false", "counterfactual_answer"):
            false = getattr(self, name)
            if false is not None and false.strip() in ("", self.target_true.strip()):
                raise FactError(
                    f"field '{name}' of a fact: expected a false target that differs from the true one, got "
                    f"{shown(false)} and {shown(self.target_true)}"
                )
        prompts = (self.text, *self.counterfactuals)
        if len(set(prompts)) < len(prompts):
            twice = next(text for i, text in enumerate(prompts) if text in prompts[:i])
            raise FactError(
                f"the counterfactuals of a fact: expected prompts that differ from {shown(self.text)} and from each "
                f"other, got {shown(twice)} again"
            )
        if not self.fact_id:
            prefix = () if self.target_prefix is None else (self.target_prefix,)
            parts = "\x1f".join((self.prompt, self.subject, self.target_true, *prefix))
            object.__setattr__(self, "fact_id", hashlib.sha256(parts.encode()).hexdigest()[:12])

    def __repr__(self) -> str:
        false = "" if self.target_false is None else f", not {visible(self.target_false)}"
        return f"Fact {self.fact_id!r}: {visible(self.text)} → {visible(self.target_true)}{false}"

    def _sort_probes(self) -> None:
        """A paraphrase or neighborhood prompt among the probes that says nothing more goes to its own field."""
        plain = {PARAPHRASE: list(self.paraphrases), NEIGHBORHOOD: list(self.neighborhood)}
        rest: list[Probe] = []
        for one in probes_of(self.probes):
            if one.kind in plain and one == Probe(one.kind, one.prompt):
                plain[one.kind].append(one.prompt)
            else:
                rest.append(one)
        object.__setattr__(self, "paraphrases", tuple(plain[PARAPHRASE]))
        object.__setattr__(self, "neighborhood", tuple(plain[NEIGHBORHOOD]))
        object.__setattr__(self, "probes", tuple(rest))

    def _check_case(self) -> None:
        edits = self.case_edits
        if isinstance(edits, bool) or not isinstance(edits, int) or edits < 1 or (self.case_id is None and edits > 1):
            raise FactError(
                f"field 'case_edits' of a fact: expected the number of edits of its case, 1 without one, got "
                f"{shown(edits)} for {shown(self.case_id)}"
            )
        waiting = [one for one in self.probes if one.after == "case"] if self.case_id is None else []
        if waiting:
            raise FactError(
                f"field 'case_id' of a fact: expected the case that the probe {shown(waiting[0].prompt)} waits for, "
                "got none"
            )
        if not isinstance(self.meta, Mapping):
            raise FactError(f"field 'meta' of a fact: expected a mapping, got {shown(self.meta)}")

    @property
    def text(self) -> str:
        """The prompt with the subject in place."""
        return self.prompt.replace("{}", self.subject, 1)

    @property
    def counterfactuals(self) -> tuple[str, ...]:
        """The counterfactual prompts: the template with each counterfactual subject, then the whole prompts."""
        in_place = (self.prompt.replace("{}", subject, 1) for subject in self.counterfactual_subject)
        return (*in_place, *self.counterfactual_prompt)

    @property
    def every_probe(self) -> tuple[Probe, ...]:
        """The paraphrases, the neighborhood prompts and the other probes, in this order."""
        paraphrases = (Probe(PARAPHRASE, text) for text in self.paraphrases)
        neighborhood = (Probe(NEIGHBORHOOD, text) for text in self.neighborhood)
        return (*paraphrases, *neighborhood, *self.probes)

    @property
    def contrast(self) -> str | None:
        """What a trace between prompts compares o_true with: o_false, or without one the counterfactual answer."""
        return self.counterfactual_answer if self.target_false is None else self.target_false

    @property
    def subject_span(self) -> tuple[int, int]:
        """Character positions [begin, end) of the subject in `text`, from the template rather than a search."""
        begin = self.prompt.index("{}")
        return begin, begin + len(self.subject)


def _texts(name: str, value: Any) -> tuple[str, ...]:
    """The texts of a field, one or several. Raises FactError where one is empty or something else."""
    if value is None and name.startswith("counterfactual"):
        return ()
    try:
        texts = (value,) if isinstance(value, str | Mapping) else tuple(islice(value, MOST_ITEMS))
    except TypeError:  # not iterable
        texts = (value,)
    if not all(isinstance(text, str) for text in texts):
        raise FactError(f"field '{name}' of a fact: expected {_TEXTS[name]}, got {shown(value)}")
    if not all(text.strip() for text in texts):
        expected = f"{_TEXTS[name]} that are not empty"
        raise FactError(f"field '{name}' of a fact: expected {expected}, got {shown(value)}")
    return texts


def identity_text(fact: Fact) -> str:
    """All the fields that tell facts apart, as text."""
    return f"Fact({', '.join(f'{one.name}={getattr(fact, one.name)!r}' for one in fields(fact) if one.repr)})"


def meta_json(fact: Fact) -> str:
    """The other fields of a fact as JSON. What JSON lacks is its text, and a number that is none is null."""
    try:
        text = json.dumps(dict(fact.meta), ensure_ascii=False, default=str, allow_nan=False)
    except (TypeError, ValueError):  # a key that is no text, or NaN
        text = json.dumps(_plain(fact.meta), ensure_ascii=False, default=str, allow_nan=False)
    return text.encode("utf-8", "replace").decode()  # half a surrogate pair is a question mark


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def facts_of(value: Any) -> list[Fact]:
    """A fact, several, or their fields as dicts → the facts. Raises ValueError for anything else."""
    if isinstance(value, Fact | Mapping):
        return [_fact(value)]
    if isinstance(value, str | bytes):
        raise ValueError
    return [_fact(one) for one in items_of(value)]


def _fact(value: Any) -> Fact:
    if isinstance(value, Mapping):
        check_names("a fact", value, [one.name for one in fields(Fact)])
        return Fact(**value)
    if not isinstance(value, Fact):
        raise ValueError
    return value


Facts = Annotated[Sequence[Fact], Kind("facts, as load_facts returns them", facts_of)]
"""Facts as the argument of a public function."""


def distinct(facts: Sequence[Fact]) -> list[Fact]:
    """The facts in their order, each once. Raises FactError where two different facts share a fact_id."""
    seen: dict[str, Fact] = {}
    for fact in facts:
        if seen.setdefault(fact.fact_id, fact) != fact:
            raise FactError(f"fact_id: expected a unique id per fact, got '{fact.fact_id}' for two different facts")
    return list(seen.values())
