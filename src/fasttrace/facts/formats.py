"""From a record of a data set to the fact: CounterFact, known_1000, zsRE in MEND's form and fasttrace's own format."""

import hashlib
import json
import re
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from typing import Any

from fasttrace.errors import shown
from fasttrace.facts.record import Fact
from fasttrace.settings.kinds import MOST_CHARACTERS
from fasttrace.settings.study import ZsreForm

_OWN_FIELDS = (
    "prompt",
    "subject",
    "target_true",
    "target_false",
    "relation",
    "paraphrases",
    "neighborhood",
    "fact_id",
    "source",
    "target_prefix",
    "counterfactual_subject",
    "counterfactual_prompt",
    "counterfactual_answer",
)
_LOC_PREFIX = "nq question: "

Parser = Callable[[dict[str, Any], int], Fact]
"""A record and its number → the fact."""


class Bad(Exception):
    """Why a record cannot be used. field: the field at fault, None for the record as a whole. what: the reason."""

    def __init__(self, field: str | None, what: str) -> None:
        super().__init__(what)
        self.field, self.what = field, what

    def sentence(self, name: str, where: str) -> str:
        return f"{name}, {where}, field '{self.field}': {self.what}" if self.field else f"{name}, {where}: {self.what}"


# ---- fields -----------------------------------------------------------------------------------------------


def kind(value: object) -> str:
    """The type of a JSON value, in words."""
    names = {
        dict: "a JSON object",
        list: "a list",
        str: "a string",
        bool: "a boolean",
        type(None): "null",
    }
    return names.get(type(value), "a number")


def _get(record: dict[str, Any], key: str, field: str) -> Any:
    if key not in record:
        raise Bad(field, "it is missing")
    return record[key]


def _string(value: object, field: str) -> str:
    value = _text(value, field)
    if not value.strip():
        raise Bad(field, f"expected a string that is not empty, got {shown(value)}")
    return value


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise Bad(field, f"expected a string, got {kind(value)}")
    if len(value) > MOST_CHARACTERS:
        raise Bad(field, f"expected at most {MOST_CHARACTERS} characters, got {len(value)}")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise Bad(field, f"{shown(value)} contains bytes that are not UTF-8")
    return value


def check_encoding(record: dict[str, Any]) -> None:
    """Refuse bytes that are not UTF-8 in the fields that no parser reads."""
    for key, value in record.items():
        try:
            json.dumps({key: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise Bad(ascii(key)[1:-1], "it contains bytes that are not UTF-8") from None
        except RecursionError:
            raise Bad(ascii(key)[1:-1], "expected JSON of a few levels, got one that is nested too deeply") from None


def _optional(record: dict[str, Any], key: str) -> str | None:
    return None if record.get(key) is None else _string(record[key], key)


def _strings(record: dict[str, Any], key: str) -> tuple[str, ...]:
    """The whole prompts under a key, a list. A missing key means that there are none."""
    value = record.get(key, [])
    if not isinstance(value, list):
        raise Bad(key, f"expected a list of strings, got {kind(value)}")
    return tuple(_whole(item, f"{key}[{i}]") for i, item in enumerate(value))


def _whole(value: object, field: str) -> str:
    text = _string(value, field)
    if "{}" in text:
        raise Bad(field, f"expected a whole prompt with its subject, got {shown(text)} with a placeholder")
    return text


def _one_or_more(record: dict[str, Any], key: str, each: Callable[[object, str], str]) -> tuple[str, ...]:
    """The texts under a key: one, a list of them, or none where it is null or missing. each: checks one of a field."""
    value = record.get(key)
    if isinstance(value, list):
        return tuple(each(item, f"{key}[{i}]") for i, item in enumerate(value))
    if value is not None and not isinstance(value, str):
        raise Bad(key, f"expected a string or a list of strings, got {kind(value)}")
    return () if value is None else (each(value, key),)


def _object(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise Bad(field, f"expected a JSON object, got {kind(value)}")
    return value


def _template(value: object, field: str) -> str:
    template = _string(value, field)
    places = template.count("{}")
    if places == 0:
        what = "the subject is absent: expected one placeholder '{}' for it, got none"
        raise Bad(field, f"{what} in {shown(template)}")
    if places > 1:
        raise Bad(field, f"expected one placeholder '{{}}' for the subject, got {places} in {shown(template)}")
    return template


def _identity(record: dict[str, Any], key: str) -> str:
    value = _get(record, key, key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise Bad(key, f"expected a whole number or a string, got {kind(value)}")
    return str(value) if isinstance(value, int) else _string(value, key)


def _targets(true: str, false: str | None, field: str) -> tuple[str, str | None]:
    """Both targets without spaces at their ends. Raises Bad where they are equal, since an edit needs two."""
    true, false = true.strip(), None if false is None else false.strip()
    if true == false:
        raise Bad(field, f"expected a false target that differs from the true one, got {shown(false)} for both")
    return true, false


# ---- the formats ------------------------------------------------------------------------------------------


def _counterfact(record: dict[str, Any], number: int) -> Fact:
    identity = _identity(record, "case_id")
    top = "requested_rewrite"
    rewrite = _object(_get(record, top, top), top)

    def target(key: str) -> str:
        field = f"{top}.{key}"
        return _string(_get(_object(_get(rewrite, key, field), field), "str", f"{field}.str"), f"{field}.str")

    prompt = _template(_get(rewrite, "prompt", f"{top}.prompt"), f"{top}.prompt")
    subject = _string(_get(rewrite, "subject", f"{top}.subject"), f"{top}.subject")
    true, false = _targets(target("target_true"), target("target_new"), f"{top}.target_new.str")
    relation = rewrite.get("relation_id")
    return Fact(
        prompt,
        subject,
        true,
        false,
        relation=None if relation is None else _string(relation, f"{top}.relation_id"),
        paraphrases=_strings(record, "paraphrase_prompts"),
        neighborhood=_strings(record, "neighborhood_prompts"),
        fact_id=f"counterfact/{identity}",
        source="counterfact",
    )


def _known(record: dict[str, Any], number: int) -> Fact:
    identity = _identity(record, "known_id")
    subject = _string(_get(record, "subject", "subject"), "subject")
    template = _template(_get(record, "template", "template"), "template")
    true = _string(_get(record, "attribute", "attribute"), "attribute").strip()
    if record.get("prompt") is not None:
        prompt, filled = _string(record["prompt"], "prompt"), template.replace("{}", subject)
        if subject not in prompt:
            raise Bad("prompt", f"the subject {shown(subject)} is absent from {shown(prompt)}")
        if not prompt.startswith(filled):
            raise Bad("prompt", f"{shown(prompt)} does not begin with the filled template {shown(filled)}")
        # In about a third of known_1000 the prompt continues after the template, up to the attribute.
        template = _template(template + prompt[len(filled) :], "prompt")
    return Fact(
        template,
        subject,
        true,
        relation=_optional(record, "relation_id"),
        fact_id=f"known/{identity}",
        source="known",
    )


def _zsre(record: dict[str, Any], number: int) -> Fact:
    """The bare form. Its source is not that of the questions, so that no regression pools the two."""
    question = _string(_get(record, "src", "src"), "src")
    subject = _string(_get(record, "subject", "subject"), "subject")
    if "{}" in question:
        raise Bad("src", f"expected a plain question, got {shown(question)} with a placeholder '{{}}'")
    # A whole word is preferred to a part of a word: the subject "I" must not match the first letter of "In".
    found = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", question) or re.search(re.escape(subject), question)
    if found is None:
        raise Bad("src", f"the subject {shown(subject)} is absent from {shown(question)}")
    answers = _get(record, "answers", "answers")
    if not isinstance(answers, list) or not answers:
        found_kind = "an empty list" if answers == [] else kind(answers)
        raise Bad("answers", f"expected a list of at least one string, got {found_kind}")
    alt = _get(record, "alt", "alt")
    true = _string(answers[0], "answers[0]").strip()
    false = None if alt == "" else _string(alt, "alt").strip()
    paraphrase, nearby = _optional(record, "rephrase"), _optional(record, "loc")
    return Fact(
        question[: found.start()] + "{}" + question[found.end() :],
        subject,
        true,
        None if false == true else false,
        paraphrases=() if paraphrase is None else (paraphrase,),
        neighborhood=() if nearby is None else (_string(nearby.removeprefix(_LOC_PREFIX), "loc"),),
        fact_id=f"zsre/{number}",
        source="zsre-bare",
    )


def _zsre_questions(records: Iterable[object]) -> Parser:
    """The parser of zsRE as the paper's experiments have it. records: of the whole file."""
    answers = sorted({answer for record in records if (answer := _first_answer(record))})

    def parse(record: dict[str, Any], number: int) -> Fact:
        fact = _zsre(record, number)
        return replace(
            fact,
            prompt=_asked(fact.prompt),
            target_false=_another(answers, fact.target_true, number),
            paraphrases=tuple(map(_asked, fact.paraphrases)),
            neighborhood=tuple(_asked(f"{text}?") for text in fact.neighborhood),
            fact_id=f"zsre/question/{number}",
            source="zsre",
        )

    return parse


def _asked(question: str) -> str:
    return f"Question: {question} Answer:"


def _first_answer(record: object) -> str | None:
    answers = record.get("answers") if isinstance(record, dict) else None
    return answers[0].strip() if isinstance(answers, list) and answers and isinstance(answers[0], str) else None


def _another(answers: Sequence[str], true: str, number: int) -> str | None:
    """One of the sorted answers that is not `true`, or None. A hash of the record's number draws it, so that it does
    not depend on which records are loaded."""
    if len(answers) < 2:
        return None
    drawn = int.from_bytes(hashlib.sha256(f"zsre/{number}".encode()).digest()[:8], "big") % (len(answers) - 1)
    return answers[drawn + (drawn >= bisect_left(answers, true))]


def _own(record: dict[str, Any], number: int) -> Fact:
    unknown: Sequence[str] = [key for key in record if key not in _OWN_FIELDS]
    if unknown:
        field = unknown[0].encode("utf-8", "backslashreplace").decode()
        raise Bad(field, f"no field of a fact has this name; the fields are {', '.join(_OWN_FIELDS)}")
    prompt = _template(_get(record, "prompt", "prompt"), "prompt")
    subject = _string(_get(record, "subject", "subject"), "subject")
    true = _string(_get(record, "target_true", "target_true"), "target_true")
    true, false = _targets(true, _optional(record, "target_false"), "target_false")
    return Fact(
        prompt,
        subject,
        true,
        false,
        relation=_optional(record, "relation"),
        paraphrases=_strings(record, "paraphrases"),
        neighborhood=_strings(record, "neighborhood"),
        fact_id=_optional(record, "fact_id") or "",
        source=_optional(record, "source") or "own",
        target_prefix=None if record.get("target_prefix") is None else _text(record["target_prefix"], "target_prefix"),
        counterfactual_subject=_one_or_more(record, "counterfactual_subject", _string),
        counterfactual_prompt=_one_or_more(record, "counterfactual_prompt", _whole),
        counterfactual_answer=_optional(record, "counterfactual_answer"),
    )


def own_record(fact: Fact) -> dict[str, Any]:
    """A fact as a record of fasttrace's own format, without the fields that it does not have."""
    found = {name: getattr(fact, name) for name in _OWN_FIELDS}
    return {name: value for name, value in found.items() if value not in (None, ())}


_PARSERS: dict[str, Parser] = {"counterfact": _counterfact, "known": _known, "zsre": _zsre, "own": _own}


def parser(format: str, zsre: ZsreForm, records: Iterable[object]) -> Parser:
    """The parser of a format's records. records: all of the file, whose answers zsRE's false targets are drawn from."""
    return _zsre_questions(records) if (format, zsre) == ("zsre", "question") else _PARSERS[format]
