"""Cases: facts of a data set that are edited into one model before their probes are asked, such as MQuAKE's."""

from collections import Counter
from collections.abc import Sequence

from fasttrace.facts import EncodedFact


def cases(facts: Sequence[EncodedFact]) -> list[list[EncodedFact]]:
    """The facts of each case, in the order of the cases' first facts. A fact without a case is one by itself."""
    found: dict[tuple[bool, str], list[EncodedFact]] = {}
    for one in facts:
        case = one.fact.case_id
        found.setdefault((case is None, one.fact_id if case is None else case), []).append(one)
    return list(found.values())


def edits_of_cases(edited: Sequence[EncodedFact]) -> Counter[str | None]:
    """Case → how many of its edits are among those made. Facts without a case are not counted."""
    return Counter(one.fact.case_id for one in edited if one.fact.case_id is not None)


def is_whole(fact: EncodedFact, made: Counter[str | None]) -> bool:
    """Whether all edits of the fact's case are made. made: of `edits_of_cases`."""
    case = fact.fact.case_id
    return case is None or made[case] == fact.fact.case_edits
