"""fasttrace's own format, and any table whose columns are mapped to it: the fields of `Fact`.

A prompt is a template with one "{}", or one "{subject}", "<subject>" or "[X]", or the plain prompt, in which the
subject is found. Lists are JSON lists. Every other field is kept as `meta`.
"""

import contextlib
import functools
import json
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import fields
from typing import Any

from fasttrace.errors import FactError, similar
from fasttrace.facts.fields import Bad, Fields, Parse, kind, two_targets
from fasttrace.facts.formats.base import Format, marks
from fasttrace.facts.probe import Probe
from fasttrace.facts.record import Fact, meta_json
from fasttrace.facts.sources import Item
from fasttrace.facts.subject import placed_or_found
from fasttrace.settings.study import ZsreForm

FIELDS = tuple(one.name for one in fields(Fact))
TEXTS = (
    "prompt",
    "subject",
    "target_true",
    "target_false",
    "relation",
    "fact_id",
    "source",
    "target_prefix",
    "case_id",
)
LISTS = ("paraphrases", "neighborhood", "counterfactual_subject", "counterfactual_prompt", "probes")


def parse(record: Fields, number: int) -> Iterator[Fact]:
    """A record by itself."""
    yield _fact(record, 1)


def _begin(items: Iterable[Item], zsre: ZsreForm) -> Parse:
    every = (item.value.get("case_id") for item in items if isinstance(item.value, dict))
    edits = Counter(str(one) for one in every if one is not None and not isinstance(one, dict | list))

    def parse_with_cases(record: Fields, number: int) -> Iterator[Fact]:
        yield _fact(record, edits[str(record.value.get("case_id"))] or 1)

    return parse_with_cases


def _fact(record: Fields, edits: int) -> Fact:
    """edits: the number of records of its case, for one that does not say it."""
    prompt, subject = record.string("prompt"), record.string("subject").strip()
    placed = placed_or_found(prompt, subject, record.name("prompt"))
    true, false = two_targets(record.string("target_true"), record.optional("target_false"), "target_false")
    found = record.optional("subject_found") or placed.how
    return Fact(
        placed.template,
        placed.subject,
        true,
        false,
        relation=record.optional("relation"),
        paraphrases=record.wholes("paraphrases"),
        neighborhood=record.wholes("neighborhood"),
        fact_id=record.optional("fact_id") or "",
        source=record.optional("source") or "own",
        target_prefix=record.text("target_prefix"),
        counterfactual_subject=record.one_or_more("counterfactual_subject"),
        counterfactual_prompt=record.one_or_more("counterfactual_prompt", whole=True),
        counterfactual_answer=record.optional("counterfactual_answer"),
        probes=tuple(_probe(one) for one in record.each("probes")),
        case_id=None if record.get("case_id") is None else record.identity("case_id"),
        case_edits=_count(record, edits),
        subject_found=found,
        meta={**as_meta(record.get("meta")), **_rest(record)},
    )


def _probe(record: Fields) -> Probe:
    kind_, prompt, answers = record.string("kind"), record.string("prompt"), record.answers("answers")
    expect, after = record.optional("expect"), record.optional("after") or "edit"
    try:
        return Probe(kind_, prompt, answers, expect, after)  # type: ignore[arg-type]  # it checks the two words
    except FactError as error:
        _, field, what = re.split(r"field '(\w+)' of a probe: ", str(error))
        raise record.bad(field, what) from None


def _count(record: Fields, edits: int) -> int:
    value = record.get("case_edits")
    if value is None:
        return edits
    if isinstance(value, bool) or not isinstance(value, int):
        raise record.bad("case_edits", f"expected a whole number, got {kind(value)}")
    return value


def as_meta(value: Any) -> Mapping[str, Any]:
    """What a field meta has: an object, or the text of one, as a store's table has it. Anything else is kept in it."""
    if isinstance(value, str) and value.lstrip().startswith("{"):
        with contextlib.suppress(ValueError, RecursionError):
            value = json.loads(value)
    return value if isinstance(value, Mapping) else {} if value is None else {"meta": value}


def _rest(record: Fields) -> dict[str, Any]:
    """The other fields. One whose name is nearly that of a field is said to be kept."""
    rest = record.rest()
    for name in rest:
        if (near := _near(name)) is not None:
            record.leave_out(Bad(name, f"no field of a fact has this name, so it is kept in meta: is it '{near}'?"))
    return rest


@functools.cache
def _near(name: str) -> str | None:
    return next(iter(similar(name, FIELDS, cutoff=0.8)), None)


def own_record(fact: Fact) -> dict[str, Any]:
    """A fact as a record of this format, without the fields that have their defaults."""
    found = {name: list(value) if isinstance(value := getattr(fact, name), tuple) else value for name in FIELDS}
    found["probes"] = [_probe_record(one) for one in fact.probes]
    found["meta"] = json.loads(meta_json(fact))
    plain = {"case_edits": 1, "subject_found": "template"}
    return {
        name: value for name, value in found.items() if value not in (None, (), [], {}) and plain.get(name) != value
    }


def _probe_record(probe: Probe) -> Mapping[str, Any]:
    record: dict[str, Any] = {"kind": probe.kind, "prompt": probe.prompt}
    if probe.answers:
        record["answers"] = list(probe.answers)
    record["expect"] = probe.expect
    return record if probe.after == "edit" else {**record, "after": probe.after}


FORMAT = Format(
    "own",
    "fasttrace's own format",
    marks("prompt subject target_true", "prompt target_true"),
    parse,
    hint=frozenset({"target_true"}),
    begin=_begin,
)
