"""KnowEdit (Zhang et al. 2024, arXiv 2401.01286, huggingface.co/datasets/zjunlp/KnowEdit, MIT): wiki_counterfact,
wiki_recent, ZsRE and WikiBio.

ground_truth is o_true, target_new o_false, and the subject is found in the prompt. In WikiBio, text is the prompt,
concept the subject and labels the new text. Every prompt under portability and locality is a probe, whose kind is the
name it is under: Subject_Aliasing is alias, Logical_Generalization logical-generalization, and so on for any name.
Answers may be texts, lists or lists of lists with aliases: each of them is right.

wiki_recent and WikiBio have no ground_truth: their edits insert what is true after all. target_new is then o_true,
there is no o_false, and the problem fact-amplification edits it in. The fact's `meta` has "edit": "insertion". Its
portability probes expect "true", since their answers follow from target_new and not from an o_false.

The id is "knowedit/<file>/<place in it>". A probe has its prompt and answers, and no other fields.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fasttrace.facts.fields import Fields, kind
from fasttrace.facts.formats.base import Format, marks
from fasttrace.facts.formats.easyedit import nested
from fasttrace.facts.formats.parts import edit_targets, expected, kind_of, numbered, objects, paraphrases, probes
from fasttrace.facts.probe import Expect, Probe
from fasttrace.facts.record import Fact
from fasttrace.facts.subject import placed_or_found


def parse(record: Fields, number: int) -> Iterator[Fact]:
    biography = "prompt" not in record.value and "text" in record.value
    asked, about, new = ("text", "concept", "labels") if biography else ("prompt", "subject", "target_new")
    prompt, subject = record.string(asked), record.string(about)
    placed = placed_or_found(prompt, subject, record.name(asked))
    true, false, more = edit_targets(record, new, "ground_truth")
    yield Fact(
        placed.template,
        placed.subject,
        true,
        false,
        paraphrases=paraphrases(record, "rephrase", "rephrase_prompt"),
        fact_id=numbered("knowedit", record, number),
        source="knowedit",
        probes=(*_axes(record, "portability", expected(false)), *_axes(record, "locality", "unchanged")),
        subject_found=placed.how,
        meta=record.rest() | more,
    )


def _axes(record: Fields, key: str, expect: Expect) -> Iterator[Probe]:
    """The probes under a key: {name of the axis: a list of prompts with their answers}."""
    value = record.get(key)
    if value is None:
        return
    if not isinstance(value, Mapping):
        record.leave_out(record.bad(key, f"expected a JSON object, got {kind(value)}"))
        return
    axes = record.inside(key)
    for name in value:
        for one in objects(axes, name):
            yield from probes(one, kind_of(str(name), key), "prompt", "ground_truth", expect, needed=True)


def _fits(record: Mapping[str, Any]) -> bool:
    return "target_true" not in record and not nested(record)


FORMAT = Format(
    "knowedit",
    "KnowEdit",
    marks("prompt target_new portability", "prompt target_new locality", "text labels concept"),
    parse,
    fits=_fits,
)
