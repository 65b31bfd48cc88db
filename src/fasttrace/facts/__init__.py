"""Facts: records, loaders, the built-in set, and their token ids."""

from fasttrace.facts.load import load_facts
from fasttrace.facts.probe import Probe
from fasttrace.facts.record import Fact, Facts, distinct
from fasttrace.facts.stated import AnyFacts, facts_from, stated_fact
from fasttrace.facts.tokens import EncodedFact, encode_fact, encode_facts, encode_joined, encode_prompt, tokens_of

__all__ = [
    "AnyFacts",
    "EncodedFact",
    "Fact",
    "Facts",
    "Probe",
    "distinct",
    "encode_fact",
    "encode_facts",
    "encode_joined",
    "encode_prompt",
    "facts_from",
    "load_facts",
    "stated_fact",
    "tokens_of",
]
