"""Every setting of fasttrace, declared once. base.py describes a declaration and what is derived from it."""

from .base import setting, settings
from .edit import EditSettings
from .export import ExportSettings
from .generate import GenerateSettings
from .mass import MassSettings, TuneSettings
from .methods import FineTuneSettings, MemitSettings, RomeSettings, SpreadSettings
from .moments import MomentSettings
from .trace import TraceSettings

__all__ = [
    "EditSettings",
    "ExportSettings",
    "FineTuneSettings",
    "GenerateSettings",
    "MassSettings",
    "MemitSettings",
    "MomentSettings",
    "RomeSettings",
    "SpreadSettings",
    "TraceSettings",
    "TuneSettings",
    "setting",
    "settings",
]
