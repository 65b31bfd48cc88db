"""Editing problems: which target an edit works on and in which direction (paper, section 5.1)."""

from dataclasses import dataclass

from fasttrace.errors import FactError, UserError
from fasttrace.facts.tokens import EncodedFact


@dataclass(frozen=True)
class Problem:
    """name as stored. target: ids the edit maximises the probability of, given the clean prompt."""

    name: str
    target: str  # which of the fact's targets: "false"

    def target_ids(self, fact: EncodedFact) -> tuple[int, ...]:
        """(K,) ids of the edit's target. Raises FactError where the fact lacks it."""
        if fact.target_false_ids is None:
            raise FactError(
                f"fact '{fact.fact.fact_id}' has no false target, which problem '{self.name}' edits in; "
                "field 'target_false' was wanted"
            )
        return fact.target_false_ids


PROBLEMS = {"error-injection": Problem("error-injection", "false")}


def problem_named(name: str) -> Problem:
    """The problem of that name. Raises UserError for an unknown one."""
    if name not in PROBLEMS:
        raise UserError(f"problem '{name}' is not one of {', '.join(PROBLEMS)}")
    return PROBLEMS[name]
