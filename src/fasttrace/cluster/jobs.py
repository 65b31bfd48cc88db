"""What a pool hands out: calls, with what is known about how they went."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from fasttrace.cluster.packing import Packed, packed
from fasttrace.cluster.pieces import Piece

# A worker that is killed was not killed by its work, as a rule. So often a job may lose its worker before it counts as
# the cause.
MOST_LOST = 5
MOST_LOST_WHOLE = 3  # by one wave before it is halved, since the last bits of its halves may differ


@dataclass(eq=False)
class Shared:
    """A value that many calls have in common. reference: Ray's. session: the number of the connection that has it."""

    value: Packed
    reference: Any = None
    session: int = 0


@dataclass(eq=False)
class Job:
    """A call of a function by a worker. number: its place in the order of results.

    piece: what it computes of a plan, where that can be halved. lost: how many workers ended during it. short: how
    often memory did not suffice for it. unwanted: nobody waits for the value any more.
    """

    function: bytes
    arguments: Packed
    number: int
    shared: tuple["Shared", ...] = ()
    size: int = 1
    cost: float = 1.0
    piece: Piece | None = None
    lost: int = 0
    short: int = 0
    unwanted: bool = False

    def again(self) -> "Sequence[Job] | None":
        """The job, or its halves, to be tried again; None where it has been tried often enough."""
        halves = self.piece.halves() if self.piece is not None else []
        has_waves = self.piece is not None and any(unit.begins for unit in self.piece.units[1:])
        if len(halves) == 2 and (self.short or self.lost > (1 if has_waves else MOST_LOST_WHOLE)):
            return [self.of(half) for half in halves]
        return [self] if self.lost < MOST_LOST and self.short < 2 else None

    def of(self, piece: Piece) -> "Job":
        """The job of a part of this one's piece."""
        return Job(
            function=self.function,
            arguments=packed((piece.keys,)),
            number=self.number,
            shared=self.shared,
            size=len(piece.units),
            cost=piece.cost,
            piece=piece,
            lost=1,
        )


@dataclass
class Member:
    """A worker as the pool knows it. state: as people read it. since: when that began, by time.monotonic()."""

    name: str
    actor: Any = None
    host: str = ""
    pid: int = 0
    state: str = "starting"
    since: float = 0.0
    job: Job | None = None
    ready: bool = False
    starts_lost: int = 0
    done: int = 0


@dataclass
class State:
    """What a pool is doing, for people. cost: FLOPs, as planned. size: facts or edits.

    bytes_sent, bytes_got: of calls, values and files, before Ray adds its own. What many calls share is counted once,
    though every machine fetches it.
    """

    address: str = ""
    dashboard: str | None = None
    members: list[Member] = field(default_factory=list)
    pieces: int = 0
    pieces_done: int = 0
    size: int = 0
    size_done: int = 0
    cost: float = 0.0
    cost_done: float = 0.0
    begun: float = 0.0
    retries: int = 0
    bytes_sent: int = 0
    bytes_got: int = 0
    said: list[str] = field(default_factory=list)

    def seconds_left(self, now: float) -> float | None:
        """The seconds expected for what is left, by the cost of what is done. None at first."""
        if not self.cost_done or now <= self.begun:
            return None
        return (self.cost - self.cost_done) / self.cost_done * (now - self.begun)
