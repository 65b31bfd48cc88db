"""Memory: sizes that a user wrote, packing items into a budget, and errors that say that there was too little."""

import errno
import re
from collections.abc import Callable, Iterable, Iterator
from typing import TypeVar

from fasttrace.errors import UserError, shown

T = TypeVar("T")
LARGEST = "1024TB"  # more than any machine has
_OUT_OF_MEMORY = re.compile(r"can't allocate memory|out of memory|bad_alloc|bad allocation|ALLOC_FAILED", re.IGNORECASE)


def parse_bytes(text: str | int) -> int:
    """Number of bytes in "512MB", "8GB" or a plain number, at most 1024TB; 1 kB is 1024 bytes.

    Raises UserError for anything else.
    """
    size = _bytes(text)
    if not 1 <= size <= 1024**5:
        raise UserError(f"memory: expected a size such as 512MB or 8GB, at most {LARGEST}, got {shown(text)}")
    return int(size)


def _bytes(text: str | int) -> float:
    """The number of bytes, 0 where the text is not a size."""
    if isinstance(text, int):  # the text of an int of thousands of digits takes long, or is refused by Python
        return 0 if isinstance(text, bool) else text
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(|[kKMGT]i?B)\s*", str(text))
    if match is None:
        return 0
    unit = match[2].upper().rstrip("B").rstrip("I")
    return float(match[1]) * 1024 ** " KMGT".index(unit or " ")


def size_text(size: int) -> str:
    """2831155 → "2.8 MB". 1 MB is 10⁶ bytes."""
    for unit, factor in (("TB", 10**12), ("GB", 10**9), ("MB", 10**6)):
        if size >= factor:
            return f"{size / factor:.{0 if size >= 100 * factor else 1}f} {unit}"
    return f"{size / 1000:.0f} kB"


def pack_by_budget(items: Iterable[T], size_of: Callable[[T], int], budget: int) -> Iterator[list[T]]:
    """Yield groups of consecutive items with a total size of at most `budget`. A larger item is a group by itself."""
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


def lacks_memory(error: BaseException) -> bool:
    """Whether the system, torch (CPU or GPU) or DuckDB had no memory left. torch and DuckDB have types of their own,
    but must not be imported for this."""
    if isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno == errno.ENOMEM):
        return True
    if type(error).__name__ == "OutOfMemoryException":  # DuckDB's
        return True
    return isinstance(error, RuntimeError) and bool(_OUT_OF_MEMORY.search(str(error)))


def memory_line(error: BaseException) -> str:
    """The line of such an error that says what it is about. torch puts the place in its source before that."""
    text = str(error).strip()
    found = _OUT_OF_MEMORY.search(text)
    line = next((one for one in text.splitlines() if found and found[0] in one), text.partition("\n")[0])
    line = re.sub(r"^.*(?=DefaultCPUAllocator)", "", line).strip().rstrip(".")
    return line or type(error).__name__
