"""Editing methods, one file each. MEMIT, EMMET, AlphaEdit and PMET are solves for the engine of `editing.spread`."""

from collections.abc import Sequence

from fasttrace.editing.methods.alphaedit import AlphaEdit
from fasttrace.editing.methods.base import Solve
from fasttrace.editing.methods.emmet import Emmet
from fasttrace.editing.methods.memit import Memit
from fasttrace.editing.methods.pmet import Pmet
from fasttrace.editing.moments import Moments, Place
from fasttrace.models.adapter import Decoder
from fasttrace.settings.methods import MethodSettings

SOLVES: dict[str, type[Solve]] = {"memit": Memit, "emmet": Emmet, "alphaedit": AlphaEdit, "pmet": Pmet}


def solve_of(
    method: str, settings: MethodSettings, moments: Moments | None, model: Decoder, places: Sequence[Place]
) -> Solve | None:
    """The method's solve, or None for a method without one (ROME, fine-tuning). places: all that are to be changed."""
    if method not in SOLVES:
        return None
    return SOLVES[method](settings, moments, model=model, places=places)
