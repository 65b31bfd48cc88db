"""What several formats share: ids, the targets and probes of edits, and templates with a place for the object."""

import re
from typing import Any

from fasttrace.errors import FactError, shown
from fasttrace.facts.fields import PLACE, Bad, Fields, kind, two_targets
from fasttrace.facts.probe import After, Expect, Probe

SUBJECT, OBJECT = "[X]", "[Y]"  # their places in templates of LAMA and ParaRel

# Names of KnowEdit and RippleEdits → kinds of probes.
KINDS = {
    "Subject_Aliasing": "alias",
    "Compositionality_I": "compositionality-1",
    "Compositionality_II": "compositionality-2",
    "Relation_Specifity": "relation-specificity",  # as the README of RippleEdits spells it
}
# The meta of a fact whose record has no old answer.
INSERTED = {"edit": "insertion"}
_NO_ANSWER = "<|endoftext|>"  # what EasyEdit takes for the old answer where there is none


def numbered(name: str, record: Fields, number: int) -> str:
    """The id of a fact whose record has none of its own: by its file and its place there."""
    return "/".join(part for part in (name, record.path or record.file, str(number)) if part)


def rests(**inside: Fields) -> dict[str, Any]:
    """The unread fields of objects inside a record, where there are any: {name of the object: its fields}."""
    return {name: rest for name, one in inside.items() if (rest := one.rest())}


# ---- edits ------------------------------------------------------------------------------------------------


def edit_targets(record: Fields, new: str, old: str) -> tuple[str, str | None, dict[str, Any]]:
    """(o_true, o_false, meta) of an edit. new, old: the fields of the new and the old answer, each a text or a list.

    The old answer is o_true and the new one o_false. Where there is no old one, the edit inserts a new fact: the new
    answer is o_true and there is no o_false (INSERTED). Of several answers the first is taken, and all are kept.
    """
    record.need(new)
    news, olds = record.answers(new), tuple(one for one in record.answers(old) if one != _NO_ANSWER)
    if not news:
        raise record.bad(new, "expected a text that is not empty, got none")
    meta = {name: list(every) for name, every in ((new, news), (old, olds)) if len(every) > 1}
    if not olds:
        return news[0], None, INSERTED | meta
    return *two_targets(olds[0], news[0], record.name(new)), meta


def expected(false: str | None) -> Expect:
    """What an edit should do to answers that follow from it. Those of an insertion are true, whatever the model says
    before."""
    return "true" if false is None else "changed"


def kind_of(axis: str, otherwise: str) -> str:
    """The kind of the probes under a data set's own name. otherwise: for a name without letters of a kind."""
    return KINDS.get(axis) or re.sub(r"[^a-z0-9]+", "-", axis.lower()).strip("-") or otherwise


def paraphrases(record: Fields, *names: str) -> tuple[str, ...]:
    """The whole prompts of these fields, each a text or a list. A bad field is left out."""
    found: list[str] = []
    for name in names:
        try:
            found += record.one_or_more(name, whole=True)
        except Bad as bad:
            record.leave_out(bad)
    return tuple(dict.fromkeys(found))


def probes(
    record: Fields,
    of: str,
    prompt: str,
    answers: str,
    expect: Expect,
    after: After = "edit",
    aliases: str | None = None,
    needed: bool = False,
) -> list[Probe]:
    """The probes of a record that has prompts under `prompt` and answers under `answers`, and more under `aliases`.

    One prompt has all of the answers. Several have one answer each, or a list of them. What lacks one of the two, or is
    not text, is left out. of: the kind. needed: whether a record without both is left out too, and not just without a
    probe.
    """
    try:
        prompts = record.one_or_more(prompt, whole=True)
        texts = record.answers(answers)
        more = () if aliases is None else record.answers(aliases)
    except Bad as bad:
        record.leave_out(bad)
        return []
    each = [(*texts, *more)]
    if len(prompts) > 1:
        value = record.get(answers)
        if not isinstance(value, list) or len(value) != len(prompts):
            record.leave_out(record.bad(answers, f"expected answers to each of {len(prompts)} prompts, got others"))
            return []
        each = [(*Fields({answers: one}).answers(answers), *more) for one in value]
    if not prompts:
        if texts or needed:
            record.leave_out(record.bad(prompt, "it is missing, so there is nothing to ask"))
        return []
    found = []
    for text, right in zip(prompts, each, strict=True):
        if not right:
            record.leave_out(record.bad(answers, f"the prompt {shown(text)} has no answer, so it is not asked"))
            continue
        try:
            found.append(Probe(of, text, right, expect, after))
        except FactError as error:
            record.leave_out(record.bad(prompt, str(error).partition(" of a probe: ")[2] or str(error)))
    return found


def objects(record: Fields, key: str) -> list[Fields]:
    """The JSON objects of a list, or one alone. Anything else among them is left out."""
    value, found = record.get(key), []
    if value is not None and not isinstance(value, list | dict):
        record.leave_out(record.bad(key, f"expected a list of JSON objects, got {kind(value)}"))
    alone = isinstance(value, dict)
    for i, item in enumerate([value] if alone else value if isinstance(value, list) else []):
        name = record.name(key) if alone else f"{record.name(key)}[{i}]"
        if isinstance(item, dict):
            found.append(Fields(item, f"{name}.", record.left_out, record.file))
        else:
            record.leave_out(Bad(name, f"expected a JSON object, got {kind(item)}"))
    return found


# ---- templates --------------------------------------------------------------------------------------------


def before_object(text: str, place: str) -> str | None:
    """The text before the object's place, or None where the place does not occur once, or a word stands after it."""
    before, _, after = text.partition(place)
    usable = text.count(place) == 1 and before.strip() and not any(c.isalnum() for c in after)
    return before.rstrip() if usable else None


def object_last(template: str, field: str) -> str:
    """The prompt of a template with [X] and [Y]: the text before [Y], with {} for [X].

    Raises Bad where [Y] is not at the end, or [X] is not before it.
    """
    before = before_object(template, OBJECT)
    if before is None:
        raise Bad(field, f"expected the object {OBJECT} once and at the end, got {shown(template)}")
    if before.count(SUBJECT) != 1 or PLACE in before:
        raise Bad(field, f"expected the subject {SUBJECT} once before the object, got {shown(template)}")
    return before.replace(SUBJECT, PLACE)
