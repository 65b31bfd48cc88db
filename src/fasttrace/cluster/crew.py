"""What a computation asks of those who compute it, and the crew of one: this process and its model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Generator, Hashable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from fasttrace.cluster.pieces import Unit, share, waves
from fasttrace.runs import Run

R = TypeVar("R")
EACH_SHARE = 8  # waves of a share, such that shares cost about the same


class Plan(Protocol[R]):
    """A computation that can be cut: a TracePlan or an EditPlan."""

    @property
    def run(self) -> Run:
        """Its row of `runs`."""

    def settled(self, crew: "Crew", skip: Collection[Hashable] = ()) -> "Plan[R]":
        """The plan with everything found out that says where its waves are. skip: keys of units that are done."""

    def units(self) -> list[Unit]:
        """The facts, or edits, in order."""

    def announce(self) -> None:
        """Tell people what the plan leaves out, before it is computed."""

    def joined(self, parts: Sequence[R], *, whole: bool = True) -> R:
        """Results of `batches` as one. whole: whether with what no store keeps, such as edits."""

    def batches(
        self,
        *,
        skip: set[Any] = ...,
        only: frozenset[Any] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[R]:
        """Yield results as they finish. skip, only: keys of units."""


class Crew(ABC):
    """Those who compute. Every member has the same model.

    A function that is asked for here is one of a module, since workers import it. It must not depend on anything but
    its arguments, because it is called again where a worker is lost.
    """

    @abstractmethod
    def ask(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
        """function(model, *args, **keywords), called by one member. Its errors are raised here."""

    @abstractmethod
    def map(self, function: Callable[..., Any], items: Iterable[Sequence[Any]], /) -> Generator[Any]:
        """Yield function(model, *item) of every item, in the order of the items, as they finish.

        Items are read a few ahead of what is yielded. The order of the results does not depend on the crew's size.
        """

    @abstractmethod
    def batches(
        self,
        plan: Plan[R],
        *,
        skip: Collection[Hashable] = (),
        progress: Callable[[int], None] | None = None,
        whole: bool = False,
    ) -> Iterator[R]:
        """Yield the results of a plan, as its own `batches` does, in any order. whole: as for `Plan.joined`."""

    def share(self, plan: Plan[Any], shard: tuple[int, int] | None) -> frozenset[Hashable] | None:
        """The keys of a share of the plan, number i of n, or None for all of it."""
        if shard is None:
            return None
        number, of = shard
        units = self.ask(units_of, plan)
        if len(waves(units)) < EACH_SHARE * of:  # so few that finding out where all begin costs every share little
            units = self.ask(units_of, plan.settled(self))
        return share(units, number, of)


class Alone(Crew):
    """This process and its model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def ask(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
        return function(self.model, *args, **keywords)

    def map(self, function: Callable[..., Any], items: Iterable[Sequence[Any]], /) -> Generator[Any]:
        for item in items:
            yield function(self.model, *item)

    def batches(
        self,
        plan: Plan[R],
        *,
        skip: Collection[Hashable] = (),
        progress: Callable[[int], None] | None = None,
        whole: bool = False,
    ) -> Iterator[R]:
        return plan.batches(skip={*skip}, progress=progress)


def units_of(model: Any, plan: Plan[Any]) -> list[Unit]:
    """The units of a plan of this model."""
    return plan.units()
