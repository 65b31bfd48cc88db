"""The formats that facts are read in, one file each, and which of them a source has."""

from collections.abc import Iterable, Mapping
from typing import Any

from fasttrace.errors import FactError
from fasttrace.facts.fields import Bad
from fasttrace.facts.formats import (
    counterfact,
    easyedit,
    knowedit,
    known,
    lama,
    mquake,
    own,
    pairs,
    pararel,
    relations,
    rippleedits,
    zsre,
)
from fasttrace.facts.formats.base import Format
from fasttrace.facts.formats.own import own_record

__all__ = ["FORMATS", "detect", "own_record"]

# In the order in which a record is compared with them: fasttrace's own first, since its fields say all of a fact, and
# those with more marks before those with fewer.
_MODULES = (
    own,
    rippleedits,
    mquake,
    knowedit,
    easyedit,
    counterfact,
    known,
    zsre,
    relations,
    lama,
    pararel,
    pairs,
)
FORMATS = {one.FORMAT.name: one.FORMAT for one in _MODULES}

LONGEST_LIST = 20  # fields that a message lists


def detect(name: str, records: Iterable[object], *, lines: bool = False) -> Format:
    """The format of the first record that has the marks of one, else of the first that has a hint of one.

    lines: whether it is a file of lines, where a line that is no JSON object is a fault of its own.
    Raises FactError, which lists the fields seen and the nearest format, where no record has either.
    """
    seen: list[Mapping[str, Any]] = []
    flawed = lines
    for record in records:
        flawed = flawed or isinstance(record, Bad)
        if isinstance(record, Mapping):
            if format := next((one for one in FORMATS.values() if one.marked(record)), None):
                return format
            if len(seen) < LONGEST_LIST:
                seen.append(record)
    for record in seen:
        if format := next((one for one in FORMATS.values() if one.hint and one.hint <= record.keys()), None):
            return format
    if not seen:
        if flawed:
            return FORMATS["own"]  # each record has its own fault
        raise FactError(f"{name}: expected records of {_titles()}, got items that are not JSON objects")
    fields = sorted({str(key) for record in seen for key in record})
    listed = ", ".join(fields[:LONGEST_LIST]) + (", …" if len(fields) > LONGEST_LIST else "")
    raise FactError(
        f"{name}: expected records of {_titles()}, got records with the fields {listed}{_nearest(set(fields))}"
    )


def _titles() -> str:
    own_title, *others = (one.title for one in FORMATS.values())
    return f"{', '.join(others)} or {own_title}"


def _nearest(fields: set[str]) -> str:
    """The format with the largest part of its marks among the fields, as the end of a message, if that is half."""
    every = [(len(mark & fields) / len(mark), one, mark) for one in FORMATS.values() for mark in one.marks]
    share, format, mark = max(every, key=lambda one: one[0])
    lacking = ", ".join(f"'{field}'" for field in sorted(mark - fields))
    near = f": the nearest is {format.title}, which also needs {lacking}" if 0.5 <= share < 1 else ""
    return f"{near}; a map names the columns, such as prompt=question,subject=entity,target_true=answer"
