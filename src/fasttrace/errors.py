"""Errors a caller may catch. Every message is one sentence: where, what was expected, and what was given instead."""

import difflib
import reprlib
from collections.abc import Iterable
from numbers import Number
from pathlib import PurePath
from typing import Any

LONGEST = 4000  # characters of a message


class FasttraceError(Exception):
    """Base of every error that fasttrace raises on purpose. A message that quotes a long value is cut in its middle."""

    def __init__(self, *args: object, **named: Any) -> None:
        if args and isinstance(text := args[0], str) and len(text) > LONGEST:
            args = (f"{text[: LONGEST // 2]} … {text[-LONGEST // 2 :]}", *args[1:])
        super().__init__(*args, **named)


class UserError(FasttraceError):
    """Bad input. The command line prints the message and exits with code 2."""


class FactError(UserError):
    """A fact record that cannot be used."""


class ModelError(UserError):
    """A model that cannot be loaded, or a family without an adapter."""


class StoreError(UserError):
    """A store that cannot be opened, read or written."""


class PackageError(UserError, ImportError):
    """A package that is needed here but not installed."""


class _Short(reprlib.Repr):
    """Short texts of plain values. Any other object is named by its type, since its text may have many lines."""

    def __init__(self) -> None:
        super().__init__()
        self.maxstring = self.maxother = self.maxlong = 80

    def repr_int(self, x: int, level: int) -> str:
        return repr(x) if abs(x) < 10**40 else f"a whole number of {x.bit_length()} bits"

    def repr_instance(self, x: object, level: int) -> str:
        if isinstance(x, PurePath):
            return self.repr1(str(x), level)
        plain = x is None or isinstance(x, Number | bytes | range)
        return repr(x)[: self.maxother] if plain else type(x).__name__


def shown(value: object) -> str:
    """A value as a message quotes it: one line, cut in the middle where it is long."""
    return _Short().repr(value)


def similar(name: object, known: Iterable[str], most: int = 1, cutoff: float = 0.6) -> list[str]:
    """The known names most like `name`, the nearest first. Capitals, dashes and underscores make no difference.

    cutoff: 1 for the same letters, 0 for any name.
    """
    plain: dict[str, str] = {}
    for one in known:
        plain.setdefault(_letters(one), one)
    return [plain[near] for near in difflib.get_close_matches(_letters(str(name)), plain, most, cutoff)]


def question(name: object, known: Iterable[str], most: int = 1) -> str:
    """ "did you mean 'a' or 'b'?", of the known names most like `name`, or "" where none is similar."""
    near = similar(name, known, most)
    return f"did you mean {' or '.join(map(repr, near))}?" if near else ""


def did_you_mean(name: object, known: Iterable[str], most: int = 1) -> str:
    """The end of a message about an unknown name: " (did you mean 'a' or 'b'?)", or "" where none is similar."""
    return f" ({asked})" if (asked := question(name, known, most)) else ""


def _letters(name: str) -> str:
    return name.lower().replace("_", "-").strip("-")
