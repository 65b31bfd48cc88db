"""From a source of facts to its records: JSON, JSONL, CSV, TSV and Parquet files, folders, tables in memory, the hub.

What a file is follows from its content, never from its name. Records in JSONL and CSV are numbered by line (from 1),
records of a list or table by index (from 0).
"""

import csv
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib import resources
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

from fasttrace.errors import FactError, shown
from fasttrace.facts.fields import Bad
from fasttrace.optional import require
from fasttrace.settings.kinds import MOST_CHARACTERS, MOST_ITEMS

BUILTIN = "builtin"  # the source that means the built-in set
HUB = "hub:"
_HIGH, _LOW = r"\\u[dD][89abAB][0-9a-fA-F]{2}", r"\\u[dD][c-fC-F][0-9a-fA-F]{2}"
_HALF = re.compile(f"{_HIGH}(?!{_LOW})|(?<!{_HIGH}){_LOW}")  # in JSON, an escape of half a surrogate pair
DELIMITERS = ",\t;"
READ_ENDINGS = (".json", ".jsonl", ".csv", ".tsv", ".parquet")  # of the files of a folder


class Item(NamedTuple):
    """A record of a source.

    where: its place, in words. number: its line or index. value: the record, or its flaw. file: the name of its file
    without the ending. path: the same within its folder, where that has several. row: whether it is a row of a table,
    whose cells are plain text or of a column's type.
    """

    where: str
    number: int
    value: object
    file: str = ""
    path: str = ""
    row: bool = False


@dataclass(frozen=True)
class Source:
    """The records of a source. name: of messages. items: begins anew at each call. lines: whether each is a line of
    JSONL. clean: whether all of the text is UTF-8."""

    name: str
    items: Callable[[], Iterator[Item]]
    lines: bool = False
    clean: bool = True


def source_of(source: Any) -> Source:
    """The records of anything that `load_facts` takes. Raises FactError for a source that cannot be read."""
    if isinstance(source, str) and source.startswith(HUB):
        return _hub(source)
    if source is None or (isinstance(source, str) and source == BUILTIN):
        raw = resources.files("fasttrace.facts").joinpath("builtin.jsonl").read_bytes()
        return _of_bytes("the built-in set", raw)
    if not isinstance(source, str | os.PathLike):
        return _of_object(source)
    if not os.fspath(source):
        raise FactError("facts: expected the name of a file or folder, got an empty one")
    path = Path(source)
    return _of_folder(path) if _is_folder(path) else _of_file(path)


def _of_file(path: Path) -> Source:
    one = _of_bytes(str(path), _bytes(path))

    def items() -> Iterator[Item]:
        return (item._replace(file=path.stem) for item in one.items())

    return replace(one, items=items)


def _of_folder(folder: Path) -> Source:
    """The records of all its files, one file after another. Their places begin with the name of their file."""
    files = {file: _of_file(file) for file in _files(folder)}

    def items() -> Iterator[Item]:
        for file, one in files.items():
            name = file.relative_to(folder)
            path = name.with_suffix("").as_posix() if len(files) > 1 else ""
            yield from (item._replace(where=f"{name}, {item.where}", path=path) for item in one.items())

    every = files.values()
    return Source(str(folder), items, all(one.lines for one in every), all(one.clean for one in every))


def _is_folder(path: Path) -> bool:
    try:
        return path.is_dir()
    except (OSError, ValueError):
        return False


def _files(folder: Path) -> list[Path]:
    """The files of a folder that facts may be in, in the order of their names."""
    try:
        found = sorted(one for one in folder.rglob("*") if one.suffix in READ_ENDINGS and one.is_file())
    except OSError as error:
        raise FactError(f"{folder}: expected a folder of facts, got one that cannot be read ({error})") from None
    if not found:
        raise FactError(f"{folder}: expected a folder with files of facts ({', '.join(READ_ENDINGS)}), got none")
    return found


def _bytes(path: Path) -> bytes:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        raise FactError(f"{path}: expected a file of facts, got a path that does not exist") from None
    except (OSError, ValueError) as error:  # ValueError: a NUL in the name
        reason = getattr(error, "strerror", None) or str(error)
        raise FactError(f"{path}: expected a file of facts, got one that cannot be read ({reason})") from None
    if not raw.removeprefix(b"\xef\xbb\xbf").strip():
        raise FactError(f"{path}: expected a file of facts, got an empty file")
    return raw


def _of_bytes(name: str, raw: bytes) -> Source:
    if raw.startswith(b"PAR1"):
        return _parquet(name, raw)
    if raw[:2] in (b"\xff\xfe", b"\xfe\xff"):
        raise FactError(f"{name}: expected text in UTF-8, got UTF-16")
    try:
        text, clean = raw.decode("utf-8"), True
    except UnicodeDecodeError:
        # Bytes that are not UTF-8 become lone surrogates, so that a message can name their field.
        text, clean = raw.decode("utf-8", errors="surrogateescape"), False
    text = text.removeprefix("\ufeff")
    if ("\\ud" in text or "\\uD" in text) and _HALF.search(text):
        clean = False  # an escape of half a surrogate pair is no character either
    if delimiter := _delimiter(text):
        _check_header(name, text, delimiter)
        return Source(name, partial(_rows_of_text, text, delimiter), clean=clean)
    listed = _list(name, text)
    if listed is None:
        return Source(name, partial(_lines, text), lines=True, clean=clean)
    return Source(name, partial(_listed, listed), clean=clean)


# ---- JSON -------------------------------------------------------------------------------------------------


def _lines(text: str) -> Iterator[Item]:
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                value = _parse(line)
            except Bad as bad:
                value = bad
            yield Item(f"line {number}", number, value)


def _listed(records: Iterable[object]) -> Iterator[Item]:
    for number, record in enumerate(records):
        yield Item(f"record {number} (counted from 0)", number, record)


def _list(name: str, text: str) -> list[object] | None:
    """The records of a file that is one JSON list or one JSON object, or None for JSONL."""
    lines = (line for line in text.split("\n") if line.strip())
    first_line, more = next(lines), next(lines, None) is not None
    begins = first_line.lstrip()[0]
    if not more and begins != "[":
        return None
    whole: object = None
    if begins == "[" or (begins == "{" and not _is_json(first_line)):
        try:
            whole = _parse(text)
        except Bad as bad:
            if begins == "[" and not _is_json(first_line):
                raise FactError(f"{name}: {bad.what}") from None
    if isinstance(whole, dict):
        return [whole]
    if whole == []:
        raise FactError(f"{name}: expected at least one record, got an empty list")
    return whole if isinstance(whole, list) else None


def _is_json(text: str) -> bool:
    try:
        _parse(text)
    except Bad:
        return False
    return True


def _parse(text: str) -> object:
    """The JSON value of `text`. Raises Bad with the column, and the line where there are several."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"column {error.colno}" if "\n" not in text.strip() else f"line {error.lineno}, column {error.colno}"
        if any("\udc80" <= c <= "\udcff" for c in text[error.pos : error.pos + 1]):
            raise Bad(None, f"expected JSON in UTF-8, got other bytes at {place}") from None
        raise Bad(None, f"the text is not JSON ({error.msg} at {place})") from None
    except RecursionError:
        raise Bad(None, "expected JSON of a few levels, got one that is nested too deeply to be read") from None
    except ValueError as error:  # a number of thousands of digits
        raise Bad(None, f"the text cannot be read as JSON ({type(error).__name__})") from None


# ---- tables -----------------------------------------------------------------------------------------------


def _delimiter(text: str) -> str | None:
    """What separates the columns of a CSV or TSV file, or None for another file. Its first line names the columns."""
    first = next((line for line in text.split("\n") if line.strip()), "")
    if first.lstrip()[:1] in ("{", "["):
        return None
    best = max(DELIMITERS, key=first.count)
    return best if best in first else None


def _check_header(name: str, text: str, delimiter: str) -> None:
    """Raise FactError where a column's name is there twice, or there is no row."""
    items = _rows_of_text(text, delimiter)
    first = next(items, None)
    if first is None:
        raise FactError(f"{name}: expected at least one record, got a table without rows")
    header = next(csv.reader(io.StringIO(text.lstrip(), newline=""), delimiter=delimiter, skipinitialspace=True), [])
    columns = [column.strip() for column in header]
    if twice := next((column for i, column in enumerate(columns) if column in columns[:i]), None):
        raise FactError(f"{name}: expected columns with names of their own, got '{twice}' twice")


def _rows_of_text(text: str, delimiter: str) -> Iterator[Item]:
    """The rows of a CSV file, numbered by the line on which they begin. Empty cells have no value."""
    rows = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True, skipinitialspace=True)
    csv.field_size_limit(max(csv.field_size_limit(), 10 * MOST_CHARACTERS))
    columns: list[str] | None = None
    while True:
        number = rows.line_num + 1
        try:
            row = next(rows)
        except StopIteration:
            return
        except csv.Error as error:
            yield Item(f"line {number}", number, Bad(None, f"the text is not CSV ({error})"), row=True)
            return
        if not any(cell.strip() for cell in row):
            continue
        if columns is None:
            columns = [name.strip() for name in row]
            continue
        if len(row) != len(columns):
            flaw = Bad(None, f"expected {len(columns)} columns, as the first line has, got {len(row)}")
            yield Item(f"line {number}", number, flaw, row=True)
            continue
        cells = zip(columns, row, strict=True)
        yield Item(f"line {number}", number, {name: cell for name, cell in cells if cell.strip()}, row=True)


def _parquet(name: str, raw: bytes) -> Source:
    import pyarrow as pa
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(raw))
    except (pa.ArrowException, OSError) as error:
        raise FactError(f"{name}: expected a Parquet file, got a damaged one ({_first_line(error)})") from None
    return _of_table(name, table)


def _of_table(name: str, table: Any) -> Source:
    """The rows of a pyarrow Table, without the cells that are null."""
    if not table.num_rows:
        raise FactError(f"{name}: expected at least one record, got a table without rows")

    def rows() -> Iterator[Item]:
        number = 0
        for batch in table.to_batches(max_chunksize=4096):
            for row in batch.to_pylist():
                value = {key: cell for key, cell in row.items() if cell is not None}
                yield Item(f"record {number} (counted from 0)", number, value, row=True)
                number += 1

    return Source(name, rows)


def _of_object(given: Any) -> Source:
    """Records in memory: a DataFrame of pandas or polars, a pyarrow Table, a datasets.Dataset, or JSON objects."""
    import pyarrow as pa

    name = f"the {type(given).__name__}"
    try:
        if isinstance(given, pa.Table):
            return _of_table(name, given)
        if type(given).__module__.startswith("pandas.") and hasattr(given, "columns"):
            return _of_table(name, pa.Table.from_pandas(given, preserve_index=False))
        if hasattr(given, "__arrow_c_stream__"):
            return _of_table(name, pa.table(given))
        if type(given).__module__.startswith("datasets."):
            return _dataset(name, given)
    except (pa.ArrowException, TypeError, ValueError) as error:
        raise FactError(f"{name}: expected columns of one type each, got others ({_first_line(error)})") from None
    try:
        if isinstance(given, Mapping | bytes):
            raise TypeError
        records = list(islice(given, MOST_ITEMS + 1))
    except TypeError:  # nothing to iterate over
        raise FactError(
            f"load_facts: source: expected a path, a table, records or {HUB}owner/name, got {shown(given)}"
        ) from None
    if len(records) > MOST_ITEMS:
        raise FactError(f"{name}: expected at most {MOST_ITEMS} records, got more")
    if not records:
        raise FactError(f"{name}: expected at least one record, got none")
    return Source(name, partial(_listed, [dict(one) if isinstance(one, Mapping) else one for one in records]))


def _dataset(name: str, given: Any) -> Source:
    """The rows of a datasets.Dataset, or of the one split of a DatasetDict."""
    if isinstance(given, Mapping):
        if len(given) != 1:
            raise FactError(f"{name}: expected one split, got the splits {', '.join(given)}")
        given = next(iter(given.values()))
    return _of_table(name, given.with_format("arrow")[:])


# ---- the hub ----------------------------------------------------------------------------------------------


def _hub(source: str) -> Source:
    """hub:owner/name, with :config and :split where there are several."""
    load_dataset = require("datasets").load_dataset
    repository, *named = source.removeprefix(HUB).split(":")
    if repository.count("/") != 1 or not all(repository.split("/")) or len(named) > 2:
        raise FactError(f"{source}: expected {HUB}owner/name, {HUB}owner/name:split or {HUB}owner/name:config:split")
    config, split = (None, *named) if len(named) == 1 else (*named, None, None)[:2]
    try:
        found = load_dataset(repository, config, split=split)
    except Exception as error:
        raise FactError(f"{source}: the datasets library could not load it: {_first_line(error)}") from None
    if isinstance(found, Mapping) and len(found) > 1:
        example = f"{source}:{next(iter(found))}"
        raise FactError(f"{source}: expected one split, such as {example}, got the splits {', '.join(found)}")
    return _dataset(source, found)


def _first_line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[0].strip() if lines else type(error).__name__
