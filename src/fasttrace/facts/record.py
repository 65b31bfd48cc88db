"""One fact (s, r, o): the record that every loader returns and everything downstream reads."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from fasttrace.errors import FactError


@dataclass(frozen=True, slots=True)
class Fact:
    """A factual prompt with its true and false targets (paper, section 3.1).

    prompt: template with exactly one "{}" in place of the subject.
    subject: s, as it appears in the prompt.
    target_true, target_false: o_true and o_false, without a leading space.
    relation: name of r, or None.
    paraphrases, neighborhood: whole prompts, subjects already in place.
    fact_id: the data set's own id, or a hash of (prompt, subject, target_true).
    source: the data set it came from.

    Raises FactError where prompt, subject or target_true is empty, or prompt does not have exactly one "{}".
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

    def __post_init__(self) -> None:
        for name in ("prompt", "subject", "target_true"):
            value = getattr(self, name)
            if not isinstance(value, str) or not value.strip():
                raise FactError(f"field '{name}' of a fact: expected a non-empty string, got {value!r}")
        if self.prompt.count("{}") != 1:
            places = self.prompt.count("{}")
            raise FactError(f"prompt {self.prompt!r}: expected one placeholder '{{}}' for the subject, got {places}")
        if not self.fact_id:
            parts = "\x1f".join((self.prompt, self.subject, self.target_true))
            object.__setattr__(self, "fact_id", hashlib.sha256(parts.encode()).hexdigest()[:12])

    @property
    def text(self) -> str:
        """The prompt with the subject in place."""
        return self.prompt.replace("{}", self.subject, 1)

    @property
    def subject_span(self) -> tuple[int, int]:
        """Character positions [begin, end) of the subject in `text`, from the template rather than a search."""
        begin = self.prompt.index("{}")
        return begin, begin + len(self.subject)


def distinct(facts: Sequence[Fact]) -> list[Fact]:
    """The facts in their order, each once. Raises FactError where two different facts share a fact_id."""
    seen: dict[str, Fact] = {}
    for fact in facts:
        if seen.setdefault(fact.fact_id, fact) != fact:
            raise FactError(f"fact_id: expected a unique id per fact, got '{fact.fact_id}' for two different facts")
    return list(seen.values())
