"""Subjects that are searched for in a prompt: how each is found, and that the template with it is the prompt again."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fasttrace.facts.fields import Bad
from fasttrace.facts.subject import place_subject, placed_or_found

FOUND = {
    "a whole word": ("When was In made in India?", "In", "When was {} made in India?", "In", "exact"),
    "several": ("Rome is Rome", "Rome", "{} is Rome", "Rome", "exact, first of 2"),
    "a part": ("Where is Romeo?", "Rome", "Where is {}o?", "Rome", "part"),
    "marks that combine": ("Where is Cafe\u0301 X?", "Café", "Where is {} X?", "Cafe\u0301", "normalized"),
    "a composed letter": ("Where is Café X?", "Cafe\u0301", "Where is {} X?", "Café", "normalized"),
    "a space that does not break": ("In New\u00a0York City", "New York", "In {} City", "New\u00a0York", "normalized"),
    "letters of full width": ("In ＮＹ now", "NY", "In {} now", "ＮＹ", "normalized"),
    "case": ("who wrote hamlet?", "Hamlet", "who wrote {}?", "hamlet", "case"),
    "case that has more letters": ("Die STRASSE ist", "Straße", "Die {} ist", "STRASSE", "case"),
    "case and marks": ("WHERE IS CAFÉ X?", "Cafe\u0301", "WHERE IS {} X?", "CAFÉ", "case"),
    "spaces at the ends": ("In Rome now", " Rome ", "In {} now", "Rome", "exact"),
}


@pytest.mark.parametrize("kind", FOUND)
def test_how_a_subject_is_found(kind: str) -> None:
    prompt, subject, template, there, how = FOUND[kind]
    assert place_subject(prompt, subject, "prompt") == (template, there, how)


@pytest.mark.parametrize(("prompt", "subject"), [("Where is Rome?", "Oslo"), ("ﬁ", "f"), ("Where is {} Rome?", "Rome")])
def test_a_subject_that_is_not_there(prompt: str, subject: str) -> None:
    """Half of a ligature is none of its letters."""
    with pytest.raises(Bad) as caught:
        place_subject(prompt, subject, "src")
    assert caught.value.field == "src"


@pytest.mark.parametrize("place", ["{}", "{subject}", "<subject>", "[X]"])
def test_placeholders_of_other_conventions(place: str) -> None:
    assert placed_or_found(f"In {place} now", "Rome", "prompt") == ("In {} now", "Rome", "template")
    with pytest.raises(Bad, match="expected one placeholder"):
        placed_or_found(f"{place} and {place}", "Rome", "prompt")


LETTERS = st.text("aAéÉe\u0301ßſﬁ İıＡ\u00a0x-", max_size=8)


@settings(max_examples=300, deadline=None)
@given(LETTERS, LETTERS.filter(str.strip), LETTERS)
def test_the_template_with_the_subject_is_the_prompt(before: str, subject: str, after: str) -> None:
    for written in {subject, subject.upper(), subject.casefold()}:
        prompt = before + written + after
        try:
            placed = place_subject(prompt, subject, "prompt")
        except Bad:
            assert subject.strip() not in prompt
            continue
        assert placed.template.replace("{}", placed.subject) == prompt
        assert placed.subject.strip()
