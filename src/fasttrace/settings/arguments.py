"""Checks the arguments of public functions, and gives a function the keywords of its type of settings."""

import functools
import inspect
import textwrap
from collections.abc import Callable, Mapping, Sequence
from types import SimpleNamespace
from typing import (
    Any,
    Concatenate,
    Generic,
    ParamSpec,
    TypeVar,
    Unpack,
    cast,
    get_args,
    get_origin,
    get_type_hints,
    overload,
)

from fasttrace.errors import UserError

from .base import Setting, arguments_of, check_names, given_by
from .kinds import Bounds, kind_of

P = ParamSpec("P")
A = TypeVar("A")
B = TypeVar("B")
S = TypeVar("S")
R = TypeVar("R")


class Takes(Generic[P, S]):
    """A decorator that turns a function's last parameter, an S, into keywords. One or two parameters come before it, of
    which the self of a method is one."""

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
        objects = _arguments(function, names)

        @functools.wraps(function)
        def call(*args: Any, **keywords: Any) -> Any:
            check_names(function.__name__, [name for name in keywords if name not in names], known)
            bound = _bound(function.__name__, signature, args, keywords).arguments
            # The self of a method has no annotation, and is passed on as it is.
            first = [objects[n].convert(bound.pop(n)) if n in objects else bound.pop(n) for n in names]
            return function(*first, gathered(self.arguments, bound))

        call.__signature__ = signature  # type: ignore[attr-defined]
        call.__doc__ = _documented(function, list(known.values()))
        return call


def takes(arguments: Callable[P, S]) -> Takes[P, S]:
    """Give a function the keywords of a type of settings, in its signature, its help and at run time.

    The function is written with one object of that type as its last parameter. Keywords that are not given have the
    type's defaults. If the type has an argument `settings`, an object of settings may give some of the keywords.
    """
    return Takes(arguments)


def checked(function: Callable[P, R], error: type[UserError] = UserError) -> Callable[P, R]:
    """Check and convert the arguments of a public function by their annotations, as values of settings are.

    A function or method without settings; those with settings have `takes`. What `Annotated` gives is used. Arguments
    without an annotation, `*args` and defaults are passed on as they are, and so are `**keywords`, unless `Unpack` of a
    TypedDict says what they are. error: for a wrong value.
    """
    signature = inspect.signature(function)
    known = _arguments(function, list(signature.parameters), error)
    owner = _owner(function)
    rest = next((name for name, one in signature.parameters.items() if one.kind is one.VAR_KEYWORD), None)
    names = [name for name in signature.parameters if name != rest]
    names += [name for name in known if name not in names]

    @functools.wraps(function)
    def call(*args: P.args, **keywords: P.kwargs) -> R:
        if rest is None or len(names) > len(signature.parameters) - 1:
            check_names(owner, keywords, names)
        bound = _bound(owner, signature, args, keywords)
        for name, value in bound.arguments.items():
            if name == rest:
                bound.arguments[name] = {n: known[n].convert(v) if n in known else v for n, v in value.items()}
            elif name in known and value is not signature.parameters[name].default:
                bound.arguments[name] = known[name].convert(value)
        return function(*bound.args, **bound.kwargs)

    return call


def checked_as(error: type[UserError]) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """`checked`, where a wrong value raises this error."""
    return lambda function: checked(function, error)


def names_checked(cls: type[S]) -> type[S]:
    """Refuse arguments of a class that have an unknown name, are missing or too many. Their values are the class's."""
    initialise, signature = cls.__init__, inspect.signature(cls)

    @functools.wraps(initialise)
    def call(self: S, *args: Any, **keywords: Any) -> None:
        try:
            initialise(self, *args, **keywords)
        except TypeError:  # only now, since binding takes longer than most classes take to be made
            check_names(cls.__name__, keywords, signature.parameters)
            _bound(cls.__name__, signature, args, keywords)
            raise

    cls.__init__ = call  # type: ignore[assignment]
    return cls


def _owner(function: Callable[..., Any]) -> str:
    """The first word of a function's errors: its name, Store.add for a method, or Store for Store.__init__."""
    return function.__qualname__.rpartition("<locals>.")[2].removesuffix(".__init__")


def _arguments(
    function: Callable[..., Any], names: Sequence[str], error: type[UserError] = UserError
) -> dict[str, Setting]:
    """{name: its check} of a function's parameters with an annotation, and of the keys of an unpacked TypedDict."""
    stated = {name: kind for name, kind in function.__annotations__.items() if name in names}
    parameters = inspect.signature(function).parameters
    for name, kind in list(stated.items()):
        if parameters[name].kind in (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD):
            del stated[name]
            if get_origin(kind) is Unpack:
                stated |= get_args(kind)[0].__annotations__
    # Without the return type, which may be a class that is still being made.
    here = SimpleNamespace(__annotations__=stated)
    rich, plain = (get_type_hints(here, function.__globals__, include_extras=extras) for extras in (True, False))
    return {
        name: Setting(
            owner=_owner(function),
            name=name,
            annotation=plain[name],
            kind=kind_of(rich[name], Bounds()),
            error=error,
        )
        for name in stated
    }


def _bound(
    owner: str, signature: inspect.Signature, args: Sequence[Any], keywords: Mapping[str, Any]
) -> inspect.BoundArguments:
    """The arguments by name. Raises UserError where one is missing or there are too many."""
    try:
        return signature.bind(*args, **keywords)
    except TypeError as error:
        raise UserError(f"{owner}: {error}") from None


def gathered(arguments: type, keywords: dict[str, Any]) -> Any:
    """The object that the function receives, made from the keywords and `settings` among them, an object or a dict.

    Raises UserError where `settings` is of another type, or a setting is given in both.
    """
    whole = keywords.get("settings")
    if whole is None:
        return arguments(**keywords)
    about = arguments_of(arguments)["settings"]
    wanted = next(kind for kind in get_args(about.annotation) if kind is not type(None))
    if isinstance(whole, Mapping):
        check_names(about.owner, whole, arguments_of(wanted))
        keywords["settings"] = whole = wanted(**whole)
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
