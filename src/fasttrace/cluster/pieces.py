"""How a plan is cut into pieces for workers, or into shares for machines that do not know each other.

Both are whole waves (groups of edits). A product of fewer rows may round differently, so this keeps every value the one
that a single process finds, however many workers there are.
"""

import heapq
import logging
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

log = logging.getLogger(__name__)
EACH = 32  # pieces for each worker, where there are so many waves: the last to end waits for about 1/32 of the work
WAVES = 8  # of a piece at most: what a lost worker loses


class Unit(NamedTuple):
    """A fact or an edit of a plan.

    key: its fact_id, or its (fact_id, layer). cost: FLOPs, as planned. begins: whether a wave begins with it.
    """

    key: Hashable
    cost: float
    begins: bool


@dataclass(frozen=True)
class Piece:
    """Consecutive units that one worker computes in one go."""

    units: tuple[Unit, ...]

    @property
    def cost(self) -> float:
        """The sum of the units' costs."""
        return sum(unit.cost for unit in self.units)

    @property
    def keys(self) -> frozenset[Hashable]:
        """The units' keys."""
        return frozenset(unit.key for unit in self.units)

    def halves(self) -> "list[Piece]":
        """Two pieces of nearly equal cost, which are whole waves where there are several. One unit is not halved."""
        cuts = [n for n, unit in enumerate(self.units) if n and unit.begins] or list(range(1, len(self.units)))
        if not cuts:
            return [self]
        before, sums = 0.0, [0.0]
        for unit in self.units:
            before += unit.cost
            sums.append(before)
        at = min(cuts, key=lambda n: abs(2 * sums[n] - before))
        return [Piece(self.units[:at]), Piece(self.units[at:])]


def waves(units: Sequence[Unit]) -> list[Piece]:
    """The units, one piece a wave."""
    found: list[list[Unit]] = []
    for unit in units:
        if unit.begins or not found:
            found.append([])
        found[-1].append(unit)
    return [Piece(tuple(some)) for some in found]


def pieces(units: Sequence[Unit], workers: int, done: Collection[Hashable] = ()) -> list[Piece]:
    """The units that are not done, in pieces for some workers, those of the largest cost first. done: keys.

    A piece has neighbouring waves, at most WAVES of them and some 1/EACH of a worker's part of the work. What is left
    of a wave that is done in part is a piece of its own.
    """
    whole = waves(units)
    left = [Piece(tuple(unit for unit in wave.units if unit.key not in done)) for wave in whole]
    most = sum(wave.cost for wave in left) / (EACH * workers)
    joined: list[list[Piece]] = []
    open_ended = False  # whether the next wave may join the last piece
    for wave, rest in zip(whole, left, strict=True):
        complete = len(rest.units) == len(wave.units)
        if rest.units:
            last = joined[-1] if joined and open_ended and complete else []
            if last and len(last) < WAVES and sum(one.cost for one in last) + rest.cost <= most:
                last.append(rest)
            else:
                joined.append([rest])
        open_ended = complete
    made = [Piece(tuple(unit for wave in some for unit in wave.units)) for some in joined]
    return sorted(made, key=lambda piece: -piece.cost)


def share(units: Sequence[Unit], number: int, of: int) -> frozenset[Hashable]:
    """The keys of share `number` (from 1) of `of`: whole waves, such that the shares cost about the same.

    The costliest waves are dealt first, each to the share that has least. The same plan has the same shares everywhere.
    A warning is logged where there are so few waves that the share has none.
    """
    heap = [(0.0, n) for n in range(1, of + 1)]
    keys: list[Hashable] = []
    whole = sorted(waves(units), key=lambda one: -one.cost)
    for wave in whole:
        load, n = heapq.heappop(heap)
        heapq.heappush(heap, (load + wave.cost, n))
        if n == number:
            keys += wave.keys
    if not keys:
        parts = f"{len(whole)} part{'' if len(whole) == 1 else 's'}"
        log.warning("share %d of %d has nothing to compute: the work has only %s that can be shared", number, of, parts)
    return frozenset(keys)
