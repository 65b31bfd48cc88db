"""`edit`: many facts at many layers, optimised and scored in batches, each edit alone."""

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pyarrow as pa

from fasttrace.editing.contexts import sample_contexts
from fasttrace.editing.delta import Edit, export_model, save_delta, zero_edit
from fasttrace.editing.essence import TOKENS, essence_texts
from fasttrace.editing.finetune import Example, FineTuneBatch
from fasttrace.editing.hyperparameters import settings_for, window_of
from fasttrace.editing.memit import spread_memit
from fasttrace.editing.moments import Moments, second_moments
from fasttrace.editing.problems import ERASURE_FLOOR, PROBLEMS, Problem
from fasttrace.editing.rome import solve_rome
from fasttrace.editing.scores import ScoredPrompt, Scorer, prompt_row, score_row, scored_prompts
from fasttrace.editing.value import ValueBatch, contexts_of
from fasttrace.errors import UserError
from fasttrace.facts import EncodedFact, Fact, distinct, encode_fact
from fasttrace.memory import parse_bytes
from fasttrace.models.adapter import Decoder
from fasttrace.models.corrupt import Corruption, corrupted_output, noise_sigma, released_output
from fasttrace.models.packed import sequence_logprob
from fasttrace.runs import Run, describe_run
from fasttrace.settings.arguments import takes
from fasttrace.settings.base import argument, carried, given_by, refusal, replaced, run_settings, settings
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.methods import (
    FineTuneSettings,
    MemitSettings,
    MethodSettings,
    RomeSettings,
    hyperparameters,
    method_settings,
)

_EDIT = [
    ("fact_id", pa.string()),
    ("problem", pa.string()),
    ("method", pa.string()),
    ("layer", pa.int32()),
    ("window_size", pa.int32()),
]
_P = [(name, pa.float64()) for name in ("p_before", "p_after", "p_true_before", "p_true_after")]
_P_FALSE = [(name, pa.float64()) for name in ("p_false_before", "p_false_after")]
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
    ]
)
PROMPTS = pa.schema(
    [
        *_EDIT,
        ("kind", pa.string()),
        ("prompt_index", pa.int32()),
        ("prompt", pa.string()),
        ("target_tokens", pa.int32()),
        *_P,
        *_P_FALSE,
    ]
)
Todo = tuple[EncodedFact, list[int]]


@dataclass(frozen=True, eq=False)
class EditResult:
    """run: the `runs` row. facts: what was edited. scores: SCORES, a row an edit. prompts: PROMPTS, a row a
    scored prompt of an edit. edits: the changes of the weights themselves."""

    run: Run
    facts: list[Fact]
    scores: pa.Table
    prompts: pa.Table
    edits: list[Edit] = field(repr=False)
    model: Decoder = field(repr=False)

    def export(self, folder: str | Path, *, fact_id: str | None = None, layer: int | None = None) -> Path:
        """Write the model with one edit in its weights, as a folder that plain transformers loads.

        fact_id, layer: which edit, where the result holds several. Raises UserError where none or more than
        one fits, or the folder is not new.
        """
        return export_model(self.model, self._one("export", fact_id, layer).updates, folder)

    def save_delta(self, path: str | Path, *, fact_id: str | None = None, layer: int | None = None) -> Path:
        """Write one edit alone (safetensors; `ft.apply_delta` puts it in and takes it out exactly). Arguments and
        errors: as `export`."""
        one = self._one("save_delta", fact_id, layer)
        about = {name: self.run.get(name) for name in ("run_id", "protocol", "seed", "settings")}
        return save_delta(path, self.model, one.updates, fact_id=one.fact_id, layer=one.layer, **about)

    def _one(self, what: str, fact_id: str | None, layer: int | None) -> Edit:
        mine = [e for e in self.edits if fact_id in (None, e.fact_id) and layer in (None, e.layer)]
        if len(mine) != 1:
            raise UserError(
                f"{what}: {len(mine)} edits fit fact_id={fact_id!r}, layer={layer!r}; exactly one was wanted"
            )
        return mine[0]


@dataclass(frozen=True, eq=False, kw_only=True)
class EditPlan:
    """Edits ready to be computed; `batches` computes them.

    settings: with σ, the number of contexts and the corpus settled. hyperparameters: the method's, all of them settled.
    contexts: prompt templates, "{}" first; empty for fine-tuning. moments: None for fine-tuning. noise_targets:
    fact_id → o_noise, where the problem edits in that. left_out: fact_id → why it is not edited.
    """

    model: Decoder
    encoded: list[EncodedFact]
    settings: EditSettings
    hyperparameters: MethodSettings
    problem: Problem
    layers: tuple[int, ...]
    contexts: list[str]
    moments: Moments | None
    corruption: Corruption | None
    noise_targets: dict[str, tuple[int, ...]]
    left_out: dict[str, str]
    run: Run

    def batches(
        self,
        *,
        memory: str | int | None = None,
        skip: frozenset[tuple[str, int]] | set[tuple[str, int]] = frozenset(),
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[EditResult]:
        """Results as they are finished. skip: (fact_id, layer) not to compute again. progress(n): n more edits.

        memory: bytes for the edits in flight; None: the settings'.
        """
        budget = parse_bytes(self.settings.memory if memory is None else memory)
        todo = [
            (fact, [layer for layer in self.layers if (fact.fact.fact_id, layer) not in skip]) for fact in self.encoded
        ]
        left = [(f, layers) for f, layers in todo if layers and f.fact.fact_id in self.left_out]
        todo = [(f, layers) for f, layers in todo if layers and f.fact.fact_id not in self.left_out]
        if left:
            yield self._left_out(left)
            if progress is not None:
                progress(sum(len(layers) for _, layers in left))
        texts: dict[str, list[tuple[int, ...]]] = {}
        if self.settings.essence and todo:
            subjects = list(dict.fromkeys(f.fact.subject for f, _ in todo))
            with self.model.products():
                found = essence_texts(self.model, subjects, seed=self.settings.seed, texts=self.settings.essence)
            texts = dict(zip(subjects, found, strict=True))
        for facts in self.groups(todo, budget):
            begun = time.perf_counter()
            with self.model.products():
                edits = self.optimise(facts)
                result = self._score([f for f, _ in facts], edits, texts)
            yield replace(result, run={**self.run, "seconds": time.perf_counter() - begun})
            if progress is not None:
                progress(len(edits))

    def with_model(self, model: Decoder) -> "EditPlan":
        """The same edits of another view of the model, such as one with earlier edits in it."""
        return replace(self, model=model)

    def target_ids(self, fact: EncodedFact) -> tuple[int, ...]:
        """(K,) ids of what the edit works on."""
        ids = {
            "true": fact.target_true_ids,
            "false": fact.target_false_ids,
            "noise": self.noise_targets.get(fact.fact.fact_id),
        }[self.problem.target]
        assert ids is not None
        return ids

    def window(self, layer: int) -> tuple[int, ...]:
        """The layers changed by an edit sent to `layer`."""
        return window_of(self.settings.method, layer, self.settings.window_size, self.model.n_layers)

    def groups(self, todo: list[Todo], memory: int) -> Iterator[list[Todo]]:
        """Facts whose problems fit into memory together; one fact's layers are split where they do not."""
        group: list[Todo] = []
        used = 0
        for fact, layers in todo:
            part: list[int] = []
            for layer in layers:
                need = self._bytes(fact, layer)
                if used and used + need > memory:
                    if part:
                        group.append((fact, part))
                    yield group
                    group, part, used = [], [], 0
                part.append(layer)
                used += need
            if part:
                group.append((fact, part))
        if group:
            yield group

    def _bytes(self, fact: EncodedFact, layer: int) -> int:
        """Bytes of one problem in flight, at the larger of its two stages.

        Optimising: the graph keeps about 12 d and 6 m numbers a row and layer, fine-tuning also three matrices a layer.
        Scoring: about 8 d and 3 m numbers for every token of the fact's prompts.
        """
        model, window = self.model, self.window(layer)
        d, m, size = model.width, model.key_width, model.embed_weight.element_size()
        above = max(1, model.n_layers - 1 - (window[-1] if self.settings.method == "memit" else window[0]))
        extra = len(self.target_ids(fact))
        if isinstance(self.hyperparameters, FineTuneSettings):
            rows, state = len(fact.ids) + extra, 12 * d * m * len(window)
        else:
            tail = len(fact.ids) - fact.subject_end + extra + 1
            rows, state = len(self.contexts) * tail + 1, 0
        record = fact.fact
        prompts = 1 + len(record.paraphrases) + len(record.neighborhood)
        tokens = 2 * prompts * len(fact.ids) + self.settings.essence * TOKENS
        return state + max(rows * above * (12 * d + 6 * m), tokens * (8 * d + 3 * m)) * size

    def optimise(self, facts: list[Todo]) -> list[Edit]:
        """The edits of facts that go together, unscored: by fact and layer in the order they were solved in."""
        targets = [self.target_ids(f) for f, _ in facts]
        # An edit's rows enter where its first change (of a weight, or of δ) is made.
        problems = [(n, layer, self.window(layer)) for n, (_, layers) in enumerate(facts) for layer in layers]
        minimise = self.problem.minimise
        corruption = self.corruption if self.problem.corrupted else None
        if isinstance(self.hyperparameters, FineTuneSettings):
            problems.sort(key=lambda x: (x[2], x[1], x[0]))
            examples = [Example(f, target) for (f, _), target in zip(facts, targets, strict=True)]
            return FineTuneBatch(self.model, examples, problems, corruption).optimise(
                self.hyperparameters, minimise=minimise
            )
        assert self.moments is not None
        ready = [
            contexts_of(self.model, f, target, self.contexts) for (f, _), target in zip(facts, targets, strict=True)
        ]
        edits: list[Edit] = []
        for n, layer, window in list(problems):
            if why := ready[n].unseen(self.model, window[-1]):
                edits.append(zero_edit(self.model, ready[n].fact.fact.fact_id, layer, window, why))
                problems.remove((n, layer, window))
        if not problems:
            return edits
        problems.sort(key=lambda x: (x[2][-1], x[1], x[0]))
        where = [(n, window[-1]) for n, _, window in problems]
        layers = [layer for _, layer in where]
        if isinstance(self.hyperparameters, RomeSettings):
            batch = ValueBatch(self.model, ready, layers, corruption=corruption)
            delta, loss = batch.optimise(where, self.hyperparameters, minimise=minimise)
            return edits + solve_rome(batch, where, self.hyperparameters, self.moments, delta, loss)
        starts = [window[0] for _, _, window in problems]
        batch = ValueBatch(self.model, ready, layers, at="block", starts=starts, corruption=corruption)
        delta, loss = batch.optimise(where, self.hyperparameters, minimise=minimise)
        for layer in sorted({layer for _, layer, _ in problems}):
            here = [i for i, (_, at, _) in enumerate(problems) if at == layer]
            mine = [problems[i][0] for i in here]
            window = self.window(layer)
            shared = batch, mine, layer, window, self.hyperparameters, self.moments
            edits += spread_memit(*shared, delta[here], loss[here])
        return edits

    def _score(
        self, facts: list[EncodedFact], edits: list[Edit], texts: dict[str, list[tuple[int, ...]]]
    ) -> EditResult:
        number = {f.fact.fact_id: i for i, f in enumerate(facts)}
        prompts = [self.prompts(f, texts.get(f.fact.subject, [])) for f in facts]
        corruption = self.corruption if self.problem.corrupted else None
        scorer = Scorer(self.model, prompts, [e.first_layer for e in edits], corruption)
        after = scorer.after([(number[e.fact_id], e) for e in edits])
        scores, rows = [], []
        for edit, logp in zip(edits, after, strict=True):
            fact = number[edit.fact_id]
            name = self._name(edit.fact_id, edit.layer)
            scores.append(
                {
                    **name,
                    **score_row(prompts[fact], scorer.before[fact], logp, self.problem, self.settings.protocol),
                    "delta_norm": edit.delta_norm,
                    "denominator": edit.denominator,
                    "condition": edit.condition,
                    "loss": edit.loss,
                    "reason": edit.reason,
                    "target": self.model.tokenizer.decode(self.target_ids(facts[fact])).strip(),
                }
            )
            rows += [
                {**name, **prompt_row(prompt, scorer.before[fact][i], logp[i])}
                for i, prompt in enumerate(prompts[fact])
            ]
        return self._result(facts, scores, rows, edits)

    def prompts(self, fact: EncodedFact, essence: Sequence[tuple[int, ...]] = ()) -> list[ScoredPrompt]:
        """What the fact's edits are scored on."""
        return scored_prompts(self.model, fact, self.problem, self.noise_targets.get(fact.fact.fact_id), essence)

    def _left_out(self, facts: list[Todo]) -> EditResult:
        rows = [
            {**self._name(f.fact.fact_id, layer), "reason": self.left_out[f.fact.fact_id]}
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


@settings("edit")
class _EditKeywords(EditSettings, RomeSettings, MemitSettings, FineTuneSettings):
    """The settings of an edit, its method's own among them by name."""

    settings: EditSettings | None = argument(default=None, help="Settings made before; a keyword adds what they lack")
    moments: Moments | None = argument(
        default=None, help="Second moments of the keys; by default they are collected, and fine-tuning needs none"
    )


@settings("edit")
class PrepareEditArguments(_EditKeywords):
    """Keywords of `prepare_edit`."""

    progress: Callable[[str, int, int], None] | None = argument(
        default=None, help="Called as progress(stage, done, total) while second moments are collected"
    )


@settings("edit")
class EditArguments(_EditKeywords):
    """Keywords of `edit`."""

    progress: Callable[[int], None] | None = argument(default=None, help="Called as progress(n) after n more edits")


def own_settings(given: Any) -> MethodSettings | None:
    """The method's own settings, from the keywords of its hyperparameters or from `hyperparameters`.

    Raises UserError for one that the method does not have, and where both are given.
    """
    by_name = {name: value for name, value in given_by(given).items() if name in hyperparameters()}
    if not by_name:
        return given.hyperparameters
    if given.hyperparameters is not None:
        raise UserError(f"edit: {min(by_name)}: expected it in hyperparameters or as a keyword, got both")
    return method_settings(given.method, by_name)


@takes(PrepareEditArguments)
def prepare_edit(model: Decoder, facts: Sequence[Fact], given: PrepareEditArguments) -> EditPlan:
    """Check the settings of a set of edits and fetch what they share: contexts, second moments and o_noise.

    Raises UserError and FactError as `edit`.
    """
    asked, problem = carried(EditSettings, given), PROBLEMS[given.problem]
    own = settings_for(model, asked.method, asked.problem, asked.protocol, own_settings(given))
    model.check_resident("edit")
    layers = _layers(model, asked)
    encoded = _encoded(model, facts, problem)
    tuned = isinstance(own, FineTuneSettings)
    corruption = None
    if problem.needs_noise:
        sigma = noise_sigma(model, encoded, asked.sigma)
        corruption = Corruption(sigma, asked.noise, asked.seed, asked.noise_sample)
    templates, moments = [], None
    if not tuned:
        solved_at = {at for one in layers for at in window_of(asked.method, one, asked.window_size, model.n_layers)}
        if given.moments is not None:
            given.moments.check(model, sorted(solved_at))
        templates = _templates(model, asked)
        moments = given.moments or _collected(model, asked, sorted(solved_at), given.progress)
    settled = _settled(asked, own, templates, moments, corruption)
    return EditPlan(
        model=model,
        encoded=encoded,
        settings=settled,
        hyperparameters=own,
        problem=problem,
        layers=layers,
        contexts=templates,
        moments=moments,
        corruption=corruption,
        noise_targets=_noise_targets(model, encoded, corruption, asked) if problem.target == "noise" else {},
        left_out=_too_unlikely(model, encoded) if problem.minimise else {},
        run=_run(model, settled, own, templates, moments, corruption),
    )


def _layers(model: Decoder, asked: EditSettings) -> tuple[int, ...]:
    """The layers to edit, ascending. Raises UserError for one that the model lacks."""
    wanted = tuple(sorted(set(model.edit_layers() if asked.layers is None else asked.layers)))
    if wanted[-1] >= model.n_layers:
        raise refusal(asked, "layers", f"some of 0 to {model.n_layers - 1}", wanted[-1])
    return wanted


def _encoded(model: Decoder, facts: Sequence[Fact], problem: Problem) -> list[EncodedFact]:
    """The facts as tokens, each once. Raises FactError for one without the problem's target."""
    if not facts:
        raise UserError("edit: facts: expected at least one, got none")
    encoded = [encode_fact(model.tokenizer, fact) for fact in distinct(facts)]
    for fact in encoded:
        problem.check(fact)
    return encoded


def _templates(model: Decoder, asked: EditSettings) -> list[str]:
    """The prompt templates, "{}" first: those given, or so many that the model samples."""
    if not isinstance(asked.contexts, int):
        return list(asked.contexts)
    short = asked.contexts // 2
    return sample_contexts(model, seed=asked.seed, short=short, long=asked.contexts - short)


def _collected(
    model: Decoder, asked: EditSettings, layers: list[int], progress: Callable[[str, int, int], None] | None
) -> Moments:
    """Second moments as the settings of the edit say."""
    return second_moments(
        model,
        asked.corpus,
        tokens=asked.corpus_tokens,
        layers=layers,
        seed=asked.seed,
        ridge=asked.ridge,
        progress=progress,
    )


def _noise_targets(
    model: Decoder, encoded: list[EncodedFact], corruption: Corruption | None, asked: EditSettings
) -> dict[str, tuple[int, ...]]:
    """fact_id → o_noise, what the model says after the corrupted prompt."""
    assert corruption is not None
    with model.products():
        if asked.protocol == "released":
            outputs = released_output(model, encoded, corruption)
        else:
            outputs = corrupted_output(model, encoded, [len(f.target_true_ids) for f in encoded], corruption)
    return {f.fact.fact_id: ids for f, ids in zip(encoded, outputs, strict=True)}


def _too_unlikely(model: Decoder, encoded: list[EncodedFact]) -> dict[str, str]:
    """fact_id → the reason, of the facts whose o_true is too unlikely to erase (paper, Appendix A)."""
    with model.products():
        p = sequence_logprob(model, [f.ids for f in encoded], [f.target_true_ids for f in encoded]).exp().tolist()
    return {
        f.fact.fact_id: f"p(o_true) = {value:.4f} is below {ERASURE_FLOOR}, too little to erase"
        for f, value in zip(encoded, p, strict=True)
        if value < ERASURE_FLOOR
    }


def _settled(
    asked: EditSettings,
    own: MethodSettings,
    templates: list[str],
    moments: Moments | None,
    corruption: Corruption | None,
) -> EditSettings:
    """The settings with what the model, the templates and the second moments have settled."""
    settled = replaced(asked, hyperparameters=own)
    if moments is not None:
        about = {"corpus": moments.source, "corpus_tokens": moments.requested_tokens, "ridge": moments.ridge}
        settled = replaced(settled, contexts=len(templates) - 1, **about)
    return settled if corruption is None else replaced(settled, sigma=corruption.sigma)


def _run(
    model: Decoder,
    settled: EditSettings,
    own: MethodSettings,
    templates: list[str],
    moments: Moments | None,
    corruption: Corruption | None,
) -> Run:
    """The `runs` row: settings that the method and the problem do not read are left out."""
    unread: tuple[str, ...] = () if corruption is not None else ("sigma", "noise", "noise_sample")
    fetched: dict[str, Any] = {}
    if moments is None:
        unread += ("contexts", "corpus", "corpus_tokens", "ridge")
    else:
        fetched = {"templates": templates, "moments": moments.key}
    named = {**run_settings(settled, without=unread), **fetched, **run_settings(own)}
    return describe_run("edit", model, named, seed=settled.seed, protocol=settled.protocol)


@takes(EditArguments)
def edit(model: Decoder, facts: Sequence[Fact], given: EditArguments) -> EditResult:
    """Edit every fact at every layer, each edit alone, and score it; the model's weights are not touched.

    Methods: ROME, MEMIT (the window around the layer) and constrained fine-tuning of the layer (ft-1) or of its
    window (ft-5). Problems: error-injection, tracing-reversal, fact-erasure (facts with p(o_true) ≥ 0.02; others get
    a row with the reason), fact-amplification, and fact-forcing (the subject is corrupted, in editing and scoring).
    With protocol="released": the released hyperparameters, early stop, first paraphrase only, floors, neighbourhood
    score of the edit's target, o_noise with the prompt in it.

    Returns an EditResult, which keeps every edit: of fine-tuning 4·d·m bytes a layer changed. For many, take
    `prepare_edit(…).batches()` and keep of each what is wanted.

    Raises UserError for a bad setting, FactError for a fact without the problem's target.
    Source: paper, sections 3.3, 3.4 and 5; docs/algorithms.md, sections 11 to 19.
    """
    asked = carried(EditSettings, given, hyperparameters=own_settings(given))
    plan = prepare_edit(model, facts, settings=asked, moments=given.moments)
    parts = list(plan.batches(progress=given.progress))
    return EditResult(
        {**plan.run, "seconds": sum(p.run["seconds"] for p in parts)},
        [f.fact for f in plan.encoded],
        pa.concat_tables([SCORES.empty_table(), *(p.scores for p in parts)]),
        pa.concat_tables([PROMPTS.empty_table(), *(p.prompts for p in parts)]),
        [e for p in parts for e in p.edits],
        model,
    )
