"""The formats of facts: which one a record has, and that any fault of a field is a sentence."""

import copy
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest
from published_records import (
    CIRCUIT,
    EASYEDIT,
    GOOGLE_RE,
    HUB_LAMA,
    IOI,
    KNOWEDIT,
    LRE,
    MERGED,
    MIB,
    MQUAKE,
    RIPPLE,
    SAMPLES,
    TREX,
    WIKIBIO,
    facts_or_message,
    lines,
    sentence,
)

from fasttrace.facts import load_facts
from fasttrace.facts.formats import FORMATS, detect
from fasttrace.settings.study import FactFormat


def test_every_format_can_be_named() -> None:
    assert set(get_args(FactFormat)) == {"auto", *FORMATS}
    assert {format for format, _ in SAMPLES.values()} == set(FORMATS)


@pytest.mark.parametrize("name", SAMPLES)
def test_detected(name: str) -> None:
    format, record = SAMPLES[name]
    marked = [each.name for each in FORMATS.values() if each.marked(record)]
    assert marked[0] == format
    assert set(marked) <= {format, "easyedit"}, "the flat fields of KnowEdit are those of EasyEdit"
    for more in ({}, {"extra": 1}, {"notes": ["a"], "extra": None}, {"Split": "test", "idx": 3}):
        assert detect("x", [5, {}, {**record, **more}]).name == format
        assert detect("x", [{**more, **record}]).name == format


@pytest.mark.parametrize("name", SAMPLES)
def test_an_extra_column_refuses_nothing_and_is_kept(name: str, tmp_path: Path) -> None:
    format, record = SAMPLES[name]
    plain = load_facts([record], format=format)
    more = load_facts([{**record, "extra": {"a": [1]}}])
    assert plain == more
    assert more[-1].meta["extra"] == {"a": [1]}
    assert {fact.source for fact in plain} == {format}
    from_file = load_facts(lines(tmp_path, "x.jsonl", record, 5), on_bad="skip", rejected=[])
    assert [fact.text for fact in from_file] == [fact.text for fact in plain]


REPLACED = (None, 5, "", [], {}, ["x"], {"a": 1}, True, "x", [[]], [None], "{}", "[MASK]", "\ud800")


def variants(record: dict[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    """The record with any one value inside replaced by each of REPLACED, or missing."""

    def places(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[Any, ...]]:
        inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
        for key, each in inside:
            yield (*path, key)
            yield from places(each, (*path, key))

    for *path, last in places(record, ()):
        for value in ("missing", *REPLACED):
            changed = copy.deepcopy(record)
            parent: Any = changed
            for key in path:
                parent = parent[key]
            if value == "missing":
                del parent[last]
            else:
                parent[last] = value
            yield ".".join(map(str, (*path, last))), changed


@pytest.mark.parametrize("name", SAMPLES)
def test_any_field_replaced_gives_facts_or_a_sentence(name: str) -> None:
    format, record = SAMPLES[name]
    for field, changed in variants(record):
        for options in ({"format": format}, {}):
            facts, message = facts_or_message([changed], **options)
            assert facts or message, field
            assert "\n" not in message, field
            message.encode()


FAULTS: dict[str, tuple[dict[str, Any], str, str]] = {
    "no prompt": (EASYEDIT | {"prompt": 5}, "prompt", "a number"),
    "no subject in the prompt": (EASYEDIT | {"subject": "Bonn"}, "prompt", "absent"),
    "no new target": (EASYEDIT | {"target_new": ""}, "target_new", "not empty"),
    "both targets the same": (EASYEDIT | {"target_new": "Ada"}, "target_new", "differs from the true one"),
    "target in a list": (KNOWEDIT | {"target_new": [5.5]}, "target_new[0]", "a number"),
    "no concept": (WIKIBIO | {"concept": None}, "concept", "null"),
    "edit is a list": (RIPPLE | {"edit": []}, "edit", "a list"),
    "unknown relation": (RIPPLE | {"edit": RIPPLE["edit"] | {"relation": "PET"}}, "edit.relation", "not known"),
    "other phrase": (RIPPLE | {"edit": RIPPLE["edit"] | {"prompt": "Ada is Syrian."}}, "edit.prompt", "the phrase"),
    "samples are an object": (LRE | {"samples": {}}, "samples", "a JSON object"),
    "no sample": (LRE | {"samples": []}, "samples", "an empty list"),
    "no place": (LRE | {"prompt_templates": ["x"], "prompt_templates_zs": []}, "prompt_templates[0]", "absent"),
    "no template": (LRE | {"prompt_templates": [], "prompt_templates_zs": []}, "prompt_templates", "got none"),
    "no name": (LRE | {"name": None}, "name", "null"),
    "object in the middle": (MERGED | {"pattern": "[Y] has [X]."}, "pattern", "at the end"),
    "label is a number": (MERGED | {"obj_label": 5}, "obj_label", "a number"),
    "nothing ends in the mask": (TREX | {"evidences": TREX["evidences"][:1]}, "evidences[0].masked_sentence", "end"),
    "no sentence": (TREX | {"evidences": []}, "template", "masked sentences"),
    "question of squad": (GOOGLE_RE | {"sub_label": "Squad"}, "masked_sentences[0]", "the subject 'Squad'"),
    "object of the template": (HUB_LAMA | {"template": "[Y] and [X].", "masked_sentence": None}, "template", "end"),
    "no answer": ({k: v for k, v in CIRCUIT.items() if k != "clean_answer"}, "answer", "one of answer, clean_answer"),
    "answer is a list": (CIRCUIT | {"clean_answer": ["has"]}, "clean_answer", "a list"),
    "counterfactual is a number": (CIRCUIT | {"patch_prefix": 5}, "patch_prefix", "a number"),
    "place of a choice": (MIB | {"answerKey": 2}, "answerKey", "2 choices"),
    "no such choice": (MIB | {"answerKey": "Cy"}, "answerKey", "one of the choices"),
    "no choices": (MIB | {"choices": []}, "choices", "an empty list"),
    "S is absent": (IOI | {"S": "Cy"}, "ioi_sentence", "'Cy' is absent"),
    "S is IO": (IOI | {"S": "Ann"}, "target_false", "differs from the true one"),
    "a rewrite without a place": (
        MQUAKE | {"requested_rewrite": [MQUAKE["requested_rewrite"][0] | {"prompt": "Zog is in"}]},
        "requested_rewrite[0].prompt",
        "absent",
    ),
    "a rewrite is a text": (MQUAKE | {"requested_rewrite": ["x"]}, "requested_rewrite[0]", "a string"),
    "no case": (MQUAKE | {"case_id": None}, "case_id", "null"),
}


@pytest.mark.parametrize("name", FAULTS)
def test_a_bad_field_gives_a_sentence_with_its_record_and_name(name: str) -> None:
    record, field, words = FAULTS[name]
    format = next(each for each, good in SAMPLES.values() if set(good) & set(record) >= set(record) - {"extra"})
    message = sentence([record], format=format)
    assert message.startswith("the list, record 0 (counted from 0)")
    assert f"field '{field}'" in message
    assert words in message
