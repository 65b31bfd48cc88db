"""Facts as public functions take them: as loaded, one by itself, or a prompt as text with its subject and target."""

from collections.abc import Sequence
from typing import Annotated, Any

from fasttrace.errors import FactError, UserError, shown
from fasttrace.facts.fields import PLACE, Bad
from fasttrace.facts.record import Fact, facts_of
from fasttrace.facts.subject import PLACES, Placed, placed_or_found
from fasttrace.settings.base import arguments_of, given_by, refusal
from fasttrace.settings.kinds import Kind
from fasttrace.settings.prompt import StatedFact

STATED = "prompt"  # the source of such a fact
ARTICLES = ("the", "a", "an")


def _facts_or_text(value: Any) -> Any:
    return value if isinstance(value, str) else facts_of(value)


_KIND = Kind("facts, as load_facts returns them, or a prompt as text", _facts_or_text)
AnyFacts = Annotated[Sequence[Fact] | Fact | str, _KIND]
"""Facts as the argument of a public function that also takes a prompt as text."""


def facts_from(facts: Any, asked: StatedFact) -> list[Fact]:
    """The facts, or the one that a prompt as text, `subject`, `target` and `new_target` make.

    Raises UserError where one of these is missing, or given beside facts, and where the prompt lacks the subject.
    """
    if isinstance(facts, str):
        return [stated_fact(facts, asked)]
    for name in ("subject", "target", "new_target"):
        if name in given_by(asked) and getattr(asked, name) is not None:
            raise refusal(asked, name, "a prompt as text beside it", "facts, which have their own")
    return list(facts)


def stated_fact(prompt: str, asked: StatedFact) -> Fact:
    """The fact of a prompt with "{}", or another placeholder, in place of the subject, or with the subject itself.

    An article is not said twice: "The {} is" with the subject "The Louvre" is "The Louvre is". Raises UserError as
    `facts_from`.
    """
    subject, target, new = (None if text is None else text.strip() for text in _words(asked))
    if not subject:
        raise refusal(asked, "subject", "the words in the prompt that the fact is about", _got(asked.subject))
    if not target:
        raise refusal(asked, "target", "the true answer to the prompt", _got(asked.target))
    if new is not None and new in ("", target):
        raise refusal(asked, "new_target", f"another answer than {shown(target)}", _got(asked.new_target))
    owner = arguments_of(type(asked))["subject"].owner
    try:
        placed = _placed(prompt, subject)
        return Fact(placed.template, placed.subject, target, new, subject_found=placed.how, source=STATED)
    except Bad as bad:
        raise UserError(f"{owner}: {bad.what}") from None
    except FactError as error:
        raise UserError(f"{owner}: {error}") from None


def _words(asked: StatedFact) -> tuple[str | None, str | None, str | None]:
    return asked.subject, asked.target, asked.new_target


def _got(text: str | None) -> str:
    return "none" if text is None else shown(text)


def _placed(prompt: str, subject: str) -> Placed:
    """Where the subject is, with the article of the prompt, of the subject or of none. Raises Bad."""
    article, _, bare = subject.partition(" ")
    if article.casefold() not in ARTICLES or not bare.strip():
        return placed_or_found(prompt, subject, "prompt")
    place = next((one for one in (PLACE, *PLACES) if one in prompt), None)
    if place is not None:
        before = prompt[: prompt.index(place)].split()
        again = bool(before) and before[-1].casefold() == article.casefold()
        return placed_or_found(prompt, bare.strip() if again else subject, "prompt")
    try:
        return placed_or_found(prompt, subject, "prompt")
    except Bad:
        return placed_or_found(prompt, bare.strip(), "prompt")
