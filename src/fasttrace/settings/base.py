"""How a type of settings is declared, and what is derived from it.

A setting is one line in one class: its name, annotation, default, help and bounds. Everything else is derived from
that line: the check and the conversion from text (`kinds`), the keyword of a public function (`arguments`), the option
of the command line (`cli.options`), the key of a study file (`study`), the part in a run's name (`run_settings`) and
the command that repeats a run (`analysis.commands`).
"""

import functools
import inspect
import typing
from collections.abc import Callable, Collection, Iterable, Mapping
from pathlib import Path
from typing import Any, Literal, TypeVar, dataclass_transform

import attrs

from fasttrace.errors import UserError, did_you_mean, question, shown

from .kinds import REFUSALS, Bounds, Kind, kind_of

T = TypeVar("T")
RUN_COLUMNS = ("protocol", "seed")  # settings that have a column in the store's `runs`

# When a setting is part of a run's name. "always": in every run; these are the settings of the first release.
# "changed": where it differs from its default, so that a new setting renames no older run. "never": it changes no
# number, or other columns of the store already contain it (layers, model).
Naming = Literal["never", "always", "changed"]


class _Tabled:
    """Placeholder in a signature for a default that comes from a table."""

    def __repr__(self) -> str:
        return "<the method's>"


@attrs.frozen(kw_only=True)
class Setting:
    """One setting of a type.

    owner: the first word of its errors, such as "trace". heading: under which its option is in a command's help.
    is_setting: False for an argument of a function that is not a setting, such as a progress callback.
    stored: its name in the settings of stored runs, which an older release may have named.
    default: as declared. Where `tabled`, a table may have another value for the model, problem and protocol.
    """

    owner: str
    name: str
    annotation: Any
    kind: Kind
    default: Any = inspect.Parameter.empty
    help: str = ""
    option: str = ""
    heading: str = ""
    unit: str = ""
    names_run: Naming = "changed"
    stored: str = ""
    tabled: bool = False
    positional: bool = False
    is_setting: bool = True
    error: type[UserError] = UserError

    def convert(self, value: Any) -> Any:
        """Convert a value or its text. Raises UserError where it is not of the setting's kind."""
        try:
            return self.kind.convert(value)
        except REFUSALS:
            hint = did_you_mean(value, self.kind.choices) if isinstance(value, str) else ""
            said = f"{self.owner}: {self.name}: expected {self.kind.expected}, got {shown(value)}{hint}"
            raise self.error(said) from None

    @property
    def description(self) -> str:
        """The help sentence, with its unit and a full stop."""
        return f"{self.help} ({self.unit})." if self.unit else f"{self.help}."

    @property
    def parameter(self) -> inspect.Parameter:
        """The setting as a parameter of a function."""
        where = inspect.Parameter.POSITIONAL_OR_KEYWORD if self.positional else inspect.Parameter.KEYWORD_ONLY
        default = _Tabled() if self.tabled else self.default
        return inspect.Parameter(self.name, where, default=default, annotation=self.annotation)


def setting(
    *,
    default: T,
    help: str | None = None,
    unit: str | None = None,
    least: float | None = None,
    above: float | None = None,
    most: float | None = None,
    names_run: Naming | None = None,
    option: str | None = None,
    stored: str | None = None,
    tabled: bool | None = None,
    kw_only: bool = True,
) -> T:
    """Declare a setting. Where a base class declares it too, arguments left out here are inherited.

    help: one sentence without a full stop.
    least, above, most: bounds of every number in a value; only `above` itself is excluded.
    option: the option of the command line, where it is not --name.
    stored: its older name, which stays its name in stored runs, so that renaming a setting renames no run.
    tabled: whether a table may have another default for the model, problem and protocol.
    """
    bounds = {"least": least, "above": above, "most": most}
    about = {"help": help, "unit": unit, "names_run": names_run, "option": option, "tabled": tabled}
    about["stored"] = stored
    return _field(default, {**about, **bounds, "positional": not kw_only})


def argument(*, default: T, help: str) -> T:
    """Declare an argument of a function that is not a setting, such as a progress callback."""
    return _field(default, {"help": help, "is_setting": False})


def _field(default: T, about: dict[str, Any]) -> T:
    stated = {name: value for name, value in about.items() if value is not None}
    return attrs.field(default=default, metadata={"stated": stated})


@dataclass_transform(kw_only_default=True, frozen_default=True, field_specifiers=(setting, argument))
def settings(owner: str, heading: str = "Options") -> Callable[[type[T]], type[T]]:
    """Make a class a type of settings: frozen, keyword-only, with every value checked and converted.

    heading: that of the options of the settings that this class is the first to declare.

    An instance's `given` contains the names that it was made with. All other settings have their defaults.
    """

    def make(cls: type[T]) -> type[T]:
        cls._heading = heading  # type: ignore[attr-defined]
        made: Any = attrs.frozen(cls, kw_only=True, slots=False, field_transformer=functools.partial(_complete, owner))
        initialise = made.__init__

        @functools.wraps(initialise)
        def __init__(self: Any, *unnamed: Any, **given: Any) -> None:
            if unnamed:
                raise UserError(f"{owner}: expected every setting by name, got {shown(unnamed[0])} without one")
            check_names(owner, given, arguments_of(made))
            object.__setattr__(self, "given", frozenset(given))
            initialise(self, **given)

        made.__init__ = __init__
        made.__signature__ = inspect.Signature([one.parameter for one in arguments_of(made).values()])
        return made

    return make


def _complete(owner: str, cls: type, fields: list[Any]) -> list[Any]:
    """The fields of a type, each with its check. Positional settings come first and arguments that are not settings
    last. The other settings are ordered by class, the nearest class first."""
    rich, plain = typing.get_type_hints(cls, include_extras=True), typing.get_type_hints(cls)
    done = []
    for field in fields:
        about = _stated(cls, field)
        bounds = Bounds(about.pop("least", None), about.pop("above", None), about.pop("most", None))
        kind = kind_of(rich[field.name], bounds)
        option = f"--{field.name.replace('_', '-')}"
        named = {"owner": owner, "name": field.name, "stored": field.name, "option": option}
        named["heading"] = vars(_declaring(cls, field.name)[-1])["_heading"]
        one = Setting(**{**named, **about}, annotation=plain[field.name], kind=kind, default=field.default)
        done.append(field.evolve(metadata={**field.metadata, "setting": one}, converter=one.convert))

    def place(field: Any) -> tuple[bool, bool, int]:
        one = field.metadata["setting"]
        return not one.positional, not one.is_setting, _distance(cls, field.name)

    return sorted(done, key=place)


def _distance(cls: type, name: str) -> int:
    """Position in the MRO of `cls` of the nearest class that declares a field."""
    return cls.__mro__.index(_declaring(cls, name)[0])


def _declaring(cls: type, name: str) -> list[type]:
    """The classes that declare a field, the nearest first."""
    return [base for base in cls.__mro__ if name in vars(base).get("__annotations__", ())]


def _stated(cls: type, field: Any) -> dict[str, Any]:
    """The metadata of a field from all its declarations. A nearer class overrides the classes above it."""
    stated: dict[str, Any] = {}
    for base in reversed(cls.__mro__[1:]):
        for one in getattr(base, "__attrs_attrs__", ()):
            if one.name == field.name:
                stated |= one.metadata["stated"]
    return stated | field.metadata["stated"]


def arguments_of(kind: Any) -> dict[str, Setting]:
    """{name: setting} of every keyword that a type is made with, in the order of its signature."""
    return {field.name: field.metadata["setting"] for field in attrs.fields(kind)}


def settings_of(kind: Any) -> dict[str, Setting]:
    """{name: setting} of a type, without the arguments that are not settings."""
    return {name: one for name, one in arguments_of(kind).items() if one.is_setting}


def given_by(one: Any) -> dict[str, Any]:
    """{name: value} that an object was made with. All other settings have their defaults. Empty for None."""
    if one is None:
        return {}
    return {name: getattr(one, name) for name in arguments_of(type(one)) if name in one.given}


def replaced(one: T, **changes: Any) -> T:
    """A copy with some values changed. Settings that were not given stay so. Raises UserError as the type does."""
    return type(one)(**{**given_by(one), **changes})


def carried(kind: type[T], one: Any, **changes: Any) -> T:
    """Settings of another type: the values that `one` was given for settings that both types have, and `changes`."""
    shared = {name: value for name, value in given_by(one).items() if name in settings_of(kind)}
    return kind(**{**shared, **changes})


def resolve(one: Any, name: str, value: Any) -> None:
    """Give a setting that is None the value that follows from the others. It still counts as not given."""
    object.__setattr__(one, name, value)
    object.__setattr__(one, "given", one.given - {name})


def settle(one: Any, **values: Any) -> None:
    """Give settings other values than they were given. They count as given."""
    for name, value in values.items():
        object.__setattr__(one, name, value)
    object.__setattr__(one, "given", one.given | values.keys())


def check_names(owner: str, given: Iterable[str], known: Collection[str]) -> None:
    """Raise UserError for an unknown name. The message suggests the most similar known name."""
    for name in given:
        if name not in known:
            hint = question(name, known) or f"expected one of {', '.join(known)}"
            raise UserError(f"{owner} has no setting '{name}'; {hint}")


def refusal(one: Any, name: str, expected: str, got: object) -> UserError:
    """The UserError for a value that passes its own check but does not fit the other settings or the model."""
    return UserError(f"{arguments_of(type(one))[name].owner}: {name}: expected {expected}, got {got}")


def run_settings(one: Any, without: Collection[str] = ()) -> dict[str, Any]:
    """{name in stored runs: value} of the settings that name a run: all settings of the first release, and later ones
    that differ from their default. without: settings that the computation does not read."""
    named = {}
    for name, about in settings_of(type(one)).items():
        value = getattr(one, name)
        if name in (*RUN_COLUMNS, *without):
            continue
        if about.names_run == "always" or (about.names_run == "changed" and value != about.default):
            plain = list(value) if isinstance(value, tuple) else str(value) if isinstance(value, Path) else value
            named[about.stored] = plain
    return named


def text_of(value: Any) -> str:
    """A value as text for the command line. The setting's `convert` reads it back."""
    if value is None:
        return "none"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, Mapping):
        raise TypeError(f"expected a value with a text form, got {value!r}")
    return ",".join(map(text_of, value)) if isinstance(value, tuple | list) else str(value)
