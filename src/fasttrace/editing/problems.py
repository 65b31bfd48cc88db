"""Editing problems: the target of an edit, its input, and its direction (paper, section 5.1)."""

from dataclasses import dataclass

from fasttrace.errors import FactError
from fasttrace.facts.stated import STATED
from fasttrace.facts.tokens import EncodedFact


@dataclass(frozen=True)
class Problem:
    """An editing problem.

    target: "false", "true", or "noise" (the model's answer to the corrupted prompt). corrupted: whether the subject's
    embeddings have noise, in the edit and in its scores. minimise: whether the edit lowers the target's probability.
    """

    name: str
    target: str
    corrupted: bool = False
    minimise: bool = False

    @property
    def needs_noise(self) -> bool:
        """Whether the problem is defined by a corrupted prompt."""
        return self.corrupted or self.target == "noise"

    def check(self, fact: EncodedFact) -> None:
        """Raise FactError where the fact lacks the target."""
        if self.target == "false" and fact.target_false_ids is None:
            field = "new_target" if fact.fact.source == STATED else "field 'target_false'"
            raise FactError(
                f"fact '{fact.fact_id}': expected the {field}, which is the target of problem "
                f"'{self.name}', got none"
            )


# The least p(o_true) of a fact that is erased. Facts below it are left out with a reason (paper, Appendix A, "Data
# Filtering").
ERASURE_FLOOR = 0.02

PROBLEMS = {
    problem.name: problem
    for problem in (
        Problem("error-injection", "false"),
        Problem("tracing-reversal", "noise"),
        Problem("fact-erasure", "true", minimise=True),
        Problem("fact-amplification", "true"),
        Problem("fact-forcing", "true", corrupted=True),
    )
}
