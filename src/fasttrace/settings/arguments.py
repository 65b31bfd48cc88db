"""Gives a public function the keywords of its type of settings."""

import functools
import inspect
import textwrap
from collections.abc import Callable
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, cast, get_args, overload

from fasttrace.errors import UserError

from .base import Setting, arguments_of, check_names, given_by

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
S = TypeVar("S")
R = TypeVar("R")


class Takes(Generic[P, S]):
    """A decorator that turns a function's last parameter, an S, into keywords. One or two parameters come before it."""

    def __init__(self, arguments: Callable[P, S]) -> None:
        self.arguments = cast(type, arguments)

    @overload
    def __call__(self, function: Callable[[A, S], R], /) -> Callable[Concatenate[A, P], R]: ...
    @overload
    def __call__(self, function: Callable[[A, B, S], R], /) -> Callable[Concatenate[A, B, P], R]: ...
    def __call__(self, function: Callable[..., Any], /) -> Callable[..., Any]:
        plain = inspect.signature(function)
        *leading, _ = plain.parameters.values()
        known = arguments_of(self.arguments)
        signature = plain.replace(parameters=[*leading, *(one.parameter for one in known.values())])
        names = [parameter.name for parameter in leading]

        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> Any:
            check_names(function.__name__, [name for name in keywords if name not in names], known)
            bound = signature.bind(*args, **keywords).arguments
            objects = [bound.pop(name) for name in names]
            return function(*objects, gathered(self.arguments, bound))

        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__doc__ = _documented(function, list(known.values()))
        return call


def takes(arguments: Callable[P, S]) -> Takes[P, S]:
    """Give a function the keywords of a type of settings, in its signature, its help and at run time.

    The function is written with one object of that type as its last parameter. Keywords that are not given have the
    type's defaults. If the type has an argument `settings`, an object of settings may give some of the keywords.
    """
    return Takes(arguments)


def gathered(arguments: type, keywords: dict[str, Any]) -> Any:
    """The object that the function receives, made from the keywords and the object `settings` among them.

    Raises UserError where `settings` is of another type, or a setting is given in both.
    """
    whole = keywords.get("settings")
    if whole is None:
        return arguments(**keywords)
    about = arguments_of(arguments)["settings"]
    wanted = next(kind for kind in get_args(about.annotation) if kind is not type(None))
    if not isinstance(whole, wanted):
        raise UserError(f"{about.owner}: settings: expected {wanted.__name__}, got {type(whole).__name__}")
    twice = sorted(given_by(whole).keys() & keywords.keys())
    if twice:
        raise UserError(f"{about.owner}: {twice[0]}: expected a value in settings or as a keyword, got both")
    return arguments(**given_by(whole), **keywords)


def _documented(function: Callable[..., Any], arguments: list[Setting]) -> str:
    """The docstring with a line for every keyword."""
    lines = [
        textwrap.fill(f"{one.name}: {one.description}", 112, initial_indent="    ", subsequent_indent="        ")
        for one in arguments
    ]
    return "\n".join([inspect.getdoc(function) or "", "", "Arguments:", *lines])
