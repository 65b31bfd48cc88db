"""`tune`: the paper's tuning of an editing method (Appendix A, "Edit Method Tuning").

One setting of the method (the KL weight of ROME and MEMIT, the ε of fine-tuning) takes each of its values on the first
100 facts at one layer. Of the values whose mean rewrite score is at most 0.99, the one with the best mean overall score
is chosen. If all are above 0.99, the value with the lowest rewrite score is chosen.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from fasttrace.editing.edit import prepare_edit
from fasttrace.editing.hyperparameters import TUNED
from fasttrace.editing.plan import EditPlan
from fasttrace.errors import UserError
from fasttrace.facts import Fact
from fasttrace.models.adapter import Decoder
from fasttrace.settings.base import carried, given_by, refusal
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.mass import TuneSettings
from fasttrace.settings.methods import method_settings

TUNING_FACTS = 100
MOST_REWRITE = 0.99
_MEANS = ("rewrite", "paraphrase", "neighborhood", "overall")


@dataclass(frozen=True)
class Candidate:
    """One value of the tuned setting and the edits that try it."""

    setting: str
    value: float
    plan: EditPlan


def candidates(model: Decoder, facts: Sequence[Fact], asked: TuneSettings) -> Iterator[Candidate]:
    """Yield a plan of the edits of the first 100 facts for every value. Raises UserError as `edit`."""
    layer = model.default_layer() if asked.layer is None else asked.layer
    for name, value in tuned_values(asked):
        own = method_settings(asked.method, {**given_by(asked.hyperparameters), name: value})
        same = {"layers": [layer], "essence": asked.essence, "hyperparameters": own}
        yield Candidate(
            name, value, prepare_edit(model, facts[:TUNING_FACTS], settings=carried(EditSettings, asked, **same))
        )


def tuned_values(asked: TuneSettings) -> list[tuple[str, float]]:
    """The (hyperparameter, value) to try.

    Raises UserError for a hyperparameter that the method does not have, or that has neither given nor published values,
    and for a value out of its bounds.
    """
    name, values = TUNED.get(asked.method, TUNED["memit"])  # a method that was added optimises δ as MEMIT does
    if asked.hyperparameter not in (None, name) and not asked.values:
        raise refusal(asked, "values", f"values to try for {asked.hyperparameter}", "none")
    if asked.hyperparameter == "slack":
        raise refusal(asked, "hyperparameter", "one that edits of one fact depend on", "slack")
    tried = [(asked.hyperparameter or name, value) for value in asked.values or values]
    for one in tried:
        method_settings(asked.method, dict([one]))
    return tried


def mean_scores(candidate: Candidate, scores: pa.Table) -> dict[str, Any]:
    """A candidate's row: its value, the number of edits, and the mean of each score over them."""
    return {
        "setting": candidate.setting,
        "value": candidate.value,
        "edits": pc.count(scores["rewrite"]).as_py(),
        **{name: pc.mean(scores[name]).as_py() for name in _MEANS},
    }


def choose(rows: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The row of the chosen value. Raises UserError where no row has a rewrite score."""
    scored = [row for row in rows if row["rewrite"] is not None]
    if not scored:
        raise UserError("tune has no edit with a rewrite score, so nothing can be chosen")
    fit = [row for row in scored if row["rewrite"] <= MOST_REWRITE]
    if not fit:
        return min(scored, key=lambda row: row["rewrite"])
    return max(fit, key=lambda row: row["rewrite"] if row["overall"] is None else row["overall"])
