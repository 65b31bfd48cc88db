"""fasttrace: causal tracing and model editing with the least possible work. Results go to one DuckDB store."""

from typing import TYPE_CHECKING, Any

from fasttrace.editing import apply_delta, edit, mass_edit, second_moments
from fasttrace.errors import FactError, FasttraceError, ModelError, PackageError, StoreError, UserError
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
from fasttrace.tracing import check_known, trace
from fasttrace.version import VERSION as __version__

if TYPE_CHECKING:
    from fasttrace.analysis.regress import regress
    from fasttrace.store import Store, Stores

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
    "load_facts",
    "load_model",
    "mass_edit",
    "regress",
    "second_moments",
    "trace",
    "wrap_model",
]


def __getattr__(name: str) -> Any:
    # Store, Stores and regress need duckdb, which a machine that only traces may lack.
    if name in ("Store", "Stores"):
        import fasttrace.store

        return getattr(fasttrace.store, name)
    if name == "regress":
        from fasttrace.analysis.regress import regress

        return regress
    raise AttributeError(f"module 'fasttrace' has no attribute '{name}'")
