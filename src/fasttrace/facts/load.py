"""Reads facts: CounterFact, known_1000, zsRE in MEND's form, fasttrace's own format and the built-in set.

A file is one JSON list of records, as published data sets are, or JSONL with one record per line. The keys of a record
in fasttrace's own format are the fields of `Fact`. The error of an unusable record is one sentence that names the file,
the record and the field. Records in JSONL are numbered by line (from 1), records in a list by index (from 0).
"""

import json
import logging
import os
from collections.abc import Iterable, Iterator
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

from fasttrace.errors import FactError, shown
from fasttrace.facts.formats import Bad, check_encoding, kind, parser
from fasttrace.facts.record import Fact
from fasttrace.settings.arguments import checked_as
from fasttrace.settings.kinds import Bounds
from fasttrace.settings.study import ZsreForm

Format = Literal["auto", "counterfact", "known", "zsre", "own"]

BUILTIN = "builtin"  # the source that means the built-in set

log = logging.getLogger(__name__)


@checked_as(FactError)
def load_facts(
    source: str | os.PathLike[str] | None = None,
    *,
    format: Format = "auto",
    relation: str | None = None,
    limit: Annotated[int | None, Bounds(1)] = None,
    zsre: ZsreForm = "question",
    on_bad: Literal["raise", "skip"] = "raise",
    rejected: list[str] | None = None,
) -> list[Fact]:
    """Load the facts of one file, in its order. None or "builtin" loads the built-in set.

    source: path of a CounterFact, known_1000 or zsRE file, or of a file in fasttrace's own format, as a JSON list or
        JSONL.
    format: "auto" decides by the content, never by the file's name. A named format must be that of the file.
    relation: keep only the facts with this `relation`.
    limit: at most this many facts, counted after the selection by relation. Later records are not checked.
    zsre: how the prompts of a zsRE file read.
    on_bad: "raise" stops at the first bad record. "skip" leaves bad records out and appends their error sentences to
        `rejected`. Without that list, it logs a warning with their number and the first sentence.

    How a data set becomes facts:
    counterfact: target_new is o_false; fact_id "counterfact/<case_id>".
    known: the prompt is `prompt` where present (the filled template and the model's text up to the attribute),
        otherwise the filled template. attribute is o_true; there is no o_false. fact_id "known/<known_id>".
    zsre, "question": the prompt is "Question: <src> Answer:", the paraphrase "Question: <rephrase> Answer:" and the
        neighbourhood prompt "Question: <loc>? Answer:", where loc has no "nq question: ". answers[0] is o_true. o_false
        is the answers[0] of another record, None if all are the same; a hash of the index draws it. fact_id
        "zsre/question/<index>", source "zsre". From the released code (dsets/zsre.py, eval_utils_counterfact.py).
    zsre, "bare": src, rephrase and loc alone, as in the released ROME. alt is o_false (None where MEND wrote "" or
        o_true again). fact_id "zsre/<index>", source "zsre-bare".

    A warning is logged with the number of prompts that end in white space.

    Raises FactError for a file that is missing, empty or in no known format, for a bad record or argument, and for a
    relation that no fact has.
    """
    name, raw = _read(source)
    records = _records(name, raw, format, zsre)
    facts: list[Fact] = []
    bad: list[str] = []
    first_use: dict[str, str] = {}
    relations: set[str] = set()
    for where, fact_or_bad in records:
        flaw = fact_or_bad if isinstance(fact_or_bad, Bad) else None
        if isinstance(fact_or_bad, Fact):
            fact = fact_or_bad
            if fact.fact_id in first_use:
                same = first_use[fact.fact_id]
                flaw = Bad("fact_id", f"expected a unique id, got {shown(fact.fact_id)}, which {same} also has")
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


class _Item(NamedTuple):
    """A record of a file. where: its place, in words. number: its line or index. value: the record, or its flaw."""

    where: str
    number: int
    value: object


def _records(name: str, raw: bytes, format: str, zsre: ZsreForm) -> Iterator[tuple[str, Fact | Bad]]:
    """(where, the fact or why it cannot be used) for every record of a file."""
    try:
        text, clean = raw.decode("utf-8"), True
    except UnicodeDecodeError:
        # Bytes that are not UTF-8 become lone surrogates, so that a message can name their field.
        text, clean = raw.decode("utf-8", errors="surrogateescape"), False
    text = text.removeprefix("\ufeff")
    listed = _list(name, text)
    items = partial(_lines, text) if listed is None else partial(_listed, listed)
    found = _detect(name, items(), listed is None) if format == "auto" else format
    parse = parser(found, zsre, (item.value for item in items()))
    for where, number, value in items():
        try:
            if isinstance(value, Bad):
                raise value
            if not isinstance(value, dict):
                raise Bad(None, f"expected a JSON object, got {kind(value)}")
            fact = parse(value, number)
            if not clean:
                check_encoding(value)
        except Bad as bad:
            yield where, bad
        except FactError as error:
            yield where, Bad(None, str(error))
        else:
            yield where, fact


def _lines(text: str) -> Iterator[_Item]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                value = _parse(line)
            except Bad as bad:
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
        except Bad as bad:
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
    except Bad:
        return False
    return True


def _parse(text: str) -> object:
    """The JSON value of `text`. Raises Bad with the column, and the line where there are several."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if "\n" not in text.strip() else f"line {error.lineno}, column {error.colno}"
        if any("\udc80" <= c <= "\udcff" for c in text[error.pos : error.pos + 1]):
            raise Bad(None, f"expected JSON in UTF-8, got other bytes at {place}") from None
        raise Bad(None, f"the text is not JSON ({error.msg} at {place})") from None
    except RecursionError:
        raise Bad(None, "expected JSON of a few levels, got one that is nested too deeply to be read") from None
    except ValueError as error:  # a number of thousands of digits
        raise Bad(None, f"the text cannot be read as JSON ({type(error).__name__})") from None


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
