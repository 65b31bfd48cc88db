"""Whether a generated text gives an answer: the one place for what counts as equal.

Two texts are equal if they are once normalised: compatible characters (NFKC), no case, none of the articles a, an and
the, no accents on Latin and Greek letters, no punctuation, and single spaces. A point or comma inside a number stays,
and so does its sign. In other scripts a mark is part of its letter, and stays. An answer that is nothing but an
article, such as the A of a multiple choice, is compared with the articles in place.

These are SQuAD's steps (Rajpurkar et al. 2016, arXiv 1606.05250), and accents and numbers. Source of the two matches:
"The Mirage of Model Editing" (arXiv 2502.11177).
"""

import re
import unicodedata
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(?:a|an|the)\b")
_PARTING = re.compile(r"[\u2010-\u2015\u2212\-/_]")


def normalised(text: str, *, articles: bool = False) -> str:
    """The text as it is compared. articles: whether they stay."""
    bare = unicodedata.normalize("NFKC", text).casefold()
    if not articles:
        bare = ARTICLES.sub(" ", bare)
    bare = "".join(map(_unaccented, bare))
    # A hyphen or slash parts words, but a hyphen before a number is its sign.
    bare = _PARTING.sub(_parted, bare)
    kept = (one if not _is_dropped(bare, at) else "" for at, one in enumerate(bare))
    return " ".join("".join(kept).split())


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Whether the whole text is one of the answers."""
    return any(said == wanted for answer in answers for said, wanted in _pairs(text, answer))


def prefix_match(text: str, answers: Sequence[str]) -> bool:
    """Whether the text begins with one of the answers, up to the end of a word."""
    return any(f"{said} ".startswith(f"{wanted} ") for answer in answers for said, wanted in _pairs(text, answer))


def _pairs(text: str, answer: str) -> list[tuple[str, str]]:
    """(text, answer), normalised, as they are compared: without articles, or with them if nothing else is left."""
    articles = not normalised(answer)
    wanted = normalised(answer, articles=articles)
    return [(normalised(text, articles=articles), wanted)] if wanted else []


def _unaccented(letter: str) -> str:
    """A Latin or Greek letter without its accents. Any other character is as it was."""
    base = unicodedata.normalize("NFD", letter)
    if len(base) > 1 and unicodedata.name(base[0], "").startswith(("LATIN", "GREEK")):
        return base[0]
    return letter


def _parted(found: re.Match[str]) -> str:
    """A sign stays where it stands before a number, and not between two."""
    before = found.string[: found.start()][-1:]
    signed = found[0] in "-\u2212" and found.string[found.end() : found.end() + 1].isdigit() and not before.isalnum()
    return "-" if signed else " "


def _is_dropped(text: str, at: int) -> bool:
    """Whether a character is punctuation that no number needs."""
    if not unicodedata.category(text[at]).startswith("P"):
        return False
    after = text[at + 1 : at + 2].isdigit()
    if text[at] == "-":  # those that are left are signs
        return not after
    return not (text[at] in ".," and after and text[at - 1 : at].isdigit())
