"""Saved queries, from sql/ and from a folder of the user, and any other SQL over a store."""

import json
import re
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import Any

import pyarrow as pa

from fasttrace.errors import UserError, did_you_mean, shown
from fasttrace.optional import duckdb
from fasttrace.settings.arguments import checked
from fasttrace.settings.columns import SETTINGS
from fasttrace.store import Readable, Store, Stored
from fasttrace.store.connect import quoted_if_needed
from fasttrace.store.header import Header, header_of
from fasttrace.store.query import ONCE, parameters_of, run_script
from fasttrace.store.texts import RELATIONS, schema_sql, statement

from .relation import CHAIN, make_chain, sql


@dataclass(frozen=True)
class Saved:
    """A named query.

    kind: 'query' or 'view' of the analysis, 'table' or 'view' of the store, or 'own', from the user's folder.
    """

    name: str
    kind: str
    text: str
    header: Header

    @property
    def parameters(self) -> list[str]:
        """Names of its `$name` parameters, in the order of the text. Raises StoreError where the text is not SQL."""
        names = parameters_of(self.text)
        return sorted(names, key=lambda name: self.text.index(f"${name}"))

    def optional(self, name: str) -> bool:
        """Whether the header has "NAME, or NULL …". The parameter is then NULL where it is not given."""
        return re.search(rf"\b{re.escape(name)}, or NULL\b", self.header.parameters) is not None


def saved_queries(folder: str | Path | None = None) -> dict[str, Saved]:
    """{name: query} of every relation and view, every query of the analysis and every .sql file of `folder`.

    Raises UserError where the folder cannot be read, or a file in it has the name of another query.
    """
    found = {
        name: Saved(name, _kind(schema_sql(name)), f"FROM {name}", header_of(schema_sql(name), name))
        for name in RELATIONS
    }
    in_files = [file.name for file in files("fasttrace.analysis").joinpath("sql").iterdir()]
    for name in sorted([*SETTINGS, *(file.removesuffix(".sql") for file in in_files if file.endswith(".sql"))]):
        text = f"FROM {name}" if name in CHAIN else sql(name)
        found[name] = Saved(name, "view" if name in CHAIN else "query", text, header_of(sql(name), name))
    if folder is None:
        return found
    if not Path(folder).is_dir():
        raise UserError(f"expected a folder of queries, got '{folder}', which is not one")
    for path in sorted(Path(folder).glob("*.sql")):
        if path.stem in found:
            raise UserError(f"expected a name that fasttrace does not use, got the query {path}: rename the file")
        text = read_query(path)
        found[path.stem] = Saved(path.stem, "own", text, header_of(text, path.stem))
    return found


def read_query(path: Path) -> str:
    """The text of a query file. Raises UserError where it is missing or not UTF-8 text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise UserError(f"query file '{path}' is not UTF-8 text") from error
    except OSError as error:
        raise UserError(f"query file '{path}' could not be read: {error.strerror}") from error


def find(saved: Mapping[str, Saved], name: str) -> Saved:
    """The query of that name. Raises UserError with the most similar names where there is none."""
    if name in saved:
        return saved[name]
    raise UserError(f"expected SQL or the name of a saved query, got '{name}'{did_you_mean(name, saved, 3)}")


@checked
def ask(store: Stored, query: str, params: Mapping[str, Any] | None = None) -> pa.Table:
    """The rows of a query over a store's relations and the views of the analysis, as `fasttrace sql` prints them.

    query: SQL, or the name of a saved query, such as "scores_by_layer". params: values of its `$name` parameters.
    Raises UserError, one sentence, for an unknown name, a parameter that is missing or unknown, and for whatever DuckDB
    refuses.
    """
    return run_query(store, find(saved_queries(), query) if re.fullmatch(r"\w+", query) else query, params)


def run_query(
    store: Readable,
    query: str | Saved,
    params: Mapping[str, Any] | None = None,
    *,
    write: bool = False,
    folders: Iterable[Path] = (),
) -> pa.Table:
    """The rows of the last statement of a query over the store's relations and the views of the analysis.

    params: values of its `$name` parameters. A string is converted to the type that it is compared with.
    write: let the statements change the store, in one transaction.
    folders: let the statements read the files of these folders, and with `write` also write there with COPY.
    Over several stores, the analysis' own queries count every row once. Other queries read the relations they name.
    Raises UserError, one sentence, for a parameter that is missing or unknown, and for whatever DuckDB refuses.
    """
    text = query if isinstance(query, str) else query.text
    if not isinstance(query, str) and query.kind == "query":
        store = store.once()
    with _opened(store, write, folders) as con:
        values = _values(query, dict(params or {}))  # after opening: a missing store is reported first
        make_chain(con)
        if not write:
            # Several stores are attached to a database in memory, which is not read-only by itself.
            con.execute("BEGIN TRANSACTION READ ONLY")
        written = store.files.values() if write else ()
        return run_script(con, text, values, writes=written, writes_files=write and bool(folders))


def columns_of(store: Readable) -> dict[str, list[tuple[str, str]]]:
    """{relation, as named in a query: [(column, type)]} of the store or stores and of the analysis."""
    found: dict[str, list[tuple[str, str]]] = {}
    with store.reading() as con:
        make_chain(con)
        [(home,)] = con.execute("SELECT current_database()").fetchall()
        for database, schema, name, column, kind in con.execute(statement("columns")).fetchall():
            if schema == ONCE and name not in CHAIN:
                continue  # duplicates of the relations in main
            plain = database in (home, "temp")
            found.setdefault(name if plain else f"{quoted_if_needed(database)}.{name}", []).append((column, kind))
    return found


def is_name(text: str) -> bool:
    """Whether text is a bare name rather than SQL."""
    return re.fullmatch(r"[A-Za-z_][\w-]*", text) is not None


def value_of(text: str) -> tuple[str, Any]:
    """Split "name=value" into (name, value): null is None, [1, 2] or ["a", "b"] a list, any other value a string.

    DuckDB converts a string to the type that it is compared with. Arithmetic needs $name::DOUBLE.
    Raises UserError for text that is not "name=value" or starts a list that is not JSON.
    """
    name, equals, value = text.partition("=")
    if not equals or not name.isidentifier():
        raise UserError(f"expected a parameter as NAME=VALUE, got {shown(text)}")
    if value.lower() == "null":
        return name, None
    if not value.startswith("["):
        return name, value
    try:
        return name, json.loads(value)
    except (ValueError, RecursionError) as error:
        raise UserError(f'expected a list such as ["a", "b"] or [1, 2], got {shown(text)}') from error


def _opened(store: Readable, write: bool, folders: Iterable[Path]) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
    if not write:
        return store.reading(folders=folders)
    if not isinstance(store, Store):
        raise UserError("expected one store to write to, got several, which can only be read")
    return store.writing(folders=folders)


def _values(query: str | Saved, params: dict[str, Any]) -> dict[str, Any]:
    """A value for every parameter of the query."""
    names = sorted(parameters_of(query)) if isinstance(query, str) else query.parameters
    unknown = [name for name in params if name not in names]
    if unknown:
        has = f"a parameter of the query, {', '.join(names)}" if names else "no parameter, since the query has none"
        raise UserError(f"expected {has}, got '{unknown[0]}'{did_you_mean(unknown[0], names, 3)}")
    missing = [name for name in names if name not in params]
    if not isinstance(query, str):
        params |= {name: None for name in missing if query.optional(name)}
        missing = [name for name in missing if name not in params]
    if missing:
        about = "" if isinstance(query, str) or not query.header.parameters else f" ({query.header.parameters})"
        raise UserError(f"expected a value for {', '.join(missing)}{about.replace('.)', ')')}, got none")
    return params


def _kind(text: str) -> str:
    return "view" if "CREATE VIEW" in text else "table"
