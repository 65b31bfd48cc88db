"""Every setting of fasttrace, declared once. base.py describes a declaration and what is derived from it."""

from .edit import EditSettings
from .mass import MassSettings, TuneSettings
from .methods import FineTuneSettings, MemitSettings, RomeSettings
from .moments import MomentSettings
from .trace import TraceSettings

__all__ = [
    "EditSettings",
    "FineTuneSettings",
    "MassSettings",
    "MemitSettings",
    "MomentSettings",
    "RomeSettings",
    "TraceSettings",
    "TuneSettings",
]
