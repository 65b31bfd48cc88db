"""Data sets of relations and prompts, on small invented records: LRE, ParaRel, LAMA, prompt pairs."""

import json
from pathlib import Path

import pytest
from published_records import (
    CIRCUIT,
    CONCEPTNET,
    GOOGLE_RE,
    HUB_LAMA,
    IOI,
    LRE,
    MERGED,
    MIB,
    PATTERN,
    TREX,
    TUPLE,
    left_out,
    lines,
    one,
    sentence,
)

from fasttrace.facts import Fact, load_facts
from fasttrace.facts.formats.pairs import difference


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
