"""MQuAKE-CF and MQuAKE-T (Zhong et al. 2023, arXiv 2305.14795, github.com/princeton-nlp/MQuAKE, MIT).

A record is a case of one or more edits and the multi-hop questions that follow from all of them. Each edit in
requested_rewrite is a fact: target_true is o_true, target_new o_false, and its question is a paraphrase. The questions
with new_answer and its aliases are multi-hop probes of the case's last fact, asked after all edits of the case. So are
the new single hops, as their clozes. A hop that the edits ask for, or that had another answer before, should change.
The others should keep their answers.

The id is "mquake/<case_id>/<place among the edits>". The case's other fields, with the old answers, are in the `meta`
of the last fact.
"""

from collections.abc import Iterator, Mapping
from typing import Any

from fasttrace.facts.fields import Fields, kind, two_targets
from fasttrace.facts.formats.base import Format, marks
from fasttrace.facts.formats.parts import objects, paraphrases, probes, rests
from fasttrace.facts.probe import After, Probe
from fasttrace.facts.record import Fact


def parse(record: Fields, number: int) -> Iterator[Fact]:
    identity = record.identity("case_id")
    rewrites = list(record.each("requested_rewrite"))
    if not rewrites:
        raise record.bad("requested_rewrite", f"expected a list of edits, got {_empty(record)}")
    case = f"mquake/{identity}" if len(rewrites) > 1 else None
    edits = [_edit(one) for one in rewrites]
    asked = {text for fields in edits for text in (_text(fields), *fields["paraphrases"])}
    own: tuple[Probe, ...] = tuple(_probes(record, asked, "edit" if case is None else "case"))
    for i, fields in enumerate(edits):
        last = i == len(edits) - 1
        if last:
            fields["meta"] |= record.rest()
        yield Fact(
            **fields,
            fact_id=f"mquake/{identity}/{i}",
            source="mquake",
            probes=own if last else (),
            case_id=case,
            case_edits=len(edits),
        )


def _empty(record: Fields) -> str:
    value = record.need("requested_rewrite")
    return "an empty list" if value == [] else kind(value)


def _edit(rewrite: Fields) -> dict[str, Any]:
    """The fields of the fact of one edit."""
    prompt, subject = rewrite.template("prompt"), rewrite.string("subject")
    old, new = rewrite.inside("target_true"), rewrite.inside("target_new")
    true, false = two_targets(old.string("str"), new.string("str"), new.name("str"))
    return {
        "prompt": prompt,
        "subject": subject,
        "target_true": true,
        "target_false": false,
        "relation": rewrite.optional("relation_id"),
        "paraphrases": paraphrases(rewrite, "question"),
        "meta": rewrite.rest() | rests(target_true=old, target_new=new),
    }


def _text(fields: Mapping[str, Any]) -> str:
    return str(fields["prompt"]).replace("{}", fields["subject"], 1)


def _probes(record: Fields, asked: set[str], after: After) -> Iterator[Probe]:
    """The probes of a case. asked: the prompts and questions of its edits."""
    questions, answers = record.get("questions"), {key: record.get(key) for key in ("new_answer", "new_answer_alias")}
    every = questions if isinstance(questions, list) else [] if questions is None else [questions]
    for i, question in enumerate(every):
        name = f"questions[{i}]" if isinstance(questions, list) else "questions"
        one = Fields({name: question, **answers}, record.prefix, record.left_out)
        yield from probes(one, "multi-hop", name, "new_answer", "changed", after, "new_answer_alias")
    before = {text: hop.get("answer") for hop in _hops(record) for text in _texts(hop)}
    for one in objects(record, "new_single_hops"):
        hop, answer = one.value, one.value.get("answer")
        changed = any(text in asked or before.get(text, answer) != answer for text in _texts(hop))
        prompt = "cloze" if "cloze" in one else "question"
        expect: Any = "changed" if changed else "unchanged"
        yield from probes(one, "single-hop", prompt, "answer", expect, after, "answer_alias", needed=True)


def _hops(record: Fields) -> list[Mapping[str, Any]]:
    """The single hops before the edits, which stay in `meta`."""
    hops = record.value.get("single_hops")
    return [hop for hop in hops if isinstance(hop, Mapping)] if isinstance(hops, list) else []


def _texts(hop: Mapping[str, Any]) -> list[str]:
    return [text for key in ("cloze", "question") if isinstance(text := hop.get(key), str)]


def _several(record: Mapping[str, Any]) -> bool:
    rewrites = record["requested_rewrite"]
    return isinstance(rewrites, list) and bool(rewrites)


FORMAT = Format("mquake", "MQuAKE", marks("requested_rewrite"), parse, fits=_several)
