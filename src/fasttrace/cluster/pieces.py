"""How a plan is cut into pieces for workers, or into shares for machines that do not know each other."""

import heapq
import itertools
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

EACH = 32  # a piece need not be less than 1/32 of a worker's part of the work: the last to end wait for so little
WAVES = 8  # of a piece at most: what a lost worker loses
PARTS = 2  # pieces for each worker that are still to come, for which waves are not cut


class Unit(NamedTuple):
    """The smallest part of a plan that can be computed alone.

    key: its fact_id, or its (fact_id, layer). cost: FLOPs, as planned. begins: whether a wave (a group of edits) begins
    with it, so that a cut before it leaves every product of the plan as it is.
    """

    key: Hashable
    cost: float
    begins: bool


@dataclass(frozen=True)
class Piece:
    """Units that one worker computes in one go. cost: the sum of theirs."""

    units: tuple[Unit, ...]

    @property
    def cost(self) -> float:
        return sum(unit.cost for unit in self.units)

    @property
    def keys(self) -> frozenset[Hashable]:
        """The units' keys."""
        return frozenset(unit.key for unit in self.units)

    def halves(self) -> "list[Piece]":
        """Two pieces of nearly equal cost, or only this piece where it is one unit."""
        if len(self.units) == 1:
            return [self]
        before, at = 0.0, 1
        for number, unit in enumerate(self.units[:-1]):
            before += unit.cost
            at = number + 1
            if 2 * before >= self.cost:
                break
        return [Piece(self.units[:at]), Piece(self.units[at:])]


def waves(units: Sequence[Unit]) -> list[Piece]:
    """The units, one piece a wave."""
    numbers, number = [], 0
    for unit in units:
        number += unit.begins
        numbers.append(number)
    return [
        Piece(tuple(unit for _, unit in some)) for _, some in groupby(zip(numbers, units, strict=True), lambda p: p[0])
    ]


def pieces(units: Sequence[Unit], workers: int, done: Collection[Hashable] = ()) -> list[Piece]:
    """The units that are not done, in pieces for some workers, those of the largest cost first. done: keys.

    A piece has whole waves, at most WAVES of them and some 1/EACH of a worker's part of the work. A larger wave is
    whole as long as every worker has PARTS such waves still to come. After that it is halved, down to 1/EACH or one
    unit, so that the last pieces are small. A worker's products then have fewer rows than those of one process, which
    can change their last bits (docs/algorithms.md, section 22).
    """
    left = [[unit for unit in wave.units if unit.key not in done] for wave in waves(units)]
    found = [Piece(tuple(some)) for some in left if some]
    to_come = sum(wave.cost for wave in found)
    least = to_come / (EACH * workers)
    joined: list[list[Piece]] = []
    cost = 0.0
    for wave in found:
        cost += wave.cost
        if joined and len(joined[-1]) < WAVES and cost <= least:
            joined[-1].append(wave)
        else:
            joined.append([wave])
            cost = wave.cost
    number = itertools.count()
    made = [Piece(tuple(unit for wave in some for unit in wave.units)) for some in joined]
    heap = [(-piece.cost, next(number), piece) for piece in made]
    heapq.heapify(heap)
    ordered: list[Piece] = []
    while heap:
        piece = heapq.heappop(heap)[2]
        halves = piece.halves() if piece.cost > max(least, to_come / (PARTS * workers)) else [piece]
        if len(halves) == 1:
            ordered.append(piece)
            to_come -= piece.cost
        else:
            for half in halves:
                heapq.heappush(heap, (-half.cost, next(number), half))
    return ordered


def share(units: Sequence[Unit], number: int, of: int) -> frozenset[Hashable]:
    """The keys of share `number` (from 1) of `of`: pieces as for workers, such that the shares cost about the same.

    Each piece is dealt to the share that has least. The same plan has the same shares everywhere.
    """
    heap = [(0.0, n) for n in range(1, of + 1)]
    keys: list[Hashable] = []
    for piece in pieces(units, of):
        load, n = heapq.heappop(heap)
        heapq.heappush(heap, (load + piece.cost, n))
        if n == number:
            keys += piece.keys
    return frozenset(keys)
