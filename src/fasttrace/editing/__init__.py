"""Editing: change what a model says about a fact, and score the change."""

from fasttrace.editing.applied import apply_delta
from fasttrace.editing.collect import import_moments, second_moments
from fasttrace.editing.delta import load_delta
from fasttrace.editing.edit import edit, prepare_edit
from fasttrace.editing.generate import generate
from fasttrace.editing.mass import mass_edit, prepare_mass_edit
from fasttrace.editing.mass_result import MassResult
from fasttrace.editing.moments import Moments
from fasttrace.editing.plan import EditResult

__all__ = [
    "EditResult",
    "MassResult",
    "Moments",
    "apply_delta",
    "edit",
    "generate",
    "import_moments",
    "load_delta",
    "mass_edit",
    "prepare_edit",
    "prepare_mass_edit",
    "second_moments",
]
