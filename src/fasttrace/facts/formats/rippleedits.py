"""RippleEdits (Cohen et al. 2023, arXiv 2307.12976, github.com/edenbiran/RippleEdits, MIT): popular, random and recent.

A record has whole sentences and no labels, so subject and answers follow from the phrase of its relation (PHRASES): the
edit's prompt is the phrase with the subject, a space, the new answer and a full stop. The old answer, o_true, follows
likewise from original_fact. The new one is o_false. Records of "recent" have no original_fact: their edit inserts a
fact that is true after all. Its answer is then o_true, there is no o_false, the problem fact-amplification edits it in,
and the fact's `meta` has "edit": "insertion".

Every test query is a probe, and all of its answers and aliases are right. Relation_Specificity and Forgetfulness expect
"unchanged". The others expect "changed", or "true" for an insertion. Conditions are not filtered on: RippleEdits asks
only the tests whose condition queries the model answers before the edit. `meta` has the number of these queries. The
same query in several tests is one probe.

The id is "rippleedits/<example_type>/<place in the file>", the relation its name in small letters.
"""

from collections.abc import Iterator

from fasttrace.errors import shown
from fasttrace.facts.fields import PLACE, Fields, two_targets
from fasttrace.facts.formats.base import Format, marks
from fasttrace.facts.formats.parts import INSERTED, expected, kind_of, numbered, objects, probes
from fasttrace.facts.probe import Expect, Probe
from fasttrace.facts.record import Fact

UNCHANGED = ("Relation_Specificity", "Relation_Specifity", "Forgetfulness")
AXES = (*UNCHANGED, "Logical_Generalization", "Subject_Aliasing", "Compositionality_I", "Compositionality_II")

# How the data set phrases its relations (its src/relation.py): what stands before the subject, and after it.
_NAMED = """
    MOTHER FATHER BROTHER SISTER SPOUSE UNCLE AUNT CHILD COUNTRY_OF_CITIZENSHIP STEPFATHER STEPMOTHER ALMA_MATER
    EMPLOYER FIELD_OF_WORK HEAD_OF_GOVERNMENT HEAD_OF_STATE ANTHEM AUTHOR EDITOR DIRECTOR SCREENWRITER ARCHITECT
    COMPOSER FOUNDER
"""
_PLAIN = """
    PLACE_OF_BIRTH PLACE_OF_DEATH PLACE_OF_BURIAL SEXUAL_ORIENTATION OCCUPATION EYE_COLOR DATE_OF_BIRTH DATE_OF_DEATH
    OFFICIAL_LANGUAGE
"""
PHRASES: dict[str, tuple[str, str]] = {
    **{name: (f"The name of the {name.lower().replace('_', ' ')} of", "is") for name in _NAMED.split()},
    **{name: (f"The {name.lower().replace('_', ' ')} of", "is") for name in _PLAIN.split()},
    "SIBLING": ("The names of the siblings of", "are"),
    "CAST_MEMBER": ("The names of the cast members of", "are"),
    "NUMBER_OF_CHILDREN": ("The number of children", "has is"),
    "SEX_OR_GENDER": ("The gender of", "is"),
    "NATIVE_LANGUAGE": ("The mother tongue of", "is"),
    "COUNTRY": ("The name of the country which", "is associated with is"),
    "ETHNIC_GROUP": ("The name of the ethnic group which", "is associated with is"),
    "RELIGION": ("The name of the religion which", "is associated with is"),
    "POSITION_HELD": ("The name of the position held by", "is"),
    "MEMBER_OF_SPORTS_TEAM": ("The name of the sports team which", "is a member of is"),
    "LEAGUE": ("The name of the league which", "plays in is"),
    "AWARD_RECEIVED": ("The name of the award", "won is"),
    "FOLLOWS": ("", "follows"),
    "FOLLOWED_BY": ("", "is followed by"),
    "IS_ALIVE": ("Is", "still alive?"),
    "CONTINENT": ("The name of the continent which", "is part of is"),
    "CAPITAL": ("The name of the capital city of", "is"),
    "CAPITAL_OF": ("The name of the country which", "is the capital of is"),
    "CURRENCY": ("The name of the currency in", "is"),
    "LIKELY_ANTHEM": ("The name of the anthem that is most likely to be performed in", "is"),
}


def parse(record: Fields, number: int) -> Iterator[Fact]:
    edit = record.inside("edit")
    name, sentence = edit.string("relation"), edit.string("prompt")
    if name not in PHRASES:
        raise edit.bad("relation", f"expected a relation of RippleEdits, got {shown(name)}, whose phrase is not known")
    original = edit.optional_inside("original_fact")
    old = None if original is None else original.string("prompt")
    subject = _subject(record, edit, name, sentence, old)
    new = _answer(name, subject, sentence)
    true, false = (new, None) if old is None else two_targets(_answer(name, subject, old), new, edit.name("prompt"))
    asked, conditions = _probes(record, false)
    kept = {} if original is None else {"original_fact": original.rest()}
    subset = record.text("example_type") or ""
    yield Fact(
        _prompt(name, PLACE),
        subject,
        true,
        false,
        relation=name.lower(),
        fact_id=f"rippleedits/{subset}/{number}" if subset.strip() else numbered("rippleedits", record, number),
        source="rippleedits",
        probes=tuple(dict.fromkeys(asked)),
        meta={
            **record.rest(),
            **edit.rest(),
            **kept,
            **({} if false is not None else INSERTED),
            "example_type": subset,
            "condition_queries": conditions,
        },
    )


def _prompt(relation: str, subject: str) -> str:
    before, after = PHRASES[relation]
    return f"{before} {subject} {after}".lstrip()


def _answer(relation: str, subject: str, sentence: str) -> str:
    """What follows the phrase with the subject in a sentence."""
    return sentence.rstrip().removesuffix(".")[len(_prompt(relation, subject)) :].strip()


def _subjects(relation: str, sentence: str) -> list[str]:
    """The subjects for which a sentence is the relation's phrase with the subject and an answer."""
    before, after = (f"{part} " if part else "" for part in PHRASES[relation])
    text = sentence.rstrip().removesuffix(".")
    if not text.startswith(before):
        return []
    rest, found = text[len(before) :], []
    at = rest.find(f" {after}")
    while at >= 0:
        if rest[:at].strip() and rest[at + 1 + len(after) :].strip():
            found.append(rest[:at])
        at = rest.find(f" {after}", at + 1)
    return found


def _subject(record: Fields, edit: Fields, relation: str, sentence: str, old: str | None) -> str:
    """The subject of an edit. Where its sentence can be read in several ways, that of the old fact decides, and then a
    test query about the same subject."""
    found = _subjects(relation, sentence)
    if old is not None:
        found = [one for one in found if one in _subjects(relation, old)]
    if not found:
        both = "" if old is None else f" and {shown(old)}"
        wanted = f"{_prompt(relation, '…')} …"
        raise edit.bad("prompt", f"expected the phrase {shown(wanted)} about one subject, got {shown(sentence)}{both}")
    if len(found) > 1:
        asked = list(_asked(record, edit.value.get("subject_id")))
        sure = [one for one in found if any(text == _prompt(name, one) for name, text in asked)]
        if len(sure) != 1:
            listed = " or ".join(shown(one) for one in found)
            raise edit.bad("prompt", f"expected one subject, got {listed} in {shown(sentence)}")
        found = sure
    return found[0]


def _asked(record: Fields, subject_id: object) -> Iterator[tuple[str, str]]:
    """(relation, prompt) of the test queries about a subject that have the phrase of their relation."""
    for axis in AXES:
        tests = record.value.get(axis)
        for test in tests if isinstance(tests, list) else ():
            queries = test.get("test_queries") if isinstance(test, dict) else None
            for query in queries if isinstance(queries, list) else ():
                if isinstance(query, dict) and query.get("subject_id") == subject_id:
                    name, text = query.get("relation"), query.get("prompt")
                    if isinstance(name, str) and isinstance(text, str) and name in PHRASES:
                        yield name, text


def _probes(record: Fields, false: str | None) -> tuple[list[Probe], int]:
    """The probes of all tests, and the number of their condition queries."""
    found: list[Probe] = []
    conditions = 0
    for axis in AXES:
        for test in objects(record, axis):
            for query in objects(test, "test_queries"):
                found += _query(query, axis, false)
            queries = test.get("condition_queries")
            conditions += len(queries) if isinstance(queries, list) else 0
    return found, conditions


def _query(query: Fields, axis: str, false: str | None) -> list[Probe]:
    answers = [one.value.get(key) for one in objects(query, "answers") for key in ("value", "aliases")]
    prompt = "prompt" if "prompt" in query else "phrase"
    one = Fields({prompt: query.get(prompt), "answers": answers}, query.prefix, query.left_out)
    expect: Expect = "unchanged" if axis in UNCHANGED else expected(false)
    return probes(one, kind_of(axis, "test"), prompt, "answers", expect, needed=True)


FORMAT = Format(
    "rippleedits",
    "RippleEdits",
    marks("example_type edit", *(f"edit {axis}" for axis in AXES)),
    parse,
)
