"""Whether a generated text gives an answer: the one place for what counts as equal.

Texts are compared word by word, in compatible characters (NFKC), without case, without accents on Latin and Greek
letters and without punctuation. A point or comma inside a number stays, and so does its sign. In other scripts a mark
is part of its letter, and stays. An article (a, an, the) that only one of the two has is passed over where a word
follows it, so that "Serie A" is not "Serie B".

An answer ends where a word ends: before white space or punctuation, or beside a letter of a script that has no spaces
between words.

These are SQuAD's steps (Rajpurkar et al. 2016, arXiv 1606.05250), and accents, numbers and scripts. Source of the two
matches: "The Mirage of Model Editing" (arXiv 2502.11177).
"""

import re
import unicodedata
from collections.abc import Sequence
from typing import NamedTuple

from fasttrace.facts.joint import spaceless

ARTICLES = {"a", "an", "the"}
_PARTING = re.compile(r"[\u2010-\u2015\u2212\-/_]")
_DROPPED = "\0"  # stands where punctuation was


class _Word(NamedTuple):
    """A word as it is compared. marked: with _DROPPED where punctuation was. article: whether it is one, which á is
    not."""

    marked: str
    article: bool

    @property
    def plain(self) -> str:
        return self.marked.replace(_DROPPED, "")

    def begins_with(self, other: str) -> bool:
        """Whether `other` stands at the begin, and a word may end after it."""
        if not self.plain.startswith(other):
            return False
        rest, left = self.marked, len(other)
        while left:
            left -= rest[0] != _DROPPED
            rest = rest[1:]
        if not rest or rest[0] == _DROPPED:
            return True
        return (spaceless(other[-1]) or spaceless(rest[0])) and not unicodedata.category(rest[0]).startswith("M")


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Whether the whole text is one of the answers."""
    return any(_left(text, answer) == 0 for answer in answers)


def prefix_match(text: str, answers: Sequence[str]) -> bool:
    """Whether the text begins with one of the answers, up to the end of a word."""
    return any(_left(text, answer) is not None for answer in answers)


def _left(text: str, answer: str) -> int | None:
    """How many words of the text are left after the answer, where a part of a word is one; None where the text does not
    begin with the answer."""
    said, wanted = _words(text), _words(answer)
    for place, word in enumerate(wanted, 1):
        last = place == len(wanted)
        while said and not _gives(said[0], word, last) and said[0].article:
            said = said[1:]
        if said and _gives(said[0], word, last):
            whole = said[0].plain == word.plain
            said = said[1:] if whole else said
        elif last or not word.article:
            return None
    return len(said) if wanted else None


def _gives(said: _Word, wanted: _Word, last: bool) -> bool:
    return said.begins_with(wanted.plain) if last else said.plain == wanted.plain


def _words(text: str) -> list[_Word]:
    """The words of a text that are more than punctuation."""
    bare = unicodedata.normalize("NFKC", text).casefold()
    # A hyphen or slash parts words, but a hyphen before a number is its sign.
    bare = _PARTING.sub(_parted, bare)
    parts = ("".join(_DROPPED if _is_dropped(one, at) else one[at] for at in range(len(one))) for one in bare.split())
    words = (_Word(_unaccented(part), part.replace(_DROPPED, "") in ARTICLES) for part in parts)
    return [word for word in words if word.plain]


def _unaccented(text: str) -> str:
    """The text without accents on Latin and Greek letters."""
    kept, bare = "", False
    for one in unicodedata.normalize("NFD", text):
        if not unicodedata.category(one).startswith("M"):
            bare = unicodedata.name(one, "").startswith(("LATIN", "GREEK"))
        elif bare:
            continue
        kept += one
    return unicodedata.normalize("NFC", kept)


def _parted(found: re.Match[str]) -> str:
    """A sign stays where it stands before a number, and not between two."""
    before = found.string[: found.start()][-1:]
    signed = found[0] in "-\u2212" and found.string[found.end() : found.end() + 1].isdigit() and not before.isalnum()
    return "-" if signed else " "


def _is_dropped(text: str, at: int) -> bool:
    """Whether a character is punctuation that no number needs."""
    if not unicodedata.category(text[at]).startswith("P"):
        return text[at] == _DROPPED
    after = text[at + 1 : at + 2].isdigit()
    if text[at] == "-":  # those that are left are signs
        return not after
    return not (text[at] in ".," and after and text[at - 1 : at].isdigit())
