"""The formats of published data sets, on small invented records in their layouts."""

import copy
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args

import pytest

from fasttrace.errors import FactError
from fasttrace.facts import Fact, Probe, load_facts
from fasttrace.facts.formats import FORMATS, detect
from fasttrace.facts.formats.pairs import difference
from fasttrace.facts.formats.rippleedits import PHRASES
from fasttrace.facts.load import read_facts
from fasttrace.settings.study import FactFormat, FactSettings

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"

EASYEDIT: dict[str, Any] = {
    "case_id": 12,
    "prompt": "The mayor of Ulm is",
    "target_new": "Cleo",
    "subject": "Ulm",
    "ground_truth": ["Ada", "Ada B."],
    "rephrase_prompt": "Ulm has a mayor named",
    "locality_prompt": "The mayor of Bonn is",
    "locality_ground_truth": "Bob",
    "portability_prompt": "The mayor of Ulm was born in",
    "portability_ground_truth": "Rome",
    "relation_id": "P6",
}
KNOWEDIT: dict[str, Any] = {
    "subject": "Ulm",
    "prompt": "The name of the mayor of Ulm is",
    "target_new": "Cleo",
    "ground_truth": "Ada",
    "rephrase": "Who is the mayor of Ulm?",
    "portability": {
        "Subject_Aliasing": [{"prompt": "The name of the mayor of Ulm (Donau) is", "ground_truth": "Cleo"}],
        "Logical_Generalization": [{"prompt": "Is Ada mayor?", "ground_truth": [["no"], ["incorrect", "false"]]}],
        "Reasoning": [{"prompt": "The mother of the mayor of Ulm is", "ground_truth": ["Dora"]}],
    },
    "locality": {
        "Relation_Specificity": [{"prompt": ["The river of Ulm is"], "ground_truth": [["Danube", "Donau"]]}],
        "Forgetfulness": [{"prompt": "The mayor of Ulm, which is not Cleo, is", "ground_truth": "Ada"}],
    },
}
RECENT = {key: value for key, value in KNOWEDIT.items() if key != "ground_truth"}
WIKIBIO: dict[str, Any] = {
    "text": "This is a passage about ada bell. Ada Bell was a chemist.",
    "labels": "She worked in Ulm.",
    "concept": "ada bell",
    "locality": {"Relation_Specificity": [{"prompt": "ada bell field of work", "ground_truth": ["chemistry"]}]},
}
MQUAKE: dict[str, Any] = {
    "case_id": 5,
    "requested_rewrite": [
        {
            "prompt": "{} is played in",
            "relation_id": "P1",
            "target_new": {"str": "Peru", "id": "Q2"},
            "target_true": {"str": "Oman", "id": "Q1"},
            "subject": "Zog",
            "question": "Where is Zog played?",
        },
        {
            "prompt": "The capital of {} is",
            "relation_id": "P36",
            "target_new": {"str": "Cusco", "id": "Q4"},
            "target_true": {"str": "Lima", "id": "Q3"},
            "subject": "Peru",
            "question": "What is the capital of Peru?",
        },
    ],
    "questions": ["In which region is the capital of Zog's country?", "Zog is played near the region of"],
    "answer": "Muscat",
    "answer_alias": ["Maskat"],
    "new_answer": "Andes",
    "new_answer_alias": ["the Andes"],
    "single_hops": [
        {"question": "Where is Zog played?", "cloze": "Zog is played in", "answer": "Oman", "answer_alias": []},
    ],
    "new_single_hops": [
        {"question": "Where is Zog played?", "cloze": "Zog is played in", "answer": "Peru", "answer_alias": ["PE"]},
        {"question": "What is the capital of Peru?", "cloze": "The capital of Peru is", "answer": "Cusco"},
        {"question": "Which region has Cusco?", "cloze": "Cusco is in the", "answer": "Andes", "answer_alias": []},
    ],
    "orig": {"triples": [["Q0", "P1", "Q1"]]},
}


def _query(prompt: str, value: str, *aliases: str, **more: Any) -> dict[str, Any]:
    answers = [{"value": value, "aliases": list(aliases)}]
    return {"prompt": prompt, "answers": answers, "query_type": "regular", "phrase": None, **more}


def _tests(*queries: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"test_queries": list(queries), "test_condition": "OR", "condition_queries": [queries[0]]}]


RIPPLE: dict[str, Any] = {
    "example_type": "popular",
    "edit": {
        "prompt": "The name of the country of citizenship of Ada Bell is Syria.",
        "subject_id": "Q9",
        "relation": "COUNTRY_OF_CITIZENSHIP",
        "target_id": "Q858",
        "original_fact": {
            "prompt": "The name of the country of citizenship of Ada Bell is Washington D.C..",
            "subject_id": "Q9",
            "relation": "COUNTRY_OF_CITIZENSHIP",
            "target_id": "Q30",
        },
    },
    "Relation_Specificity": _tests(_query("The name of the mother of Ada Bell is", "Eve", "Eva")),
    "Logical_Generalization": _tests(_query("Ada Bell's language is", "Arabic")),
    "Subject_Aliasing": _tests(_query("The name of the country of citizenship of A. Bell is", "Syria")),
    "Compositionality_I": _tests(_query("The capital of Ada Bell's country is", "Damascus")),
    "Compositionality_II": [],
    "Forgetfulness": _tests(_query("The country that is not Syria is", "Washington D.C.")),
}
NEW_RIPPLE = {
    **RIPPLE,
    "example_type": "recent",
    "edit": {key: value for key, value in RIPPLE["edit"].items() if key != "original_fact"},
}
LRE: dict[str, Any] = {
    "name": "country capital city",
    "prompt_templates": ["The capital city of {} is", "{}'s capital is"],
    "prompt_templates_zs": ["The capital of {} is the city of"],
    "properties": {"domain_name": "country"},
    "samples": [
        {"subject": "Oman", "object": "Muscat"},
        {"subject": "Brazil", "object": "Bras\\u00edlia", "rank": 1},
        {"subject": "Oman", "object": "Muscat"},
    ],
}
PATTERN = {"pattern": "[X] is located in [Y].", "lemma": "locate", "extended_lemma": "is-locate", "tense": "present"}
TUPLE = {"sub_label": "Ulm", "obj_label": "Germany", "uuid": "u1"}
MERGED = {"pattern": "[X] is located in [Y].", "sub_label": "Ulm", "obj_label": "Germany"}
TREX: dict[str, Any] = {
    "uuid": "u2",
    "obj_label": "Rome",
    "sub_label": "Ada Bell",
    "predicate_id": "P19",
    "evidences": [
        {"masked_sentence": "In [MASK] was Bell born.", "sub_surface": "Bell", "obj_surface": "Rome"},
        {"masked_sentence": "A. Bell was born in [MASK] .", "sub_surface": "A. Bell", "obj_surface": "Roma"},
    ],
}
HUB_LAMA: dict[str, Any] = {
    "uuid": "u3",
    "obj_label": "Rome",
    "sub_label": "Ada Bell",
    "predicate_id": "P19",
    "template": "[X] was born in [Y] .",
    "masked_sentence": "Bell is from [MASK] .",
    "type": "N-1",
}
GOOGLE_RE: dict[str, Any] = {
    "pred": "/people/person/place_of_birth",
    "sub_label": "Ada Bell",
    "obj_label": "Rome",
    "uuid": "u4",
    "masked_sentences": ["Ada Bell (1900) was born in [MASK] ."],
}
CONCEPTNET: dict[str, Any] = {
    "sub": "alive",
    "obj": "think",
    "pred": "HasSubevent",
    "masked_sentences": ["If you are alive you can [MASK]."],
    "obj_label": "think",
    "uuid": "u5",
}
CIRCUIT: dict[str, Any] = {
    "clean_prefix": "The uncle of Ann",
    "patch_prefix": "The uncles of Ann",
    "clean_answer": " has",
    "patch_answer": " have",
    "case": "singular",
}
MIB: dict[str, Any] = {
    "prompt": "Ann and Bob met. Bob saw",
    "choices": ["Ann", "Bob"],
    "answerKey": 0,
    "flip_counterfactual": {"prompt": "Ann and Bob met. Ann saw", "choices": ["Ann", "Bob"], "answerKey": 1},
    "abc_counterfactual": {"prompt": "Cy and Dan met. Eve saw", "choices": ["Cy", "Dan"], "answerKey": "Dan"},
    "metadata": {"object": "none"},
}
IOI: dict[str, Any] = {"ioi_sentence": "Ann and Bob met, and Bob gave it to Ann", "IO": "Ann", "S": "Bob"}
MULTI: dict[str, Any] = {
    "case_id": 3,
    "pararel_idx": 90,
    "requested_rewrite": {
        "prompt": "{} speaks",
        "relation_id": "P103",
        "target_new": {"str": "Greek", "id": "Q35"},
        "target_true": {"str": "Dutch", "id": "Q36"},
        "subject": "Ada Bell",
    },
    "paraphrase_prompts": ["Ada Bell talks in"],
    "neighborhood_prompts": ["Bob speaks"],
    "attribute_prompts": ["Cleo speaks"],
    "generation_prompts": ["Ada Bell's mother tongue is"],
}
ZSRE: dict[str, Any] = {
    "subject": "Ada Bell",
    "src": "Where was Ada Bell born?",
    "rephrase": "What is Ada Bell's place of birth?",
    "alt": "Oslo",
    "answers": ["Rome"],
    "loc": "nq question: who made it",
    "loc_ans": "nobody",
    "portability": {
        "Recalled Relation": "(Oslo, country, Norway)",
        "New Question": "In which country was Ada Bell born?",
        "New Answer": "Norway",
    },
}
KNOWN = {"known_id": 1, "subject": "Ada", "attribute": "Rome", "template": "{} lives in"}
OWN = {"prompt": "{} lives in", "subject": "Ada", "target_true": "London"}

# name → (its format, a record)
SAMPLES: dict[str, tuple[str, dict[str, Any]]] = {
    "easyedit": ("easyedit", EASYEDIT),
    "knowedit": ("knowedit", KNOWEDIT),
    "wiki_recent": ("knowedit", RECENT),
    "wikibio": ("knowedit", WIKIBIO),
    "mquake": ("mquake", MQUAKE),
    "rippleedits": ("rippleedits", RIPPLE),
    "recent rippleedits": ("rippleedits", NEW_RIPPLE),
    "relations": ("relations", LRE),
    "pararel": ("pararel", MERGED),
    "t-rex": ("lama", TREX),
    "lama of the hub": ("lama", HUB_LAMA),
    "google-re": ("lama", GOOGLE_RE),
    "conceptnet": ("lama", CONCEPTNET),
    "feature circuits": ("pairs", CIRCUIT),
    "mib": ("pairs", MIB),
    "ioi": ("pairs", IOI),
    "multi_counterfact": ("counterfact", MULTI),
    "zsre": ("zsre", ZSRE),
    "known": ("known", KNOWN),
    "own": ("own", OWN),
}


def one(record: dict[str, Any], **options: Any) -> Fact:
    [fact] = load_facts([record], **options)
    return fact


def left_out(source: Any, **options: Any) -> list[str]:
    """The sentences about what is left out."""
    loaded = read_facts(source, FactSettings(on_bad="skip", **options))
    return [each.sentence(loaded.source) for each in loaded.left_out]


def sentence(source: Any, **options: Any) -> str:
    """The message of the FactError that loading raises, one sentence on one line."""
    with pytest.raises(FactError) as caught:
        load_facts(source, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert len(message) < 4000
    return message


def facts_or_message(source: Any, **options: Any) -> tuple[list[Fact], str]:
    try:
        return load_facts(source, **options), ""
    except FactError as error:
        return [], str(error)


def lines(folder: Path, name: str, *records: Any) -> Path:
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(record) + "\n" for record in records), encoding="utf-8")
    return path


# ---- detection and robustness -----------------------------------------------------------------------------


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


# ---- edits ------------------------------------------------------------------------------------------------


def test_easyedit_flat_records_with_a_case_id_are_not_taken_for_counterfact() -> None:
    assert one(EASYEDIT) == Fact(
        "The mayor of {} is",
        "Ulm",
        "Ada",
        "Cleo",
        relation="P6",
        paraphrases=("Ulm has a mayor named",),
        fact_id="easyedit/12",
        source="easyedit",
        probes=(
            Probe("locality", "The mayor of Bonn is", ("Bob",), "unchanged"),
            Probe("portability", "The mayor of Ulm was born in", ("Rome",), "changed"),
        ),
    )
    fact = one(EASYEDIT)
    assert (fact.subject_found, fact.meta) == ("exact", {"ground_truth": ["Ada", "Ada B."]})
    assert "field 'target_new': it is missing" in sentence(
        [{key: value for key, value in EASYEDIT.items() if key != "target_new"}], format="easyedit"
    )
    assert "requested_rewrite" not in sentence([{**EASYEDIT, "prompt": None}])


def test_easyedit_with_a_nested_question_and_a_placeholder() -> None:
    record = {key: value for key, value in EASYEDIT.items() if key not in ("case_id", "locality_ground_truth")}
    portability = {"New Question": "Who is mayor?", "New Answer": ["Cleo"], "Recalled Relation": "(a, b, c)"}
    fact = one(record | {"prompt": "The mayor of <subject> is", "portability": portability, "portability_prompt": None})
    assert (fact.prompt, fact.fact_id, fact.subject_found) == ("The mayor of {} is", "easyedit/0", "template")
    assert fact.probes == (Probe("portability", "Who is mayor?", ("Cleo",)),)
    assert fact.meta["Recalled Relation"] == "(a, b, c)"
    said = left_out([record | {"portability": portability, "portability_ground_truth": ""}])
    assert len(said) == 2
    assert "field 'locality_ground_truth': the prompt 'The mayor of Bonn is' has no answer" in said[0]


@pytest.mark.parametrize("truth", [None, "", [], [""], "<|endoftext|>"])
def test_an_edit_without_an_old_answer_inserts_a_fact(truth: Any) -> None:
    for record in (EASYEDIT | {"ground_truth": truth}, KNOWEDIT | {"ground_truth": truth}):
        fact = one(record)
        assert (fact.target_true, fact.target_false, fact.meta["edit"]) == ("Cleo", None, "insertion")
        assert {probe.expect for probe in fact.probes} == {"unchanged", "true"}


def test_knowedit() -> None:
    fact = one(KNOWEDIT)
    assert fact == Fact(
        "The name of the mayor of {} is",
        "Ulm",
        "Ada",
        "Cleo",
        paraphrases=("Who is the mayor of Ulm?",),
        fact_id="knowedit/0",
        source="knowedit",
        probes=(
            Probe("alias", "The name of the mayor of Ulm (Donau) is", ("Cleo",), "changed"),
            Probe("logical-generalization", "Is Ada mayor?", ("no", "incorrect", "false"), "changed"),
            Probe("reasoning", "The mother of the mayor of Ulm is", ("Dora",), "changed"),
            Probe("relation-specificity", "The river of Ulm is", ("Danube", "Donau"), "unchanged"),
            Probe("forgetfulness", "The mayor of Ulm, which is not Cleo, is", ("Ada",), "unchanged"),
        ),
    )
    assert fact.meta == {}


def test_knowedit_ids_have_the_file(tmp_path: Path) -> None:
    for name in ("recent", "counterfact"):
        (tmp_path / f"{name}.json").write_text(json.dumps([KNOWEDIT, RECENT]))
    facts = load_facts(tmp_path)
    assert [fact.fact_id for fact in facts] == [
        "knowedit/counterfact/0",
        "knowedit/counterfact/1",
        "knowedit/recent/0",
        "knowedit/recent/1",
    ]


def test_wikibio() -> None:
    fact = one(WIKIBIO)
    assert fact.prompt == "This is a passage about {}. Ada Bell was a chemist."
    assert (fact.subject, fact.target_true, fact.target_false) == ("ada bell", "She worked in Ulm.", None)
    assert fact.probes == (Probe("relation-specificity", "ada bell field of work", ("chemistry",)),)


def test_probes_of_knowedit_that_cannot_be_asked_are_said() -> None:
    locality = {
        "Other Axis!": [{"prompt": "The lake of Ulm is", "ground_truth": "none"}, {"prompt": "x", "ground_truth": []}],
        "rewrite": [{"prompt": "x", "ground_truth": "y"}],
        "多": {"prompt": ["a b", "c d"], "ground_truth": ["e", ["f", "g"]]},
        "Relation_Specificity": [{"prompt": 5, "ground_truth": "x"}, 7, {}, {"prompt": ["a", "b"], "ground_truth": 1}],
        "Forgetfulness": "x",
    }
    fact = one(KNOWEDIT | {"locality": locality, "portability": 5, "rephrase": 5})
    assert fact.paraphrases == ()
    assert fact.probes == (
        Probe("other-axis", "The lake of Ulm is", ("none",), "unchanged"),
        Probe("locality", "a b", ("e",)),
        Probe("locality", "c d", ("f", "g")),
    )
    said = left_out([KNOWEDIT | {"locality": locality, "portability": 5, "rephrase": 5}])
    assert [each.split("field '")[1].partition("'")[0] for each in said] == [
        "rephrase",
        "portability",
        "locality.Other Axis![1].ground_truth",
        "locality.rewrite[0].prompt",
        "locality.Relation_Specificity[1]",
        "locality.Relation_Specificity[0].prompt",
        "locality.Relation_Specificity[2].prompt",
        "locality.Relation_Specificity[3].ground_truth",
        "locality.Forgetfulness",
    ]


def test_mquake() -> None:
    first, second = load_facts([MQUAKE])
    assert first == Fact(
        "{} is played in",
        "Zog",
        "Oman",
        "Peru",
        relation="P1",
        paraphrases=("Where is Zog played?",),
        fact_id="mquake/5/0",
        source="mquake",
        case_id="mquake/5",
        case_edits=2,
    )
    assert first.meta == {"target_true": {"id": "Q1"}, "target_new": {"id": "Q2"}}
    assert (second.fact_id, second.case_id, second.case_edits) == ("mquake/5/1", "mquake/5", 2)
    assert second.probes == (
        *(Probe("multi-hop", text, ("Andes", "the Andes"), "changed", "case") for text in MQUAKE["questions"]),
        Probe("single-hop", "Zog is played in", ("Peru", "PE"), "changed", "case"),
        Probe("single-hop", "The capital of Peru is", ("Cusco",), "changed", "case"),
        Probe("single-hop", "Cusco is in the", ("Andes",), "unchanged", "case"),
    )
    assert (second.meta["answer"], second.meta["answer_alias"]) == ("Muscat", ["Maskat"])
    assert second.meta["single_hops"] == MQUAKE["single_hops"]


def test_mquake_with_one_edit_and_a_limit() -> None:
    single = MQUAKE | {"case_id": "a", "requested_rewrite": MQUAKE["requested_rewrite"][:1]}
    fact = one(single)
    assert (fact.fact_id, fact.case_id, fact.case_edits) == ("mquake/a/0", None, 1)
    assert {probe.after for probe in fact.probes} == {"edit"}
    assert [probe.expect for probe in fact.probes] == ["changed", "changed", "changed", "unchanged", "unchanged"]
    assert [each.fact_id for each in load_facts([MQUAKE, single], limit=2)] == ["mquake/5/0", "mquake/5/1"]
    assert [each.fact_id for each in load_facts([single, MQUAKE], limit=2)] == ["mquake/a/0"]


def test_rippleedits() -> None:
    fact = one(RIPPLE)
    assert fact == Fact(
        "The name of the country of citizenship of {} is",
        "Ada Bell",
        "Washington D.C.",
        "Syria",
        relation="country_of_citizenship",
        fact_id="rippleedits/popular/0",
        source="rippleedits",
        probes=(
            Probe("relation-specificity", "The name of the mother of Ada Bell is", ("Eve", "Eva"), "unchanged"),
            Probe("forgetfulness", "The country that is not Syria is", ("Washington D.C.",), "unchanged"),
            Probe("logical-generalization", "Ada Bell's language is", ("Arabic",), "changed"),
            Probe("alias", "The name of the country of citizenship of A. Bell is", ("Syria",), "changed"),
            Probe("compositionality-1", "The capital of Ada Bell's country is", ("Damascus",), "changed"),
        ),
    )
    assert (fact.meta["condition_queries"], fact.meta["subject_id"], fact.meta["target_id"]) == (5, "Q9", "Q858")
    assert fact.meta["original_fact"]["target_id"] == "Q30"


def test_a_recent_edit_of_rippleedits_inserts_a_fact() -> None:
    fact = one(NEW_RIPPLE | {"Relation_Specifity": RIPPLE["Forgetfulness"], "Forgetfulness": []})
    assert (fact.target_true, fact.target_false, fact.meta["edit"]) == ("Syria", None, "insertion")
    assert {probe.expect for probe in fact.probes} == {"unchanged", "true"}
    assert [probe.kind for probe in fact.probes].count("relation-specificity") == 2


def test_the_subject_of_rippleedits_follows_from_both_facts_and_the_test_queries() -> None:
    def edit(new: str, old: str | None, **more: Any) -> dict[str, Any]:
        original = {} if old is None else {"original_fact": {"prompt": old}}
        return {
            "example_type": "x",
            "edit": {"prompt": new, "relation": "SEX_OR_GENDER", "subject_id": "Q1", **original},
        }

    fact = one(edit("The gender of Ada is what is male.", "The gender of Ada is female."))
    assert (fact.subject, fact.target_true, fact.target_false) == ("Ada", "female", "what is male")
    twice = edit("The gender of What is it is male.", None)
    assert "expected one subject, got 'What' or 'What is it' in" in sentence([twice])
    query = _query("The name of the mother of What is it is", "Eve", subject_id="Q1", relation="MOTHER")
    fact = one(twice | {"Forgetfulness": _tests(query)})
    assert (fact.subject, fact.target_true) == ("What is it", "male")


def test_every_phrase_of_rippleedits_gives_its_subject_back() -> None:
    for relation, (before, after) in PHRASES.items():
        prompt = f"{before} Ada Bell {after}".strip()
        fact = one({"example_type": "x", "edit": {"prompt": f"{prompt} Rome.", "relation": relation}})
        assert (fact.text, fact.subject, fact.target_true) == (prompt, "Ada Bell", "Rome")


def test_multi_counterfact() -> None:
    fact = one(MULTI)
    assert (fact.fact_id, fact.target_true, fact.target_false) == ("counterfact/3", "Dutch", "Greek")
    assert fact.meta == {
        "pararel_idx": 90,
        "attribute_prompts": ["Cleo speaks"],
        "generation_prompts": ["Ada Bell's mother tongue is"],
        "target_true": {"id": "Q36"},
        "target_new": {"id": "Q35"},
    }


def test_portability_of_zsre() -> None:
    fact = one(ZSRE, zsre="bare")
    assert fact.probes[1] == Probe("portability", "In which country was Ada Bell born?", ("Norway",), "changed")
    assert fact.meta["Recalled Relation"] == "(Oslo, country, Norway)"
    asked = one(ZSRE).probes
    assert [probe.kind for probe in asked] == ["locality", "portability"]
    assert asked[1].prompt == "Question: In which country was Ada Bell born? Answer:"
    assert "New Answer" in left_out([ZSRE | {"portability": {"New Question": "Why?"}}])[0]


# ---- relations and templates ------------------------------------------------------------------------------


def test_relations() -> None:
    first, second, third = load_facts([LRE])
    assert first == Fact(
        "The capital of {} is the city of",
        "Oman",
        "Muscat",
        relation="country capital city",
        paraphrases=("The capital city of Oman is", "Oman's capital is"),
        fact_id="relations/country_capital_city/0",
        source="relations",
    )
    assert (second.target_true, second.meta) == (
        "Brasília",
        {"properties": {"domain_name": "country"}, "rank": 1, "decoded": True},
    )
    assert third.fact_id == "relations/country_capital_city/2"


def test_relations_in_a_file_with_bad_samples_and_templates(tmp_path: Path) -> None:
    samples = [{"subject": "Oman"}, 5, {"subject": "A\\ud83d\\ude00", "object": "B\\ud800"}]
    record = LRE | {"samples": samples, "prompt_templates_zs": ["[X] is in", "no place"], "prompt_templates": []}
    path = tmp_path / "r.json"
    path.write_text(json.dumps(record, indent=1))
    assert "record 0 (counted from 0), field 'samples[0].object': it is missing" in sentence(path)
    rejected: list[str] = []
    [fact] = load_facts(path, on_bad="skip", rejected=rejected)
    assert (fact.prompt, fact.subject, fact.target_true) == ("{} is in", "A😀", "B\\ud800")
    assert [each.partition("field ")[2].partition(":")[0] for each in rejected] == [
        "'samples[0].object'",
        "'samples[1]'",
    ]
    assert any("prompt_templates_zs[1]" in each for each in left_out(path))


def test_all_relations_of_the_shared_data() -> None:
    folder = SHARED / "relations"
    if not folder.exists():
        pytest.skip("relations is not in ../shared/data")
    files = sorted(folder.glob("*.json"))
    raw = [json.loads(path.read_text()) for path in files]
    facts = load_facts(folder)
    assert len(facts) == sum(len(each["samples"]) for each in raw) == len({fact.fact_id for fact in facts})
    assert [len(load_facts(path)) for path in files] == [len(each["samples"]) for each in raw]
    assert {fact.relation for fact in facts} == {each["name"] for each in raw}
    assert "Brasília" in {fact.target_true for fact in facts}
    assert not any("\\u" in text for fact in facts for text in (fact.subject, fact.target_true))
    assert {fact.target_true for fact in facts if fact.meta.get("decoded")} == {"Brasília", "Bogotá"}


def test_pararel_of_a_folder(tmp_path: Path) -> None:
    second = PATTERN | {"pattern": "[X], in [Y]"}
    middle = PATTERN | {"pattern": "[Y] is where [X] is."}
    lines(tmp_path, "graphs_json/P17.jsonl", middle, PATTERN, second, middle)
    lines(
        tmp_path, "trex_lms_vocab/P17.jsonl", TUPLE, TUPLE | {"uuid": None, "sub_label": "Lyon", "obj_label": "France"}
    )
    lines(tmp_path, "trex_lms_vocab/P31.jsonl", TUPLE, TUPLE)
    lines(tmp_path, "graphs_json/P40.jsonl", PATTERN)
    first, last = load_facts(tmp_path)
    assert first == Fact(
        "{} is located in",
        "Ulm",
        "Germany",
        relation="P17",
        paraphrases=("Ulm, in",),
        fact_id="pararel/P17/u1",
        source="pararel",
    )
    assert first.meta == {"pattern": {"lemma": "locate", "extended_lemma": "is-locate", "tense": "present"}}
    assert last.fact_id == "pararel/P17/2"
    said = left_out(tmp_path)
    assert len(said) == 3
    assert "P17.jsonl, line 1, field 'pattern': expected the object [Y] once and at the end" in said[0]
    assert "expected tuples of the relation P40" in said[1]
    assert "expected patterns of the relation P31" in said[2]


def test_pararel_that_lacks_one_of_its_files(tmp_path: Path) -> None:
    tuples = lines(tmp_path, "tuples/P17.jsonl", TUPLE)
    patterns = lines(tmp_path, "patterns/P17.jsonl", PATTERN)
    assert "line 1: expected patterns of the relation P17" in sentence(tuples)
    assert "line 1: expected tuples of the relation P17" in sentence(patterns)
    assert [fact.relation for fact in load_facts([PATTERN, TUPLE])] == [None]


def test_pararel_lines_with_both() -> None:
    facts = load_facts([MERGED, MERGED | {"pattern": "[X] is part of [Y] ."}, MERGED | {"sub_label": "Bonn"}])
    assert [(fact.text, fact.paraphrases) for fact in facts] == [
        ("Ulm is located in", ("Ulm is part of",)),
        ("Bonn is located in", ()),
    ]


def test_lama_of_a_folder_with_relations(tmp_path: Path) -> None:
    relation = {"relation": "P19", "template": "[X] was born in [Y] .", "label": "place of birth", "type": "N-1"}
    twins = {"relation": "P190", "template": "[X] and [Y] are twins .", "label": "twin", "type": "N-M"}
    lines(tmp_path, "TREx/P19.jsonl", TREX)
    lines(tmp_path, "TREx/P190.jsonl", TREX | {"uuid": "u9", "predicate_id": "P190"})
    lines(tmp_path, "relations.jsonl", relation)
    first, second = load_facts(tmp_path)
    assert first == Fact("{} was born in", "Ada Bell", "Rome", relation="P19", fact_id="lama/u2", source="lama")
    assert first.meta["relation"] == {key: value for key, value in relation.items() if key != "relation"}
    assert first.meta["evidences"] == TREX["evidences"]
    assert (second.text, second.subject, second.subject_found) == ("A. Bell was born in", "A. Bell", "exact")
    lines(tmp_path, "relations.jsonl", relation, twins)
    assert [fact.text for fact in load_facts(tmp_path)] == [first.text, second.text]
    [said] = left_out(tmp_path)
    assert "field 'template': expected the object [Y] once and at the end, got '[X] and [Y] are twins .'" in said
    alone = tmp_path / "relations.jsonl"
    assert "relations.jsonl, line 1: expected tuples besides the templates" in sentence(alone)


def test_rows_of_lama_on_the_hub_that_repeat_a_fact() -> None:
    facts = load_facts([HUB_LAMA, HUB_LAMA | {"masked_sentence": "x [MASK]"}, HUB_LAMA | {"uuid": "u8"}])
    assert [fact.fact_id for fact in facts] == ["lama/u3", "lama/u8"]
    assert facts[0].meta == {"masked_sentence": "Bell is from [MASK] .", "type": "N-1"}
    assert "record 1 (counted from 0), field 'uuid'" in left_out([HUB_LAMA, HUB_LAMA])[0]


def test_sentences_of_lama() -> None:
    fact = one(GOOGLE_RE)
    assert (fact.prompt, fact.relation) == ("{} (1900) was born in", "/people/person/place_of_birth")
    fact = one(CONCEPTNET)
    assert (fact.prompt, fact.subject, fact.target_true) == ("If you are {} you can", "alive", "think")
    assert fact.meta == {"obj": "think"}


# ---- pairs ------------------------------------------------------------------------------------------------


def test_pairs_of_feature_circuits(tmp_path: Path) -> None:
    other = CIRCUIT | {"patch_prefix": "The aunts of Ann"}
    facts = load_facts(lines(tmp_path, "x.jsonl", CIRCUIT, CIRCUIT, other))
    assert len(facts) == 2, "the same pair is there once"
    fact = facts[0]
    assert (fact.prompt, fact.subject, fact.subject_found) == ("The {} of Ann", "uncle", "difference")
    assert (fact.target_true, fact.target_false, fact.counterfactual_answer) == ("has", None, "have")
    assert fact.counterfactual_prompt == ("The uncles of Ann",)
    assert (fact.source, fact.meta) == ("pairs", {"case": "singular"})
    assert fact.fact_id.startswith("pairs/")
    assert "line 2: a record before has the same prompts and answers" in left_out(tmp_path / "x.jsonl")[0]


def test_pairs_of_a_csv_file(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    path.write_text('clean,corrupted,answer,incorrect,id\n"The war, from 1741 to","The war, from 1701 to",74,01,7\n')
    [fact] = load_facts(path)
    assert (fact.text, fact.subject, fact.target_true) == ("The war, from 1741 to", "1741", "74")
    assert (fact.counterfactual_answer, fact.meta) == ("01", {"id": "7"})
    path.write_text("clean,corrupted,correct_idx\na b,a c,513\n")
    assert "field 'answer': it is missing" in sentence(path)


def test_pairs_of_mib() -> None:
    fact = one(MIB)
    assert (fact.prompt, fact.subject) == ("Ann and Bob met. {} saw", "Bob")
    assert (fact.target_true, fact.target_false, fact.counterfactual_answer) == ("Ann", "Bob", "Bob")
    assert fact.counterfactual_prompt == ("Ann and Bob met. Ann saw", "Cy and Dan met. Eve saw")
    assert fact.meta == {"metadata": {"object": "none"}}
    labelled = {
        "prompt": "A. red B. blue C. pink The box is red. Answer:",
        "choices": {"label": ["A", "B", "C"], "text": ["red", "blue", "pink"]},
        "answerKey": 0,
        "symbol_counterfactual": {
            "prompt": "D. red E. blue C. pink The box is red. Answer:",
            "choices": {"label": ["D", "E", "C"], "text": ["red", "blue", "pink"]},
            "answerKey": 0,
        },
    }
    fact = one(labelled)
    assert (fact.target_true, fact.target_false, fact.counterfactual_answer) == ("A", None, "D")
    assert fact.subject == "A. red B"
    sums = {"prompt": "1 + 2 =", "label": 3, "random_counterfactual": {"prompt": "1 + 5 =", "label": 6}}
    fact = one(sums)
    assert (fact.subject, fact.target_true, fact.counterfactual_answer) == ("2", "3", "6")
    same = MIB["flip_counterfactual"] | {"answerKey": 0}
    assert "is that of the prompt" in left_out([MIB | {"flip_counterfactual": same}])[0]
    none = MIB | {"flip_counterfactual": {"prompt": None}, "abc_counterfactual": {"prompt": MIB["prompt"]}}
    assert "expected a counterfactual prompt that differs" in sentence([none])


def test_ioi() -> None:
    fact = one(IOI)
    assert (fact.text, fact.prompt) == ("Ann and Bob met, and Bob gave it to", "Ann and Bob met, and {} gave it to")
    assert (fact.subject, fact.target_true, fact.target_false) == ("Bob", "Ann", "Bob")
    assert fact.subject_found == "exact, last of 2"
    open_ended = {"text": "Ann and Bob met, and Bob gave it to", "IO": "Ann", "S": "Bob"}
    assert one(open_ended) == fact
    other = "Ann and Bob met, and Ann gave it to"
    fact = one(open_ended | {"corrupted": other})
    assert (fact.subject, fact.subject_found, fact.counterfactual_prompt) == ("Bob", "difference", (other,))


def test_the_subject_of_a_pair_is_a_field_that_the_prompt_has() -> None:
    fact = one(CIRCUIT | {"subject": "The uncle"})
    assert (fact.prompt, fact.subject_found) == ("{} of Ann", "exact")
    fact = one(CIRCUIT | {"subject": "Cleo"})
    assert (fact.subject, fact.subject_found) == ("uncle", "difference")
    assert "absent" in left_out([CIRCUIT | {"subject": "Cleo"}])[0]
    fact = one(CIRCUIT | {"clean_prefix": "The {} of Ann", "subject": "uncle"})
    assert fact.text == "The uncle of Ann"


@pytest.mark.parametrize(
    ("prompt", "other", "differs"),
    [
        ("The boy runs", "The girl runs", "boy"),
        ("A boy, now", "A tall girl, now", "boy"),
        ("The cat sat", "The black cat sat", "The"),
        ("cat sat", "big cat sat", "cat"),
        ("x x x", "x x", "x"),
        ("Ann saw Bob", "Cy saw Dan", "Ann saw Bob"),
        ("the same", "the same!", "same"),
    ],
)
def test_difference(prompt: str, other: str, differs: str) -> None:
    begin, end = difference(prompt, other, "clean")
    assert prompt[begin:end] == differs
