"""The values that an annotation allows: `kind_of` gives their conversion from text and their description in errors."""

import collections.abc
import math
import os
import types
import typing
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import attrs

from fasttrace.errors import UserError
from fasttrace.memory import LARGEST, parse_bytes

# Upper bounds. They are far above every use, and low enough that a slip such as 1e300 neither runs for ever nor leaves
# the range of float32 (3e38), in which weights are squared and multiplied.
MOST_LAYERS = 10_000  # deeper than any model
MOST_STEPS = 100_000
MOST_ITEMS = 1_000_000  # samples, texts, facts, list items
MOST_TOKENS = 10_000_000_000
MOST_WEIGHT = 1_000_000  # weights, rates and norms
MOST_SEED = 2**63 - 1  # a column of the store is a signed 64-bit integer
MOST_SECONDS = 86_400  # of waiting for a store that another process has open
MOST_CHARACTERS = 100_000  # of one text; a tokenizer takes more than linear time


@attrs.frozen
class Bounds:
    """Bounds of a number: at least `least`, greater than `above`, at most `most`. Also an annotation's metadata."""

    least: float | None = None
    above: float | None = None
    most: float | None = None

    def admit(self, number: float) -> bool:
        """Whether the number is finite and within the bounds."""
        enough = self.least is None or number >= self.least
        few = self.most is None or number <= self.most
        return math.isfinite(number) and enough and few and (self.above is None or number > self.above)

    def __str__(self) -> str:
        if self.above is not None:
            return f" above {self.above:g}" + ("" if self.most is None else f" and at most {self.most}")
        if self.most is not None:
            return f" from {self.least or 0:g} to {self.most}"
        return "" if self.least is None else f" of at least {self.least:g}"


Count = Annotated[int, Bounds(0, most=MOST_ITEMS)]


@attrs.frozen
class Kind:
    """A kind of value.

    described: its description in an error, or "" where the choices are that.
    convert: converts a value or its text. Raises one of REFUSALS where it is not of this kind.
    metavar: its placeholder in a command's help.
    sql_type: type of its column.
    choices: the words to choose from, or (). A path may be one of them instead of a file's name.
    """

    described: str
    convert: Callable[[Any], Any]
    metavar: str = "TEXT"
    sql_type: str = "VARCHAR"
    choices: Collection[str] = ()
    is_flag: bool = False
    is_path: bool = False

    @property
    def expected(self) -> str:
        """Its description in an error, after the word "expected"."""
        return self.described or f"one of {', '.join(self.choices)}"


def one_of(names: Collection[str], metavar: str) -> Kind:
    """The kind of a name among `names`, which may grow."""

    def convert(value: Any) -> str:
        if _text(value) not in names:
            raise ValueError
        return str(value)

    return Kind("", convert, metavar, choices=names)


def kind_of(annotation: Any, bounds: Bounds) -> Kind:
    """The kind of an annotation: Literal, bool, int, float, str, Path, a sequence or mapping, a function, a class, or a
    union of these. The bounds apply to every number in it. `Annotated` gives the kind itself, or bounds.

    Raises TypeError for any other annotation.
    """
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        if kind := next((one for one in inside if isinstance(one, Kind)), None):
            return kind
        return kind_of(inside[0], next(one for one in inside if isinstance(one, Bounds)))
    if origin in (typing.Union, types.UnionType):
        if any(one is Path or typing.get_origin(one) is os.PathLike for one in inside):
            inside = tuple(one for one in inside if one is not str)  # a path is given as text, too
        return _union([kind_of(one, bounds) for one in inside])
    if origin is Literal:
        expected = f"one of {', '.join(inside)}" if len(inside) > 1 else inside[0]
        return Kind(expected, _choice(inside), f"[{'|'.join(inside)}]", choices=inside)
    if origin in (Sequence, Iterable) or (origin is tuple and inside[1:] == (...,)):
        return _sequence(kind_of(inside[0], bounds))
    if origin is Mapping:
        return Kind("a table such as name=value", _mapping(kind_of(inside[1], bounds)), "NAME=VALUE,…")
    if origin is collections.abc.Callable:
        return Kind("a function", _function)
    if annotation is int:
        return Kind(f"a whole number{bounds}", _whole(bounds), "INTEGER", "BIGINT")
    if annotation is float:
        return Kind(f"a number{bounds}", _number(bounds), "NUMBER", "DOUBLE")
    if annotation is bool:
        return Kind("true or false", _flag, sql_type="BOOLEAN", is_flag=True)
    if annotation is types.NoneType:
        return Kind("none", _none)
    if annotation is str:
        return Kind("a text", _text)
    if annotation is Path or origin is os.PathLike:
        return Kind("a path", _path, "PATH", is_path=True)
    if annotation is Any:
        return Kind("anything", lambda value: value)
    if getattr(annotation, "_is_protocol", False):
        return Kind(annotation.__name__, lambda value: value)  # its attributes are checked where they are read
    if isinstance(origin or annotation, type):
        return Kind((origin or annotation).__name__, instance(origin or annotation))
    raise TypeError(f"expected an annotation that a setting can have, got {annotation!r}")


def instance(kind: type) -> Callable[[Any], Any]:
    """A conversion that admits the objects of a class."""

    def convert(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError
        return value

    return convert


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError
    value.encode()  # UnicodeEncodeError, a ValueError, for bytes that are not UTF-8
    return value


def _address(value: Any) -> str:
    parts = urlsplit(_text(value))
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.port == 0:  # .port raises ValueError
        raise ValueError
    return str(value)


def _path(value: Any) -> Any:
    name = os.fspath(value)
    if not isinstance(name, str) or "\0" in name:
        raise ValueError
    if max(len(os.fsencode(part)) for part in name.split(os.sep)) > 255:  # the longest name on usual file systems
        raise ValueError
    return value


def _mapping(item: Kind) -> Callable[[Any], Any]:
    def convert(value: Any) -> dict[Any, Any]:
        if isinstance(value, str):  # of the command line: name=value,name=value
            parts = [part.strip() for part in value.split(",") if part.strip()]
            value = dict(_pair(part) for part in parts)
            if not value or len(value) < len(parts):
                raise ValueError
        if not isinstance(value, Mapping):
            raise ValueError
        return {key: item.convert(one) for key, one in value.items()}

    return convert


def _pair(text: str) -> tuple[str, str]:
    name, sign, value = (part.strip() for part in text.partition("="))
    if not (name and sign and value):
        raise ValueError
    return name, value


def _function(value: Any) -> Any:
    if not callable(value):
        raise ValueError
    return value


def _choice(choices: tuple[str, ...]) -> Callable[[Any], str]:
    def convert(value: Any) -> str:
        return choices[choices.index(value)]

    return convert


def _flag(value: Any) -> bool:
    if isinstance(value, bool):
        return value
    return {"true": True, "false": False}[str(value).lower()]


def _none(value: Any) -> None:
    if value is not None and str(value).lower() != "none":
        raise ValueError


def _is_boolean(value: Any) -> bool:
    """Whether a value is True or False, of Python, numpy or torch. Neither is a number here."""
    return isinstance(value, bool) or "bool" in str(getattr(value, "dtype", ""))


def _number(bounds: Bounds) -> Callable[[Any], float]:
    def convert(value: Any) -> float:
        if _is_boolean(value) or not bounds.admit(number := float(value)):
            raise ValueError
        return number

    return convert


def _whole(bounds: Bounds) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        whole = int(value)
        exact = isinstance(value, str) or whole == value
        if _is_boolean(value) or not exact or not bounds.admit(whole):
            raise ValueError
        return whole

    return convert


def items_of(value: Any) -> list[Any]:
    """The items of a sequence or iterator, which is read once. Raises ValueError where there are too many."""
    items = list(islice(value, MOST_ITEMS + 1))
    if len(items) > MOST_ITEMS:
        raise ValueError
    return items


def _sequence(item: Kind) -> Kind:
    def convert(value: Any) -> tuple[Any, ...]:
        if isinstance(value, str):
            parts: list[Any] = [part.strip() for part in value.split(",") if part.strip()]
        elif isinstance(value, Iterable):
            parts = items_of(value)
        else:
            parts = [value]  # one item where several are meant
        if not parts or isinstance(value, Mapping | bytes):
            raise ValueError
        return tuple(map(item.convert, parts))

    expected = f"a list in which each item is {item.expected}"
    return Kind(expected, convert, f"{item.metavar},…", f"{item.sql_type}[]", choices=item.choices)


def _union(kinds: list[Kind]) -> Kind:
    """The union of kinds. The first kind that accepts a value converts it."""
    whole = [kind for kind in kinds if kind.sql_type == "BIGINT"]

    def convert(value: Any) -> Any:
        # The text of a whole number is one where the union has them, and not a list of texts with one item.
        number = bool(whole) and isinstance(value, str) and value.strip().removeprefix("-").isdecimal()
        for kind in whole if number else kinds:
            try:
                return kind.convert(value)
            except REFUSALS:
                continue
        raise ValueError

    named = [kind for kind in kinds if kind.expected != "none"]
    has_path = any(kind.is_path for kind in named)
    return Kind(
        " or ".join(kind.expected for kind in named),
        convert,
        named[0].metavar if len(named) == 1 else "PATH" if has_path else "TEXT",
        named[0].sql_type,
        choices=tuple(word for kind in named for word in kind.choices),
        is_path=has_path,
    )


def _size(value: Any) -> str | int:
    try:
        parse_bytes(value)
    except UserError:
        raise ValueError from None
    return value if isinstance(value, int) else str(value)


Size = Annotated[str | int, Kind(f"a size such as 512MB or 8GB, at most {LARGEST}", _size)]
Address = Annotated[str, Kind("an address such as http://localhost:8000/v1", _address, "URL")]
REFUSALS = (
    ValueError,
    TypeError,
    KeyError,
    OverflowError,
)  # raised by a `convert`; a UserError has a reason of its own
