"""Where a generated text ends early: the one rule for texts that are shown and for texts that are scored."""

import re
from collections.abc import Sequence

from fasttrace.settings.generate import Stop

# A full stop is no end after an initial ("J. Smith", "U.S. law") or after a title.
_NO_END = r"(?<!\b\w\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)"
_CLOSING = r"[\"'”’»)\]」』]*"
_SENTENCE = re.compile(rf"[.!?]{_NO_END}{_CLOSING}(?=\s)|[。！？]{_CLOSING}")
_LINE = re.compile(r"\s*[^\r\n]*")


def cut(text: str, stop: Stop | None, answers: Sequence[str] = ()) -> str:
    """The text up to where it stops. The result is a prefix of the text. It keeps white space at its begin.

    "line": up to the first line break after the first character that is not white space, without the line break.
    "sentence": within that line, up to the first end of a sentence. This is `.`, `!` or `?`, with closing quotes and
        brackets after it, before white space; or `。`, `！` or `？`, with the same after it. A full stop after a single
        letter or digit, or after Mr, Mrs, Ms, Dr or St, does not end a sentence. Without an end, it is the line.
    None: the whole text.
    answers: texts inside which no sentence ends: " Mt." is no sentence while the text may go on to "Mt. Everest".

    What is cut does not depend on how the text goes on: a cut(text) shorter than text is also cut(text + more).
    """
    if stop is None:
        return text
    [line] = _LINE.findall(text)[:1]
    if stop == "line":
        return line
    # A line break is white space, but it is not in the line.
    ends = (found.end() for found in _SENTENCE.finditer(line))
    return next((line[:end] for end in ends if not _is_begun(line[:end], answers)), line)


def _is_begun(text: str, answers: Sequence[str]) -> bool:
    """Whether a text is the begin of an answer that goes on."""
    said = text.strip().casefold()
    return any(
        len(said) < len(one) and one.startswith(said) for one in (answer.strip().casefold() for answer in answers)
    )
