"""Editing: change what a model says about a fact, and score the change."""

from fasttrace.editing.edit import EditResult, edit, prepare_edit
from fasttrace.editing.moments import Moments, second_moments

__all__ = ["EditResult", "Moments", "edit", "prepare_edit", "second_moments"]
