"""A column map: which column of a table, or field of a record, is which field of a fact."""

import json
from collections.abc import Iterable, Mapping
from typing import Any

from fasttrace.errors import FactError, question
from fasttrace.facts.fields import Bad, kind
from fasttrace.facts.formats.own import FIELDS, LISTS, TEXTS, as_meta

NEEDED = ("prompt", "subject", "target_true")


def check_map(name: str, columns: Mapping[str, str], records: Iterable[object]) -> None:
    """Raise FactError where the map has a field that a fact lacks, or a column that no record has."""
    for field in columns:
        if field not in FIELDS:
            hint = question(field, FIELDS) or f"expected some of {', '.join(FIELDS)}"
            raise FactError(f"map: a fact has no field '{field}'; {hint}")
    missing = dict.fromkeys(columns.values())
    seen: dict[str, None] = {}
    for record in records:
        if isinstance(record, Mapping):
            for column in [one for one in missing if _at(record, one) is not None]:
                del missing[column]
            if not missing:
                return
            seen |= dict.fromkeys(map(str, record))
    if not seen:
        return  # no records: each has its own fault
    column = next(iter(missing))
    raise FactError(f"{name}: map: expected some of the columns {', '.join(seen)}, got '{column}'")


def mapped(record: Mapping[str, Any], columns: Mapping[str, str]) -> dict[str, Any]:
    """The map's columns under the names of fields, and everything else in meta. A dotted column is inside an object or
    list. Where the map does not name them, prompt, subject and target_true are the columns of these names."""
    implied = {field: field for field in NEEDED if field not in columns and field not in columns.values()}
    columns = {**implied, **columns}
    found = {field: value for field, column in columns.items() if (value := _at(record, column)) is not None}
    rest = {key: value for key, value in record.items() if key not in columns.values()}
    return {**found, "meta": {**rest, **as_meta(found.get("meta"))}}


def _at(record: Any, column: str) -> Any:
    """record[column], or the value at its dotted path; None where there is none."""
    if isinstance(record, Mapping) and column in record:
        return record[column]
    first, dot, rest = column.partition(".")
    if not dot:
        if isinstance(record, list) and column.isdecimal() and int(column) < len(record):
            return record[int(column)]
        return None
    inside = _at(record, first)
    return None if inside is None else _at(inside, rest)


def as_fields(row: Mapping[str, Any]) -> dict[str, Any]:
    """A row of a table, whose cells become what a fact's fields are: a whole number a text, and a text that is a JSON
    list, or a text alone, a list where the field is one."""
    found = dict(row)
    for name in TEXTS:
        value = found.get(name)
        if isinstance(value, float) and value.is_integer():  # of a column that lacks some
            value = int(value)
        if isinstance(value, int) and not isinstance(value, bool):
            found[name] = str(value)
    for name in LISTS:
        if isinstance(value := found.get(name), str):
            found[name] = _list(value, name)
    if isinstance(edits := found.get("case_edits"), str) and edits.strip().isdecimal():
        found["case_edits"] = int(edits)
    return found


def _list(cell: str, name: str) -> Any:
    if not cell.lstrip().startswith("["):
        return [cell]
    try:
        value = json.loads(cell)
    except (ValueError, RecursionError):
        raise Bad(name, "expected a text or a JSON list, got a text that begins with [ and is neither") from None
    if not isinstance(value, list):
        raise Bad(name, f"expected a JSON list, got {kind(value)}")
    return value
