"""Facts that are edited into one model: the cases of a data set, such as MQuAKE's, whose probes wait for all edits, and
prompts that one edit should leave alone and another one changes."""

from collections import Counter
from collections.abc import Sequence

from fasttrace.facts import EncodedFact, Fact


def cases(facts: Sequence[EncodedFact]) -> list[list[EncodedFact]]:
    """The facts of each case, in the order of the cases' first facts. A fact without a case is one by itself."""
    found: dict[tuple[bool, str], list[EncodedFact]] = {}
    for one in facts:
        case = one.fact.case_id
        found.setdefault((case is None, one.fact_id if case is None else case), []).append(one)
    return list(found.values())


def models_of(facts: Sequence[EncodedFact], together: str) -> list[list[EncodedFact]]:
    """The facts that are edited into one model, for each model. together: as in `MassSettings`."""
    return cases(facts) if together == "case" else [list(facts)]


def edits_of_cases(edited: Sequence[EncodedFact]) -> Counter[str | None]:
    """Case → how many of its edits are among those made. Facts without a case are not counted."""
    return Counter(one.fact.case_id for one in edited if one.fact.case_id is not None)


def is_whole(fact: EncodedFact, made: Counter[str | None]) -> bool:
    """Whether all edits of the fact's case are made. made: of `edits_of_cases`."""
    case = fact.fact.case_id
    return case is None or made[case] == fact.fact.case_edits


def changed_by(fact: Fact) -> set[str]:
    """The prompts that an edit of the fact should change."""
    return {fact.text} | {probe.prompt for probe in fact.every_probe if probe.expect == "changed"}


def changed_prompts(
    models: Sequence[Sequence[EncodedFact]], earlier: frozenset[str] = frozenset()
) -> dict[str, frozenset[str]]:
    """fact_id → the prompts that edits of the fact's model should change. models: the facts of each model. earlier: the
    prompts that edits before these change in every model."""
    found: dict[str, frozenset[str]] = {}
    for facts in models:
        own = {prompt for one in facts for prompt in changed_by(one.fact)}
        found |= dict.fromkeys((one.fact_id for one in facts), earlier | own)
    return found


def changed_by_any(models: Sequence[Sequence[EncodedFact]], earlier: frozenset[str]) -> frozenset[str]:
    """The prompts that any edit should change, of all models. earlier: as in `changed_prompts`."""
    return earlier.union(*changed_prompts(models).values())


def contradicted(models: Sequence[Sequence[EncodedFact]], earlier: frozenset[str] = frozenset()) -> list[str]:
    """The prompts that one fact wants unchanged, such as neighborhood prompts, and another of its model changed."""
    changed = changed_prompts(models, earlier)
    probes = ((one.fact_id, probe) for facts in models for one in facts for probe in one.fact.every_probe)
    return [probe.prompt for own, probe in probes if probe.expect == "unchanged" and probe.prompt in changed[own]]
