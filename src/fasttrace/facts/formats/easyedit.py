"""EasyEdit's flat records of edits, such as its copy of CounterFact (Wang et al. 2023, arXiv 2308.07269,
github.com/zjunlp/EasyEdit, MIT).

ground_truth is o_true and target_new is o_false. The subject is found in the prompt. rephrase_prompt is a paraphrase,
locality_prompt a locality probe with its own answers. portability_prompt, or the "New Question" of portability, is a
portability probe. Without a ground_truth (or with EasyEdit's "<|endoftext|>") the edit inserts a new fact: target_new
is o_true and there is no o_false, so the problem fact-amplification edits it in. Its `meta` has "edit": "insertion",
and its portability answers are true ones. The id is "easyedit/<case_id>", or has the record's place instead.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fasttrace.facts.fields import Fields
from fasttrace.facts.formats.base import Format, marks
from fasttrace.facts.formats.parts import edit_targets, expected, numbered, paraphrases, probes
from fasttrace.facts.record import Fact
from fasttrace.facts.subject import placed_or_found

NESTED = "New Question"


def parse(record: Fields, number: int) -> Iterator[Fact]:
    prompt, subject = record.string("prompt"), record.string("subject")
    placed = placed_or_found(prompt, subject, record.name("prompt"))
    true, false, more = edit_targets(record, "target_new", "ground_truth")
    asked = probes(record, "locality", "locality_prompt", "locality_ground_truth", "unchanged")
    asked += probes(record, "portability", "portability_prompt", "portability_ground_truth", expected(false))
    if nested(record.value):
        portability = record.inside("portability")
        asked += probes(portability, "portability", NESTED, "New Answer", expected(false))
        more |= portability.rest()
    identity = f"easyedit/{record.identity('case_id')}" if "case_id" in record else numbered("easyedit", record, number)
    yield Fact(
        placed.template,
        placed.subject,
        true,
        false,
        relation=record.optional("relation_id"),
        paraphrases=paraphrases(record, "rephrase_prompt", "rephrase"),
        fact_id=identity,
        source="easyedit",
        probes=tuple(asked),
        subject_found=placed.how,
        meta=record.rest() | more,
    )


def nested(record: Mapping[str, Any]) -> bool:
    """Whether the portability question is in an object of its own."""
    return isinstance(portability := record.get("portability"), Mapping) and NESTED in portability


FORMAT = Format(
    "easyedit",
    "EasyEdit",
    marks("prompt target_new"),
    parse,
    hint=frozenset({"target_new"}),
    fits=lambda record: "target_true" not in record,
)
