"""The profile of a data set: its numbers are those of `encode_fact`, fact by fact, and odd facts are named."""

from dataclasses import replace

import pytest
from small_models import word_tokenizer

from fasttrace.errors import FactError, ModelError
from fasttrace.facts import Fact, Probe, encode_fact, load_facts
from fasttrace.facts import profile as module
from fasttrace.facts.profile import Counted, Noticed, Spread, profile

ODD = [
    Fact("{} is in ", "Eiffel Tower", "Paris", "Rome"),
    Fact("{}の首都は", "フランス", "パリ", "ローマ"),
    Fact('The "{}" is in "', "New York", "France", target_prefix=""),
    Fact("{} is in\n \n", "Paris", "New York", "New Yorkshire"),
    Fact("The {} of", "city", "Paris", counterfactual_subject=("town", "New York"), counterfactual_answer="Rome"),
    Fact("The {} of", "capital", "Rome", counterfactual_prompt=("The capital is", "A city of the city of the city")),
    Fact("{} is", "Rome", "x", "x\u0000y"),
]


@pytest.fixture(scope="module")
def words():
    return word_tokenizer()


def encoded_alone(tokenizer, facts):
    """(the facts that can be encoded, each by itself; {fact_id: why another one cannot})."""
    encoded, refused = [], {}
    for fact in facts:
        try:
            encoded.append(encode_fact(tokenizer, fact))
        except FactError as error:
            refused[fact.fact_id] = str(error)
    return encoded, refused


@pytest.mark.parametrize("which", ["small_tokenizer", "words"])
def test_its_numbers_are_those_of_each_fact_alone(which, request):
    tokenizer = request.getfixturevalue(which)
    facts = [*load_facts()[::7], *ODD]
    found, (encoded, refused) = profile(tokenizer, facts), encoded_alone(tokenizer, facts)
    assert (found.refused.facts, found.refused.first) == (len(refused), tuple(refused)[:5])
    assert found.refused.why == next(iter(refused.values()), None)
    assert (found.refused.facts > 0) is (which == "words"), "two unknown words have the same tokens"
    lengths = sorted(len(one.ids) for one in encoded)
    assert (found.prompt_tokens.min, found.prompt_tokens.max) == (lengths[0], lengths[-1])
    assert found.false_tokens.max == max(len(one.contrast_ids) for one in encoded if one.contrast_ids)
    same = [one.fact_id for one in encoded if one.contrast_ids and one.contrast_ids[0] == one.target_true_ids[0]]
    assert (found.same_first_token.facts, found.same_first_token.first) == (len(same), tuple(same[:5]))
    misfits = [one for one in encoded if one.misfits]
    assert found.misfits.facts == len(misfits) > 0
    assert found.misfits.why == misfits[0].misfits[0]


def test_what_facts_are_made_of(small_tokenizer):
    probes = (Probe("alias", "It is in", ("Paris", "Lutetia")), Probe("multi-hop", "So", "a", "true", "case"))
    own = {"case_id": "c", "case_edits": 2, "probes": probes, "relation": "city"}
    facts = [
        Fact("{} is in", "Paris", "France", fact_id="a", paraphrases=("P", "Q"), neighborhood=("N",), **own),
        Fact(
            "{} is of", "Paris", "France", fact_id="b", paraphrases=("P",), case_id="c", case_edits=2, relation="city"
        ),
        Fact("{} is the", "Rome", "city", fact_id="c", source="mine", subject_found="exact, first of 2"),
    ]
    found = profile(small_tokenizer, facts)
    assert found.facts == 3
    assert found.relations == (Counted("city", 2), Counted(None, 1))
    assert found.sources == (Counted("own", 2), Counted("mine", 1))
    assert found.subjects_found == (Counted("template", 2), Counted("exact, first of 2", 1))
    assert {(one.kind, one.expect): (one.probes, one.facts) for one in found.probes} == {
        ("paraphrase", "changed"): (3, 2),
        ("neighborhood", "unchanged"): (1, 1),
        ("alias", "changed"): (1, 1),
        ("multi-hop", "true"): (1, 1),
    }
    assert sum(one.probes for one in found.probes) == sum(len(fact.every_probe) for fact in facts)
    assert (found.cases, found.case_edits) == (1, Spread(2, 2, 2))
    assert found.false_tokens is None
    assert found.duplicates == ()


def test_odd_characters_are_looked_for_in_every_text():
    plain = Fact("{} is", "Paris", "x", fact_id="plain")
    texts = {
        "prompt": "{} is\ufffd",
        "target_true": "x\ufffd",
        "target_false": "y\ufffd",
        "paraphrases": ("\ufffd",),
        "neighborhood": ("\ufffd",),
        "probes": (Probe("alias", "Is", "\ufffd"),),
        "counterfactual_prompt": ("Bonn\ufffd is",),
        "counterfactual_answer": "\ufffd",
    }
    for name, value in texts.items():
        for odd, column in (("\ufffd", "replaced"), ("\x07", "control")):
            changed = value.replace("\ufffd", odd) if isinstance(value, str) else value
            if not isinstance(value, str):
                changed = tuple(
                    one.replace("\ufffd", odd) if isinstance(one, str) else replace(one, answers=(odd,))
                    for one in value
                )
            fact = replace(plain, fact_id=name, **{name: changed})
            found = {fact.fact_id: set(module._ODD.findall(module._every_text(fact)))}
            assert found == {name: {odd}}, column


def test_facts_to_look_at_are_named(words):
    facts = [
        Fact("The tower is in {} the", "Paris", "Rome", "York", fact_id="good"),
        Fact("The tower is in {} the", "Paris", "York", fact_id="again"),
        Fact("The tower is in {}'s the", "Paris", "New Rome", "New York", fact_id="cut"),
        Fact("The {} is in", "tower", "Oslo", fact_id="unknown"),
        Fact("The {} is in\x85", "tower", "Paris\ufffd", "Rome", fact_id="odd"),
        Fact("The {} is", "Rome", "in", counterfactual_subject="New York", fact_id="long"),
        Fact("The {} is", "York", "Oslo", "Bonn", fact_id="same"),
    ]
    found = profile(words, facts)
    assert found.duplicates == (("good", "again"),)
    assert found.cut_subjects == Noticed(1, ("cut",))
    assert found.same_first_token == Noticed(1, ("cut",))
    assert found.unknown.first == ("cut", "unknown", "odd"), "a BOS that is the same token is no unknown word"
    assert found.replaced == Noticed(1, ("odd",))
    assert found.control == Noticed(1, ("odd",))
    assert found.misfits == Noticed(
        1, ("long",), "counterfactual 'The New York is': expected 4 tokens as the prompt has, got 5"
    )
    assert (found.refused.facts, found.refused.first) == (1, ("same",))
    assert "which have the same tokens" in found.refused.why
    assert found.prompt_tokens == Spread(4, 6, 7)
    many = profile(words, [replace(facts[2], fact_id=str(i)) for i in range(9)])
    assert many.cut_subjects == Noticed(9, ("0", "1", "2", "3", "4"))


def test_a_tokenizer_without_offsets_is_refused(small_tokenizer):
    class Slow:
        is_fast = False

        def __call__(self, text, **options):
            return small_tokenizer(text, **options)

    with pytest.raises(ModelError, match="expected a fast tokenizer"):
        profile(Slow(), load_facts()[:1])


def test_no_facts_have_a_profile_too(small_tokenizer):
    found = profile(small_tokenizer, [])
    assert (found.facts, found.prompt_tokens, found.relations, found.refused) == (0, None, (), Noticed())
