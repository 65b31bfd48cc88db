"""How a plan is cut into pieces for workers, or into shares for machines that do not know each other."""

import heapq
from collections.abc import Collection, Hashable, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import NamedTuple

EACH = 32  # pieces for each worker, where the plan has so many waves: the last ones to end wait for 1/32 of the work
WAVES = 8  # of a piece at most: what a lost worker loses
FEWEST = 4  # pieces for each worker, for which waves are cut


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

    A piece has whole waves, at most WAVES of them and some 1/EACH of a worker's part of the work. Where the plan has
    fewer than FEWEST waves for each worker, the costliest are halved until there are so many, or they are one unit
    each. A worker's products then have fewer rows than those of one process. On a CPU this changes no value.
    """
    left = [[unit for unit in wave.units if unit.key not in done] for wave in waves(units)]
    found = [Piece(tuple(some)) for some in left if some]
    most = sum(wave.cost for wave in found) / (EACH * workers)
    joined: list[list[Piece]] = []
    for wave in found:
        if joined and len(joined[-1]) < WAVES and sum(one.cost for one in (*joined[-1], wave)) <= most:
            joined[-1].append(wave)
        else:
            joined.append([wave])
    made = [Piece(tuple(unit for wave in some for unit in wave.units)) for some in joined]
    heap = [(-piece.cost, number, piece) for number, piece in enumerate(made)]
    heapq.heapify(heap)
    single: list[tuple[float, int, Piece]] = []
    while heap and len(heap) + len(single) < FEWEST * workers:
        cost, number, piece = heapq.heappop(heap)
        halves = piece.halves()
        if len(halves) == 1:
            single.append((cost, number, piece))
            continue
        for half in halves:
            number = len(made)
            made.append(half)
            heapq.heappush(heap, (-half.cost, number, half))
    return [piece for _, _, piece in sorted(heap + single, key=lambda entry: entry[:2])]


def share(units: Sequence[Unit], number: int, of: int) -> frozenset[Hashable]:
    """The keys of share `number` (from 1) of `of`: whole waves, such that the shares cost about the same.

    The costliest waves are dealt first, each to the share that has least. The same plan has the same shares everywhere.
    Where it has fewer waves than shares, waves are cut as for workers.
    """
    found = waves(units)
    if len(found) < FEWEST * of:
        found = pieces(units, of)
    heap = [(0.0, n) for n in range(1, of + 1)]
    keys: list[Hashable] = []
    for piece in sorted(found, key=lambda one: -one.cost):
        load, n = heapq.heappop(heap)
        heapq.heappush(heap, (load + piece.cost, n))
        if n == number:
            keys += piece.keys
    return frozenset(keys)
