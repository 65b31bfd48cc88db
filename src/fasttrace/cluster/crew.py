"""What a computation asks of those who compute it, and the crew of one: this process and its model."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Sequence
from typing import Any, Protocol, TypeVar

from fasttrace.cluster.pieces import Unit

R = TypeVar("R", covariant=True)


class Plan(Protocol[R]):
    """A computation that can be cut: a TracePlan or an EditPlan."""

    def units(self) -> list[Unit]:
        """The smallest parts that can be computed alone, in order."""

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
        self, plan: Plan[R], *, skip: Collection[Hashable] = (), progress: Callable[[int], None] | None = None
    ) -> Iterator[R]:
        """Yield the results of a plan, as its own `batches` does, in any order."""


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
        self, plan: Plan[R], *, skip: Collection[Hashable] = (), progress: Callable[[int], None] | None = None
    ) -> Iterator[R]:
        return plan.batches(skip=skip, progress=progress)
