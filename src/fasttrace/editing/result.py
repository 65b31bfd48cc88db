"""What editing returns: its run, scores and prompts, and the changes of the weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import pyarrow as pa

from fasttrace.editing.applied import Applied, apply_delta
from fasttrace.editing.cases import changed_by
from fasttrace.editing.delta import Edit, check_unchanged, save_delta
from fasttrace.editing.export import ExportOneArguments, export_edit
from fasttrace.editing.prompts import PROMPT_COLUMNS
from fasttrace.errors import UserError
from fasttrace.facts import Fact
from fasttrace.models.adapter import Decoder
from fasttrace.runs import Run
from fasttrace.settings.arguments import checked, takes
from fasttrace.show.results import Shown
from fasttrace.show.words import count, title_of

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_EDIT = [
    ("fact_id", pa.string()),
    ("problem", pa.string()),
    ("method", pa.string()),
    ("layer", pa.int32()),
    ("window_size", pa.int32()),
]
_P = [(name, pa.float64()) for name in ("p_before", "p_after", "p_true_before", "p_true_after")]
SCORES = pa.schema(
    [
        *_EDIT,
        *((name, pa.float64()) for name in ("rewrite", "paraphrase", "neighborhood", "essence", "overall")),
        *_P,
        ("magnitude", pa.float64()),
        ("success", pa.bool_()),
        *((name, pa.float64()) for name in ("ppl_before", "ppl_after", "delta_norm", "denominator", "condition")),
        ("loss", pa.float64()),
        ("target", pa.string()),
        ("reason", pa.string()),
        ("experts", pa.string()),
    ]
)
PROMPTS = pa.schema([*_EDIT, *PROMPT_COLUMNS])


Score = Literal["rewrite", "paraphrase", "neighborhood", "essence", "overall", "magnitude"]
FIRST_SCORES: tuple[Score, ...] = ("rewrite", "paraphrase", "neighborhood")  # which a plot shows if none is named


def score_axes(
    what: str, scores: pa.Table, place: str, x: str, title: str, score: Score | None, ax: Any
) -> "Axes":
    """Draw the mean of some scores at each place on the x axis. what: the first word of its errors.

    scores: fact_id, the column `place` and the scores. score: to draw with each fact; None: FIRST_SCORES.
    Raises UserError where no edit has the score.
    """
    rows = scores.to_pylist()
    by_place: dict[str, dict[int, list[float]]] = {}
    facts: dict[str, dict[int, float]] = {}
    for row in rows:
        for name in FIRST_SCORES if score is None else (score,):
            if (value := row[name]) is not None:
                by_place.setdefault(name, {}).setdefault(row[place], []).append(value)
                facts.setdefault(row["fact_id"], {})[row[place]] = value
    if not by_place:
        named = "a score" if score is None else f"the score {score}"
        raise UserError(f"{what}: expected an edit that has {named}, got none of {count(len(rows), 'edit')}")
    from fasttrace.show.scores import draw_score_lines
    from fasttrace.show.style import axes_to_draw_on

    alone = [] if score is None or len(facts) == 1 else list(facts.values())
    title = f"{title}: {count(len(facts), 'fact')}" + ("" if score is None else f", {score}")
    return draw_score_lines(axes_to_draw_on(ax, 7.0, 3.8), by_place, x=x, title=title, facts=alone)


@dataclass(frozen=True, eq=False, repr=False)
class EditResult(Shown):
    """Edits and their scores.

    run: the `runs` row. facts: the facts, including those left out. scores: SCORES, one row per fact and layer.
    prompts: PROMPTS, one row per edit and scored prompt. edits: the changes of the weights.
    """

    TABLES: ClassVar = ("scores", "prompts")

    run: Run
    facts: list[Fact]
    scores: pa.Table
    prompts: pa.Table
    edits: list[Edit]
    model: Decoder

    @takes(ExportOneArguments)
    def export(self, folder: str | Path, given: ExportOneArguments) -> Path:
        """Write the model with one edit in its weights, as a folder that plain transformers loads, or only the edit.

        Raises UserError where no edit or more than one matches, or the folder exists and is not empty.
        """
        updates = self._one("export", given.fact_id, given.layer).updates
        return export_edit(self.model, updates, folder, given).folder

    @checked
    def applied(self, *, fact_id: str | None = None, layer: int | None = None) -> Applied:
        """Apply one edit to the model's weights in memory. `with edit.applied() as model:` removes it at the end.

        fact_id, layer: as in `export`. Raises UserError where no edit or more than one matches, and ModelError as
        `apply_delta`.
        """
        return apply_delta(self.model, self._one("applied", fact_id, layer).updates)

    @checked
    def save_delta(self, path: str | Path, *, fact_id: str | None = None, layer: int | None = None) -> Path:
        """Write one edit without the model, as safetensors. `ft.apply_delta` applies it and can remove it exactly.

        fact_id, layer: as in `export`. Raises UserError where no edit or more than one matches, or the file exists.
        """
        one = self._one("save_delta", fact_id, layer)
        about = {name: self.run.get(name) for name in ("run_id", "protocol", "seed", "settings")}
        about["after"] = json.loads(self.run["settings"]).get("after", "nothing")
        about["changed"] = sorted(changed_by(next(fact for fact in self.facts if fact.fact_id == one.fact_id)))
        return save_delta(path, self.model, one.updates, {}, fact_id=one.fact_id, layer=one.layer, **about)

    @checked
    def plot(self, score: Score | None = None, *, ax: Any = None) -> "Axes":
        """Draw the mean score by edited layer, with a band of one standard error on each side.

        score: one score, with each fact drawn faintly; None: rewrite, paraphrase and neighborhood. ax: matplotlib axes
        to draw on; None: those of a new figure, `plot().figure`.

        Raises UserError where no edit has the score.
        Source: paper, Figures 7 to 9.
        """
        return score_axes("plot", self.scores, "layer", "edited layer (0-based)", self._how(), score, ax)

    def _how(self) -> str:
        """Model, method and problem."""
        first = self.scores.slice(0, 1).to_pylist()
        words = [f"{row['method']} · {row['problem']}" for row in first]
        return " · ".join([title_of(self.run["model"]), *words])

    def _line(self) -> str:
        layers = sorted({layer for layer in self.scores["layer"].to_pylist() if layer is not None})
        at = f"layer{'s' * (len(layers) != 1)} {', '.join(map(str, layers))}"
        scored = len(self.scores) - self.scores["p_after"].null_count
        made = f"{count(scored, 'edit')} of {count(len(self.facts), 'fact')}"
        return f"{made}, {self._how().replace(' · ', ', ')}, {at}; {self.run['seconds']:.1f} s"

    def _summary(self) -> pa.Table:
        return self.scores.select(
            ["fact_id", "layer", "rewrite", "paraphrase", "neighborhood", "overall", "p_before", "p_after", "reason"]
        )

    def _one(self, what: str, fact_id: str | None, layer: int | None) -> Edit:
        check_unchanged(self.model, self.run, what)
        mine = [e for e in self.edits if fact_id in (None, e.fact_id) and layer in (None, e.layer)]
        if len(mine) != 1:
            raise UserError(f"{what}: expected one edit for fact_id={fact_id!r}, layer={layer!r}, got {len(mine)}")
        return mine[0]


def joined(
    run: Run, parts: Sequence[EditResult], facts: Sequence[Fact], model: Decoder, *, whole: bool = True
) -> EditResult:
    """The results of some batches as one, by fact in the order given, and by layer.

    whole: whether with the changes of the weights.
    """
    here = {fact.fact_id for part in parts for fact in part.facts}
    number = {fact.fact_id: n for n, fact in enumerate(facts)}

    def ordered(rows: Sequence[pa.Table]) -> pa.Table:
        """The rows by fact and layer, since workers finish in any order."""
        every = pa.concat_tables(rows)
        of = zip(every["fact_id"].to_pylist(), every["layer"].to_pylist(), strict=True)
        keys = [(number[fact_id], layer) for fact_id, layer in of]
        return every.take(pa.array(sorted(range(len(keys)), key=keys.__getitem__), pa.int64()))

    edits = [edit for part in parts for edit in part.edits] if whole else []
    return EditResult(
        {**run, "seconds": sum(part.run["seconds"] for part in parts)},
        [fact for fact in facts if fact.fact_id in here],
        ordered([SCORES.empty_table(), *(part.scores for part in parts)]),
        ordered([PROMPTS.empty_table(), *(part.prompts for part in parts)]),
        sorted(edits, key=lambda edit: (number[edit.fact_id], edit.layer)),
        model,
    )
