"""Editing methods, one file each. MEMIT, EMMET, AlphaEdit and PMET are solves for the engine of `editing.spread`.

`add_method` adds a solve that is not in the package.
"""

import inspect
import re
from collections.abc import Callable, Sequence

from fasttrace.editing.methods.alphaedit import AlphaEdit
from fasttrace.editing.methods.base import PastKeys, Solve
from fasttrace.editing.methods.emmet import Emmet
from fasttrace.editing.methods.memit import Memit
from fasttrace.editing.methods.pmet import Pmet
from fasttrace.editing.moments import Moments, Place
from fasttrace.errors import UserError
from fasttrace.models.adapter import Decoder
from fasttrace.settings.base import settings_of
from fasttrace.settings.columns import RUN_SETTINGS
from fasttrace.settings.methods import (
    METHODS,
    SOLVED,
    SPREAD,
    MethodSettings,
    SpreadSettings,
    Traits,
    hyperparameters,
    is_shipped,
)

__all__ = ["SOLVES", "PastKeys", "Solve", "add_method", "solve_of"]

SOLVES: dict[str, type[Solve]] = {"memit": Memit, "emmet": Emmet, "alphaedit": AlphaEdit, "pmet": Pmet}


def add_method(
    settings: type[SpreadSettings], *, windowed: bool = True, contexts: int = 5
) -> Callable[[type[Solve]], type[Solve]]:
    """Add a solve to the editing methods of this process, under the name that the class has as `name`.

        @add_method(MySettings, windowed=False)
        class Mine(Solve[MySettings]): ...

    From then on, `ft.edit`, `ft.mass_edit` and stored runs have the method and its hyperparameters, as they have the
    shipped ones, and a hyperparameter of its own is given in `hyperparameters=`. A cell of a notebook can be run again:
    an added method is replaced. A run is named by the method's name and hyperparameters, not by its code: after a
    change of the code, use another name or another store.

    settings: type of its hyperparameters, made by `@settings` on SpreadSettings or a type derived from it. windowed:
        whether it changes the window around a layer, or the layer alone. contexts: prefixes that keys are averaged
        over.

    Raises UserError for a class that is no Solve or leaves one of its methods out, for the name of a shipped method,
    for settings of another type, and for a hyperparameter whose name another setting of an edit has, or another
    method's of another kind.
    """

    def add(solve: type[Solve]) -> type[Solve]:
        if not (isinstance(solve, type) and issubclass(solve, Solve)):
            raise UserError(f"add_method: expected a class derived from Solve, got {solve!r}")
        if left_out := sorted(solve.__abstractmethods__):
            raise UserError(f"add_method: expected {solve.__name__} to define {', '.join(left_out)}, got none")
        for name in ("name", "freedom"):
            if not isinstance(getattr(solve, name, None), str):
                raise UserError(f"add_method: expected {solve.__name__}.{name} to be a text, got none")
        _check_name(solve.name)
        _check_settings(solve.name, settings)
        METHODS[solve.name] = Traits(settings, windowed=windowed, contexts=contexts)
        SOLVES[solve.name] = solve
        for names in (SOLVED, SPREAD):
            if solve.name not in names:
                names.append(solve.name)
        return solve

    return add


def _check_name(name: str) -> None:
    if is_shipped(name):
        raise UserError(f"add_method: expected a name of its own, got '{name}', which fasttrace has")
    if not re.fullmatch(r"[a-z][a-z0-9-]*", name):
        raise UserError(f"add_method: expected a name of small letters, digits and hyphens, got '{name}'")


def _check_settings(method: str, settings: type[SpreadSettings]) -> None:
    """Raise UserError where the settings are none of a solve's or would take another setting's name."""
    what = f"add_method: settings of '{method}'"
    if not (inspect.isclass(settings) and issubclass(settings, SpreadSettings)):
        raise UserError(f"{what}: expected a type derived from SpreadSettings, got {settings!r}")
    if "__attrs_attrs__" not in vars(settings):
        raise UserError(f"{what}: expected a type made by @settings, got the plain class {settings.__name__}")
    taken = {name for kind in RUN_SETTINGS.values() for name in settings_of(kind)}
    others = hyperparameters(without=method)
    for name, one in settings_of(settings).items():
        if name in taken:
            raise UserError(f"{what}: expected names that no run has, got '{name}'")
        if name in others and others[name].kind.sql_type != one.kind.sql_type:
            had, got = others[name].kind.expected, one.kind.expected
            raise UserError(f"{what}: {name}: expected {had}, as another method has it, got {got}")


def solve_of(
    method: str, settings: MethodSettings, moments: Moments | None, model: Decoder, places: Sequence[Place]
) -> Solve | None:
    """The method's solve, or None for a method without one (ROME, fine-tuning). places: all that are to be changed."""
    if method not in SOLVES:
        return None
    return SOLVES[method](settings, moments, model=model, places=places)
