"""The values that an annotation allows: `kind_of` gives their conversion from text and their description in errors."""

import math
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

import attrs

from fasttrace.errors import UserError
from fasttrace.memory import parse_bytes


@attrs.frozen
class Bounds:
    """Bounds of a number: at least `least`, greater than `above`, at most `most`."""

    least: float | None = None
    above: float | None = None
    most: float | None = None

    def admit(self, number: float) -> bool:
        """Whether the number is finite and within the bounds."""
        enough = self.least is None or number >= self.least
        few = self.most is None or number <= self.most
        return math.isfinite(number) and enough and few and (self.above is None or number > self.above)

    def __str__(self) -> str:
        if self.most is not None:
            return f" from {self.least or 0:g} to {self.most}"
        if self.least is not None:
            return f" of at least {self.least:g}"
        return "" if self.above is None else f" above {self.above:g}"


@attrs.frozen
class Kind:
    """A kind of value.

    expected: its description in an error, after the word "expected".
    convert: converts a value or its text. Raises one of REFUSALS where it is not of this kind.
    metavar: its placeholder in a command's help.
    sql_type: type of its column.
    choices: the words to choose from, or ().
    """

    expected: str
    convert: Callable[[Any], Any]
    metavar: str = "TEXT"
    sql_type: str = "VARCHAR"
    choices: tuple[str, ...] = ()
    is_flag: bool = False
    is_path: bool = False


def kind_of(annotation: Any, bounds: Bounds) -> Kind:
    """The kind of an annotation: Literal, bool, int, float, str, Path, a sequence or mapping, a class, or a union of
    these. The bounds apply to every number in it.

    Raises TypeError for any other annotation.
    """
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Annotated:
        return next(one for one in inside if isinstance(one, Kind))
    if origin in (typing.Union, types.UnionType):
        return _union([kind_of(one, bounds) for one in inside])
    if origin is Literal:
        expected = f"one of {', '.join(inside)}" if len(inside) > 1 else inside[0]
        return Kind(expected, _choice(inside), f"[{'|'.join(inside)}]", choices=inside)
    if origin is Sequence:
        return _sequence(kind_of(inside[0], bounds))
    if origin is Mapping:
        return Kind("a table", _instance(Mapping))
    if annotation is int:
        return Kind(f"a whole number{bounds}", _whole(bounds), "INTEGER", "BIGINT")
    if annotation is float:
        return Kind(f"a number{bounds}", _number(bounds), "NUMBER", "DOUBLE")
    if annotation is bool:
        return Kind("true or false", _flag, sql_type="BOOLEAN", is_flag=True)
    if annotation is types.NoneType:
        return Kind("none", _none)
    if annotation is str:
        return Kind("a text", _instance(str))
    if annotation is Path:
        return Kind("a path", _instance(Path), "PATH", is_path=True)
    if isinstance(annotation, type):
        return Kind(annotation.__name__, _instance(annotation))
    raise TypeError(f"expected an annotation that a setting can have, got {annotation!r}")


def _instance(kind: type) -> Callable[[Any], Any]:
    def convert(value: Any) -> Any:
        if not isinstance(value, kind):
            raise ValueError
        return value

    return convert


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


def _number(bounds: Bounds) -> Callable[[Any], float]:
    def convert(value: Any) -> float:
        if isinstance(value, bool) or not bounds.admit(number := float(value)):
            raise ValueError
        return number

    return convert


def _whole(bounds: Bounds) -> Callable[[Any], int]:
    def convert(value: Any) -> int:
        whole = int(value)
        exact = isinstance(value, str) or whole == value
        if isinstance(value, bool) or not exact or not bounds.admit(whole):
            raise ValueError
        return whole

    return convert


def _sequence(item: Kind) -> Kind:
    def convert(value: Any) -> tuple[Any, ...]:
        parts = [part.strip() for part in value.split(",") if part.strip()] if isinstance(value, str) else list(value)
        if not parts or isinstance(value, Mapping):
            raise ValueError
        return tuple(map(item.convert, parts))

    return Kind(f"a list in which each item is {item.expected}", convert, f"{item.metavar},…", f"{item.sql_type}[]")


def _union(kinds: list[Kind]) -> Kind:
    """The union of kinds. The first kind that accepts a value converts it."""

    def convert(value: Any) -> Any:
        for kind in kinds:
            try:
                return kind.convert(value)
            except REFUSALS:
                continue
        raise ValueError

    named = [kind for kind in kinds if kind.expected != "none"]
    return Kind(
        " or ".join(kind.expected for kind in named),
        convert,
        named[0].metavar if len(named) == 1 else "PATH" if any(kind.is_path for kind in named) else "TEXT",
        named[0].sql_type,
        choices=named[0].choices if len(named) == 1 else (),
        is_path=any(kind.is_path for kind in named),
    )


def _size(value: Any) -> str | int:
    parse_bytes(value)
    return value if isinstance(value, int) else str(value)


Size = Annotated[str | int, Kind("a size such as 512MB or 8GB", _size)]
REFUSALS = (ValueError, TypeError, KeyError, OverflowError, UserError)  # raised by a `convert`
