"""`mass_edit`: edits of many facts in one model, all at once or one group after another, or those of each case in a
model of its own. Each scoring covers every fact edited so far.

MEMIT solves a whole group together (Meng et al. 2022, arXiv 2210.07229, equation 14). ROME and fine-tuning edit one
fact at a time, each in the model with all earlier edits.
"""

import json
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from math import isnan
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch

from fasttrace.cache import cache_place, content_key, content_of
from fasttrace.editing.applied import edited_view
from fasttrace.editing.breaks import MEASURES, NORMS, TASKS, Watch, WatchedModel, prepare_watch
from fasttrace.editing.cases import changed_by_any, changed_prompts, contradicted, edits_of_cases, is_whole, models_of
from fasttrace.editing.delta import DIVERGED, NO_NUMBER, UNMOVED, LowRank, Update, summed
from fasttrace.editing.edit import JUDGE_HELP, MOMENTS_HELP, own_settings, prepare_edit
from fasttrace.editing.essence import essence_texts
from fasttrace.editing.experts import union
from fasttrace.editing.judge import Judge
from fasttrace.editing.mass_result import MASS_PROMPTS, MASS_SCORES, MassResult
from fasttrace.editing.methods.base import Past
from fasttrace.editing.moments import Moments
from fasttrace.editing.plan import EditPlan, say_waiting
from fasttrace.editing.prompts import judgements_of, prompt_rows
from fasttrace.editing.scores import Reading, ScoredPrompt, Scorer, score_row
from fasttrace.editing.sequence import Checkpoint, EditSequence, read_sequence
from fasttrace.editing.spread import spread_together
from fasttrace.editing.value import ValueBatch, contexts_of
from fasttrace.errors import UserError, shown
from fasttrace.facts import AnyFacts, EncodedFact, Facts, facts_from
from fasttrace.facts.record import identity_text
from fasttrace.memory import pack_by_budget, parse_bytes
from fasttrace.models.adapter import Decoder, Model
from fasttrace.models.modes import with_autograd
from fasttrace.runs import Run, describe_run
from fasttrace.settings.arguments import checked, takes
from fasttrace.settings.base import argument, carried, refusal, replaced, run_settings, settings, settings_of
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.kinds import Size
from fasttrace.settings.mass import MassSettings
from fasttrace.settings.methods import METHODS, FineTuneSettings, Hyperparameters
from fasttrace.settings.prompt import StatedFact
from fasttrace.show.watched import HELP, watched

log = logging.getLogger(__name__)
SCORED_TIMES = 10
SCORE_ROWS = 4096  # tokens per scoring pass


@dataclass(frozen=True, eq=False)
class MassPlan:
    """A mass edit ready to be computed.

    at_once: facts solved together. score_every: groups between two scorings. together: whose edits are in one model,
    "all" or those of one "case". start: the edits to go on from. keep: whether each solve keeps what the keys of
    earlier groups give. watch: what is measured of the model as a whole.
    """

    plan: EditPlan
    at_once: int
    score_every: int
    together: str
    start: EditSequence
    keep: bool
    watch: Watch
    run: Run

    @property
    def checkpoint(self) -> Path:
        """The file in the cache from which an interrupted computation goes on.

        Its name has the whole facts, where the run's name has their ids.
        """
        judge = self.plan.judge
        parts = {
            "facts": [identity_text(one.fact) for one in self.plan.encoded],
            # A function's name does not say what it does, so its judgements are of this process only.
            "judge": None if judge is None or self.plan.settings.judge_url else [os.getpid(), id(judge)],
        }
        return cache_place(None) / "mass" / f"{self.run['run_id']}-{content_key(parts)}.safetensors"

    @property
    def facts(self) -> list[EncodedFact]:
        """The facts to edit, in order, without those that the problem leaves out."""
        return [f for f in self.plan.encoded if f.fact_id not in self.plan.left_out]

    @property
    def models(self) -> list[list[EncodedFact]]:
        """The facts that are edited into one model, for each model."""
        return models_of(self.facts, self.together)

    @checked
    @with_autograd
    def compute(self, *, memory: Size | None = None, progress: Callable[[int], None] | None = None) -> MassResult:
        """Edit and score. An interrupted computation goes on where its last checkpoint (one every 20 s) was written.

        memory: bytes for the facts that are optimised together; None for the settings' value. progress(n) is called
        after n more facts. Of facts that are solved together, each counts once it has a δ, and the last ones once all
        are scored.
        """
        begun = time.perf_counter()
        budget = parse_bytes(self.plan.settings.memory if memory is None else memory)
        made = edits_of_cases(self.facts)
        cut = [f.fact for f in self.facts if not is_whole(f, made)]
        say_waiting(cut, "some of them are not among the facts")
        state = Checkpoint.read(self.checkpoint, self.plan.model)
        with self.plan.model.products():
            asked = self._prompts(self.facts)
            unedited = _readings(self.plan.model, self.plan, asked)
            place = {fact.fact_id: at for at, fact in enumerate(self.facts)}
            models = self.models
            if progress is not None and (done := sum(map(len, models[: state.models])) + state.groups * self.at_once):
                progress(done)
            for facts in models[state.models :]:
                mine = [place[fact.fact_id] for fact in facts]
                self._edit(facts, [asked[at] for at in mine], [unedited[at] for at in mine], state, budget, progress)
        return MassResult(
            {**self.run, "seconds": time.perf_counter() - begun},
            [f.fact for f in self.facts],
            pa.Table.from_pylist(state.scores + self._left_out(), schema=MASS_SCORES),
            pa.Table.from_pylist(state.prompts, schema=MASS_PROMPTS),
            pa.Table.from_pylist(state.measures, schema=MEASURES),
            pa.Table.from_pylist(state.norms, schema=NORMS),
            pa.Table.from_pylist(state.tasks, schema=TASKS),
            dict(self.plan.after.summed(state.last.updates)),
            self.plan.model,
            len(models),
            replace(state.last, changed=changed_by_any(models, self.start.changed)),
            self.plan.settings.after,
        )

    def _edit(
        self,
        facts: list[EncodedFact],
        prompts: list[list[ScoredPrompt]],
        before: list[Reading],
        state: Checkpoint,
        budget: int,
        progress: Callable[[int], None] | None,
    ) -> None:
        """Edit facts into one model, from the groups that `state` has, and add the edits and the rows to it.

        prompts, before: of each fact, and what is read of them in the unedited model.
        """
        groups = [facts[i : i + self.at_once] for i in range(0, len(facts), self.at_once)]
        watched = self.watch.of(facts)
        if not state.groups:
            state.sequence, state.seconds = self.start, 0.0
        for number, group in enumerate(groups[state.groups :], state.groups + 1):
            begun, told = time.perf_counter(), _Told(progress)
            state.sequence = so_far = self._after(state.sequence, group, budget, told)
            state.seconds += time.perf_counter() - begun
            if number % self.score_every == 0 or number == len(groups):
                n_edits = so_far.n_edits - self.start.n_edits
                self._score(facts[:n_edits], prompts[:n_edits], before[:n_edits], watched, state)
            if number < len(groups):
                state.groups = number
            else:
                state.last, state.models, state.groups = so_far, state.models + 1, 0
            if state.models < len(self.models):
                state.save_if_due()
            told(len(group) - told.n)

    def _after(self, so_far: EditSequence, group: list[EncodedFact], memory: int, told: "_Told") -> EditSequence:
        """The edits so far and those of a group of facts. memory: bytes for one batch."""
        view = edited_view(self.plan.model, so_far.updates)
        new, past, condition, why = self._solve(view, group, so_far.past, memory, told)
        after = self.plan.after
        updates = after.bounded(summed([so_far.updates, *(after.each(view, one) for one in new)]))
        return EditSequence(updates, past, so_far.n_edits + len(group), {**so_far.unseen, **why}, condition)

    def _score(
        self,
        facts: list[EncodedFact],
        prompts: list[list[ScoredPrompt]],
        before: list[Reading],
        watched: WatchedModel,
        state: Checkpoint,
    ) -> None:
        """Score every fact edited so far, measure the model, and add the rows to the state."""
        plan, so_far = self.plan, state.sequence
        updates = plan.after.summed(so_far.updates)
        view = edited_view(plan.model, updates)
        after = _readings(view, plan, prompts) if so_far.changes() else before
        made, n_edits = edits_of_cases(facts), so_far.n_edits
        found = watched.measure(view, updates, model_index=state.models, n_edits=n_edits)
        state.measures.append(found.measures | {"edit_seconds": state.seconds})
        state.norms += found.norms
        state.tasks += found.tasks
        said = judgements_of(plan.judge, zip(prompts, after, strict=True), plan.model.tokenizer)
        for position, (fact, reading) in enumerate(zip(facts, after, strict=True)):
            whole = is_whole(fact, made)
            seen = [i for i, one in enumerate(prompts[position]) if whole or not one.case]
            read = [prompts[position][i] for i in seen], before[position].of(seen), reading.of(seen)
            about = {"position": self.start.n_edits + position + 1, "condition": so_far.condition}
            state.scores.append(self._scores(n_edits, fact, *read, so_far.unseen.get(fact.fact_id)) | about)
            rows = prompt_rows(*read, plan.problem, plan.settings.protocol, plan.model.tokenizer, said)
            state.prompts += [{"n_edits": n_edits, "fact_id": fact.fact_id, **row} for row in rows]

    def _solve(
        self, view: Decoder, group: list[EncodedFact], past: Past, memory: int, told: "_Told"
    ) -> tuple[list[Mapping[int, Update]], Past, float | None, dict[str, str]]:
        """Edit a group of facts. view: the model with all earlier edits. past: the keys of those. memory: bytes for one
        batch. told: called with the number of facts of each batch but the last, once their δ is found.

        Return (updates, the keys of all edits, condition number or None, fact_id → reason of the facts whose own δ is
        zero).
        """
        plan = self.plan.with_model(view)
        [layer] = plan.layers
        if plan.solve is None:
            edits = [edit for fact in group for edit in plan.optimise([(fact, [layer])])]
            unseen = {edit.fact_id: edit.reason for edit in edits if edit.reason is not None}
            return [edit.updates for edit in edits], past, edits[0].condition, unseen
        assert not isinstance(plan.hyperparameters, FineTuneSettings)
        window = plan.window(layer)
        corruption = plan.corruption if plan.problem.corrupted else None
        # All groups change the same experts, so that earlier keys are those of the same experts.
        experts = union(list(plan.experts.values()))
        ready = {f.fact_id: contexts_of(view, f, plan.target_ids(f), plan.contexts, experts) for f in group}
        found = [one.unseen(view, window[-1]) for one in ready.values()]
        unseen = {fact_id: why for fact_id, why in zip(ready, found, strict=True) if why is not None}
        if len(unseen) == len(group) and not self.keep:
            return [{at: LowRank.zero(view.blocks[at], experts.get(at, ())) for at in window}], past, None, unseen
        v0, deltas = [], []
        parts = list(plan.groups([(f, [layer]) for f in group], memory))
        for part in parts:
            batch = ValueBatch(
                view, [ready[f.fact_id] for f, _ in part], [window[-1]], at=plan.solve.at, corruption=corruption
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
            if part is not parts[-1]:
                told(len(part))
        contexts, z = list(ready.values()), (torch.cat(v0), torch.cat(deltas))
        updates, kept, conditions = spread_together(view, contexts, corruption, window, plan.solve, *z, past, experts)
        return [updates], kept if self.keep else {}, max(conditions.values()), unseen

    def _prompts(self, facts: Sequence[EncodedFact]) -> list[list[ScoredPrompt]]:
        texts: dict[str, list[tuple[int, ...]]] = {}
        asked = self.plan.settings
        if asked.essence:
            subjects = list(dict.fromkeys(f.fact.subject for f in facts))
            drawn = essence_texts(self.plan.model, subjects, seed=asked.seed, texts=asked.essence)
            texts = dict(zip(subjects, drawn, strict=True))
        changed = changed_prompts(self.models, self.start.changed)
        found = ((changed[f.fact_id], self.plan.prompts(f, texts.get(f.fact.subject, []), cases=True)) for f in facts)
        return [[one for one in mine if one.expect != "unchanged" or one.text not in theirs] for theirs, mine in found]

    def _scores(
        self,
        n_edits: int,
        fact: EncodedFact,
        prompts: list[ScoredPrompt],
        before: Reading,
        after: Reading,
        unseen: str | None,
    ) -> dict[str, Any]:
        """A row of MASS_SCORES, without position and condition. unseen: why the fact's own δ is zero."""
        scores = score_row(prompts, before, after, self.plan.problem, self.plan.settings.protocol)
        return {**self._name(n_edits, fact), "reason": NO_NUMBER if after.lost(before) else unseen, **scores}

    def _left_out(self) -> list[dict[str, Any]]:
        why = self.plan.left_out
        left = [fact for fact in self.plan.encoded if fact.fact_id in why]
        every, made = len(self.facts), edits_of_cases(self.facts)
        count = {f.fact_id: every if self.together == "all" else made[f.fact.case_id] or 1 for f in left}
        return [{**self._name(count[f.fact_id], f), "reason": why[f.fact_id]} for f in left]

    def _name(self, n_edits: int, fact: EncodedFact) -> dict[str, Any]:
        return {
            "n_edits": n_edits,
            "fact_id": fact.fact_id,
            "problem": self.plan.problem.name,
            "method": self.plan.settings.method,
            "layer": self.plan.layers[0],
            "window_size": self.plan.settings.window_size,
        }


class _Told:
    """Calls a caller's function of progress, and keeps how many facts it was told of."""

    def __init__(self, progress: Callable[[int], None] | None) -> None:
        self.progress, self.n = progress, 0

    def __call__(self, n: int) -> None:
        self.n += n
        if self.progress is not None:
            self.progress(n)


def _readings(model: Decoder, plan: EditPlan, prompts: list[list[ScoredPrompt]]) -> list[Reading]:
    """What is read of each fact's prompts in `model`."""
    parts = pack_by_budget(prompts, _scored_tokens, SCORE_ROWS)
    about = plan.scoring_corruption, plan.routed_by
    found = [reading for part in parts for reading in Scorer(model, part, (), *about).before]
    return plan.with_model(model).with_texts(found, prompts)


def _scored_tokens(prompts: list[ScoredPrompt]) -> int:
    targets = ([len(target) for target in prompt.targets if target is not None] for prompt in prompts)
    return sum(max(2, len(lengths)) * len(p.ids) + sum(lengths) for p, lengths in zip(prompts, targets, strict=True))


@settings("mass")
class _MassKeywords(MassSettings, Hyperparameters):
    """The settings of a mass edit, and the hyperparameters of every method."""

    settings: MassSettings | None = argument(
        default=None, help="Settings object; keywords add settings that it does not give"
    )
    moments: Moments | None = argument(default=None, help=MOMENTS_HELP)
    judge: Judge | None = argument(default=None, help=JUDGE_HELP)


@settings("mass")
class PrepareMassArguments(_MassKeywords):
    """Keywords of `prepare_mass_edit`."""

    progress: Callable[[str, int, int], None] | None = argument(
        default=None, help="Called as progress(stage, done, total) while second moments are collected"
    )


@settings("mass")
class MassArguments(_MassKeywords, StatedFact):
    """Keywords of `mass_edit`."""

    progress: Callable[[int], None] | bool | None = argument(
        default=None, help=f"Called as progress(n) after n more facts are edited; {HELP}"
    )


@takes(PrepareMassArguments)
@with_autograd
def prepare_mass_edit(model: Model, facts: Facts, given: PrepareMassArguments) -> MassPlan:
    """Check the settings of a mass edit, and prepare its contexts, second moments and o_noise.

    Raises the errors of `edit` and of `prepare_watch`.
    """
    asked = carried(MassSettings, given)
    if (asked.protocol, asked.problem) == ("released", "fact-forcing") and METHODS[asked.method].spread:
        raise refusal(
            asked, "protocol", f"paper with {asked.method} and fact-forcing, which is released for one fact", "released"
        )
    layer, last = model.default_layer() if asked.layer is None else asked.layer, model.n_layers - 1
    if layer > last:
        raise refusal(asked, "layer", f"one of 0 to {last}", layer)
    watch = prepare_watch(model, asked)
    # Given explicitly, because the defaults of single edits differ.
    same = {"method": asked.method, "essence": asked.essence, "hyperparameters": own_settings(given)}
    plan = prepare_edit(
        model,
        facts,
        settings=carried(EditSettings, asked, layers=[layer], **same),
        moments=given.moments,
        judge=given.judge,
        progress=given.progress,
    )
    left = [fact for fact in plan.encoded if fact.fact_id not in plan.left_out]
    if not left:
        raise UserError(f"mass_edit: {next(iter(plan.left_out.values()))}; no fact is left to edit")
    models = models_of(left, asked.together)
    count = max(map(len, models))
    at_once = min(asked.at_once or (count if METHODS[asked.method].spread else 1), count)
    groups = -(-count // at_once)
    keep = METHODS[asked.method].spread and asked.past_keys != "ignore"
    start, begun_from, every = EditSequence(), None, union(list(plan.experts.values()))
    if asked.continue_from is not None:
        start = read_sequence(asked.continue_from, model, plan.window(layer) if keep else (), keep, every)
        begun_from = content_of(asked.continue_from)
    score_every = asked.score_every or (-(-groups // SCORED_TIMES) if asked.together == "all" else groups)
    settled = replaced(asked, layer=layer, at_once=at_once, score_every=score_every)
    if METHODS[asked.method].spread and (groups > 1 or start.n_edits):  # else there are no earlier keys
        settled = replaced(settled, past_keys="keep" if keep else "ignore")
    elif asked.past_keys is not None:
        settled = replaced(settled, past_keys=None)
    of_edits = json.loads(plan.run["settings"])
    unread = {name for name, one in settings_of(EditSettings).items() if one.stored not in of_edits}
    described = {**run_settings(settled, without=unread), **of_edits, **watch.identity}
    described["facts"] = [f.fact_id for f in plan.encoded]
    if both := contradicted(models, start.changed):
        described["contradicted"] = "not asked"
        told = "not asked, because other edits of the model change what should stay: %d prompt%s, such as %s"
        log.warning(told, len(both), "s" * (len(both) > 1), shown(both[0]))
    if begun_from is not None:
        described["continued"] = begun_from
    run = describe_run("mass", model, described, seed=asked.seed, protocol=asked.protocol)
    return MassPlan(plan, at_once, score_every, asked.together, start, keep, watch, run)


@takes(MassArguments)
def mass_edit(model: Model, facts: AnyFacts, given: MassArguments) -> MassResult:
    """Edit all facts in one model, in order, and score them as their number grows. No weight of the model changes.

    facts: as of `edit`.

    together="case" edits the facts of each case (`Fact.case_id`) in the unedited model, and then asks its probes.

    Raises the errors of `edit`, and UserError where no fact is left to edit.
    """
    asked = carried(MassSettings, given, hyperparameters=own_settings(given))
    chosen = facts_from(facts, given)
    with watched(given.progress) as watch:
        with watch.stages() as report:
            plan = prepare_mass_edit(
                model, chosen, settings=asked, moments=given.moments, judge=given.judge, progress=report
            )
        with watch.bar("Editing", len(plan.facts)) as done:
            result = plan.compute(progress=done)
    plan.checkpoint.unlink(missing_ok=True)
    return result
