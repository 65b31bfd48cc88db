"""Consistency checks of a store. Each query of sql/checks returns the wrong rows, so a sound store returns none."""

import json
from functools import cache
from importlib.resources import files
from typing import Any

import pyarrow as pa

from fasttrace.errors import StoreError
from fasttrace.optional import duckdb
from fasttrace.store import Readable
from fasttrace.store.header import header_of

from .relation import CHAIN, SETTINGS, make_chain, read_by


@cache
def checks() -> dict[str, str]:
    """{name: text} of sql/checks/<name>.sql, sorted by name."""
    folder = files("fasttrace.analysis") / "sql" / "checks"
    found = {file.name.removesuffix(".sql"): file.read_text(encoding="utf-8") for file in folder.iterdir()}
    return dict(sorted(found.items()))


def failures(store: Readable) -> pa.Table:
    """The checks that a store fails, one row per check.

    Columns: check (name of the file in sql/checks, whose header describes the fault), rows (number of wrong rows),
    example (the first wrong row, as JSON).
    Raises StoreError where a check cannot be run.
    """
    found = []
    with store.reading() as con:
        make_chain(con, only=frozenset(SETTINGS).union(*({name, *read_by(name)} for name in _views())))
        for name, text in checks().items():
            rows, example = _failing(con, name, text)
            if rows:
                found.append({"check": name, "rows": rows, "example": example})
    return pa.Table.from_pylist(found, schema=_SCHEMA)


def _views() -> set[str]:
    """The relations of CHAIN that the checks read."""
    return {one for name, text in checks().items() for one in header_of(text, name).inputs if one in CHAIN}


_SCHEMA = pa.schema([("check", pa.string()), ("rows", pa.int64()), ("example", pa.string())])


def _failing(con: duckdb.DuckDBPyConnection, name: str, text: str) -> tuple[int, str | None]:
    """(number of wrong rows, the first as JSON). Rows are streamed, because all rows of a large store may be wrong."""
    rows, first = 0, None
    try:
        for batch in con.sql(text).to_arrow_reader():
            if batch.num_rows and first is None:
                first = _as_json(batch.slice(0, 1).to_pylist()[0])
            rows += batch.num_rows
    except duckdb.Error as error:
        raise StoreError(f"the check {name} failed: {str(error).strip().splitlines()[0]}") from error
    return rows, first


def _as_json(row: dict[str, Any]) -> str:
    return json.dumps(row, ensure_ascii=False, default=str)
