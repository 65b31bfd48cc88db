"""Fonts for words that matplotlib's own font cannot show, such as Japanese, Arabic or Hindi."""

import functools
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from matplotlib import font_manager
from matplotlib.artist import Artist
from matplotlib.figure import Figure
from matplotlib.text import Text

log = logging.getLogger(__name__)


def fit_fonts(drawn: Artist) -> None:
    """Give every text in a figure, or on axes, further fonts of this machine for the letters that its own font lacks.

    Letters that no font has stay as they are, which matplotlib draws as boxes.
    """
    for text in drawn.findobj(Text):
        assert isinstance(text, Text)
        own = text.get_fontfamily()
        letters = frozenset(ord(letter) for letter in text.get_text() if not letter.isspace())
        lacking = letters - _letters_of(font_manager.findfont(text.get_fontproperties()))
        if lacking and (further := fonts_for(lacking)):
            text.set_fontfamily([*own, *(name for name in further if name not in own)])


@functools.cache
def fonts_for(letters: frozenset[int]) -> tuple[str, ...]:
    """The fewest families of upright fonts that have these letters, by their code points: each the one that has most
    of those still lacking."""
    fonts = {
        one.name: one.fname
        for one in sorted(font_manager.fontManager.ttflist, key=lambda font: (font.name, font.fname), reverse=True)
        if one.style == "normal"
        and one.weight in (400, "normal", "regular", "book")
        and not one.name.startswith("Last Resort")  # boxes for all letters, which matplotlib has
    }
    found: list[str] = []
    while letters and fonts:
        # Of fonts that have as many, the first by name.
        best = max(sorted(fonts), key=lambda name: len(letters & _letters_of(fonts[name])))
        left = letters - _letters_of(fonts.pop(best))
        if left == letters:
            break
        found.append(best)
        letters = left
    return tuple(found)


@functools.cache
def _letters_of(path: str) -> frozenset[int]:
    """The code points that a font file has a glyph for; none where the file is gone or damaged."""
    try:
        return frozenset(font_manager.get_font(path).get_charmap())
    except (OSError, RuntimeError):
        return frozenset()


@contextmanager
def readable(figure: Figure, text_as_text: bool = False) -> Iterator[None]:
    """Save a figure in the body with fonts for all its words. Letters that no font has are said once.

    text_as_text: whether the file has words instead of shapes, as SVG has. What shows the file then chooses the fonts.
    """
    fit_fonts(figure)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        yield
    lacking: dict[str, None] = {}
    for one in caught:
        if match := re.match(r"Glyph (\d+) .* missing from font", str(one.message)):
            lacking[chr(int(match[1]))] = None
        else:
            warnings.warn_explicit(one.message, one.category, one.filename, one.lineno)
    if lacking and not text_as_text:
        letters = "".join(lacking)
        log.warning(
            "no font of this machine has %s, drawn as boxes: install one that has, such as Noto Sans CJK",
            f"{letters[:20]}…" if len(letters) > 20 else letters,
        )
