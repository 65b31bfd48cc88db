"""Facts as a model's tokenizer encodes them, checked against the model's positions before any pass runs."""

import logging
from collections.abc import Sequence
from typing import Annotated

from fasttrace.facts import EncodedFact, Fact, Facts, distinct, encode_facts
from fasttrace.facts.pairs import pair_subjects
from fasttrace.models.adapter import AnyModel, Decoder
from fasttrace.settings.arguments import checked
from fasttrace.settings.kinds import MOST_ITEMS, Bounds

log = logging.getLogger(__name__)


def encoded_facts(model: Decoder, facts: Sequence[Fact]) -> list[EncodedFact]:
    """The facts in their order, each once, encoded by the model's tokenizer.

    Raises FactError for a fact that cannot be encoded, and ModelError where the model has too few positions for a
    prompt and its o_true.
    """
    encoded = encode_facts(model.tokenizer, distinct(facts))
    for fact in encoded:
        model.check_length(len(fact.ids) + len(fact.target_true_ids) - 1, f"fact '{fact.fact_id}' with its target")
    return encoded


def check_encodable(model: Decoder, facts: Sequence[Fact]) -> None:
    """Raise what `encoded_facts` raises."""
    encoded_facts(model, facts)


@checked
def pair_facts(
    model: AnyModel,
    facts: Facts,
    *,
    count: Annotated[int, Bounds(least=1, most=MOST_ITEMS)] = 1,
    among: Facts | None = None,
) -> list[Fact]:
    """The facts that have a counterfactual subject, each with up to `count` of them.

    A counterfactual is the subject of another fact of the same relation (without relations: of the same template) that
    has another true object and takes the subject's place token for token, so that the two prompts have as many tokens.
    Which ones are taken does not depend on the order of the facts. A fact that has counterfactuals keeps them. Of
    the others, one without a target_false and a counterfactual_answer gets the first one's true object as the latter.

    among: the facts whose subjects are candidates; None for `facts`. Give the whole data set where `facts` is a part.

    A warning is logged with the number of facts that are left out because no subject fits.
    Raises UserError where none of the facts can be paired, and FactError for a fact that cannot be encoded.
    Source: symmetric token replacement, Zhang and Nanda 2023 (arXiv 2309.16042), section 2; docs/algorithms.md,
    section 3.
    """
    paired = pair_subjects(model.tokenizer, distinct(facts), facts if among is None else among, count).checked()
    if paired.reasons:
        fact_id, reason = next(iter(paired.reasons.items()))
        log.warning("%d of %d facts have no pair, such as '%s': %s", len(paired.reasons), len(facts), fact_id, reason)
    return paired.facts
