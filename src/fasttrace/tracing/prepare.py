"""`trace`, a causal-tracing sweep over many facts, and `prepare_trace`, which makes its plan."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

from fasttrace.cluster.pool import crew_of
from fasttrace.errors import UserError, shown
from fasttrace.facts import AnyFacts, EncodedFact, Facts, facts_from
from fasttrace.models.adapter import AnyModel
from fasttrace.models.corrupt import noise_sigma
from fasttrace.models.encode import encoded_facts
from fasttrace.models.hooked import places
from fasttrace.runs import describe_run
from fasttrace.settings.arguments import takes
from fasttrace.settings.base import argument, carried, replaced, run_settings, settings
from fasttrace.settings.cluster import WorkerSettings
from fasttrace.settings.prompt import StatedFact
from fasttrace.settings.trace import TraceSettings
from fasttrace.show.watched import HELP, watched
from fasttrace.tracing.plan import Heads, Intervention, contrast_of, traced_experts, traced_heads
from fasttrace.tracing.result import TraceResult
from fasttrace.tracing.sweep import TracePlan


@settings("trace")
class PrepareTraceArguments(TraceSettings):
    """Keywords of `prepare_trace`."""

    settings: TraceSettings | None = argument(
        default=None, help="Settings object; keywords add settings that it does not give"
    )


@settings("trace")
class TraceArguments(PrepareTraceArguments, WorkerSettings, StatedFact):
    """Keywords of `trace`."""

    progress: Callable[[int], None] | bool | None = argument(
        default=None, help=f"Called as progress(n) after n more facts; {HELP}"
    )


@takes(PrepareTraceArguments)
def prepare_trace(model: AnyModel, facts: Facts, given: PrepareTraceArguments) -> TracePlan:
    """Check the settings of a sweep, encode its facts and determine σ. No pass runs.

    Raises UserError for a bad setting, for no facts, where the settings cannot measure any of them, and for a fact that
    is too long for the model. Raises ModelError for a model without an adapter unless the engine is "hooked", and there
    where a layer has no such module.
    """
    asked = carried(TraceSettings, given)
    if asked.engine == "wavefront":
        model.check_driven()
    else:
        places(model, asked.module)
    if asked.keep_routing and not model.n_experts:
        raise UserError(f"trace: keep_routing: expected a mixture of experts, got '{model.name}', which has none")
    if not facts:
        raise UserError("trace: facts: expected at least one, got none")
    if asked.corruption == "noise":  # answers to prompts that play no part
        facts = [
            fact if fact.counterfactual_answer is None else replace(fact, counterfactual_answer=None) for fact in facts
        ]
    encoded = encoded_facts(model, facts)
    screened = asked.method == "attribution"
    intervention = Intervention(asked.module, "denoise" if screened else asked.method)
    heads = traced_heads(model, asked.heads) if asked.experts is None else traced_experts(model, asked.experts)
    unmeasured = _unmeasured(asked, encoded)
    noised = asked.method != "zero" and asked.corruption == "noise"
    sigma = noise_sigma(model, asked.sigma, asked.sigma_facts) if noised else None
    settled = replaced(
        asked,
        windows=sorted(set(asked.windows), reverse=True),
        heads=_settled(asked.heads, heads, model.n_heads),
        experts=_settled(asked.experts, heads, model.n_experts) if asked.experts else None,
        sigma=sigma,
        seed=asked.seed if noised else 0,  # without noise nothing is drawn
        verify_top=asked.verify_top or 0 if screened else None,
    )
    named = run_settings(settled, without=() if noised else ("samples", "noise", "sigma"))
    run = describe_run("trace", model, named, seed=settled.seed, protocol=settled.protocol)
    return TracePlan(
        model=model,
        encoded=encoded,
        settings=settled,
        intervention=intervention,
        heads=heads,
        sigma=sigma,
        unmeasured=unmeasured,
        run=run,
    )


def _settled(asked: str | Sequence[int] | None, parts: Sequence[Heads], count: int) -> Any:
    """The setting `heads` or `experts` by one name: "all" where all of `count` are traced, else ascending numbers.

    parts: those traced.
    """
    if asked is None or asked == "at-once":
        return asked
    return "all" if len(parts) == count else [one.first for one in parts]


def _unmeasured(asked: TraceSettings, encoded: Sequence[EncodedFact]) -> dict[str, str]:
    """fact_id → why the settings cannot measure the fact. Raises UserError where they can measure none."""
    reasons: dict[str, str] = {}
    if asked.corruption == "counterfactual":
        none = "corruption counterfactual: expected a counterfactual_subject or counterfactual_prompt, got neither"
        reasons |= {fact.fact_id: "; ".join(fact.misfits) or none for fact in encoded if not fact.counterfactuals}
    if asked.metric == "logit-difference":
        whole = asked.scored == "sequence"
        for fact in encoded:
            if fact.contrast_ids is None:
                or_answer = " or counterfactual_answer" if asked.corruption == "counterfactual" else ""
                given = f"metric logit-difference: expected a target_false{or_answer}, got none"
                reasons[fact.fact_id] = f"{given} (new_target is one, beside a prompt as text)"
            elif contrast_of(fact, len(fact.target_true_ids) if whole else 1) is None:
                reasons[fact.fact_id] = (
                    f"metric logit-difference: expected a target_false that differs from the target_true at a scored "
                    f"token, got {shown(fact.fact.contrast)} and {shown(fact.fact.target_true)}"
                )
    if len(reasons) == len(encoded):
        fact_id, reason = next(iter(reasons.items()))
        others = f" (and {len(reasons) - 1} more facts that cannot be measured)" if len(reasons) > 1 else ""
        raise UserError(f"trace: fact '{fact_id}': {reason}{others}")
    return reasons


@takes(TraceArguments)
def trace(model: AnyModel, facts: AnyFacts, given: TraceArguments) -> TraceResult:
    """Causal tracing: compute the exact grid of every fact and window size in one sweep.

    facts: as `load_facts` returns them, one Fact, or a prompt as text with its subject and target, as in
    trace(model, "The {} is in the city of", subject="Eiffel Tower", target="Paris").

    Returns a TraceResult. Its probabilities are joint probabilities of the scored tokens, averaged over the corrupted
    passes. Its logit differences are read where o_true and o_false first differ (NULL where they do not). With
    corruption="counterfactual", a fact's counterfactual prompts are the corrupted passes; those of another number of
    tokens are left out with a reason.
    With method="attribution" every estimated cell is marked `approximate`. A sweep that does not fit into `memory` runs
    in several waves and returns the same values. Facts that keep="known" leaves out are in the result with a reason.

    Raises UserError for a bad setting.
    Source: paper, section 3.2 and Appendix B; docs/algorithms.md, sections 3 to 9; Meng et al. 2022 (arXiv 2202.05262)
    for "block" and "argmax-first"; Nanda 2023, Syed et al. 2023 (arXiv 2310.10348) for "attribution"; Zhang and Nanda
    2023 (arXiv 2309.16042) for counterfactuals and logit differences.
    """
    workers = carried(WorkerSettings, given)
    plan = prepare_trace(model, facts_from(facts, given), settings=carried(TraceSettings, given))
    showing = watched(given.progress)
    with showing as watch, crew_of(model, workers, watch.tick) as crew, watch.bar("Tracing", len(plan.encoded)) as done:
        return plan.joined(list(crew.batches(plan, progress=done, whole=True)))
