"""Facts as a model's tokenizer encodes them, checked against the model's positions before any pass runs."""

from collections.abc import Sequence

from fasttrace.facts import EncodedFact, Fact, distinct, encode_fact
from fasttrace.models.adapter import Decoder


def encoded_facts(model: Decoder, facts: Sequence[Fact]) -> list[EncodedFact]:
    """The facts in their order, each once, encoded by the model's tokenizer.

    Raises FactError for a fact that cannot be encoded, and ModelError where the model has too few positions for a
    prompt and its o_true.
    """
    encoded = [encode_fact(model.tokenizer, fact) for fact in distinct(facts)]
    for fact in encoded:
        model.check_length(len(fact.ids) + len(fact.target_true_ids) - 1, f"fact '{fact.fact_id}' with its target")
    return encoded
