"""Small invented records in the layouts of published data sets, and what the tests of their formats share."""

import json
from pathlib import Path
from typing import Any

import pytest

from fasttrace.errors import FactError
from fasttrace.facts import Fact, load_facts
from fasttrace.facts.load import read_facts
from fasttrace.settings.study import FactSettings

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


def query_of(prompt: str, value: str, *aliases: str, **more: Any) -> dict[str, Any]:
    answers = [{"value": value, "aliases": list(aliases)}]
    return {"prompt": prompt, "answers": answers, "query_type": "regular", "phrase": None, **more}


def axis_of(*queries: dict[str, Any]) -> list[dict[str, Any]]:
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
    "Relation_Specificity": axis_of(query_of("The name of the mother of Ada Bell is", "Eve", "Eva")),
    "Logical_Generalization": axis_of(query_of("Ada Bell's language is", "Arabic")),
    "Subject_Aliasing": axis_of(query_of("The name of the country of citizenship of A. Bell is", "Syria")),
    "Compositionality_I": axis_of(query_of("The capital of Ada Bell's country is", "Damascus")),
    "Compositionality_II": [],
    "Forgetfulness": axis_of(query_of("The country that is not Syria is", "Washington D.C.")),
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
