"""Data sets of edits, on small invented records: EasyEdit, KnowEdit, MQuAKE, RippleEdits, CounterFact, zsRE."""

import json
from pathlib import Path
from typing import Any

import pytest
from published_records import (
    EASYEDIT,
    KNOWEDIT,
    MQUAKE,
    MULTI,
    NEW_RIPPLE,
    RECENT,
    RIPPLE,
    WIKIBIO,
    ZSRE,
    axis_of,
    left_out,
    one,
    query_of,
    sentence,
)

from fasttrace.facts import Fact, Probe, load_facts
from fasttrace.facts.formats.rippleedits import PHRASES


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
    query = query_of("The name of the mother of What is it is", "Eve", subject_id="Q1", relation="MOTHER")
    fact = one(twice | {"Forgetfulness": axis_of(query)})
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
