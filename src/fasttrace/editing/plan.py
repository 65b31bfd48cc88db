"""A plan of edits, which computes them in batches that fit into memory, each edit independent of the others."""

import logging
import time
from collections.abc import Callable, Collection, Hashable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from operator import itemgetter
from typing import Any

import pyarrow as pa

from fasttrace.cluster.crew import Crew
from fasttrace.cluster.pieces import Unit
from fasttrace.editing.after import After
from fasttrace.editing.continuations import continuations
from fasttrace.editing.cost import ADAM_FLOPS, job_bytes, job_costs
from fasttrace.editing.delta import (
    NO_NUMBER,
    Edit,
    finite_edit,
    zero_edit,
)
from fasttrace.editing.essence import TOKENS, essence_texts
from fasttrace.editing.experts import Chosen, named
from fasttrace.editing.hyperparameters import window_of
from fasttrace.editing.judge import Judge
from fasttrace.editing.methods import Solve
from fasttrace.editing.methods.finetune import NOISE_ROWS, Example, FineTuneBatch
from fasttrace.editing.methods.rome import solve_rome
from fasttrace.editing.moments import Moments
from fasttrace.editing.problems import Problem
from fasttrace.editing.prompts import judgements_of, prompt_rows
from fasttrace.editing.result import PROMPTS, SCORES, EditResult, joined
from fasttrace.editing.scores import (
    Reading,
    ScoredPrompt,
    Scorer,
    prompt_count,
    score_row,
    scored_prompts,
)
from fasttrace.editing.spread import spread
from fasttrace.editing.value import ValueBatch, contexts_of
from fasttrace.editing.wave import Job
from fasttrace.errors import shown
from fasttrace.facts import EncodedFact, Fact
from fasttrace.memory import pack_by_budget, parse_bytes
from fasttrace.models.adapter import Decoder
from fasttrace.models.corrupt import Corruption
from fasttrace.models.modes import with_autograd
from fasttrace.runs import Run
from fasttrace.settings.arguments import checked
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.kinds import Size
from fasttrace.settings.methods import (
    FineTuneSettings,
    MethodSettings,
    RomeSettings,
)

Todo = tuple[EncodedFact, list[int]]

log = logging.getLogger(__name__)


def say_waiting(facts: Sequence[Fact], why: str) -> None:
    """Log how many probes of these facts are not asked, because they wait for all edits of their case."""
    waiting = [(one.prompt, fact.case_id) for fact in facts for one in fact.probes if one.after == "case"]
    if waiting:
        prompt, case = waiting[0]
        log.warning(
            "%d probe%s not asked, such as %s of the case %s: %s for all edits of the case, and %s",
            *(len(waiting), "s are" if len(waiting) > 1 else " is", shown(prompt), shown(case)),
            *("they wait" if len(waiting) > 1 else "it waits", why),
        )


def _without(todo: Sequence[Todo], skip: Collection[tuple[str, int]]) -> list[Todo]:
    """The facts with the layers that are not skipped, without facts that have none. skip: (fact_id, layer)."""
    kept = [(fact, [layer for layer in layers if (fact.fact_id, layer) not in skip]) for fact, layers in todo]
    return [(fact, layers) for fact, layers in kept if layers]


@dataclass(frozen=True, eq=False, kw_only=True)
class EditPlan:
    """Edits ready to be computed; `batches` computes them.

    settings: the given ones, with the σ, number of contexts and corpus that are used. hyperparameters: every value of
    the method. contexts: prompt templates, "{}" first; empty for fine-tuning. moments: None for fine-tuning.
    solve: None for ROME and fine-tuning. after: what is done to updates, relative to the unedited model's weights.
    judge: of continuations, if any.
    noise_targets: fact_id → o_noise, if that is the problem's target. left_out: fact_id → why the fact is not edited.
    experts: fact_id → layer → the experts that the fact's edits change, at layers that have any.
    """

    model: Decoder
    encoded: list[EncodedFact]
    settings: EditSettings
    hyperparameters: MethodSettings
    problem: Problem
    layers: tuple[int, ...]
    contexts: list[str]
    moments: Moments | None
    solve: Solve | None
    after: After
    judge: Judge | None
    corruption: Corruption | None
    noise_targets: dict[str, tuple[int, ...]]
    left_out: dict[str, str]
    experts: Mapping[str, Chosen]
    run: Run

    @checked
    @with_autograd
    def batches(
        self,
        *,
        memory: Size | None = None,
        skip: frozenset[tuple[str, int]] | set[tuple[str, int]] = frozenset(),
        only: frozenset[tuple[str, int]] | set[tuple[str, int]] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[EditResult]:
        """Yield results as they finish. skip: (fact_id, layer) to leave out.

        The groups are those of a plan that skips nothing. So edits that continue have the same values bit for bit.
        only: (fact_id, layer) of whole groups, as `units` says them, for None all.

        memory: bytes for the edits that are computed together; None for the settings' value. progress(n) is called
        after n more edits.
        """
        budget = parse_bytes(self.settings.memory if memory is None else memory)
        if only is None:
            self.announce()
        whole, left = self._todo(only)
        left = _without(left, skip)
        if left:
            yield self._left_out(left)
            if progress is not None:
                progress(sum(len(layers) for _, layers in left))
        texts: dict[str, list[tuple[int, ...]]] = {}
        groups = [todo for group in self.groups(whole, budget) if (todo := _without(group, skip))]
        if self.settings.essence and groups:
            texts = self._essence([fact for fact, _ in whole])
        for facts in groups:
            begun = time.perf_counter()
            with self.model.products():
                edits = [self.after.single(edit) for edit in self.optimise(facts)]
                result = self._score([f for f, _ in facts], edits, texts)
            yield replace(result, run={**self.run, "seconds": time.perf_counter() - begun})
            if progress is not None:
                progress(len(edits))

    def settled(self, crew: Crew, skip: Collection[Hashable] = ()) -> "EditPlan":
        """The plan itself, which says where its groups are."""
        return self

    def announce(self) -> None:
        """Log which probes wait for all edits of a case."""
        several = [f.fact for f in self.encoded if f.fact.case_edits > 1]
        say_waiting(several, 'mass_edit(…, together="case") makes them in one model')

    def joined(self, parts: Sequence[EditResult], *, whole: bool = True) -> EditResult:
        """The results of some batches as one. whole: whether with the changes of the weights."""
        return joined(self.run, parts, [encoded.fact for encoded in self.encoded], self.model, whole=whole)

    def units(self) -> list[Unit]:
        """Every edit by its (fact_id, layer). A fact's first edit bears what its edits share. One that is left out
        costs nothing."""
        whole, left = self._todo(None)
        begins = set[tuple[str, int]]()
        for group in self.groups(whole, parse_bytes(self.settings.memory)):
            fact, layers = group[0]
            begins.add((fact.fact_id, layers[0]))
        found = [Unit((fact.fact_id, layer), 0.0, True) for fact, layers in left for layer in layers]
        facts = [fact for fact, _ in whole]
        costs = job_costs(
            self.model,
            facts,
            self.layers,
            self.hyperparameters,
            self.settings.method,
            window_size=self.settings.window_size,
            contexts=max(0, len(self.contexts) - 1),
            essence=self.settings.essence,
            anew=self.corruption is not None and self.corruption.anew,
        )
        for fact, (base, jobs) in zip(facts, costs, strict=True):
            for layer, (flops, adam) in zip(self.layers, jobs, strict=True):
                key = fact.fact_id, layer
                shared = base if layer == self.layers[0] else 0.0
                found.append(Unit(key, shared + flops + ADAM_FLOPS * adam, key in begins))
        return found

    def _todo(self, only: Collection[tuple[str, int]] | None) -> tuple[list[Todo], list[Todo]]:
        """The facts and layers to edit, and those that are left out. only: as for `batches`."""
        every = [(fact, list(self.layers)) for fact in self.encoded]
        if only is not None:
            every = [(fact, [layer for layer in self.layers if (fact.fact_id, layer) in only]) for fact, _ in every]
        every = [(fact, layers) for fact, layers in every if layers]
        whole = [one for one in every if one[0].fact_id not in self.left_out]
        return whole, [one for one in every if one[0].fact_id in self.left_out]

    def _essence(self, facts: Sequence[EncodedFact]) -> dict[str, list[tuple[int, ...]]]:
        """Subject → its essence texts."""
        every = list(dict.fromkeys(one.fact.subject for one in self.encoded if one.fact_id not in self.left_out))
        wanted = {fact.fact.subject for fact in facts}
        seed, texts = self.settings.seed, self.settings.essence
        with self.model.products():
            found = essence_texts(self.model, every, seed=seed, texts=texts, wanted=wanted)
        return dict(zip((subject for subject in every if subject in wanted), found, strict=True))

    @property
    def scoring_corruption(self) -> Corruption | None:
        """The noise of the scores, None where the problem's input is clean."""
        if self.corruption is None or not self.problem.corrupted:
            return None
        own = self.settings.score_noise_sample
        return replace(self.corruption, sample=self.corruption.sample if own is None else own)

    @property
    def routed_by(self) -> Decoder | None:
        """The model whose routers choose in the scores, None where each model's own do."""
        return self.model if self.settings.routing == "unchanged" else None

    def with_model(self, model: Decoder) -> "EditPlan":
        """The same plan for another view of the model, such as one with earlier edits."""
        return replace(self, model=model)

    def target_ids(self, fact: EncodedFact) -> tuple[int, ...]:
        """(K,) ids of the problem's target."""
        ids = {
            "true": fact.target_true_ids,
            "false": fact.target_false_ids,
            "noise": self.noise_targets.get(fact.fact_id),
        }[self.problem.target]
        assert ids is not None
        return ids

    def window(self, layer: int) -> tuple[int, ...]:
        """The layers that an edit at `layer` changes."""
        return window_of(self.settings.method, layer, self.settings.window_size, self.model.n_layers)

    def groups(self, todo: list[Todo], memory: int) -> Iterator[list[Todo]]:
        """Yield groups of facts whose jobs fit into memory together. A fact's layers may be split over groups."""
        single = [(fact, layer) for fact, layers in todo for layer in layers]
        for group in pack_by_budget(single, lambda job: self._bytes(*job), memory):
            yield [(fact, [layer for _, layer in mine]) for fact, mine in groupby(group, key=itemgetter(0))]

    def _bytes(self, fact: EncodedFact, layer: int) -> int:
        """Estimated bytes of one job (`job_bytes`)."""
        window, extra = self.window(layer), len(self.target_ids(fact))
        matrices = 0
        if isinstance(self.hyperparameters, FineTuneSettings):
            copies = NOISE_ROWS if self.corruption is not None and self.corruption.anew else 1
            rows, matrices = copies * (len(fact.ids) + extra), len(window)
        else:
            tail = len(fact.ids) - fact.subject_end + extra + 1
            rows = len(self.contexts) * tail + 1
        if self.after.makes_dense:
            matrices += len(window)
        entered = window[-1] if self.solve is not None else window[0]
        tokens = 2 * prompt_count(fact.fact) * len(fact.ids) + self.settings.essence * TOKENS
        return job_bytes(self.model, entered, rows, tokens, matrices)

    def optimise(self, facts: list[Todo]) -> list[Edit]:
        """The unscored edits of one group of facts. Zero edits come first, the others in the order they are solved.

        An edit whose optimisation diverged is zero and has the reason.
        """
        return [finite_edit(self.model, edit) for edit in self._optimised(facts)]

    def _optimised(self, facts: list[Todo]) -> list[Edit]:
        targets = [self.target_ids(f) for f, _ in facts]
        # A job's rows enter the wave at its first change: at the window's first layer for fine-tuning, else at δ's.
        jobs = [Job(n, layer, self.window(layer)) for n, (_, layers) in enumerate(facts) for layer in layers]
        minimise = self.problem.minimise
        corruption = self.corruption if self.problem.corrupted else None
        if isinstance(self.hyperparameters, FineTuneSettings):
            jobs.sort(key=lambda job: (job.window, job.layer, job.fact))
            examples = [Example(f, target) for (f, _), target in zip(facts, targets, strict=True)]
            return FineTuneBatch(self.model, examples, jobs, corruption).optimise(
                self.hyperparameters, minimise=minimise, summed=self.settings.protocol == "released"
            )
        ready = [
            contexts_of(self.model, f, target, self.contexts, self.experts.get(f.fact_id))
            for (f, _), target in zip(facts, targets, strict=True)
        ]
        edits: list[Edit] = []
        for job in list(jobs):
            if why := ready[job.fact].unseen(self.model, job.window[-1]):
                own = ready[job.fact]
                edits.append(zero_edit(self.model, own.fact.fact_id, job.layer, job.window, why, own.experts))
                jobs.remove(job)
        if not jobs:
            return edits
        jobs.sort(key=lambda job: (job.window[-1], job.layer, job.fact))
        where = [(job.fact, job.window[-1]) for job in jobs]
        layers = [layer for _, layer in where]
        if isinstance(self.hyperparameters, RomeSettings):
            batch = ValueBatch(self.model, ready, layers, corruption=corruption)
            delta, loss = batch.optimise(where, self.hyperparameters, minimise=minimise)
            assert self.moments is not None
            return edits + solve_rome(batch, where, self.hyperparameters, self.moments, delta, loss)
        assert self.solve is not None
        starts = [job.window[0] for job in jobs]
        batch = ValueBatch(self.model, ready, layers, at=self.solve.at, starts=starts, corruption=corruption)
        delta, loss = batch.optimise(where, self.hyperparameters, minimise=minimise)
        for layer in sorted({job.layer for job in jobs}):
            here = [i for i, job in enumerate(jobs) if job.layer == layer]
            mine = [jobs[i].fact for i in here]
            window = self.window(layer)
            edits += spread(batch, mine, layer, window, self.solve, delta[here], loss[here])
        return edits

    def _score(
        self, facts: list[EncodedFact], edits: list[Edit], texts: dict[str, list[tuple[int, ...]]]
    ) -> EditResult:
        number = {f.fact_id: i for i, f in enumerate(facts)}
        prompts = [self.prompts(f, texts.get(f.fact.subject, [])) for f in facts]
        first = [e.first_layer for e in edits]
        scorer = Scorer(self.model, prompts, first, self.scoring_corruption, self.routed_by)
        unedited = self.with_texts(scorer.before, prompts)
        mine = [number[e.fact_id] for e in edits]
        after = self._with_texts_after(
            scorer.after(list(zip(mine, edits, strict=True))), unedited, prompts, mine, edits
        )
        of_edit = [prompts[fact] for fact in mine]
        said = judgements_of(self.judge, zip(of_edit, after, strict=True), self.model.tokenizer)
        scores, rows = [], []
        for edit, fact, reading in zip(edits, mine, after, strict=True):
            before = unedited[fact]
            name = self._name(edit.fact_id, edit.layer)
            read = prompts[fact], before, reading, self.problem, self.settings.protocol
            scores.append(
                {
                    **name,
                    **score_row(*read),
                    "delta_norm": edit.delta_norm,
                    "denominator": edit.denominator,
                    "condition": edit.condition,
                    "loss": edit.loss,
                    "experts": named(edit.updates),
                    "reason": NO_NUMBER if reading.lost(before) else edit.reason,
                    "target": self.model.tokenizer.decode(self.target_ids(facts[fact])).strip(),
                }
            )
            rows += [{**name, **row} for row in prompt_rows(*read, self.model.tokenizer, said)]
        return self._result(facts, scores, rows, edits)

    def with_texts(
        self, readings: list[Reading], prompts: list[list[ScoredPrompt]], edits: list[Edit] | None = None
    ) -> list[Reading]:
        """The readings with the greedy continuation of every prompt, if it is asked for. edits: that of each reading,
        or None for the plan's model as it is."""
        asked = self.settings
        if not asked.generate or not readings:
            return readings
        texts = continuations(
            self.model,
            prompts,
            length=asked.generate,
            stop=asked.stop,
            memory=parse_bytes(asked.memory),
            edits=edits,
            corruption=self.scoring_corruption,
        )
        return [one._replace(texts=mine) for one, mine in zip(readings, texts, strict=True)]

    def _with_texts_after(
        self,
        after: list[Reading],
        unedited: list[Reading],
        prompts: list[list[ScoredPrompt]],
        facts: list[int],
        edits: list[Edit],
    ) -> list[Reading]:
        """The readings after the edits with their texts. An edit that changes nothing has those of the unedited model.

        after: of each edit. unedited, prompts: of each fact. facts: the fact of each edit.
        """
        after = [one._replace(texts=unedited[fact].texts) for one, fact in zip(after, facts, strict=True)]
        changed = [i for i, edit in enumerate(edits) if edit.changes()]
        theirs = [prompts[facts[i]] for i in changed]
        read = self.with_texts([after[i] for i in changed], theirs, [edits[i] for i in changed])
        for i, reading in zip(changed, read, strict=True):
            after[i] = reading
        return after

    def prompts(
        self, fact: EncodedFact, essence: Sequence[tuple[int, ...]] = (), *, cases: bool = False
    ) -> list[ScoredPrompt]:
        """The prompts and essence texts on which the fact's edits are scored.

        cases: whether with those that wait for all edits of the fact's case, if it has several.
        """
        cases = cases or fact.fact.case_edits == 1
        released = self.settings.protocol == "released"
        noise_target = self.noise_targets.get(fact.fact_id)
        return scored_prompts(
            self.model, fact, self.problem, noise_target, essence, noised_essence=released, cases=cases
        )

    def _left_out(self, facts: list[Todo]) -> EditResult:
        rows = [
            {**self._name(f.fact_id, layer), "reason": self.left_out[f.fact_id]}
            for f, layers in facts
            for layer in layers
        ]
        return self._result([f for f, _ in facts], rows, [], [])

    def _name(self, fact_id: str, layer: int) -> dict[str, Any]:
        return {
            "fact_id": fact_id,
            "problem": self.problem.name,
            "method": self.settings.method,
            "layer": layer,
            "window_size": self.settings.window_size,
        }

    def _result(
        self, facts: list[EncodedFact], scores: list[dict[str, Any]], rows: list[dict[str, Any]], edits: list[Edit]
    ) -> EditResult:
        return EditResult(
            self.run,
            [f.fact for f in facts],
            pa.Table.from_pylist(scores, schema=SCORES),
            pa.Table.from_pylist(rows, schema=PROMPTS),
            edits,
            self.model,
        )
