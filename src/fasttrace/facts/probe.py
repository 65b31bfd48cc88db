"""A probe: a prompt, its answers, and what is expected of them after an edit."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from itertools import islice
from typing import Any, Literal, get_args

from fasttrace.errors import FactError, shown
from fasttrace.settings.arguments import names_checked
from fasttrace.settings.base import check_names
from fasttrace.settings.kinds import MOST_ITEMS

Expect = Literal["changed", "unchanged", "true"]
After = Literal["edit", "case"]

PARAPHRASE, NEIGHBORHOOD = "paraphrase", "neighborhood"
# Kinds that ask for something the edit should leave alone. A probe of any other kind should change.
_UNCHANGED = (NEIGHBORHOOD, "locality", "relation-specificity", "forgetfulness")
_RESERVED = ("rewrite", "essence")  # the fact's own prompt, and texts that no probe asks for
_KIND = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@names_checked
@dataclass(frozen=True, slots=True)
class Probe:
    """A question about a model after an edit.

    kind: what the probe is for, in small letters with hyphens: paraphrase, neighborhood, portability, locality,
        logical-generalization, compositionality, alias, multi-hop, or a word of your own.
    prompt: a whole prompt.
    answers: texts that answer it equally well, such as a name and its aliases, without a leading space. Without any, a
        probe that should change is scored by the edit's target, as a paraphrase is, and one that should not by o_false,
        as a neighborhood prompt is.
    expect: "changed": the answers follow from o_false, and the edit should make them likelier. "unchanged": the edit
        should not move their probability. "true": they are right after the edit, whatever the model said before. None
        is "unchanged" for the kinds neighborhood, locality, relation-specificity and forgetfulness, else "changed".
    after: "edit": asked after the edit of its fact. "case": only after all edits of the fact's case (`Fact.case_id`).

    Raises FactError where a field is not of its type or empty, the kind is "rewrite" or "essence", or "true" has no
    answers.
    Source: docs/algorithms.md, section 18.
    """

    kind: str
    prompt: str
    answers: tuple[str, ...] = ()
    expect: Expect | None = None
    after: After = "edit"

    def __post_init__(self) -> None:
        if not isinstance(self.kind, str) or not _KIND.fullmatch(self.kind):
            expected = "small letters, digits and hyphens, such as logical-generalization"
            raise FactError(f"field 'kind' of a probe: expected {expected}, got {shown(self.kind)}")
        if self.kind in _RESERVED:
            reserved = " or ".join(_RESERVED)
            raise FactError(f"field 'kind' of a probe: expected another kind than {reserved}, got {shown(self.kind)}")
        if not isinstance(self.prompt, str) or not self.prompt.strip():
            raise FactError(f"field 'prompt' of a probe: expected a non-empty string, got {shown(self.prompt)}")
        if "{}" in self.prompt:
            raise FactError(f"field 'prompt' of a probe: expected a whole prompt, got {shown(self.prompt)}")
        object.__setattr__(self, "answers", _texts(self.answers))
        expect = self.expect
        if expect is None:
            object.__setattr__(self, "expect", "unchanged" if self.kind in _UNCHANGED else "changed")
        elif not isinstance(expect, str) or expect not in get_args(Expect):
            expected = f"one of {', '.join(get_args(Expect))}"
            raise FactError(f"field 'expect' of a probe: expected {expected}, got {shown(expect)}")
        if not isinstance(self.after, str) or self.after not in get_args(After):
            raise FactError(f"field 'after' of a probe: expected one of edit, case, got {shown(self.after)}")
        if self.expect == "true" and not self.answers:
            raise FactError(f"field 'answers' of a probe: expected the true ones, got none for {shown(self.prompt)}")


def _texts(value: Any) -> tuple[str, ...]:
    """One text or several → a tuple, each without white space at its ends, and once."""
    try:
        texts = (value,) if isinstance(value, str | Mapping) else tuple(islice(value, MOST_ITEMS))
    except TypeError:
        texts = (value,)
    if not all(isinstance(text, str) and text.strip() for text in texts):
        raise FactError(f"field 'answers' of a probe: expected texts that are not empty, got {shown(value)}")
    return tuple(dict.fromkeys(text.strip() for text in texts))


def probes_of(value: Any) -> tuple[Probe, ...]:
    """Probes, or their fields as dicts → probes. Raises FactError for anything else."""
    items = [value] if isinstance(value, Probe | Mapping | str) or not isinstance(value, Sequence) else value
    return tuple(_probe(one) for one in items)


def _probe(value: Any) -> Probe:
    if isinstance(value, Mapping):
        check_names("a probe", value, [one.name for one in fields(Probe)])
        return Probe(**value)
    if not isinstance(value, Probe):
        raise FactError(f"field 'probes' of a fact: expected probes, got {shown(value)}")
    return value
