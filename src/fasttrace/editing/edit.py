"""`edit`: edits of many facts at many layers, optimised and scored in batches, each independent of the others."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from fasttrace.cache import cache_root, content_of
from fasttrace.cluster.crew import Alone, Crew
from fasttrace.cluster.pool import crew_of
from fasttrace.editing.after import After
from fasttrace.editing.collect import collected
from fasttrace.editing.contexts import method_contexts
from fasttrace.editing.essence import essence_prompt
from fasttrace.editing.experts import Chosen, check_experts, chosen_experts, union
from fasttrace.editing.hyperparameters import say_whose, settings_for, shape_of, window_of
from fasttrace.editing.judge import Judge, judge_of
from fasttrace.editing.methods import solve_of
from fasttrace.editing.moments import Moments, places_of
from fasttrace.editing.plan import EditPlan
from fasttrace.editing.problems import ERASURE_FLOOR, PROBLEMS, Problem
from fasttrace.editing.result import EditResult
from fasttrace.editing.scores import scored_prompts
from fasttrace.editing.value import contexts_of
from fasttrace.errors import UserError
from fasttrace.facts import AnyFacts, EncodedFact, Fact, Facts, facts_from
from fasttrace.models.adapter import Decoder, Model
from fasttrace.models.corrupt import Corruption, corrupted_output, noise_sigma, released_output
from fasttrace.models.encode import encoded_facts
from fasttrace.models.modes import with_autograd
from fasttrace.models.packed import sequence_logprob
from fasttrace.runs import Run, describe_run
from fasttrace.settings.arguments import takes
from fasttrace.settings.base import (
    argument,
    carried,
    given_by,
    refusal,
    replaced,
    run_settings,
    settings,
    settings_of,
    text_of,
)
from fasttrace.settings.cluster import WorkerSettings
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.methods import (
    METHODS,
    FineTuneSettings,
    Hyperparameters,
    MethodSettings,
    hyperparameters,
    is_shipped,
    method_settings,
    reads_moments,
)
from fasttrace.settings.moments import MomentSettings
from fasttrace.settings.prompt import StatedFact
from fasttrace.show.watched import HELP, watched

MOMENTS_HELP = (
    "Second moments of the keys, which fine-tuning and projections do not need; by default they are collected"
)
JUDGE_HELP = "Function that is asked as judge(prompt, answers, text) whether a continuation gives one of the answers"


@settings("edit")
class _EditKeywords(EditSettings, Hyperparameters):
    """The settings of an edit, and the hyperparameters of every method."""

    settings: EditSettings | None = argument(
        default=None, help="Settings object; keywords add settings that it does not give"
    )
    moments: Moments | None = argument(default=None, help=MOMENTS_HELP)
    judge: Judge | None = argument(default=None, help=JUDGE_HELP)


@settings("edit")
class PrepareEditArguments(_EditKeywords):
    """Keywords of `prepare_edit`."""

    progress: Callable[[str, int, int], None] | None = argument(
        default=None, help="Called as progress(stage, done, total) while second moments are collected"
    )


@settings("edit")
class EditArguments(_EditKeywords, WorkerSettings, StatedFact):
    """Keywords of `edit`."""

    progress: Callable[[int], None] | bool | None = argument(
        default=None, help=f"Called as progress(n) after n more edits; {HELP}"
    )


def own_settings(given: Any) -> MethodSettings | None:
    """The hyperparameters given as keywords, or those given as the object `hyperparameters`.

    Raises UserError for a keyword that the method does not have, and where both are given.
    """
    by_name = {name: value for name, value in given_by(given).items() if name in hyperparameters()}
    if not by_name:
        return given.hyperparameters
    if given.hyperparameters is not None:
        raise refusal(given, min(by_name), "a value in hyperparameters or as a keyword", "both")
    return method_settings(given.method, by_name)


def check_edit(model: Decoder, facts: Sequence[Fact], asked: EditSettings) -> None:
    """Raise what `prepare_edit` raises for settings and facts that do not fit the model. No pass runs."""
    problem = PROBLEMS[asked.problem]
    if reads_moments(asked.method, asked.hyperparameters):
        model.check_moments(asked.method)
    layers = edited_layers(model, asked)
    tuned = METHODS[asked.method].settings is FineTuneSettings
    check_experts(model, asked, sorted(_changed_layers(model, asked, layers)), tuned=tuned)
    if problem.needs_noise:
        noise_sigma(model, asked.sigma, asked.sigma_facts)
    for fact in _encoded(model, facts, asked, problem):
        if isinstance(asked.contexts, Sequence):
            contexts_of(model, fact, _target(fact, problem), asked.contexts)


@takes(PrepareEditArguments)
@with_autograd
def prepare_edit(model: Model, facts: Facts, given: PrepareEditArguments) -> EditPlan:
    """Check the settings of a set of edits, and prepare their contexts, second moments and o_noise.

    Raises the errors of `edit`.
    """
    asked, problem = carried(EditSettings, given, hyperparameters=own_settings(given)), PROBLEMS[given.problem]
    say_whose(model.name, asked.method, shape_of(model))
    found = _resolved(model, facts, asked)
    own, encoded, corruption = found.own, found.encoded, found.corruption
    judge = judge_of(asked, given.judge)
    templates, moments = [], None
    if not isinstance(own, FineTuneSettings):
        if given.moments is not None and found.moments is not None:
            _check_own(given, given.moments)
            given.moments.check(model, found.solved_at, found.every)
        templates = _templates(model, asked)
        for fact in encoded:
            contexts_of(model, fact, _target(fact, problem), templates)  # raises before the passes
    noise_targets = {}
    if problem.target == "noise":
        noise_targets = _noise_targets(model, encoded, corruption, asked, problem, templates)
    if found.moments is not None:
        moments = given.moments
        if moments is None:
            moments = collected(Alone(model), found.moments, found.every, cache_root(None), given.progress)
    settled = _settled(asked, own, templates, moments, corruption)
    if found.every:
        settled = replaced(settled, experts=asked.experts or "routed")
    return EditPlan(
        model=model,
        encoded=encoded,
        settings=settled,
        hyperparameters=own,
        problem=problem,
        layers=found.layers,
        contexts=templates,
        moments=moments,
        solve=solve_of(asked.method, own, moments, model, places_of(found.solved_at, found.every)),
        after=After(model, settled),
        judge=judge,
        corruption=corruption,
        noise_targets=noise_targets,
        left_out=_too_unlikely(model, encoded) if problem.minimise else {},
        experts=found.experts,
        run=_run(model, settled, own, templates, moments, corruption, given.judge),
    )


def plan_edit(
    crew: Crew,
    facts: Sequence[Fact],
    asked: EditSettings,
    *,
    moments: Moments | None = None,
    judge: Judge | None = None,
    progress: Callable[[str, int, int], None] | None = None,
) -> EditPlan:
    """`prepare_edit` by a crew. Its workers collect the second moments together, which this process keeps."""
    if isinstance(crew, Alone):
        return prepare_edit(crew.model, facts, settings=asked, moments=moments, judge=judge, progress=progress)
    if not is_shipped(asked.method):
        raise refusal(asked, "method", "one that workers have, which are the package's", f"the added '{asked.method}'")
    if moments is None and (needed := crew.ask(needed_moments, facts, asked)) is not None:
        settings, experts = needed
        moments = collected(crew, settings, experts, cache_root(None), progress)
        asked = replaced(asked, **settings_of_moments(moments))
    plan: EditPlan = crew.ask(prepare_edit, facts, settings=asked, moments=moments, judge=judge)
    return plan


def needed_moments(
    model: Decoder, facts: Sequence[Fact], asked: EditSettings
) -> tuple[MomentSettings, dict[int, tuple[int, ...]]] | None:
    """The second moments that `prepare_edit` collects for these edits: their settings and layer → experts, as
    `collected` takes them. None where the method reads none.

    Raises the errors of `prepare_edit` for settings and facts that do not fit the model.
    """
    found = _resolved(model, facts, asked)
    return None if found.moments is None else (found.moments, found.every)


class _Resolved(NamedTuple):
    """What settings and facts mean for a model.

    own: every value of the method's settings. layers: to edit. encoded: the distinct facts. corruption: the noise, if
    the problem needs any. solved_at: the layers that a solve changes, ascending. experts: fact_id → layer → those that
    the fact's edits change. every: layer → those of all facts. moments: the settings of the second moments that the
    method reads, if any.
    """

    own: MethodSettings
    layers: tuple[int, ...]
    encoded: list[EncodedFact]
    corruption: Corruption | None
    solved_at: list[int]
    experts: dict[str, Chosen]
    every: dict[int, tuple[int, ...]]
    moments: MomentSettings | None


def _resolved(model: Decoder, facts: Sequence[Fact], asked: EditSettings) -> _Resolved:
    """Raises the errors of `prepare_edit` for settings and facts that do not fit the model."""
    problem = PROBLEMS[asked.problem]
    own = settings_for(model, asked.method, asked.problem, asked.protocol, asked.hyperparameters)
    tuned, reads = isinstance(own, FineTuneSettings), reads_moments(asked.method, own)
    if reads:
        model.check_moments(asked.method)
    layers = edited_layers(model, asked)
    encoded = _encoded(model, facts, asked, problem)
    corruption = None
    if problem.needs_noise:
        sigma = noise_sigma(model, asked.sigma, asked.sigma_facts)
        assert asked.noise is not None  # the settings resolve it
        anew = problem.corrupted and asked.protocol == "released"
        corruption = Corruption(sigma, asked.noise, asked.seed, asked.noise_sample, anew)
    changed = sorted(_changed_layers(model, asked, layers))
    routed = check_experts(model, asked, changed, tuned=tuned)
    if tuned:
        return _Resolved(own, layers, encoded, corruption, [], {}, {}, None)
    noise = corruption if problem.corrupted else None
    chosen = chosen_experts(model, encoded, routed, asked, noise) if routed else [{} for _ in encoded]
    experts: dict[str, Chosen] = {fact.fact_id: one for fact, one in zip(encoded, chosen, strict=True)}
    moments = _moment_settings(model, asked, changed) if reads else None
    return _Resolved(own, layers, encoded, corruption, changed, experts, union(chosen), moments)


def _check_own(given: Any, moments: Moments) -> None:
    """Raise UserError where a setting of the second moments is given that they were not made with."""
    asked = {name: str(value) if isinstance(value, Path) else value for name, value in given_by(given).items()}
    for name, have in sorted(settings_of_moments(moments).items()):
        if name in asked and asked[name] != have:
            raise refusal(given, name, f"{text_of(have)}, as the moments have it, or no value", text_of(asked[name]))


def _changed_layers(model: Decoder, asked: EditSettings, layers: Sequence[int]) -> set[int]:
    """All layers that edits at some layers change."""
    return {at for one in layers for at in window_of(asked.method, one, asked.window_size, model.n_layers)}


def edited_layers(model: Decoder, asked: EditSettings) -> tuple[int, ...]:
    """The layers to edit, ascending. Raises UserError for a layer that the model lacks."""
    wanted = tuple(sorted(set(model.edit_layers() if asked.layers is None else asked.layers)))
    if wanted[-1] >= model.n_layers:
        raise refusal(asked, "layers", f"some of 0 to {model.n_layers - 1}", wanted[-1])
    return wanted


def _encoded(model: Decoder, facts: Sequence[Fact], asked: EditSettings, problem: Problem) -> list[EncodedFact]:
    """The distinct facts, encoded.

    Raises UserError for no facts and for a subject that leaves no room for essence texts, FactError for a fact without
    the problem's target, and ModelError where the model has too few positions for a prompt and its targets.
    """
    if not facts:
        raise UserError("edit: facts: expected at least one, got none")
    encoded = encoded_facts(model, facts)
    for fact in encoded:
        problem.check(fact)
        scored_prompts(model, fact, problem, _target(fact, problem), cases=True)
        if asked.essence:
            essence_prompt(model, fact.fact.subject)
    return encoded


def _target(fact: EncodedFact, problem: Problem) -> tuple[int, ...]:
    """The problem's target, or o_true in place of an o_noise that is not computed yet."""
    false = fact.target_false_ids if problem.target == "false" else None
    return fact.target_true_ids if false is None else false


def _templates(model: Decoder, asked: EditSettings) -> list[str]:
    """Prompt templates; the first is "{}". Given by the caller or sampled from the model."""
    assert asked.contexts is not None  # the settings resolve it
    if not isinstance(asked.contexts, int):
        return list(asked.contexts)
    return method_contexts(model, asked.method, asked.contexts, seed=asked.seed)


def _moment_settings(model: Decoder, asked: EditSettings, layers: list[int]) -> MomentSettings:
    """Second moments of the layers that are edited, with the settings of the edit."""
    return MomentSettings(
        corpus=asked.corpus,
        tokens=asked.corpus_tokens,
        layers=layers,
        sequence_length=model.room(1, settings_of(MomentSettings)["sequence_length"].default),
        seed=asked.seed,
        ridge=asked.ridge,
    )


def settings_of_moments(moments: Moments) -> dict[str, Any]:
    """The settings of an edit that its second moments have."""
    return {"corpus": moments.source, "corpus_tokens": moments.requested_tokens, "ridge": moments.ridge}


def _noise_targets(
    model: Decoder,
    encoded: list[EncodedFact],
    corruption: Corruption | None,
    asked: EditSettings,
    problem: Problem,
    templates: list[str],
) -> dict[str, tuple[int, ...]]:
    """fact_id → o_noise, the model's answer to the corrupted prompt.

    Raises ModelError where the model has too few positions for a prompt and its o_noise.
    """
    assert corruption is not None
    with model.products():
        if asked.protocol == "released":
            outputs = released_output(model, encoded, corruption)
        else:
            outputs = corrupted_output(model, encoded, [len(f.target_true_ids) for f in encoded], corruption)
    for fact, ids in zip(encoded, outputs, strict=True):
        # The released o_noise may be longer than o_true, whose length was checked.
        scored_prompts(model, fact, problem, ids)
        contexts_of(model, fact, ids, templates)
    return {f.fact_id: ids for f, ids in zip(encoded, outputs, strict=True)}


def _too_unlikely(model: Decoder, encoded: list[EncodedFact]) -> dict[str, str]:
    """fact_id → reason, for the facts whose o_true is too unlikely to erase (paper, Appendix A)."""
    with model.products():
        p = sequence_logprob(model, [f.ids for f in encoded], [f.target_true_ids for f in encoded]).exp().tolist()
    return {
        f.fact_id: f"p(o_true) = {value:.4f} is below {ERASURE_FLOOR}, too little to erase"
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
    """The settings, with the hyperparameters, number of contexts, corpus, ridge and σ that are used."""
    settled = replaced(asked, hyperparameters=own)
    if templates:
        settled = replaced(settled, contexts=len(templates) - 1)
    if moments is not None:
        settled = replaced(settled, **settings_of_moments(moments))
    return settled if corruption is None else replaced(settled, sigma=corruption.sigma)


def _run(
    model: Decoder,
    settled: EditSettings,
    own: MethodSettings,
    templates: list[str],
    moments: Moments | None,
    corruption: Corruption | None,
    judge: Judge | None,
) -> Run:
    """The `runs` row, without the settings that the method and the problem do not read."""
    unread: tuple[str, ...] = () if corruption is not None else ("sigma", "noise", "noise_sample", "score_noise_sample")
    fetched: dict[str, Any] = {}
    if templates:
        fetched["templates"] = templates
    else:
        unread += ("contexts",)
    if moments is not None:
        fetched["moments"] = moments.key
    else:
        unread += ("corpus", "corpus_tokens", "ridge")
    if judge is not None:
        fetched["judge"] = getattr(judge, "__qualname__", type(judge).__qualname__)
    if (projections := getattr(own, "projections", None)) is not None:
        fetched["projections"] = content_of(projections)
    named = {**run_settings(settled, without=unread), **fetched, **run_settings(own)}
    return describe_run("edit", model, named, seed=settled.seed, protocol=settled.protocol)


@takes(EditArguments)
def edit(model: Model, facts: AnyFacts, given: EditArguments) -> EditResult:
    """Edit every fact at every layer and score each edit, independent of the others. No weight of the model changes.

    facts: as `load_facts` returns them, one Fact, or a prompt as text, as in edit(model, "The {} is in the city of",
    subject="Eiffel Tower", target="Paris", new_target="Rome", layers=[6]).

    Methods: ROME, MEMIT, EMMET, AlphaEdit and PMET (the window around the layer), and constrained fine-tuning of the
    layer (ft-1) or of its window (ft-5).

    Problems: error-injection, tracing-reversal, fact-erasure (facts with p(o_true) ≥
    0.02; others get a row with the reason), fact-amplification, and fact-forcing (the subject is corrupted in editing
    and scoring). protocol="released" follows the released code in the hyperparameters, the steps and losses, the noise
    (drawn anew in every forward of fact-forcing), o_noise (which includes the prompt) and the scores: first paraphrase
    and neighbourhood prompt only, floors, and the problem's target in the neighbourhood score.

    Returns an EditResult, which keeps every edit in memory. A fine-tuned edit takes 4·d·m bytes per changed layer. For
    many edits, iterate over `prepare_edit(…).batches()` and keep only the parts you need.

    Raises UserError for a bad setting, and FactError for a fact without the problem's target.
    Source: paper, sections 3.3, 3.4 and 5; docs/algorithms.md, sections 11 to 19.
    """
    asked, workers = carried(EditSettings, given, hyperparameters=own_settings(given)), carried(WorkerSettings, given)
    chosen = facts_from(facts, given)
    with watched(given.progress) as watch, crew_of(model, workers, watch.tick) as crew:
        with watch.stages() as report:
            plan = plan_edit(crew, chosen, asked, moments=given.moments, judge=given.judge, progress=report)
        with watch.bar("Editing", len(plan.encoded) * len(plan.layers), "edits") as done:
            return plan.joined(list(crew.batches(plan, progress=done, whole=True)))
