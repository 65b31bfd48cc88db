"""Reads facts: CounterFact, known_1000, zsRE in MEND's form, fasttrace's own format and the built-in set.

A file is one JSON list of records, as published data sets are, or JSONL with one record per line. The keys of a record
in fasttrace's own format are the fields of `Fact`. The error of an unusable record is one sentence that names the file,
the record and the field. Records in JSONL are numbered by line (from 1), records in a list by index (from 0).
"""

import json
import logging
import os
import re
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from fasttrace.errors import FactError, shown
from fasttrace.facts.record import Fact
from fasttrace.settings.arguments import checked_as
from fasttrace.settings.kinds import MOST_CHARACTERS, Bounds

Format = Literal["auto", "counterfact", "known", "zsre", "own"]

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
)
BUILTIN = "builtin"  # the source that means the built-in set
_LOC_PREFIX = "nq question: "

log = logging.getLogger(__name__)


@checked_as(FactError)
def load_facts(
    source: str | os.PathLike[str] | None = None,
    *,
    format: Format = "auto",
    relation: str | None = None,
    limit: Annotated[int | None, Bounds(1)] = None,
    on_bad: Literal["raise", "skip"] = "raise",
    rejected: list[str] | None = None,
) -> list[Fact]:
    """Load the facts of one file, in its order. None or "builtin" loads the built-in set.

    source: path of a CounterFact, known_1000 or zsRE file, or of a file in fasttrace's own format, as a JSON list or
        JSONL.
    format: "auto" decides by the content, never by the file's name. A named format must be that of the file.
    relation: keep only the facts with this `relation`.
    limit: at most this many facts, counted after the selection by relation. Later records are not checked.
    on_bad: "raise" stops at the first bad record. "skip" leaves bad records out and appends their error sentences to
        `rejected`. Without that list, it logs a warning with their number and the first sentence.

    How a data set becomes facts:
    counterfact: target_new is o_false; fact_id "counterfact/<case_id>".
    known: the prompt is `prompt` where present (the filled template and the model's text up to the attribute),
        otherwise the filled template. attribute is o_true; there is no o_false. fact_id "known/<known_id>".
    zsre: the prompt is the question with its subject replaced by "{}", as in the released ROME. answers[0] is o_true.
        alt is o_false (None where MEND wrote "" or o_true again). rephrase is the paraphrase, and loc without its
        "nq question: " the neighbourhood prompt. fact_id "zsre/<index>".

    A warning is logged with the number of prompts that end in white space.

    Raises FactError for a file that is missing, empty or in no known format, for a bad record or argument, and for a
    relation that no fact has.
    """
    name, raw = _read(source)
    records = _records(name, raw, format)
    facts: list[Fact] = []
    bad: list[str] = []
    first_use: dict[str, str] = {}
    relations: set[str] = set()
    for where, fact_or_bad in records:
        flaw = fact_or_bad if isinstance(fact_or_bad, _Bad) else None
        if isinstance(fact_or_bad, Fact):
            fact = fact_or_bad
            if fact.fact_id in first_use:
                same = first_use[fact.fact_id]
                flaw = _Bad("fact_id", f"expected a unique id, got {shown(fact.fact_id)}, which {same} also has")
        if flaw is not None:
            sentence = flaw.sentence(name, where)
            if on_bad == "raise":
                raise FactError(sentence)
            bad.append(sentence)
            continue
        first_use[fact.fact_id] = where
        if fact.relation is not None:
            relations.add(fact.relation)
        if relation is None or fact.relation == relation:
            facts.append(fact)
            if limit is not None and len(facts) == limit:
                break
    if rejected is not None:
        rejected.extend(bad)
    elif bad:
        log.warning("%d records of %s are skipped; the first one: %s", len(bad), name, bad[0])
    if relation is not None and not facts:
        known = ", ".join(sorted(relations)) or "none"
        raise FactError(f"no usable fact of {name} has the relation {relation!r}; its relations are: {known}")
    prompts = [text for fact in facts for text in (fact.text, *fact.paraphrases, *fact.neighborhood)]
    if spaced := [text for text in prompts if text[-1].isspace()]:
        log.warning(
            "%d of %d prompts of %s end in white space, such as %s: their targets follow without another space",
            *(len(spaced), len(prompts), name, shown(spaced[0])),
        )
    return facts


class _Bad(Exception):
    """Why a record cannot be used. field: the field at fault, None for the record as a whole. what: the reason."""

    def __init__(self, field: str | None, what: str) -> None:
        super().__init__(what)
        self.field, self.what = field, what

    def sentence(self, name: str, where: str) -> str:
        return f"{name}, {where}, field '{self.field}': {self.what}" if self.field else f"{name}, {where}: {self.what}"


def _read(source: str | os.PathLike[str] | None) -> tuple[str, bytes]:
    """(the name of `source` in messages, its bytes)."""
    if source is None or source == BUILTIN:
        return "the built-in set", resources.files("fasttrace.facts").joinpath("builtin.jsonl").read_bytes()
    path = Path(source)
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise FactError(f"{path}: expected a file of facts, got a path that does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise FactError(f"{path}: expected a file of facts, got one that cannot be read ({reason})") from None
    if not raw.removeprefix(b"\xef\xbb\xbf").strip():
        raise FactError(f"{path}: expected a file of facts, got an empty file")
    return str(path), raw


# ---- from bytes to records --------------------------------------------------------------------------------


Parser = Callable[[dict[str, Any], int], Fact]
"""A record and its number → the fact."""


class _Item(NamedTuple):
    """A record of a file. where: its place, in words. number: its line or index. value: the record, or its flaw."""

    where: str
    number: int
    value: object


def _records(name: str, raw: bytes, format: str) -> Iterator[tuple[str, Fact | _Bad]]:
    """(where, the fact or why it cannot be used) for every record of a file."""
    try:
        text, clean = raw.decode("utf-8"), True
    except UnicodeDecodeError:
        # Bytes that are not UTF-8 become lone surrogates, so that a message can name their field.
        text, clean = raw.decode("utf-8", errors="surrogateescape"), False
    text = text.removeprefix("\ufeff")
    listed = _list(name, text)
    items = partial(_lines, text) if listed is None else partial(_listed, listed)
    parse = _PARSERS[_detect(name, items(), listed is None) if format == "auto" else format]
    for where, number, value in items():
        try:
            if isinstance(value, _Bad):
                raise value
            if not isinstance(value, dict):
                raise _Bad(None, f"expected a JSON object, got {_kind(value)}")
            fact = parse(value, number)
            if not clean:
                _check_encoding(value)
        except _Bad as bad:
            yield where, bad
        except FactError as error:
            yield where, _Bad(None, str(error))
        else:
            yield where, fact


def _lines(text: str) -> Iterator[_Item]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                value = _parse(line)
            except _Bad as bad:
                value = bad
            yield _Item(f"line {number}", number, value)


def _listed(records: list[object]) -> Iterator[_Item]:
    for number, record in enumerate(records):
        yield _Item(f"record {number} (counted from 0)", number, record)


def _list(name: str, text: str) -> list[object] | None:
    """The records of a file that is one JSON list, or None for JSONL."""
    lines = (line for line in text.split("\n") if line.strip())
    first_line, more = next(lines), next(lines, None) is not None
    begins = first_line.lstrip()[0]
    if not more and begins != "[":
        return None
    whole: object = None
    if begins == "[" or (begins == "{" and not _is_json(first_line)):
        try:
            whole = _parse(text)
        except _Bad as bad:
            if begins == "[" and not _is_json(first_line):
                raise FactError(f"{name}: {bad.what}") from None
    if isinstance(whole, dict):
        raise FactError(f"{name}: expected a list of records or JSONL, got one JSON object at its top level")
    if whole == []:
        raise FactError(f"{name}: expected at least one record, got an empty list")
    return whole if isinstance(whole, list) else None


def _is_json(text: str) -> bool:
    try:
        _parse(text)
    except _Bad:
        return False
    return True


def _parse(text: str) -> object:
    """The JSON value of `text`. Raises _Bad with the column, and the line where there are several."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if "\n" not in text.strip() else f"line {error.lineno}, column {error.colno}"
        if any("\udc80" <= c <= "\udcff" for c in text[error.pos : error.pos + 1]):
            raise _Bad(None, f"expected JSON in UTF-8, got other bytes at {place}") from None
        raise _Bad(None, f"the text is not JSON ({error.msg} at {place})") from None
    except RecursionError:
        raise _Bad(None, "expected JSON of a few levels, got one that is nested too deeply to be read") from None
    except ValueError as error:  # a number of thousands of digits
        raise _Bad(None, f"the text cannot be read as JSON ({type(error).__name__})") from None


# The fields that identify a record's format, and those that suggest it where no record has the former.
_MARKS: tuple[dict[str, set[str]], ...] = (
    {
        "own": {"prompt", "target_true"},
        "counterfact": {"requested_rewrite"},
        "known": {"attribute", "template"},
        "zsre": {"src", "answers"},
    },
    {
        "counterfact": {"case_id"},
        "known": {"known_id"},
        "zsre": {"loc", "rephrase"},
        "own": {"target_true"},
    },
)


def _detect(name: str, items: Iterable[_Item], lines: bool) -> str:
    """The format of a file from its records, by the first that identifies one."""
    records = (item.value for item in items)
    seen: list[dict[str, Any]] = []
    for record in records:
        if isinstance(record, dict):
            if format := _marked(record, _MARKS[0]):
                return format
            seen.append(record)
    for record in seen:
        if format := _marked(record, _MARKS[1]):
            return format
    if lines:
        return "own"  # whose errors name the fields that it lacks
    has = f"records with the fields {', '.join(sorted(seen[0]))}" if seen else "items that are not JSON objects"
    raise FactError(f"{name}: expected records of CounterFact, known_1000, zsRE or fasttrace's own format, got {has}")


def _marked(record: dict[str, Any], marks: dict[str, set[str]]) -> str | None:
    return next((format for format, fields in marks.items() if fields <= record.keys()), None)


# ---- fields -----------------------------------------------------------------------------------------------


def _kind(value: object) -> str:
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
        raise _Bad(field, "it is missing")
    return record[key]


def _string(value: object, field: str) -> str:
    value = _text(value, field)
    if not value.strip():
        raise _Bad(field, f"expected a string that is not empty, got {shown(value)}")
    return value


def _text(value: object, field: str) -> str:
    if not isinstance(value, str):
        raise _Bad(field, f"expected a string, got {_kind(value)}")
    if len(value) > MOST_CHARACTERS:
        raise _Bad(field, f"expected at most {MOST_CHARACTERS} characters, got {len(value)}")
    if any("\ud800" <= c <= "\udfff" for c in value):
        raise _Bad(field, f"{shown(value)} contains bytes that are not UTF-8")
    return value


def _check_encoding(record: dict[str, Any]) -> None:
    """Refuse bytes that are not UTF-8 in the fields that no parser reads."""
    for key, value in record.items():
        try:
            json.dumps({key: value}, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise _Bad(ascii(key)[1:-1], "it contains bytes that are not UTF-8") from None
        except RecursionError:
            raise _Bad(ascii(key)[1:-1], "expected JSON of a few levels, got one that is nested too deeply") from None


def _optional(record: dict[str, Any], key: str) -> str | None:
    return None if record.get(key) is None else _string(record[key], key)


def _strings(record: dict[str, Any], key: str) -> tuple[str, ...]:
    """The whole prompts under a key. A missing key means that there are none."""
    value = record.get(key, [])
    if not isinstance(value, list):
        raise _Bad(key, f"expected a list of strings, got {_kind(value)}")
    for i, item in enumerate(value):
        if "{}" in _string(item, f"{key}[{i}]"):
            raise _Bad(f"{key}[{i}]", f"expected a whole prompt with its subject, got {shown(item)} with a placeholder")
    return tuple(value)


def _object(value: object, field: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise _Bad(field, f"expected a JSON object, got {_kind(value)}")
    return value


def _template(value: object, field: str) -> str:
    template = _string(value, field)
    places = template.count("{}")
    if places == 0:
        what = "the subject is absent: expected one placeholder '{}' for it, got none"
        raise _Bad(field, f"{what} in {shown(template)}")
    if places > 1:
        raise _Bad(field, f"expected one placeholder '{{}}' for the subject, got {places} in {shown(template)}")
    return template


def _identity(record: dict[str, Any], key: str) -> str:
    value = _get(record, key, key)
    if isinstance(value, bool) or not isinstance(value, int | str):
        raise _Bad(key, f"expected a whole number or a string, got {_kind(value)}")
    return str(value) if isinstance(value, int) else _string(value, key)


def _targets(true: str, false: str | None, field: str) -> tuple[str, str | None]:
    """Both targets without spaces at their ends. Raises _Bad where they are equal, since an edit needs two."""
    true, false = true.strip(), None if false is None else false.strip()
    if true == false:
        raise _Bad(field, f"expected a false target that differs from the true one, got {shown(false)} for both")
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
            raise _Bad("prompt", f"the subject {shown(subject)} is absent from {shown(prompt)}")
        if not prompt.startswith(filled):
            raise _Bad("prompt", f"{shown(prompt)} does not begin with the filled template {shown(filled)}")
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
    question = _string(_get(record, "src", "src"), "src")
    subject = _string(_get(record, "subject", "subject"), "subject")
    if "{}" in question:
        raise _Bad("src", f"expected a plain question, got {shown(question)} with a placeholder '{{}}'")
    # A whole word is preferred to a part of a word: the subject "I" must not match the first letter of "In".
    found = re.search(rf"(?<!\w){re.escape(subject)}(?!\w)", question) or re.search(re.escape(subject), question)
    if found is None:
        raise _Bad("src", f"the subject {shown(subject)} is absent from {shown(question)}")
    answers = _get(record, "answers", "answers")
    if not isinstance(answers, list) or not answers:
        found_kind = "an empty list" if answers == [] else _kind(answers)
        raise _Bad("answers", f"expected a list of at least one string, got {found_kind}")
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
        source="zsre",
    )


def _own(record: dict[str, Any], number: int) -> Fact:
    unknown: Sequence[str] = [key for key in record if key not in _OWN_FIELDS]
    if unknown:
        field = unknown[0].encode("utf-8", "backslashreplace").decode()
        raise _Bad(field, f"no field of a fact has this name; the fields are {', '.join(_OWN_FIELDS)}")
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
    )


_PARSERS: dict[str, Parser] = {"counterfact": _counterfact, "known": _known, "zsre": _zsre, "own": _own}
