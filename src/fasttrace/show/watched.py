"""The progress of a Python call: a bar in a terminal and in a notebook, nothing elsewhere, or the caller's function."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from .page import in_notebook

if TYPE_CHECKING:
    from .watch import Watch

Asked = Callable[..., None] | bool | None
"""The argument `progress`: a function to call, True for lines where there is no bar, False for nothing."""
HELP = "a bar by default, where stderr is a terminal or a notebook; False: nothing; True: lines elsewhere, too"


class Silent:
    """What a `Watch` has for a computation, and shows nothing.

    each: called as each(n) after n more items of a bar. stages: called as stages(stage, done, total).
    """

    tick = None  # a pool then logs what happens to its workers

    def __init__(self, each: Callable[..., None] | None = None, stages: Callable[..., None] | None = None) -> None:
        self.each, self.of_stages = each, stages

    @contextmanager
    def bar(self, title: str, total: int | None, unit: str = "facts") -> Iterator[Callable[[int], None]]:
        """Yields the function to call as f(n) after n more items."""
        yield self.each or (lambda n: None)

    @contextmanager
    def stages(self) -> Iterator[Callable[[str, int, int], None] | None]:
        """Yields the function to call as f(stage, done, total), if there is one."""
        yield self.of_stages


@contextmanager
def watched(progress: Asked, *, by_stage: bool = False) -> "Iterator[Silent | Watch]":
    """What shows the progress of the body, by its methods `bar` and `stages`.

    by_stage: whether a function that is given takes the arguments of `stages`, instead of those of `bar`.
    """
    if callable(progress):
        yield Silent(stages=progress) if by_stage else Silent(progress)
        return
    if progress is False or (progress is None and not _is_seen()):
        yield Silent()
        return
    from .watch import Watch

    with Watch(None, None, lines=progress is True) as watch:
        yield watch


def _is_seen() -> bool:
    """Whether somebody can see a bar."""
    return in_notebook() or (sys.stderr is not None and sys.stderr.isatty())
