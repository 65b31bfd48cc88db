"""Budgets of memory: how a user writes one, and what fits into it."""

import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from fasttrace.errors import UserError

T = TypeVar("T")


def parse_bytes(text: str | int) -> int:
    """Bytes of "512MB", "8GB" or a plain number, units of 1024. Raises UserError for anything else."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(|[kKMGT]i?B)\s*", str(text))
    if match is None or float(match[1]) <= 0:
        raise UserError(f"memory: expected a size such as 512MB or 8GB, got {text!r}")
    unit = match[2].upper().rstrip("B").rstrip("I")
    return int(float(match[1]) * 1024 ** " KMGT".index(unit or " "))


def pack_by_budget(items: Iterable[T], size_of: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Groups of consecutive items whose sizes add up to at most `budget`; a larger item is a group of its own."""
    group: list[T] = []
    used = 0
    for item in items:
        size = size_of(item)
        if group and used + size > budget:
            yield group
            group, used = [], 0
        group.append(item)
        used += size
    if group:
        yield group
