"""The relations of sql/, read from a store.

Every file of sql/ has a header and one SELECT. The files in CHAIN define relations that other files read, from the
store's own relations (edits, trace_effects, …) to the regressions. Every other file is a query. The `Inputs` of a
header list the relations that the file reads. CHAIN begins with the settings of the runs (trace_settings,
edit_settings, …), which have no file because they are generated from the settings' types.
"""

import pickle
import re
import time
from collections.abc import Collection, Hashable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from contextvars import ContextVar
from functools import cache
from importlib.resources import files
from typing import Any

import pyarrow as pa

from fasttrace.errors import UserError
from fasttrace.optional import duckdb
from fasttrace.settings.columns import SETTINGS, settings_select
from fasttrace.store import Readable, rows_of
from fasttrace.store.header import header_of
from fasttrace.store.query import define

CHAIN = (
    *SETTINGS,
    "run_names",
    "trace_runs",
    "measured_traces",
    "measured_cells",
    "fact_peaks",
    "run_pairs",
    "scored_edits",
    "edited_layers",
    "traced_edits",
    "concentrated_facts",
    "regression_rows",
    "layer_sums",
    "group_fits",
    "regressions",
    "layer_correlation",
    "layer_means",
)
"""Each relation comes after the relations it reads. `run_pairs` is a small table, because its parameters choose which
runs are compared. The others are views."""

ALL_RUNS: Mapping[str, Any] = dict.fromkeys(
    (
        "tracing_window",
        "protocol",
        "problem",
        "method",
        "module",
        "localization",
        "metric",
        "tokens",
        "model",
        "trace_run_id",
        "edit_run_id",
    )
)
"""Values for the parameters of sql/run_pairs.sql that keep every run."""


def sql(name: str) -> str:
    """The text of sql/<name>.sql or of a settings relation. Raises UserError where there is none."""
    # A method that is added brings settings, so that these are not kept.
    return settings_select(SETTINGS[name]) if name in SETTINGS else _of_file(name)


@cache
def _of_file(name: str) -> str:
    file = files("fasttrace.analysis") / "sql" / f"{name}.sql"
    if not file.is_file():
        raise UserError(f"expected a relation of the analysis, got '{name}'")
    return file.read_text(encoding="utf-8")


@cache
def read_by(name: str) -> frozenset[str]:
    """Names in CHAIN that a relation of sql/ reads, directly or through others."""
    here = [one for one in header_of(sql(name), name).inputs if one in CHAIN]
    return frozenset(here).union(*map(read_by, here))


def written(text: str, params: Mapping[str, Any]) -> str:
    """SQL with the values of its parameters inserted."""
    for name, value in params.items():
        literal = "NULL" if value is None else f"'{value}'" if isinstance(value, str) else str(value)
        text = re.sub(rf"\${name}\b", literal, text)
    return text.strip()


def definition(name: str) -> str:
    """SQL that creates a relation of CHAIN for all runs."""
    kind = "TABLE" if name == "run_pairs" else "VIEW"
    return f"CREATE OR REPLACE TEMP {kind} {name} AS\n{written(sql(name), ALL_RUNS)}"


def relation(
    store: Readable, name: str, params: Sequence[Any] | Mapping[str, Any] = (), *, runs: Mapping[str, Any] = ALL_RUNS
) -> pa.Table:
    """The rows of the query sql/<name>.sql. Over several stores, every row counts once.

    params: values of its `$name` parameters. runs: as for `query`.
    """
    if name in CHAIN:
        raise UserError(f"expected a query, got the view '{name}': read it with fasttrace.analysis.relation.query")
    return query(store.once(), sql(name), params, runs=runs)


def query(
    store: Readable, text: str, params: Sequence[Any] | Mapping[str, Any] = (), *, runs: Mapping[str, Any] = ALL_RUNS
) -> pa.Table:
    """The rows of any query over the store's relations and those of CHAIN.

    params: values of its `?` or `$name` parameters. runs: values of the parameters of sql/run_pairs.sql, which choose
    the runs to compare; None keeps all runs.
    """
    runs = {**ALL_RUNS, **runs}
    with one_reading() as places:
        _close_old(places)
        kept, asked = _rows.get(), _asked(store, text, params, runs)
        assert kept is not None
        if asked in kept:
            return kept[asked]
        named = [name for name in CHAIN if re.search(rf"\b{name}\b", text)]
        if store.key not in places:
            places[store.key] = _Place(store)
        place = places[store.key]
        try:
            con = place.with_chain(frozenset(named).union(*map(read_by, named)), runs)
            rows = rows_of(con, text, params)
        except BaseException:
            with places.pop(store.key).stack:  # the store says what is wrong with it
                raise
        _close_old(places)
        if asked is not None and rows.nbytes <= MOST_BYTES:
            kept[asked] = rows
        return rows


def _close_old(places: "dict[Hashable, _Place]") -> None:
    """Close the connections that are older than MOST_SECONDS."""
    for key in [key for key, place in places.items() if time.monotonic() - place.since > MOST_SECONDS]:
        places.pop(key).stack.close()


def _asked(store: Readable, text: str, params: Sequence[Any] | Mapping[str, Any], runs: Mapping[str, Any]) -> Hashable:
    """What tells a query from every other. None where a value has no bytes to be told by."""
    values = dict(params) if isinstance(params, Mapping) else list(params)
    try:
        return store.key, text, pickle.dumps((values, runs))
    except (pickle.PicklingError, TypeError, AttributeError):
        return None


@contextmanager
def one_reading() -> Iterator["dict[Hashable, _Place]"]:
    """Let the queries of the analysis in the `with` block share a connection to each store, its views, and their rows.

    To open a store and create views takes longer than most queries of a small one. Other processes cannot write to a
    store that is open, so every query closes connections that are older than MOST_SECONDS.
    """
    if (outer := _places.get()) is not None:
        yield outer
        return
    places: dict[Hashable, _Place] = {}
    token = _places.set(places)
    try:
        with asking_once():
            yield places
    finally:
        _places.reset(token)
        for place in places.values():
            place.stack.close()


@contextmanager
def asking_once() -> Iterator[None]:
    """Let a query of the analysis that is asked again in the `with` block have the rows of its first time.

    Between two queries no store is open, unless they are within `one_reading`.
    """
    token = _rows.set({} if (outer := _rows.get()) is None else outer)
    try:
        yield
    finally:
        _rows.reset(token)


MOST_SECONDS = 2.0
MOST_BYTES = 2**20  # of a table that is kept: regressions, not the edits that they are of


class _Place:
    """A connection to a store, the relations of CHAIN that are on it, and the runs in run_pairs."""

    def __init__(self, store: Readable) -> None:
        self.stack = ExitStack()
        self.con = self.stack.enter_context(store.reading())
        self.since = time.monotonic()
        self.made: set[str] = set()
        self.runs: Mapping[str, Any] | None = None

    def with_chain(self, wanted: frozenset[str], runs: Mapping[str, Any]) -> duckdb.DuckDBPyConnection:
        """The connection, after the relations that it lacks are created, and run_pairs where it has other runs."""
        stale = {"run_pairs"} & wanted if self.runs != runs else set()
        make_chain(self.con, runs, only=wanted - self.made | stale)
        self.made |= wanted
        if stale:
            self.runs = runs
        return self.con


_places: ContextVar[dict[Hashable, _Place] | None] = ContextVar("places", default=None)
_rows: ContextVar[dict[Hashable, pa.Table] | None] = ContextVar("rows", default=None)


def make_chain(
    con: duckdb.DuckDBPyConnection, runs: Mapping[str, Any] = ALL_RUNS, only: Collection[str] = CHAIN
) -> None:
    """Create the relations of CHAIN on a connection. They are temporary, so a read-only store suffices.

    only: the relations to create, with all that they read. To create all of them takes longer than most queries.
    """
    for name in filter(only.__contains__, CHAIN):
        if name == "run_pairs":
            define(con, "TABLE", name, sql(name), {**ALL_RUNS, **runs})
        else:
            define(con, "VIEW", name, sql(name))
