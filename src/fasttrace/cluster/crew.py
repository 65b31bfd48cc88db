"""What a computation asks of those who compute it, and the crew of one: this process and its model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from fasttrace.cluster.pieces import Unit
from fasttrace.runs import Run

R = TypeVar("R")


class Plan(Protocol[R]):
    """A computation that can be cut: a TracePlan or an EditPlan."""

    @property
    def run(self) -> Run:
        """Its row of `runs`."""

    def units(self) -> list[Unit]:
        """The smallest parts that can be computed alone, in order."""

    def joined(self, parts: Sequence[R], *, whole: bool = True) -> R:
        """Results of `batches` as one. whole: whether with what no store keeps, such as edits."""

    def batches(
        self,
        *,
        skip: Collection[Any] = (),
        only: Collection[Any] | None = None,
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
    def map(self, function: Callable[..., Any], items: Iterable[Sequence[Any]], /) -> Iterator[Any]:
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

    def units(self, plan: Plan[Any]) -> list[Unit]:
        """The units of a plan."""
        units: list[Unit] = self.ask(units_of, plan)
        return units


class Alone(Crew):
    """This process and its model."""

    def __init__(self, model: Any) -> None:
        self.model = model

    def ask(self, function: Callable[..., Any], /, *args: Any, **keywords: Any) -> Any:
        return function(self.model, *args, **keywords)

    def map(self, function: Callable[..., Any], items: Iterable[Sequence[Any]], /) -> Iterator[Any]:
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
