"""The list of the report's exhibits, that is, its tables and figures with the source of their numbers.

To add one, write a function Readable -> Exhibit | None and name it in EXHIBITS. The page shows the exhibits section by
section, each with its panels, its table, a CSV of the source and a way to reproduce it.
"""

from collections.abc import Callable

from fasttrace.store import Readable

from .exhibit import Exhibit
from .exhibits_edits import edits
from .exhibits_r2 import pairs, r2
from .exhibits_roles import corruptions, roles
from .exhibits_scores import generated, kinds, layers, mass
from .exhibits_tokens import tokens
from .exhibits_tracing import curve, peaks
from .relation import one_reading

EXHIBITS: tuple[Callable[[Readable], Exhibit | None], ...] = (
    *(r2, pairs, layers, kinds, generated),
    *(curve, peaks, roles, corruptions, tokens),
    *(mass, edits),
)


@one_reading()
def exhibits(store: Readable) -> list[Exhibit]:
    """The exhibits for which the store has data, in the order of the page."""
    return [found for make in EXHIBITS if (found := make(store)) is not None]
