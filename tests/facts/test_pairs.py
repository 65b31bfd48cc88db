"""Counterfactuals: which of them fit a prompt, and the subjects that are found for the facts of a data set."""

import random
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import fasttrace as ft
from fasttrace.errors import FactError
from fasttrace.facts import encode_fact, load_facts
from fasttrace.facts.formats import own_record
from fasttrace.facts.pairs import pair_subjects

FACT = ft.Fact("The {} is located in the city of", "Eiffel Tower", "Paris", "Rome")


def test_counterfactuals_are_subjects_in_place_and_whole_prompts():
    fact = replace(FACT, counterfactual_subject="New York", counterfactual_prompt=["The city of", "Paris is"])
    assert fact.counterfactuals == ("The New York is located in the city of", "The city of", "Paris is")
    assert fact.fact_id == FACT.fact_id
    assert FACT.counterfactuals == replace(FACT, counterfactual_subject=None).counterfactuals == ()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"counterfactual_subject": "Eiffel Tower"}, "expected prompts that differ from 'The Eiffel Tower is"),
        ({"counterfactual_prompt": FACT.text}, "expected prompts that differ from 'The Eiffel Tower is"),
        ({"counterfactual_subject": ("Rome", "Rome")}, "got 'The Rome is located in the city of' again"),
        ({"counterfactual_answer": " Paris"}, "field 'counterfactual_answer' of a fact: expected a false target that"),
        ({"counterfactual_answer": 3}, "field 'counterfactual_answer' of a fact: expected a string, got 3"),
        ({"counterfactual_subject": 3}, "field 'counterfactual_subject' of a fact: expected subjects, got 3"),
        ({"counterfactual_subject": " "}, "expected subjects that are not empty"),
        ({"counterfactual_prompt": [None]}, "expected whole prompts"),
    ],
)
def test_counterfactuals_are_checked(change, words):
    with pytest.raises(FactError, match=words.replace("(", r"\(")):
        replace(FACT, **change)


def test_a_counterfactual_fits_if_it_has_as_many_tokens_and_the_same_targets(small_tokenizer):
    prompts = ["New York is located in the city", "The city of"]
    fact = replace(FACT, counterfactual_subject=("New York", "Rome"), counterfactual_prompt=prompts)
    encoded = encode_fact(small_tokenizer, fact)
    assert encoded.fitting == ("The New York is located in the city of",)
    assert encoded.counterfactuals == (encode_fact(small_tokenizer, replace(FACT, subject="New York")).ids,)
    assert [text.partition(": ")[2] for text in encoded.misfits] == [
        "expected 9 tokens as the prompt has, got 8",
        "expected 9 tokens as the prompt has, got 8",
        "expected 9 tokens as the prompt has, got 3",
    ]
    assert encode_fact(small_tokenizer, FACT).counterfactuals == ()
    # After an opening bracket the target is joined without a space, so it has other tokens.
    joined = replace(FACT, counterfactual_prompt="The New York is located in the city(")
    assert len(encode_fact(small_tokenizer, joined).ids) == 9
    assert (
        "expected a text that the target follows with the same tokens as the prompt"
        in encode_fact(small_tokenizer, joined).misfits[0]
    )


def made(names, relation="in", template="The {} is located in the city of"):
    """Facts about the names, each with an object of its own."""
    return [ft.Fact(template, name, f"place {i}", relation=relation) for i, name in enumerate(names)]


def fits(tokenizer, fact, subject):
    """Whether a subject replaces the fact's own token for token."""
    own = encode_fact(tokenizer, fact)
    other = encode_fact(tokenizer, ft.Fact(fact.prompt, subject, fact.target_true))
    same = (own.subject_begin, own.subject_end) == (other.subject_begin, other.subject_end)
    around = own.ids[own.subject_end :] == other.ids[other.subject_end :]
    return len(own.ids) == len(other.ids) and same and around


names = st.lists(
    st.sampled_from(["Paris", "Rome", "Eiffel Tower", "New York", "France", "city", "Tower", "of Rome", "The Tower"]),
    min_size=1,
    max_size=9,
    unique=True,
)


@settings(deadline=None, max_examples=50)
@given(names, st.integers(1, 4), st.randoms(use_true_random=False))
def test_pairs_fit_and_do_not_depend_on_the_order(names, count, shuffled):
    tokenizer = small()
    facts = made(names)
    found = pair_subjects(tokenizer, facts, facts, count)
    assert {fact.fact_id for fact in found.facts} | set(found.reasons) == {fact.fact_id for fact in facts}
    for fact in found.facts:
        expected = [name for name in names if name != fact.subject and fits(tokenizer, fact, name)]
        assert set(fact.counterfactual_subject) <= set(expected)
        assert len(fact.counterfactual_subject) == min(count, len(expected))
        assert encode_fact(tokenizer, fact).misfits == ()
        answer = next(f.target_true for f in facts if f.subject == fact.counterfactual_subject[0])
        assert (fact.target_false, fact.counterfactual_answer, fact.contrast) == (None, answer, answer)
    for fact in facts:
        if fact.fact_id in found.reasons:
            assert not any(fits(tokenizer, fact, name) for name in names if name != fact.subject)
    mixed = list(facts)
    shuffled.shuffle(mixed)
    again = pair_subjects(tokenizer, mixed, mixed, count)
    assert {f.fact_id: f for f in again.facts} == {f.fact_id: f for f in found.facts}


def small():
    from small_models import trained_tokenizer

    if not hasattr(small, "made"):
        small.made = trained_tokenizer()
    return small.made


def test_a_subject_of_another_relation_or_with_the_same_object_is_no_counterfactual(small_tokenizer):
    paris, rome = made(["Paris", "Rome"])
    assert pair_subjects(small_tokenizer, [paris], [paris, rome], 1).facts
    elsewhere = replace(rome, relation="other")
    same = replace(rome, target_true=" PLACE 0")
    for other in (elsewhere, same):
        found = pair_subjects(small_tokenizer, [paris], [paris, other], 1)
        assert list(found.reasons) == [paris.fact_id]
    # Without relations, the template stands for the relation.
    bare = [replace(fact, relation=None) for fact in (paris, rome)]
    assert pair_subjects(small_tokenizer, bare[:1], bare, 1).facts[0].counterfactual_subject == ("Rome",)
    assert pair_subjects(small_tokenizer, bare[:1], [replace(bare[1], prompt="The {} is")], 1).reasons


def test_a_fact_keeps_its_own_counterfactuals_and_its_false_target(small_tokenizer):
    facts = made(["Paris", "Rome", "city"])
    own = replace(facts[0], counterfactual_prompt="Rome is the capital of")
    false = replace(facts[1], target_false="Oslo")
    found = pair_subjects(small_tokenizer, [own, false], facts, 2).facts
    assert found[0] == own
    assert (found[1].target_false, found[1].counterfactual_answer, found[1].contrast) == ("Oslo", None, "Oslo")
    answered = replace(facts[2], counterfactual_answer="Oslo")
    assert pair_subjects(small_tokenizer, [answered], facts, 1).facts[0].counterfactual_answer == "Oslo"


def test_the_model_pairs_a_part_with_the_whole(smollm2, caplog):
    facts = load_facts()
    part = random.Random(0).sample(facts, 40)
    found = ft.pair_facts(smollm2, part, among=facts, count=3)
    assert 30 < len(found) <= 40
    assert (len(found) == 40) != ("facts have no pair, such as" in caplog.text)
    whole = {fact.fact_id: fact for fact in ft.pair_facts(smollm2, facts, count=3)}
    assert all(whole[fact.fact_id] == fact for fact in found)
    with pytest.raises(ft.UserError, match="pairs: expected a fact with a counterfactual, got none"):
        ft.pair_facts(smollm2, part[:1])


def test_records_of_paired_facts_are_read_again(tmp_path):
    fact = replace(FACT, counterfactual_subject=("New York", "Rome"), counterfactual_prompt="Paris is", relation="in")
    import json

    (tmp_path / "facts.jsonl").write_text(json.dumps(own_record(fact)))
    assert load_facts(tmp_path / "facts.jsonl") == [fact]
    record = own_record(FACT) | {"counterfactual_subject": "Rome"}
    (tmp_path / "facts.jsonl").write_text(json.dumps(record))
    assert load_facts(tmp_path / "facts.jsonl")[0].counterfactual_subject == ("Rome",)
    for value, words in ((3, "or a list of strings, got a number"), (["Rome", ""], "that is not empty")):
        (tmp_path / "facts.jsonl").write_text(json.dumps(record | {"counterfactual_subject": value}))
        with pytest.raises(FactError, match=rf"field 'counterfactual_subject.*: expected .*{words[-12:]}"):
            load_facts(tmp_path / "facts.jsonl")
