"""How a plan is cut into pieces for workers, or into shares for machines that do not know each other."""

from collections.abc import Hashable
from typing import NamedTuple


class Unit(NamedTuple):
    """The smallest part of a plan that can be computed alone.

    key: its fact_id, or its (fact_id, layer). cost: FLOPs, as planned. begins: whether a wave (a group of edits) begins
    with it, so that a cut before it leaves every product of the plan as it is.
    """

    key: Hashable
    cost: float
    begins: bool
