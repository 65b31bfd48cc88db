"""Finds a subject in a prompt of a data set that has no templates."""

import re
import unicodedata
from collections.abc import Callable
from typing import NamedTuple

from fasttrace.errors import shown
from fasttrace.facts.fields import PLACE, Bad

TEMPLATE = "template"  # how a subject is found that has a place in a template
# Placeholders of other conventions, which count where there is one of one kind and no "{}".
PLACES = ("{subject}", "<subject>", "[X]")


class Placed(NamedTuple):
    """template: the prompt with "{}" in place of the subject. subject: as the prompt has it. how: how it was found."""

    template: str
    subject: str
    how: str


def place_subject(prompt: str, subject: str, field: str) -> Placed:
    """Put "{}" in place of the subject. field: the prompt's, for the error.

    The first of these that finds it: "exact" (a whole word), "part" (a part of a word), "normalized" (equal after
    Unicode normalization NFKC), "case" (equal without regard to case, too). Where it occurs several times, the first
    place is taken, and `how` says of how many: "exact, first of 2".

    Raises Bad where it does not occur, or the prompt has a "{}".
    """
    if PLACE in prompt:
        raise Bad(field, f"expected a plain question, got {shown(prompt)} with a placeholder '{PLACE}'")
    for how, find in _WAYS:
        if found := find(subject.strip(), prompt):
            begin, end = found[0]
            many = f", first of {len(found)}" if len(found) > 1 else ""
            return Placed(f"{prompt[:begin]}{PLACE}{prompt[end:]}", prompt[begin:end], how + many)
    raise Bad(field, f"the subject {shown(subject)} is absent from {shown(prompt)}")


def placed_or_found(prompt: str, subject: str, field: str) -> Placed:
    """The template of a prompt that may have a placeholder, "{}" or one of PLACES, or just the subject.

    Raises Bad where it has several, or neither.
    """
    there = [place for place in (PLACE, *PLACES) for _ in range(prompt.count(place))]
    if len(there) > 1:
        raise Bad(field, f"expected one placeholder '{there[0]}' for the subject, got {len(there)} in {shown(prompt)}")
    if there:
        return Placed(prompt.replace(there[0], PLACE), subject, TEMPLATE)
    try:
        return place_subject(prompt, subject, field)
    except Bad:
        what = f"the subject is absent: expected one placeholder '{PLACE}' for it, or {shown(subject)} itself, got none"
        raise Bad(field, f"{what} in {shown(prompt)}") from None


Spans = list[tuple[int, int]]


def _words(subject: str, prompt: str) -> Spans:
    return [one.span() for one in re.finditer(rf"(?<!\w){re.escape(subject)}(?!\w)", prompt)]


def _parts(subject: str, prompt: str) -> Spans:
    return [one.span() for one in re.finditer(re.escape(subject), prompt)]


def _folded(fold: Callable[[str], str]) -> Callable[[str, str], Spans]:
    """Whole words, else parts, that are equal to the subject after `fold`."""

    def find(subject: str, prompt: str) -> Spans:
        text, begins = "", []
        for begin, cluster in _clusters(prompt):
            part = fold(cluster)
            text += part
            begins += [begin] * len(part)
        begins.append(len(prompt))
        wanted = fold(subject)
        found = _words(wanted, text) or _parts(wanted, text)
        # A match must begin and end between characters of the prompt.
        whole = [(a, b) for a, b in found if _between(begins, a) and _between(begins, b)]
        return [(begins[a], begins[b]) for a, b in whole]

    return find


def _between(begins: list[int], at: int) -> bool:
    return at == 0 or begins[at] != begins[at - 1]


def _clusters(text: str) -> list[tuple[int, str]]:
    """(position, a character with the marks that combine with it)."""
    found: list[tuple[int, str]] = []
    for i, c in enumerate(text):
        if found and unicodedata.combining(c):
            begin, before = found[-1]
            found[-1] = begin, before + c
        else:
            found.append((i, c))
    return found


def _normalized(text: str) -> str:
    return unicodedata.normalize("NFKC", text)


def _without_case(text: str) -> str:
    return _normalized(_normalized(text).casefold())


_WAYS: tuple[tuple[str, Callable[[str, str], Spans]], ...] = (
    ("exact", _words),
    ("part", _parts),
    ("normalized", _folded(_normalized)),
    ("case", _folded(_without_case)),
)
