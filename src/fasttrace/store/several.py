"""Several stores read as one: attached side by side, with views over all of them."""

import re
from collections.abc import Hashable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Annotated, Any, cast

import duckdb
import pyarrow as pa

from fasttrace.errors import StoreError
from fasttrace.places import is_same
from fasttrace.settings.arguments import checked
from fasttrace.settings.kinds import MOST_SECONDS, Bounds, Kind
from fasttrace.store.connect import attached, quoted, schema_columns, schema_keys
from fasttrace.store.migrate import as_current
from fasttrace.store.quack import place_of
from fasttrace.store.query import ONCE, Readable
from fasttrace.store.texts import RELATIONS, statement

File = str | PathLike[str]

# Names that DuckDB, or this module, uses for something else.
_RESERVED = ("main", "memory", "temp", "system", "pg_catalog", "information_schema", ONCE)


def _pairs(value: Any) -> list[tuple[str, Path]]:
    """[(name, file)] of the argument `stores`. Raises a ValueError or TypeError for anything else."""
    if isinstance(value, str | bytes):
        raise ValueError
    items = value.items() if isinstance(value, Mapping) else value
    pairs = [one if isinstance(one, tuple) else (Path(one).stem, one) for one in items]
    if not all(isinstance(name, str) for name, _ in pairs):
        raise ValueError
    return [(name, place_of(file)) for name, file in pairs]


_STORES = Kind("{name: file}, (name, file) pairs or files", _pairs)


class Stores(Readable):
    """Several stores attached to one connection, for reading. Like a `Store`, they stay closed between calls.

    stores: {name: file}, (name, file) pairs, or files, each named by its stem (runs/a.duckdb is a). A folder that
        `Store.to_parquet` wrote may stand for a file.
    timeout_s: for how many seconds a method retries while another process has one of the stores open.

    A relation of one store is name.relation, with the columns of its file. A plain relation has the rows of all stores,
    with the column `store` first and this schema version's column names. A row that is in two stores occurs twice in
    it. The views of the analysis, and everything that reads `once()`, have such a row once, from the first store.

    Raises StoreError where a name or a file cannot be used, or two stores contradict each other.
    """

    @checked
    def __init__(
        self,
        stores: Annotated[Mapping[str, File] | Iterable[File | tuple[str, File]], _STORES],
        *,
        timeout_s: Annotated[float, Bounds(0, most=MOST_SECONDS)] = 60.0,
    ) -> None:
        self.paths = _checked(cast(list[tuple[str, Path]], stores))  # converted by `checked`
        self.timeout_s = timeout_s
        self._search = f"main,{ONCE}"

    def __repr__(self) -> str:
        return f"Stores({ {name: str(path) for name, path in self.paths.items()} })"

    @property
    def files(self) -> dict[str, Path]:
        """The files by name."""
        return self.paths

    @property
    def key(self) -> Hashable:
        """As of every `Readable`. `once` reads other relations under the same names."""
        return super().key, self._search

    @contextmanager
    def reading(self, *, folders: Iterable[Path] = ()) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a read-only connection. All queries in the `with` block see the same state of the stores.

        folders: the folders whose files the queries may read. They can read no other file.
        """
        with attached(self.paths, timeout_s=self.timeout_s, folders=folders) as con:
            _make_relations(con, list(self.paths))
            con.execute("SET search_path = $path", {"path": self._search})
            yield con

    def once(self) -> "Stores":
        """The same stores, whose plain relations have no column `store` and every row once."""
        same = Stores(self.paths, timeout_s=self.timeout_s)
        same._search = f"{ONCE},main"
        return same

    def relations(self) -> pa.Table:
        """The files' relations: store, relation, kind ('table' or 'view'), n_rows (NULL for a view), n_columns."""
        with self.reading() as con:
            parts = []
            for name in self.paths:
                con.execute(f"USE {quoted(name)}")
                table = con.sql(statement("relations")).to_arrow_table()
                parts.append(table.add_column(0, "store", pa.array([name] * len(table), pa.string())))
            return pa.concat_tables(parts)


def _make_relations(con: duckdb.DuckDBPyConnection, names: list[str]) -> None:
    """Create every relation over all stores twice: in main with all rows, in `once` with each row once."""
    stored = [selects_in(con, name) for name in names]
    con.execute("CREATE SCHEMA once")
    for relation in RELATIONS:
        parts = [one[relation] for one in stored]
        named = [f"SELECT '{name}' AS store, * FROM ({part})" for name, part in zip(names, parts, strict=True)]
        con.execute(f"CREATE VIEW {relation} AS {_union(named)}")
        new = [_without(part, parts[:place], schema_keys()[relation]) for place, part in enumerate(parts)]
        con.execute(f"CREATE VIEW {ONCE}.{relation} AS {_union(new)}")
    _check_agreement(con)


def selects_in(con: duckdb.DuckDBPyConnection, name: str) -> dict[str, str]:
    """{relation: SELECT of its rows} of the attached store `name`, with this schema version's columns."""
    [(version,)] = con.execute(f"SELECT max(version) FROM {quoted(name)}.main.store_schema").fetchall()
    return {
        relation: as_current(f"{quoted(name)}.main.{relation}", relation, version, columns)
        for relation, columns in schema_columns().items()
    }


def _union(parts: list[str]) -> str:
    return " UNION ALL ".join(f"({part})" for part in parts)


def _without(rows: str, before: list[str], key: list[str]) -> str:
    """The rows whose key is not among those of the earlier stores."""
    if not before:
        return rows
    same = " AND ".join(map(_same, key))
    return f"SELECT later.* FROM ({rows}) AS later ANTI JOIN ({_union(before)}) AS earlier ON {same}"


def _same(column: str) -> str:
    """SQL for whether two rows have the same value in a column of a key. Only a head can be NULL."""
    equal = "IS NOT DISTINCT FROM" if column == "head" else "="
    return f"later.{quoted(column)} {equal} earlier.{quoted(column)}"


def _check_agreement(con: duckdb.DuckDBPyConnection) -> None:
    """Raises StoreError where one fact_id or run_id means different things in two stores."""
    for what, name, stores in con.execute(statement("stores_that_differ")).fetchall():
        raise StoreError(f"the stores {' and '.join(stores)} have different {what} {name!r}: read each alone")


def _checked(pairs: list[tuple[str, Path]]) -> dict[str, Path]:
    if not pairs:
        raise StoreError("stores: expected one or more, got none")
    paths: dict[str, Path] = {}
    for name, path in pairs:
        if not re.fullmatch(r"[\w .+-]+", name) or name.lower() in _RESERVED:
            raise StoreError(f"a store cannot be named {name!r}: give {path} another name, as in a={path}")
        if name.lower() in {other.lower() for other in paths}:  # DuckDB's names are case-insensitive
            raise StoreError(f"two stores are named {name!r}: give one another name, as in a={path}")
        for other in paths.values():
            if is_same(path, other):
                raise StoreError(f"the store {path} is given twice: give it once")
        paths[name] = path
    return paths
