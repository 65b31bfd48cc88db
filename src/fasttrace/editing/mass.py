"""`mass_edit`: edits of many facts in one model, all at once or one group after another. Each scoring covers every fact
edited so far.

MEMIT solves a whole group together (Meng et al. 2022, arXiv 2210.07229, equation 14). ROME and fine-tuning edit one
fact at a time, each in the model with all earlier edits.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from math import isnan
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fasttrace.editing.delta import (
    DIVERGED,
    NO_NUMBER,
    UNMOVED,
    LowRank,
    Update,
    edited_view,
    export_model,
    save_delta,
    summed,
)
from fasttrace.editing.edit import own_settings, prepare_edit
from fasttrace.editing.essence import essence_texts
from fasttrace.editing.memit import mass_memit
from fasttrace.editing.moments import Moments
from fasttrace.editing.plan import EditPlan
from fasttrace.editing.scores import ScoredPrompt, Scorer, score_row
from fasttrace.editing.value import ValueBatch, contexts_of
from fasttrace.errors import UserError
from fasttrace.facts import EncodedFact, Fact, Facts
from fasttrace.memory import pack_by_budget, parse_bytes
from fasttrace.models.adapter import Decoder, Model
from fasttrace.models.modes import with_autograd
from fasttrace.runs import Run, describe_run
from fasttrace.settings.arguments import checked, takes
from fasttrace.settings.base import argument, carried, refusal, replaced, run_settings, settings, settings_of
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.kinds import Size
from fasttrace.settings.mass import MassSettings
from fasttrace.settings.methods import FineTuneSettings, MemitSettings, RomeSettings

SCORED_TIMES = 10
SCORE_ROWS = 4096  # tokens per scoring pass

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


@dataclass(frozen=True, eq=False)
class MassResult:
    """A model's mass edit and its scores.

    run: the `runs` row. facts: the edited facts, in order. scores: MASS_SCORES, one row per edited fact and scoring,
    and one row with the reason per fact left out. A fact whose own δ is zero also has a reason. updates:
    layer → the sum of all facts' changes.
    """

    run: Run
    facts: list[Fact]
    scores: pa.Table
    updates: dict[int, Update] = field(repr=False)
    model: Decoder = field(repr=False)

    @checked
    def export(self, folder: str | Path) -> Path:
        """Write the model with all the edits in its weights, as a folder that plain transformers loads."""
        return export_model(self.model, self.updates, folder)

    @checked
    def save_delta(self, path: str | Path) -> Path:
        """Write only the change, as safetensors. `ft.apply_delta` applies it and can remove it exactly."""
        return save_delta(path, self.model, self.updates, facts=len(self.facts), run_id=self.run["run_id"])


@dataclass(frozen=True, eq=False)
class MassPlan:
    """A mass edit ready to be computed. at_once: facts solved together. score_every: groups between two scorings."""

    plan: EditPlan
    at_once: int
    score_every: int
    run: Run

    @property
    def facts(self) -> list[EncodedFact]:
        """The facts to edit, in order, without those that the problem leaves out."""
        return [f for f in self.plan.encoded if f.fact_id not in self.plan.left_out]

    @checked
    @with_autograd
    def compute(self, *, memory: Size | None = None, progress: Callable[[int], None] | None = None) -> MassResult:
        """Edit and score. memory: bytes for the facts that are optimised together; None for the settings' value.
        progress(n) is called after n more facts."""
        begun = time.perf_counter()
        budget = parse_bytes(self.plan.settings.memory if memory is None else memory)
        plan, model, facts = self.plan, self.plan.model, self.facts
        with model.products():
            prompts = self._prompts(facts)
            before = _log_probabilities(model, plan, prompts)
            updates: dict[int, Update] = {}
            unseen: dict[str, str] = {}
            rows: list[dict[str, Any]] = []
            groups = [facts[i : i + self.at_once] for i in range(0, len(facts), self.at_once)]
            n_edits = 0
            for number, group in enumerate(groups, 1):
                view = edited_view(model, updates)
                more, condition, why = self._solve(view, group, budget)
                updates, unseen = {**summed([updates, *more])}, unseen | why
                n_edits += len(group)
                if number % self.score_every == 0 or number == len(groups):
                    after = before[:n_edits]
                    if any(update.changes() for update in updates.values()):
                        after = _log_probabilities(edited_view(model, updates), plan, prompts[:n_edits])
                    rows += self._rows(n_edits, prompts, before, after, condition, unseen)
                if progress is not None:
                    progress(len(group))
        rows += self._left_out()
        return MassResult(
            {**self.run, "seconds": time.perf_counter() - begun},
            [f.fact for f in facts],
            pa.Table.from_pylist(rows, schema=MASS_SCORES),
            updates,
            model,
        )

    def _solve(
        self, view: Decoder, group: list[EncodedFact], memory: int
    ) -> tuple[list[dict[int, Update]], float | None, dict[str, str]]:
        """Edit a group of facts. view: the model with all earlier edits. memory: bytes for one batch.

        Return (updates, condition number or None, fact_id → reason of the facts whose own δ is zero).
        """
        plan = self.plan.with_model(view)
        [layer] = plan.layers
        if not isinstance(plan.hyperparameters, MemitSettings):
            edits = [edit for fact in group for edit in plan.optimise([(fact, [layer])])]
            unseen = {edit.fact_id: edit.reason for edit in edits if edit.reason is not None}
            return [dict(edit.updates) for edit in edits], edits[0].condition, unseen
        assert plan.moments is not None
        window = plan.window(layer)
        corruption = plan.corruption if plan.problem.corrupted else None
        ready = {f.fact_id: contexts_of(view, f, plan.target_ids(f), plan.contexts) for f in group}
        found = [one.unseen(view, window[-1]) for one in ready.values()]
        unseen = {fact_id: why for fact_id, why in zip(ready, found, strict=True) if why is not None}
        if len(unseen) == len(group):
            return [{at: LowRank.zero(view.blocks[at]) for at in window}], None, unseen
        v0, deltas = [], []
        for part in plan.groups([(f, [layer]) for f in group], memory):
            batch = ValueBatch(
                view, [ready[f.fact_id] for f, _ in part], [window[-1]], at="block", corruption=corruption
            )
            v0.append(batch.clean.v0[window[-1]])
            delta = torch.zeros_like(v0[-1], dtype=torch.float32)
            seen = [n for n, (fact, _) in enumerate(part) if fact.fact_id not in unseen]
            if seen:
                jobs = [(n, window[-1]) for n in seen]
                delta[seen], loss = batch.optimise(jobs, plan.hyperparameters, minimise=plan.problem.minimise)
                diverged = [part[n][0].fact_id for n, one in zip(seen, loss.tolist(), strict=True) if isnan(one)]
                unseen |= dict.fromkeys(diverged, DIVERGED)
                still = [part[n][0].fact_id for n in seen if not bool(delta[n].any())]
                unseen = dict.fromkeys(still, UNMOVED) | unseen
            deltas.append(delta)
        contexts, z = list(ready.values()), (torch.cat(v0), torch.cat(deltas))
        updates, conditions = mass_memit(view, contexts, corruption, window, plan.hyperparameters, plan.moments, *z)
        return [dict(updates)], max(conditions.values()), unseen

    def _prompts(self, facts: Sequence[EncodedFact]) -> list[list[ScoredPrompt]]:
        texts: dict[str, list[tuple[int, ...]]] = {}
        asked = self.plan.settings
        if asked.essence:
            subjects = list(dict.fromkeys(f.fact.subject for f in facts))
            found = essence_texts(self.plan.model, subjects, seed=asked.seed, texts=asked.essence)
            texts = dict(zip(subjects, found, strict=True))
        return [self.plan.prompts(f, texts.get(f.fact.subject, [])) for f in facts]

    def _rows(
        self,
        n_edits: int,
        prompts: list[list[ScoredPrompt]],
        before: list[np.ndarray],
        after: list[np.ndarray],
        condition: float | None,
        unseen: dict[str, str],
    ) -> Iterator[dict[str, Any]]:
        plan = self.plan
        for position, (fact, logp) in enumerate(zip(self.facts, after, strict=False)):
            scores = score_row(prompts[position], before[position], logp, plan.problem, plan.settings.protocol)
            lost = bool((np.isnan(logp) & ~np.isnan(before[position])).any())
            reason = NO_NUMBER if lost else unseen.get(fact.fact_id)
            about = {"position": position + 1, "condition": condition, "reason": reason}
            yield {**self._name(n_edits, fact), **about, **scores}

    def _left_out(self) -> list[dict[str, Any]]:
        why = self.plan.left_out
        left = [fact for fact in self.plan.encoded if fact.fact_id in why]
        return [{**self._name(len(self.facts), fact), "reason": why[fact.fact_id]} for fact in left]

    def _name(self, n_edits: int, fact: EncodedFact) -> dict[str, Any]:
        return {
            "n_edits": n_edits,
            "fact_id": fact.fact_id,
            "problem": self.plan.problem.name,
            "method": self.plan.settings.method,
            "layer": self.plan.layers[0],
            "window_size": self.plan.settings.window_size,
        }


def _log_probabilities(model: Decoder, plan: EditPlan, prompts: list[list[ScoredPrompt]]) -> list[np.ndarray]:
    """Each fact's (prompts, 3) log-probabilities in `model`."""
    parts = pack_by_budget(prompts, _scored_tokens, SCORE_ROWS)
    return [table for part in parts for table in Scorer(model, part, (), plan.scoring_corruption).before]


def _scored_tokens(prompts: list[ScoredPrompt]) -> int:
    return sum(2 * len(prompt.ids) + len(prompt.targets[0] or ()) for prompt in prompts)


@settings("mass")
class _MassKeywords(MassSettings, RomeSettings, MemitSettings, FineTuneSettings):
    """The settings of a mass edit, and the hyperparameters of every method."""

    settings: MassSettings | None = argument(
        default=None, help="Settings object; keywords add settings that it does not give"
    )
    moments: Moments | None = argument(
        default=None, help="Second moments of the keys, which fine-tuning does not need; by default they are collected"
    )


@settings("mass")
class PrepareMassArguments(_MassKeywords):
    """Keywords of `prepare_mass_edit`."""

    progress: Callable[[str, int, int], None] | None = argument(
        default=None, help="Called as progress(stage, done, total) while second moments are collected"
    )


@settings("mass")
class MassArguments(_MassKeywords):
    """Keywords of `mass_edit`."""

    progress: Callable[[int], None] | None = argument(
        default=None, help="Called as progress(n) after n more facts are edited"
    )


@takes(PrepareMassArguments)
@with_autograd
def prepare_mass_edit(model: Model, facts: Facts, given: PrepareMassArguments) -> MassPlan:
    """Check the settings of a mass edit, and prepare its contexts, second moments and o_noise.

    Raises the errors of `edit`.
    """
    asked = carried(MassSettings, given)
    if (asked.protocol, asked.method, asked.problem) == ("released", "memit", "fact-forcing"):
        raise refusal(
            asked, "protocol", "paper with memit and fact-forcing, which is released for one fact", "released"
        )
    layer, last = model.default_layer() if asked.layer is None else asked.layer, model.n_layers - 1
    if layer > last:
        raise refusal(asked, "layer", f"one of 0 to {last}", layer)
    # Given explicitly, because the defaults of single edits differ.
    same = {"method": asked.method, "essence": asked.essence, "hyperparameters": own_settings(given)}
    plan = prepare_edit(
        model,
        facts,
        settings=carried(EditSettings, asked, layers=[layer], **same),
        moments=given.moments,
        progress=given.progress,
    )
    count = len(plan.encoded) - len(plan.left_out)
    if count == 0:
        raise UserError(f"mass_edit: {next(iter(plan.left_out.values()))}; no fact is left to edit")
    at_once = asked.at_once or (count if asked.method == "memit" else 1)
    groups = -(-count // at_once)
    score_every = asked.score_every or -(-groups // SCORED_TIMES)
    settled = replaced(asked, layer=layer, at_once=at_once, score_every=score_every)
    of_edits = json.loads(plan.run["settings"])
    unread = settings_of(EditSettings).keys() - of_edits.keys()
    described = {**run_settings(settled, without=unread), **of_edits}
    described["facts"] = [f.fact_id for f in plan.encoded]
    run = describe_run("mass", model, described, seed=asked.seed, protocol=asked.protocol)
    return MassPlan(plan, at_once, score_every, run)


@takes(MassArguments)
def mass_edit(model: Model, facts: Facts, given: MassArguments) -> MassResult:
    """Edit all facts in one model, in order, and score them as their number grows. No weight of the model changes.

    Raises the errors of `edit`, and UserError where no fact is left to edit.
    """
    asked = carried(MassSettings, given, hyperparameters=own_settings(given))
    plan = prepare_mass_edit(model, facts, settings=asked, moments=given.moments)
    return plan.compute(progress=given.progress)
