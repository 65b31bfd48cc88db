"""The settings of stored runs: `runs.settings` (JSON) as values by name, and as a relation for SQL.

A run stores the settings that are part of its name. A setting that is absent has its default, because the run is older
than the setting or did not change it.
"""

import json
from typing import Any

import attrs

from .base import RUN_COLUMNS, Setting, settings_of
from .edit import EditSettings
from .mass import MassSettings
from .methods import hyperparameters
from .moments import MomentSettings
from .trace import TraceSettings

# Kind of run → type of its settings. Runs that edit also have hyperparameters, NULL where their method lacks them.
RUN_SETTINGS: dict[str, type] = {
    "trace": TraceSettings,
    "edit": EditSettings,
    "mass": MassSettings,
    "moments": MomentSettings,
}
SETTINGS = {f"{kind}_settings": kind for kind in RUN_SETTINGS}  # relation → kind of its runs


def columns_of(kind: str) -> dict[str, Setting]:
    """{name: setting} of the settings that runs of a kind store."""
    stored = {
        name: one
        for name, one in settings_of(RUN_SETTINGS[kind]).items()
        if one.names_run != "never" and name not in RUN_COLUMNS
    }
    if kind not in ("edit", "mass"):
        return stored
    # A run that lacks a hyperparameter which always names runs is of a method without it, so no default is filled in.
    own = {name: attrs.evolve(one, tabled=one.names_run == "always") for name, one in hyperparameters().items()}
    return stored | own


def stored_settings(kind: str, text: str) -> dict[str, Any]:
    """{name: value} of a run's settings, from its JSON. Defaults are filled in, except those of tabled settings."""
    known = columns_of(kind)
    names = {one.stored: name for name, one in known.items()}
    stated = {names.get(name, name): value for name, value in json.loads(text).items()}
    return {name: one.default for name, one in known.items() if not one.tabled} | stated


def settings_select(kind: str) -> str:
    """The SELECT of the relation <kind>_settings, with a header as in the .sql files of the analysis."""
    columns = ["run_id", *(f"{_column(one)} AS {name}" for name, one in columns_of(kind).items())]
    lines = [
        f"-- {kind}_settings: the settings of every run of kind {kind}, with defaults filled in.",
        "-- Grain: one row per run. Inputs: runs. Units: as in the options of the command line.",
        "SELECT",
        ",\n".join(f"    {column}" for column in columns),
        f"FROM runs\nWHERE kind = '{kind}'",
    ]
    return "\n".join(lines)


def _column(one: Setting) -> str:
    kind = one.kind.sql_type
    place = f"'$.{one.stored}'"
    value = f"settings ->> {place}" if kind == "VARCHAR" else f"json_extract(settings, {place})::{kind}"
    if one.tabled or one.default is None:
        return value
    return f"coalesce({value}, {_literal(one.default)})"


def _literal(value: Any) -> str:
    if isinstance(value, tuple):
        return f"[{', '.join(map(_literal, value))}]"
    return f"'{value}'" if isinstance(value, str) else str(value)
