"""fasttrace: causal tracing and model editing with the least possible work. Results go to one DuckDB store."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from fasttrace.errors import FactError, FasttraceError, ModelError, PackageError, StoreError, UserError
from fasttrace.version import VERSION as __version__

if TYPE_CHECKING:
    from fasttrace.analysis.regress import regress
    from fasttrace.editing import apply_delta, edit, load_delta, mass_edit, second_moments
    from fasttrace.facts import Fact, load_facts
    from fasttrace.models import load_model, wrap_model
    from fasttrace.settings import (
        EditSettings,
        FineTuneSettings,
        MassSettings,
        MemitSettings,
        MomentSettings,
        RomeSettings,
        TraceSettings,
    )
    from fasttrace.store import Store, Stores
    from fasttrace.tracing import check_known, trace

__all__ = [
    "EditSettings",
    "Fact",
    "FactError",
    "FasttraceError",
    "FineTuneSettings",
    "MassSettings",
    "MemitSettings",
    "ModelError",
    "MomentSettings",
    "PackageError",
    "RomeSettings",
    "Store",
    "StoreError",
    "Stores",
    "TraceSettings",
    "UserError",
    "__version__",
    "apply_delta",
    "check_known",
    "edit",
    "load_delta",
    "load_facts",
    "load_model",
    "mass_edit",
    "regress",
    "second_moments",
    "trace",
    "wrap_model",
]


# Imported at first use. The command line listens to Ctrl-C before torch is imported, which takes a second. A machine
# that only traces may lack duckdb.
_HOMES = {
    "fasttrace.analysis.regress": ("regress",),
    "fasttrace.editing": ("apply_delta", "edit", "load_delta", "mass_edit", "second_moments"),
    "fasttrace.facts": ("Fact", "load_facts"),
    "fasttrace.models": ("load_model", "wrap_model"),
    "fasttrace.settings": (
        "EditSettings",
        "FineTuneSettings",
        "MassSettings",
        "MemitSettings",
        "MomentSettings",
        "RomeSettings",
        "TraceSettings",
    ),
    "fasttrace.store": ("Store", "Stores"),
    "fasttrace.tracing": ("check_known", "trace"),
}


def __getattr__(name: str) -> Any:
    home = next((module for module, names in _HOMES.items() if name in names), None)
    if home is None:
        raise AttributeError(f"module 'fasttrace' has no attribute '{name}'")
    value = getattr(import_module(home), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
