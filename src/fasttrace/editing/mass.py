"""`mass_edit`: many facts into one model, all at once or one group after another, with the scores of every fact that
has landed as later ones land.

MEMIT solves a whole group together (Meng et al. 2022, arXiv 2210.07229, equation 14); ROME and fine-tuning edit one
fact at a time, each on the model as the edits before it have left it.
"""

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import torch

from fasttrace.editing.delta import LowRank, Update, edited_view, export_model, save_delta, summed
from fasttrace.editing.edit import DEFAULT_MEMORY, EditPlan, prepare_edit
from fasttrace.editing.essence import essence_texts
from fasttrace.editing.hyperparameters import MemitSettings, check_method
from fasttrace.editing.memit import mass_memit
from fasttrace.editing.scores import ScoredPrompt, Scorer, score_row
from fasttrace.editing.value import ValueBatch, contexts_of
from fasttrace.errors import UserError
from fasttrace.facts import EncodedFact, Fact
from fasttrace.models.adapter import Decoder
from fasttrace.runs import describe_run
from fasttrace.tracing.sweep import parse_bytes

SCORED_TIMES = 10
SCORE_ROWS = 4096  # tokens of one pass of scoring

MASS_SCORES = pa.schema(
    [
        ("landed", pa.int32()),
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
    """run: the `runs` row. facts: in the order they landed. scores: MASS_SCORES, a row a fact that has landed and time
    of scoring, and one with the reason for each left out; a fact whose own δ no scored token sees has a reason too.
    updates: layer → the change that carries them all."""

    run: dict[str, Any]
    facts: list[Fact]
    scores: pa.Table
    updates: dict[int, Update] = field(repr=False)
    model: Decoder = field(repr=False)

    def export(self, folder: str | Path) -> Path:
        """Write the model with all the edits in its weights, as a folder that plain transformers loads."""
        return export_model(self.model, self.updates, folder)

    def save_delta(self, path: str | Path) -> Path:
        """Write the change alone (safetensors; `ft.apply_delta` puts it in and takes it out exactly)."""
        return save_delta(path, self.model, self.updates, facts=len(self.facts), run_id=self.run["run_id"])


@dataclass(frozen=True, eq=False)
class MassPlan:
    """A mass edit ready to be computed. at_once: facts solved together. score_every: groups between two scorings."""

    plan: EditPlan
    at_once: int
    score_every: int
    run: dict[str, Any]

    @property
    def facts(self) -> list[EncodedFact]:
        """What is edited, in order; facts the problem leaves out are not."""
        return [f for f in self.plan.encoded if f.fact.fact_id not in self.plan.left_out]

    def compute(
        self, *, memory: str | int = DEFAULT_MEMORY, progress: Callable[[int], None] | None = None
    ) -> MassResult:
        """Edit and score. memory: bytes for what is in flight. progress(n): n more facts have landed."""
        begun = time.perf_counter()
        plan, model, facts = self.plan, self.plan.model, self.facts
        with model.products():
            prompts = self._prompts(facts)
            before = _log_probabilities(model, plan, prompts)
            updates: dict[int, Update] = {}
            unseen: dict[str, str] = {}
            rows: list[dict[str, Any]] = []
            groups = [facts[i : i + self.at_once] for i in range(0, len(facts), self.at_once)]
            landed = 0
            for number, group in enumerate(groups, 1):
                view = edited_view(model, updates)
                more, condition, why = self._solve(view, group, parse_bytes(memory))
                updates, unseen = {**summed([updates, *more])}, unseen | why
                landed += len(group)
                if number % self.score_every == 0 or number == len(groups):
                    after = before[:landed]
                    if any(update.changes() for update in updates.values()):
                        after = _log_probabilities(edited_view(model, updates), plan, prompts[:landed])
                    rows += self._rows(landed, prompts, before, after, condition, unseen)
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
        """The updates that edit a group into the model as it now is, the condition of what was solved, and of the facts
        whose δ nothing can see, why."""
        plan = self.plan.with_model(view)
        [layer] = plan.layers
        if not isinstance(plan.settings, MemitSettings):
            edits = [edit for fact in group for edit in plan.optimise([(fact, [layer])])]
            unseen = {edit.fact_id: edit.reason for edit in edits if edit.reason is not None}
            return [dict(edit.updates) for edit in edits], edits[0].condition, unseen
        assert plan.moments is not None
        window = plan.window(layer)
        corruption = plan.corruption if plan.problem.corrupted else None
        ready = {f.fact.fact_id: contexts_of(view, f, plan.target_ids(f), plan.contexts) for f in group}
        found = [one.unseen(view, window[-1]) for one in ready.values()]
        unseen = {fact_id: why for fact_id, why in zip(ready, found, strict=True) if why is not None}
        if len(unseen) == len(group):
            return [{at: LowRank.zero(view.blocks[at]) for at in window}], None, unseen
        v0, deltas = [], []
        for part in plan.groups([(f, [layer]) for f in group], memory):
            batch = ValueBatch(
                view, [ready[f.fact.fact_id] for f, _ in part], [window[-1]], at="block", corruption=corruption
            )
            v0.append(batch.clean.v0[window[-1]])
            delta = torch.zeros_like(v0[-1], dtype=torch.float32)
            seen = [n for n, (fact, _) in enumerate(part) if fact.fact.fact_id not in unseen]
            if seen:
                problems = [(n, window[-1]) for n in seen]
                delta[seen], _ = batch.optimise(problems, plan.settings, minimise=plan.problem.minimise)
            deltas.append(delta)
        contexts, z = list(ready.values()), (torch.cat(v0), torch.cat(deltas))
        updates, conditions = mass_memit(view, contexts, corruption, window, plan.settings, plan.moments, *z)
        return [dict(updates)], max(conditions.values()), unseen

    def _prompts(self, facts: Sequence[EncodedFact]) -> list[list[ScoredPrompt]]:
        texts: dict[str, list[tuple[int, ...]]] = {}
        if self.plan.essence:
            subjects = list(dict.fromkeys(f.fact.subject for f in facts))
            found = essence_texts(self.plan.model, subjects, seed=self.run["seed"], texts=self.plan.essence)
            texts = dict(zip(subjects, found, strict=True))
        return [self.plan.prompts(f, texts.get(f.fact.subject, [])) for f in facts]

    def _rows(
        self,
        landed: int,
        prompts: list[list[ScoredPrompt]],
        before: list[np.ndarray],
        after: list[np.ndarray],
        condition: float | None,
        unseen: dict[str, str],
    ) -> Iterator[dict[str, Any]]:
        plan = self.plan
        for position, (fact, logp) in enumerate(zip(self.facts, after, strict=False)):
            scores = score_row(prompts[position], before[position], logp, plan.problem, plan.protocol)
            about = {"position": position + 1, "condition": condition, "reason": unseen.get(fact.fact.fact_id)}
            yield {**self._name(landed, fact), **about, **scores}

    def _left_out(self) -> list[dict[str, Any]]:
        why = self.plan.left_out
        left = [fact for fact in self.plan.encoded if fact.fact.fact_id in why]
        return [{**self._name(len(self.facts), fact), "reason": why[fact.fact.fact_id]} for fact in left]

    def _name(self, landed: int, fact: EncodedFact) -> dict[str, Any]:
        return {
            "landed": landed,
            "fact_id": fact.fact.fact_id,
            "problem": self.plan.problem.name,
            "method": self.plan.method,
            "layer": self.plan.layers[0],
            "window_size": self.plan.window_size,
        }


def _log_probabilities(model: Decoder, plan: EditPlan, prompts: list[list[ScoredPrompt]]) -> list[np.ndarray]:
    """Each fact's (prompts, 3) log-probabilities in the model as it now is."""
    corruption = plan.corruption if plan.problem.corrupted else None
    result: list[np.ndarray] = []
    part: list[list[ScoredPrompt]] = []
    rows = 0
    for fact in prompts:
        tokens = sum(2 * len(p.ids) + len(p.targets[0] or ()) for p in fact)
        if part and rows + tokens > SCORE_ROWS:
            result += Scorer(model, part, (), corruption).before
            part, rows = [], 0
        part.append(fact)
        rows += tokens
    if part:
        result += Scorer(model, part, (), corruption).before
    return result


def prepare_mass_edit(
    model: Decoder,
    facts: Sequence[Fact],
    *,
    method: str = "memit",
    layer: int | None = None,
    at_once: int | None = None,
    score_every: int | None = None,
    essence: int = 0,
    **settings: Any,
) -> MassPlan:
    """Check every setting of a mass edit and fetch what it needs. Arguments and errors: see `mass_edit`."""
    if at_once is not None and at_once < 1:
        raise UserError(f"at_once {at_once} is not a whole number from 1")
    if check_method(method) != "memit" and at_once not in (None, 1):
        raise UserError(f"at_once is {at_once}, but {method} edits one fact at a time; 1 or method='memit' was wanted")
    if score_every is not None and score_every < 1:
        raise UserError(f"score_every {score_every} is not a whole number from 1")
    chosen = model.default_layer() if layer is None else layer
    plan = prepare_edit(model, facts, method=method, layers=[chosen], essence=essence, **settings)
    count = len(plan.encoded) - len(plan.left_out)
    if count == 0:
        raise UserError(f"mass_edit: {next(iter(plan.left_out.values()))}; no fact is left to edit")
    together = (count if method == "memit" else 1) if at_once is None else at_once
    groups = -(-count // together)
    every = -(-groups // SCORED_TIMES) if score_every is None else score_every
    described = {
        **json.loads(plan.run["settings"]),
        "layer": chosen,
        "at_once": together,
        "score_every": every,
        "facts": [f.fact.fact_id for f in plan.encoded],
    }
    run = describe_run("mass", model, described, seed=plan.run["seed"], protocol=plan.protocol)
    return MassPlan(plan, together, every, run)


def mass_edit(
    model: Decoder,
    facts: Sequence[Fact],
    *,
    memory: str | int = DEFAULT_MEMORY,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> MassResult:
    """Edit all the facts into one model, in their order, and score them as they land; no weight is touched.

    settings, all by name: method: "memit" (default), "rome", "ft-1" or "ft-5". layer: 0-based, where every edit is
    sent; default the model's own. at_once: facts solved together (memit: default all; others: 1). score_every: groups
    between two scorings of every fact that has landed; default ten scorings in all. essence: as in `edit`, default 0.
    The rest as `edit`: problem, window_size, protocol, seed, moments, corpus, corpus_tokens, ridge, contexts, sigma,
    noise, noise_sample, and the method's hyperparameters.

    Raises UserError and FactError as `edit`.
    """
    return prepare_mass_edit(model, facts, **settings).compute(memory=memory, progress=progress)
