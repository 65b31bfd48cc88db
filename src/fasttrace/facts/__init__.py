"""Facts: records, loaders, the built-in set, and their token ids."""

from fasttrace.facts.load import load_facts
from fasttrace.facts.record import Fact, distinct
from fasttrace.facts.tokens import EncodedFact, encode_fact, encode_prompt, encode_target, tokens_of

__all__ = [
    "EncodedFact",
    "Fact",
    "distinct",
    "encode_fact",
    "encode_prompt",
    "encode_target",
    "load_facts",
    "tokens_of",
]
