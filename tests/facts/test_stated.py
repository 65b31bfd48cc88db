"""A prompt as text with its subject and target, as a fact."""

import pytest

from fasttrace.errors import UserError
from fasttrace.facts import facts_from, stated_fact
from fasttrace.settings.prompt import PromptSettings, StatedFact


@pytest.mark.parametrize(
    ("prompt", "subject", "template", "found"),
    [
        ("The {} is in the city of", "Eiffel Tower", "The {} is in the city of", "Eiffel Tower"),
        ("The {} is in the city of", "The Eiffel Tower", "The {} is in the city of", "Eiffel Tower"),
        ("{} is in the city of", "The Eiffel Tower", "{} is in the city of", "The Eiffel Tower"),
        ("Is the {} in", "The Eiffel Tower", "Is the {} in", "Eiffel Tower"),
        ("The Eiffel Tower is in", "The Eiffel Tower", "{} is in", "The Eiffel Tower"),
        ("The Eiffel Tower is in", "Eiffel Tower", "The {} is in", "Eiffel Tower"),
        ("Eiffel Tower is in", "the Eiffel Tower", "{} is in", "Eiffel Tower"),
        ("The [X] is in", " Eiffel Tower ", "The {} is in", "Eiffel Tower"),
        ("{} is a band", "The The", "{} is a band", "The The"),
        ("The {} is a band", "A", "The {} is a band", "A"),
    ],
)
def test_a_subject_is_found_with_or_without_its_article(prompt, subject, template, found):
    fact = stated_fact(prompt, StatedFact(subject=subject, target=" Paris", new_target="Rome"))
    assert (fact.prompt, fact.subject, fact.target_true, fact.target_false) == (template, found, "Paris", "Rome")


@pytest.mark.parametrize(
    ("prompt", "words", "said"),
    [
        ("The {} is", {"target": "b"}, "subject: expected the words in the prompt that the fact is about, got none"),
        ("The {} is", {"subject": " ", "target": "b"}, "subject: expected the words .*, got ' '"),
        ("The {} is", {"subject": "a"}, "target: expected the true answer to the prompt, got none"),
        ("The {} is", {"subject": "a", "target": "b", "new_target": "b "}, "another answer than 'b', got 'b '"),
        ("{} is {}", {"subject": "a", "target": "b"}, "expected one placeholder '{}' for the subject, got 2"),
        ("Rome is", {"subject": "Paris", "target": "b"}, "the subject is absent: .*, got none in 'Rome is'"),
        ("", {"subject": "Paris", "target": "b"}, "the subject is absent"),
        ("{} is", {"subject": "\ud800", "target": "b"}, "expected (a text|text in UTF-8), got"),
    ],
)
def test_what_is_missing_is_said_in_a_sentence(prompt, words, said):
    with pytest.raises(UserError, match=said) as error:
        stated_fact(prompt, StatedFact(**words))
    assert "\n" not in str(error.value)


def test_words_of_a_prompt_are_refused_beside_facts():
    fact = stated_fact("{} is", StatedFact(subject="a", target="b"))
    assert facts_from([fact], StatedFact()) == [fact]
    with pytest.raises(UserError, match="target: expected a prompt as text beside it, got facts"):
        facts_from([fact], StatedFact(target="b"))
    with pytest.raises(UserError, match="--new-target: expected --prompt TEXT, whose new target it is, got none"):
        PromptSettings(new_target="b")
