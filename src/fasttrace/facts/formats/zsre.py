"""zsRE (Levy et al. 2017) as MEND's authors wrote it (Mitchell et al. 2021, MIT), and EasyEdit's copy of it, which adds
a portability question.

There are two forms, by `zsre`:

"question": the prompt is "Question: <src> Answer:", the paraphrase "Question: <rephrase> Answer:" and the neighborhood
    prompt "Question: <loc>? Answer:", where loc has no "nq question: ". answers[0] is o_true. o_false is the answers[0]
    of another record, None if all are the same; a hash of the index draws it. The id is "zsre/question/<index>", the
    source "zsre". From the released code of the paper (dsets/zsre.py, eval_utils_counterfact.py).
"bare": src, rephrase and loc alone, as in the released ROME. alt is o_false (None where MEND wrote "" or o_true again).
    The id is "zsre/<index>", the source "zsre-bare", so that no regression pools the two.

loc is a neighborhood prompt as in the released code, which scores it by o_false, and a locality probe with its own
answer, loc_ans. EasyEdit's "New Question" is a portability probe.
"""

import hashlib
from bisect import bisect_left
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from fasttrace.errors import shown
from fasttrace.facts.fields import Fields, Parse, kind
from fasttrace.facts.formats.base import Format, marks
from fasttrace.facts.probe import Probe
from fasttrace.facts.record import Fact
from fasttrace.facts.sources import Item
from fasttrace.facts.subject import place_subject
from fasttrace.settings.study import ZsreForm

_LOC_PREFIX = "nq question: "


def parse(record: Fields, number: int) -> Iterator[Fact]:
    """The bare form."""
    alt = record.need("alt")
    false = None if alt == "" else record.string("alt").strip()
    yield _fact(record, number, _id("zsre", record, number), "zsre-bare", false, str, str)


def _begin(records: Iterable[Item], zsre: ZsreForm) -> Parse:
    if zsre == "bare":
        return parse
    answers = sorted({answer for item in records if (answer := _first_answer(item.value))})

    def questions(record: Fields, number: int) -> Iterator[Fact]:
        alt = record.need("alt")
        if alt != "":
            record.string("alt")
        true = _true(record)
        false = _another(answers, true, number)
        yield _fact(
            record, number, _id("zsre/question", record, number), "zsre", false, _asked, _asked_as_question, alt=alt
        )

    return questions


def _fact(
    record: Fields,
    number: int,
    fact_id: str,
    source: str,
    false: str | None,
    asked: Callable[[str], str],
    nearby_asked: Callable[[str], str],
    **meta: Any,
) -> Fact:
    question, subject = record.string("src"), record.string("subject")
    placed = place_subject(question, subject, record.name("src"))
    true = _true(record)
    paraphrase, nearby = record.optional("rephrase"), record.optional("loc")
    near: tuple[str, ...] = ()
    if nearby is not None:
        near = (nearby_asked(_not_empty(record, nearby.removeprefix(_LOC_PREFIX))),)
    answers, portability = record.answers("answers"), record.optional_inside("portability")
    return Fact(
        asked(placed.template),
        placed.subject,
        true,
        None if false == true else false,
        paraphrases=() if paraphrase is None else (asked(paraphrase),),
        neighborhood=near,
        fact_id=fact_id,
        source=source,
        probes=(*_probes(record, near, asked), *_portability(portability, asked)),
        subject_found=placed.how,
        meta={
            **record.rest(),
            **({} if portability is None else portability.rest()),
            **meta,
            **({"answers": list(answers)} if len(answers) > 1 else {}),
        },
    )


def _id(name: str, record: Fields, number: int) -> str:
    return "/".join(part for part in (name, record.path, str(number)) if part)


def _not_empty(record: Fields, loc: str) -> str:
    if not loc.strip():
        raise record.bad("loc", f"expected a string that is not empty, got {shown(loc)}")
    return loc


def _probes(record: Fields, near: Sequence[str], asked: Callable[[str], str]) -> Iterator[Probe]:
    answers = record.answers("loc_ans")
    if near and answers:
        yield Probe("locality", near[0], answers, "unchanged")
    elif answers:
        record.leave_out(record.bad("loc", "it is missing, so its answer is not asked for"))


def _portability(portability: Fields | None, asked: Callable[[str], str]) -> Iterator[Probe]:
    if portability is not None:
        question, answers = portability.optional("New Question"), portability.answers("New Answer")
        if question is not None and answers:
            yield Probe("portability", asked(question), answers)
        elif question is not None or answers:
            lacking = "New Answer" if question is not None else "New Question"
            portability.leave_out(portability.bad(lacking, "it is missing, so there is no portability probe"))


def _true(record: Fields) -> str:
    answers = record.need("answers")
    if not isinstance(answers, list) or not answers:
        found = "an empty list" if answers == [] else kind(answers)
        raise record.bad("answers", f"expected a list of at least one string, got {found}")
    return record.strings("answers")[0].strip()


def _asked(question: str) -> str:
    return f"Question: {question} Answer:"


def _asked_as_question(text: str) -> str:
    return _asked(f"{text}?")


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


FORMAT = Format("zsre", "zsRE", marks("src answers"), parse, hint=frozenset({"loc", "rephrase"}), begin=_begin)
