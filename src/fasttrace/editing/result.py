"""What editing returns: its run, scores and prompts, and the changes of the weights."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

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


@dataclass(frozen=True, eq=False)
class EditResult:
    """Edits and their scores.

    run: the `runs` row. facts: the facts, including those left out. scores: SCORES, one row per fact and layer.
    prompts: PROMPTS, one row per edit and scored prompt. edits: the changes of the weights.
    """

    run: Run
    facts: list[Fact]
    scores: pa.Table
    prompts: pa.Table
    edits: list[Edit] = field(repr=False)
    model: Decoder = field(repr=False)

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
