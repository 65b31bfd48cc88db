"""Pairs of prompts for patching: a clean prompt, one or more counterfactual prompts, and their answers.

- Files with a clean and a counterfactual prompt under one of the names below, such as those of sparse feature circuits
  (Marks et al. 2024, github.com/saprmarks/feature-circuits) and of edge attribution patching (CSV).
- MIB (Mueller et al. 2025, huggingface.co/mib-bench; see each of its data cards for the license): prompt with choices
  and answerKey, or with label, and one or more fields <name>_counterfactual with the same fields inside.
- IOI (Wang et al. 2022, arXiv 2211.00593): a sentence, IO and S. IO is the answer, S is o_false. Where the sentence
  ends in IO, the prompt ends before it.

answer is o_true. The counterfactual prompts are whole prompts. The answer of the first is the counterfactual answer.
o_false is the other choice where there are two. A counterfactual that is the prompt itself or occurs twice is left out,
and so is a counterfactual answer that is the answer.

The subject is the field subject, where the prompt has it. Otherwise it is what differs from the first counterfactual,
word for word ("difference"). In a sentence of IOI without a counterfactual it is the last occurrence of S.

The id is "pairs/" and a hash of the prompts and answers. A pair that is there again is left out.
"""

import hashlib
import itertools
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from fasttrace.errors import shown
from fasttrace.facts.fields import PLACE, Bad, Fields, Parse, kind
from fasttrace.facts.formats.base import Format, marks
from fasttrace.facts.record import Fact
from fasttrace.facts.sources import Item
from fasttrace.facts.subject import Placed, placed_or_found
from fasttrace.settings.study import ZsreForm

CLEAN = ("clean", "clean_prefix", "clean_prompt", "prompt", "ioi_sentence", "text")
COUNTERFACTUAL = ("counterfactual", "corrupted", "corrupt", "patch_prefix", "counterfactual_prompt")
ANSWER = ("answer", "clean_answer", "correct", "label")
OTHER_ANSWER = ("counterfactual_answer", "patch_answer", "corrupted_answer", "incorrect")
_MIB = "_counterfactual"  # the end of the names of MIB's counterfactuals
_PIECES = re.compile(r"\w+|\s+|[^\w\s]")


def parse(record: Fields, number: int) -> Iterator[Fact]:
    ioi = {"IO", "S"} <= record.value.keys()
    name = next((key for key in CLEAN if key in record.value), CLEAN[0])
    prompt = _whole(record, name)
    true, false = (record.string("IO").strip(), record.string("S").strip()) if ioi else _answer(record)
    if ioi:
        prompt = _without(prompt, true)
    others, other_answer = _counterfactuals(record, prompt)
    if other_answer is None and (key := _first(record, OTHER_ANSWER)) is not None:
        other_answer = _text(record, key)
    if other_answer == true:
        record.leave_out(Bad(None, f"the counterfactual's answer is that of the prompt, {shown(true)}"))
        other_answer = None
    if not others and not ioi:
        raise Bad(None, f"expected a counterfactual prompt that differs from {shown(prompt)}, got none")
    placed = _placed(record, name, prompt, others, false if ioi else None)
    content = [placed.template, placed.subject, true, false, others, other_answer]
    yield Fact(
        placed.template,
        placed.subject,
        true,
        false,
        fact_id=f"pairs/{hashlib.sha256(json.dumps(content).encode()).hexdigest()[:12]}",
        source="pairs",
        counterfactual_prompt=tuple(others),
        counterfactual_answer=other_answer,
        subject_found=placed.how,
        meta=record.rest(),
    )


def _begin(items: Iterable[Item], zsre: ZsreForm) -> Parse:
    read: set[str] = set()

    def first_of_each(record: Fields, number: int) -> Iterator[Fact]:
        for fact in parse(record, number):
            if fact.fact_id in read:
                record.leave_out(Bad(None, f"a record before has the same prompts and answers as {shown(fact.text)}"))
                continue
            read.add(fact.fact_id)
            yield fact

    return first_of_each


# ---- prompts ----------------------------------------------------------------------------------------------


def _first(record: Fields, names: Iterable[str]) -> str | None:
    """The first of the fields that the record has."""
    return next((name for name in names if name in record), None)


def _whole(record: Fields, key: str) -> str:
    """A prompt, which may have a placeholder of the subject only where the record names it."""
    text = record.string(key)
    if PLACE in text and "subject" not in record:
        raise record.bad(key, f"expected a whole prompt with its subject, got {shown(text)} with a placeholder")
    return text


def _without(sentence: str, answer: str) -> str:
    """A sentence without the answer at its end."""
    before, found, after = sentence.rpartition(answer)
    ends = found and before.strip() and not any(c.isalnum() for c in after) and not before[-1].isalnum()
    return before.rstrip() if ends else sentence.rstrip()


def _counterfactuals(record: Fields, prompt: str) -> tuple[list[str], str | None]:
    """The counterfactual prompts, and the answer of the first one where it has its own."""
    given: list[tuple[str, str, str | None]] = []  # (field, prompt, answer)
    for key in record.value:
        if not _is_counterfactual(key):
            continue
        if not isinstance(record.value[key], Mapping):
            given += [(record.name(key), text, None) for text in _texts(record, key)]
        elif "prompt" in (one := record.inside(key)):
            given += [(one.name("prompt"), text, _own_answer(one)) for text in one.one_or_more("prompt", whole=True)]
        else:
            record.leave_out(one.bad("prompt", "it is missing, so this counterfactual is not used"))
    found: dict[str, str | None] = {}
    for field, text, answer in given:
        if text == prompt or text in found:
            record.leave_out(Bad(field, f"expected another prompt than those before, got {shown(text)} again"))
        else:
            found[text] = answer
    return list(found), next(iter(found.values()), None)


def _is_counterfactual(key: object) -> bool:
    return key in COUNTERFACTUAL or (isinstance(key, str) and key.endswith(_MIB))


def _texts(record: Fields, key: str) -> tuple[str, ...]:
    """The prompts under a key. A field that only ends as MIB's do, and has something else, is left out."""
    try:
        return record.one_or_more(key, whole=True)
    except Bad as bad:
        if key in COUNTERFACTUAL:
            raise
        record.leave_out(bad)
        return ()


# ---- answers ----------------------------------------------------------------------------------------------


def _text(record: Fields, key: str) -> str:
    """A text, or a whole number as text."""
    value = record.need(key)
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    return record.string(key).strip()


def _answer(record: Fields) -> tuple[str, str | None]:
    """The answer, and the other one where there are two choices."""
    if "choices" in record and "answerKey" in record:
        return _choice(record)
    key = _first(record, ANSWER)
    if key is None:
        raise record.bad("answer", f"it is missing: expected one of {', '.join(ANSWER)}")
    return _text(record, key), None


def _own_answer(counterfactual: Fields) -> str | None:
    """The answer to one of MIB's counterfactuals, where it has one."""
    if "choices" in counterfactual and "answerKey" in counterfactual:
        return _choice(counterfactual)[0]
    key = _first(counterfactual, ANSWER)
    return None if key is None else _text(counterfactual, key)


def _choice(record: Fields) -> tuple[str, str | None]:
    """The choice that answerKey names, by its place or itself, and the other one where there are two. Choices with
    labels are answered by their labels."""
    labelled = isinstance(record.get("choices"), Mapping)
    of, name = (record.inside("choices"), "label") if labelled else (record, "choices")
    choices = of.get(name)
    if not isinstance(choices, list) or not choices:
        raise of.bad(name, f"expected a list of choices, got {'an empty list' if choices == [] else kind(choices)}")
    texts = [str(one).strip() if isinstance(one, int | str) else "" for one in choices]
    if not all(texts):
        raise of.bad(name, f"expected texts, got {kind(choices[texts.index('')])} or an empty text")
    key = record.need("answerKey")
    if isinstance(key, str) and key.strip() in texts:
        place = texts.index(key.strip())
    elif isinstance(key, str) and key.strip().isdecimal():
        place = int(key)
    elif isinstance(key, int) and not isinstance(key, bool):
        place = key
    else:
        raise record.bad("answerKey", f"expected one of the choices or its place, got {shown(key)}")
    if not 0 <= place < len(texts):
        raise record.bad("answerKey", f"expected a place among {len(texts)} choices, counted from 0, got {place}")
    other = texts[1 - place] if len(texts) == 2 and texts[0] != texts[1] else None
    return texts[place], other


# ---- the subject ------------------------------------------------------------------------------------------


def _placed(record: Fields, name: str, prompt: str, others: list[str], repeated: str | None) -> Placed:
    """The prompt with a place for its subject. repeated: S of IOI, which is the subject without a counterfactual."""
    subject = record.optional("subject")
    if subject is not None:
        try:
            return placed_or_found(prompt, subject, record.name(name))
        except Bad as bad:
            if PLACE in prompt or not (others or repeated):
                raise
            record.leave_out(bad)
    if others:
        begin, end = difference(prompt, others[0], record.name(name))
        return Placed(f"{prompt[:begin]}{PLACE}{prompt[end:]}", prompt[begin:end], "difference")
    if repeated is not None:
        spans = [one.span() for one in re.finditer(rf"(?<!\w){re.escape(repeated)}(?!\w)", prompt)]
        if not spans:
            raise record.bad(name, f"the subject {shown(repeated)} is absent from {shown(prompt)}")
        begin, end = spans[-1]
        many = f", last of {len(spans)}" if len(spans) > 1 else ""
        return Placed(f"{prompt[:begin]}{PLACE}{prompt[end:]}", repeated, f"exact{many}")
    raise record.bad("subject", "it is missing, and there is no counterfactual prompt")


def difference(prompt: str, other: str, field: str) -> tuple[int, int]:
    """Where a prompt differs from another one, [begin, end), in whole words and signs.

    A difference without a word of the prompt, as where the other one only has more words, is widened by what stands
    before it, or else after it. Raises Bad where the prompt has no word.
    """
    ours, theirs = (_PIECES.findall(text) for text in (prompt, other))
    first = len(_common(ours, theirs))
    most = min(len(ours), len(theirs)) - first
    last = len(_common(ours[::-1], theirs[::-1])[:most])
    while not any(re.search(r"\w", piece) for piece in ours[first : len(ours) - last]):
        if first:
            first -= 1
        elif last:
            last -= 1
        else:
            raise Bad(field, f"expected a prompt with words, got {shown(prompt)}")
    end = len(ours) - last
    while ours[first].isspace():
        first += 1
    while ours[end - 1].isspace():
        end -= 1
    begin = sum(map(len, ours[:first]))
    return begin, begin + sum(map(len, ours[first:end]))


def _common(ours: list[str], theirs: list[str]) -> list[str]:
    """What both lists begin with."""
    both = itertools.takewhile(lambda pair: pair[0] == pair[1], zip(ours, theirs, strict=False))
    return [one for one, _ in both]


def _fits(record: Mapping[str, Any]) -> bool:
    if "target_true" in record or "target_new" in record:
        return False
    return {"IO", "S"} <= record.keys() or any(map(_is_counterfactual, record))


FORMAT = Format(
    "pairs",
    "prompt pairs",
    marks(
        *(f"{a} {b}" for a in CLEAN[:3] for b in COUNTERFACTUAL),
        *(f"prompt counterfactual_prompt {answer}" for answer in ANSWER),
        "prompt choices answerKey",
        "prompt label random_counterfactual",
        *(f"{name} IO S" for name in CLEAN),
    ),
    parse,
    fits=_fits,
    begin=_begin,
)
