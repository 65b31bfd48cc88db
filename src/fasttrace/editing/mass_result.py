"""What a mass edit returns: its run, the scores of every scoring, and the change of the weights."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import pyarrow as pa
import pyarrow.compute as pc

from fasttrace.editing.applied import Applied, apply_delta
from fasttrace.editing.delta import Update, check_unchanged, save_delta
from fasttrace.editing.export import export_edit
from fasttrace.editing.prompts import PROMPT_COLUMNS
from fasttrace.editing.result import Score, score_axes
from fasttrace.editing.sequence import EditSequence
from fasttrace.errors import UserError
from fasttrace.facts import Fact
from fasttrace.models.adapter import Decoder
from fasttrace.runs import Run
from fasttrace.settings.arguments import checked, takes
from fasttrace.settings.export import ExportSettings
from fasttrace.show.results import Shown
from fasttrace.show.words import count, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MASS_SCORES = pa.schema(
    [
        ("n_edits", pa.int32()),
        ("fact_id", pa.string()),
        ("position", pa.int32()),
        ("problem", pa.string()),
        ("method", pa.string()),
        ("layer", pa.int32()),
        ("window_size", pa.int32()),
        *((name, pa.float64()) for name in ("rewrite", "paraphrase", "neighborhood", "essence", "overall")),
        *((name, pa.float64()) for name in ("p_before", "p_after", "p_true_before", "p_true_after", "magnitude")),
        ("success", pa.bool_()),
        *((name, pa.float64()) for name in ("ppl_before", "ppl_after", "condition")),
        ("reason", pa.string()),
    ]
)
MASS_PROMPTS = pa.schema([("n_edits", pa.int32()), ("fact_id", pa.string()), *PROMPT_COLUMNS])


@dataclass(frozen=True, eq=False, repr=False)
class MassResult(Shown):
    """A mass edit and its scores.

    run: the `runs` row. facts: the edited facts, in order. scores: MASS_SCORES, one row per edited fact and scoring,
    and one row with the reason per fact left out. A fact whose own δ is zero also has a reason. prompts: MASS_PROMPTS,
    one row per edited fact, scoring and scored prompt. measures, norms, tasks: what each scoring finds of the model as
    a whole, rows of MEASURES, NORMS and TASKS of editing/breaks.py. updates: layer → the sum of all facts' changes;
    with together="case" that of the last case, whose model alone they are in. sequence: the edits so far, those of the
    file that the run went on from included.
    """

    TABLES: ClassVar = ("scores", "prompts", "measures", "norms", "tasks")

    run: Run
    facts: list[Fact]
    scores: pa.Table
    prompts: pa.Table
    measures: pa.Table
    norms: pa.Table
    tasks: pa.Table
    updates: dict[int, Update]
    model: Decoder
    models: int = 1
    sequence: EditSequence = field(default_factory=EditSequence)
    after: str = "nothing"

    @takes(ExportSettings)
    def export(self, folder: str | Path, given: ExportSettings) -> Path:
        """Write the model with all the edits in its weights, as a folder that plain transformers loads, or only the
        edits.

        Raises UserError where the edits are of several cases, each in a model of its own.
        """
        self._check_one("export")
        return export_edit(self.model, self.updates, folder, given).folder

    @checked
    def applied(self) -> Applied:
        """Apply all the edits to the model's weights in memory. `with many.applied() as model:` removes them at the
        end.

        Raises UserError as `export`, and ModelError as `apply_delta`.
        """
        self._check_one("applied")
        return apply_delta(self.model, self.updates)

    @checked
    def save_delta(self, path: str | Path) -> Path:
        """Write only the change, as safetensors. `ft.apply_delta` applies it and can remove it exactly.

        The file also has the edits' keys, so that `mass_edit(…, continue_from=path)` can go on from it. They take m · 8
        bytes per edit and layer, at most m² · 8 per layer.

        Raises UserError as `export`.
        """
        self._check_one("save_delta")
        about = {**self.sequence.about, "run_id": self.run["run_id"], "after": self.after}
        return save_delta(path, self.model, self.updates, self.sequence.past_tensors(), **about)

    @checked
    def plot(self, score: Score | None = None, *, ax: Any = None) -> "Axes":
        """Draw the mean score of all facts edited so far by their number, with a band of one standard error on each
        side.

        score, ax: as in `EditResult.plot`. Raises UserError where no edit has the score.
        """
        scored = self.scores.filter(pc.is_valid(self.scores["n_edits"]))
        return score_axes("plot", scored, "n_edits", "edits in the model", self._how(), score, ax)

    def _how(self) -> str:
        """Model, method, problem and layer."""
        first = self.scores.slice(0, 1).to_pylist()
        words = [f"{row['method']} · {row['problem']} · layer {row['layer']}" for row in first]
        return " · ".join([title_of(self.run["model"]), *words])

    def _line(self) -> str:
        models = "one model" if self.models == 1 else f"{self.models} models"
        how = self._how().replace(" · ", ", ")
        return f"{count(len(self.facts), 'fact')} edited into {models}, {how}; {self.run['seconds']:.1f} s"

    def _summary(self) -> pa.Table:
        """The last scoring."""
        numbers = [n for n in self.scores["n_edits"].to_pylist() if n is not None]
        last = self.scores.filter(pc.equal(self.scores["n_edits"], max(numbers))) if numbers else self.scores
        return last.select(
            ["fact_id", "n_edits", "rewrite", "paraphrase", "neighborhood", "overall", "p_before", "p_after", "reason"]
        )

    def _check_one(self, what: str) -> None:
        check_unchanged(self.model, self.run, what)
        if self.models > 1:
            raise UserError(
                f"{what}: expected the edits of one model, got those of {self.models} cases, each in its own"
            )
