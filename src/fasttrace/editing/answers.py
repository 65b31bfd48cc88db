"""Whether a generated text gives an answer: the one place for what counts as equal.

Two texts are equal if they are once normalised: compatible characters (NFKC), no case, no accents, no punctuation, none
of the articles a, an and the, and single spaces. This is SQuAD's order of steps (Rajpurkar et al. 2016, arXiv
1606.05250), with accents removed too. Source of the two matches: "The Mirage of Model Editing" (arXiv 2502.11177).
"""

import re
import unicodedata
from collections.abc import Sequence

ARTICLES = re.compile(r"\b(?:a|an|the)\b")


def normalised(text: str) -> str:
    """The text as it is compared. Letters and digits of all scripts stay, and so do symbols such as + and $."""
    bare = unicodedata.normalize("NFKD", unicodedata.normalize("NFKC", text).casefold())
    bare = "".join(one for one in bare if not unicodedata.combining(one))
    # A hyphen or slash parts words. An apostrophe or a full stop inside one does not.
    bare = re.sub(r"[\u2010-\u2015\-/_]", " ", bare)
    bare = "".join(one for one in bare if not unicodedata.category(one).startswith("P"))
    return " ".join(ARTICLES.sub(" ", bare).split())


def exact_match(text: str, answers: Sequence[str]) -> bool:
    """Whether the whole text is one of the answers."""
    said = normalised(text)
    return any(said == wanted for answer in answers if (wanted := normalised(answer)))


def prefix_match(text: str, answers: Sequence[str]) -> bool:
    """Whether the text begins with one of the answers, up to the end of a word."""
    said = f"{normalised(text)} "
    return any(said.startswith(f"{wanted} ") for answer in answers if (wanted := normalised(answer)))
