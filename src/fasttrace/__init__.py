"""fasttrace: causal tracing and model editing with the least possible work. Results go to one DuckDB store."""

from types import ModuleType
from typing import TYPE_CHECKING, Any

from fasttrace.version import VERSION as __version__

if TYPE_CHECKING:
    from fasttrace.analysis.regress import regress
    from fasttrace.analysis.saved import ask
    from fasttrace.editing import apply_delta, edit, generate, import_moments, load_delta, mass_edit, second_moments
    from fasttrace.errors import FactError, FasttraceError, ModelError, PackageError, StoreError, UserError
    from fasttrace.facts import Fact, Probe, load_facts
    from fasttrace.models import load_model, pair_facts, wrap_model
    from fasttrace.settings import (
        EditSettings,
        ExportSettings,
        FineTuneSettings,
        GenerateSettings,
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
    "ExportSettings",
    "Fact",
    "FactError",
    "FasttraceError",
    "FineTuneSettings",
    "GenerateSettings",
    "MassSettings",
    "MemitSettings",
    "ModelError",
    "MomentSettings",
    "PackageError",
    "Probe",
    "RomeSettings",
    "Store",
    "StoreError",
    "Stores",
    "TraceSettings",
    "UserError",
    "__version__",
    "apply_delta",
    "ask",
    "check_known",
    "edit",
    "generate",
    "import_moments",
    "load_delta",
    "load_facts",
    "load_model",
    "mass_edit",
    "pair_facts",
    "regress",
    "second_moments",
    "trace",
    "wrap_model",
]


def __getattr__(name: str) -> Any:
    # Imported at first use: the command line listens to Ctrl-C before torch is imported, which takes a second, and a
    # machine that only traces may lack duckdb, which Store, Stores, ask and regress need.
    home: ModuleType
    if name in ("Store", "Stores"):
        import fasttrace.store as home
    elif name == "regress":
        import fasttrace.analysis.regress as home
    elif name == "ask":
        import fasttrace.analysis.saved as home
    elif name.endswith("Error") and name in __all__:
        import fasttrace.errors as home
    elif name in __all__:
        from fasttrace import editing, facts, models, settings, tracing

        home = next(one for one in (editing, facts, models, settings, tracing) if name in one.__all__)
    else:
        raise AttributeError(f"module 'fasttrace' has no attribute '{name}'")
    globals()[name] = getattr(home, name)
    return globals()[name]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
