"""Where a generated text ends early: the one rule for texts that are shown and for texts that are scored."""

import re

from fasttrace.settings.generate import Stop

# A full stop is no end after an initial ("J. Smith", "U.S. law") or after a title.
_NO_END = r"(?<!\b\w\.)(?<!\bMr\.)(?<!\bMrs\.)(?<!\bMs\.)(?<!\bDr\.)(?<!\bSt\.)"
_CLOSING = r"[\"'”’»)\]」』]*"
_SENTENCE = re.compile(rf"[.!?]{_NO_END}{_CLOSING}(?=\s)|[。！？]{_CLOSING}")
_LINE = re.compile(r"\s*[^\r\n]*")


def cut(text: str, stop: Stop | None) -> str:
    """The text up to where it stops. The result is a prefix of the text. It keeps white space at its begin.

    "line": up to the first line break after the first character that is not white space, without the line break.
    "sentence": within that line, up to the first end of a sentence. This is `.`, `!` or `?`, with closing quotes and
        brackets after it, before white space; or `。`, `！` or `？`, with the same after it. A full stop after a single
        letter or digit, or after Mr, Mrs, Ms, Dr or St, does not end a sentence. Without an end, it is the line.
    None: the whole text.

    What is cut does not depend on how the text goes on: a cut(text) shorter than text is also cut(text + more).
    """
    if stop is None:
        return text
    [line] = _LINE.findall(text)[:1]
    if stop == "line":
        return line
    end = _SENTENCE.search(line)
    # A line break is white space, but it is not in the line.
    return line if end is None else line[: end.end()]
