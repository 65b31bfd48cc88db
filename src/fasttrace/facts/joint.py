"""What stands between a prompt and its target: a space, or nothing (docs/algorithms.md, section 2)."""

import unicodedata
from bisect import bisect_right

# Scripts written without spaces between words, as ranges of code points with both ends. unicodedata has no scripts.
_SPACELESS = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x0F00, 0x0FFF),  # Tibetan
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x1950, 0x19FF),  # Tai Le, New Tai Lue, Khmer symbols
    (0x1A20, 0x1AAF),  # Tai Tham
    (0x1B00, 0x1B7F),  # Balinese
    (0x2E80, 0x2FDF),  # parts of Han characters
    (0x3001, 0x30FF),  # CJK punctuation, Hiragana, Katakana
    (0x3100, 0x312F),  # Bopomofo
    (0x31A0, 0x9FFF),  # Bopomofo, Katakana, CJK signs, Han
    (0xA000, 0xA4CF),  # Yi
    (0xA980, 0xA9FF),  # Javanese, Myanmar
    (0xAA00, 0xAADF),  # Cham, Myanmar, Tai Viet
    (0xF900, 0xFAFF),  # Han
    (0xFE30, 0xFE4F),  # CJK punctuation, vertical
    (0xFF00, 0xFF9F),  # full-width forms, half-width Katakana
    (0x1AFF0, 0x1B16F),  # Kana
    (0x20000, 0x3FFFF),  # Han
)
_BEGINS = [begin for begin, _ in _SPACELESS]


def joint(prompt: str, target: str, prefix: str | None = None) -> str:
    """What stands between the prompt and the target: the prefix if one is given, else what these rules say.

    Nothing follows white space, an opening quote or an opening bracket. Nothing stands beside a script without spaces,
    whether the prompt ends in it or the target begins with it. A straight quote opens if the prompt has an odd number
    of them, where an apostrophe inside a word does not count. Everything else is followed by a space, also before
    a target such as "'s" or ",", whose fact needs the prefix "".
    """
    if prefix is not None:
        return prefix
    last, first = prompt[-1:], target.strip()[:1]
    if not last or last.isspace() or _opens(prompt) or spaceless(last) or spaceless(first):
        return ""
    return " "


def _opens(prompt: str) -> bool:
    """Whether the prompt ends in an opening quote or bracket."""
    last = prompt[-1]
    if last not in "\"'":
        return unicodedata.category(last) in ("Ps", "Pi")
    around = zip(f" {prompt}", prompt, f"{prompt[1:]} ", strict=False)
    return sum(c == last and not (c == "'" and a.isalnum() and b.isalnum()) for a, c, b in around) % 2 == 1


def spaceless(character: str) -> bool:
    """Whether a character, or none for "", is of a script without spaces between words."""
    at = bisect_right(_BEGINS, ord(character)) - 1 if character else -1
    return at >= 0 and ord(character) <= _SPACELESS[at][1]
