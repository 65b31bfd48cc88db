"""Every table and figure of the report, in one list, each with where its numbers come from.

To add one: write a function Store -> Exhibit | None and name it in EXHIBITS. The page lays out whatever is in the list,
section by section: the table, the panels, the CSV of the source, and how to reproduce it.
"""

from collections.abc import Callable

from fasttrace.store import Store

from .exhibit import Exhibit
from .exhibits_r2 import pairs, r2
from .exhibits_scores import layers, mass
from .exhibits_tracing import curve, peaks

EXHIBITS: tuple[Callable[[Store], Exhibit | None], ...] = (r2, pairs, layers, curve, peaks, mass)


def exhibits(store: Store) -> list[Exhibit]:
    """The store's exhibits, in the order of the page; those it has no numbers for are absent."""
    return [found for make in EXHIBITS if (found := make(store)) is not None]
