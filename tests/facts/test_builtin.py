"""Properties of the built-in facts: size, ids, false targets of the same kind, paraphrases, neighborhood prompts."""

from collections import Counter, defaultdict

import pytest

from fasttrace.facts import Fact, load_facts

# Each country has its own capital, so the neighborhood prompts of these facts have other answers of the same kind.
FUNCTIONAL = {"country_capital"}


@pytest.fixture(scope="module")
def facts() -> list[Fact]:
    return load_facts()


def test_size(facts: list[Fact]) -> None:
    relations = Counter(f.relation for f in facts)
    assert len(facts) >= 320
    assert len(relations) >= 14
    assert None not in relations
    assert min(relations.values()) >= 12


def test_ids(facts: list[Fact]) -> None:
    assert len({f.fact_id for f in facts}) == len(facts)
    assert len({(f.prompt, f.subject) for f in facts}) == len(facts)
    for fact in facts:
        assert fact.fact_id.isascii()
        assert fact.fact_id.startswith(f"builtin/{fact.relation}/")
        assert fact.source == "builtin"


def test_false_targets_are_of_the_same_kind(facts: list[Fact]) -> None:
    true = defaultdict(set)
    for fact in facts:
        true[fact.relation].add(fact.target_true)
    for fact in facts:
        assert fact.target_false is not None
        assert fact.target_false != fact.target_true
        assert fact.target_false in true[fact.relation]


def test_no_prompt_gives_the_answer_away(facts: list[Fact]) -> None:
    for fact in facts:
        for prompt in (fact.text, *fact.paraphrases):
            assert fact.target_true.lower() not in prompt.lower()
            assert str(fact.target_false).lower() not in prompt.lower()
        for prompt in fact.neighborhood:
            assert fact.target_true.lower() not in prompt.lower()


def test_paraphrases(facts: list[Fact]) -> None:
    for fact in facts:
        assert len(set(fact.paraphrases) - {fact.text}) == len(fact.paraphrases) >= 2
        assert all(fact.subject in p for p in fact.paraphrases)


def test_neighbourhood(facts: list[Fact]) -> None:
    answers = {(f.relation, f.text): f.target_true for f in facts}
    for fact in facts:
        assert len(set(fact.neighborhood)) == len(fact.neighborhood) >= 5
        for prompt in fact.neighborhood:
            assert fact.subject not in prompt
            before, after = fact.prompt.split("{}")
            assert prompt.startswith(before)
            assert prompt.endswith(after)
            same = answers[fact.relation, prompt] == fact.target_true
            assert same is (fact.relation not in FUNCTIONAL)


def test_sentences_are_written_cleanly(facts: list[Fact]) -> None:
    for fact in facts:
        for prompt in (fact.text, *fact.paraphrases, *fact.neighborhood):
            assert prompt == prompt.strip()
            assert "  " not in prompt
            assert "the the " not in prompt.lower()
            assert prompt[-1].isalpha()  # the prompt ends just before the object
            assert len(prompt) < 120


def test_most_subjects_have_more_than_one_token(facts: list[Fact]) -> None:
    assert sum(" " in f.subject for f in facts) > len(facts) // 3


def test_one_relation_and_a_limit(facts: list[Fact]) -> None:
    capitals = load_facts(relation="country_capital", limit=5)
    assert capitals == [f for f in facts if f.relation == "country_capital"][:5]
    assert load_facts("builtin") == facts
