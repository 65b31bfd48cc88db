"""The rows of sql/traced_edits.sql that a formula uses, and an account of the rows that it cannot use."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

from fasttrace.errors import UserError, did_you_mean
from fasttrace.optional import duckdb
from fasttrace.store import Readable
from fasttrace.store.query import message_of

from .regression import DESCRIBES
from .relation import make_chain

TRACED_EDITS = "traced_edits"
OF_THE_TRACE = (
    "effect",
    "effect_last_subject",
    "effect_absolute",
    "peak_token_index",
    "p_restored_max",
    "approximate",
    "p_clean",
    "p_noised",
)
OF_THE_FACT = ("source", "relation", "subject")
_DROPPED = pa.schema([("column", pa.string()), ("reason", pa.string()), ("rows", pa.int64()), ("facts", pa.int64())])


@dataclass(frozen=True)
class Selection:
    """Rows of traced_edits without a NULL in the requested columns.

    columns: pyarrow Table of the requested columns; booleans are 0 and 1. n_facts: number of different facts in it.
    n_selected: number of rows before rows with a NULL were dropped. dropped: column, reason, rows, facts; a row counts
    for the first column that is NULL or not finite. describes: {column of DESCRIBES: its values in the rows kept}. Rows
    that differ in one of them are pooled unless the formula uses it.
    """

    columns: pa.Table
    n_facts: int
    n_selected: int
    dropped: pa.Table
    describes: dict[str, list[Any]]

    def text(self, modelled: Sequence[str] = ()) -> str:
        """The account as lines. modelled: columns of the formula, over which rows are not pooled."""
        kept = len(self.columns)
        lines = [f"Rows: {kept:,} of {self.n_selected:,} selected, of {self.n_facts:,} facts"]
        lines += [
            f"Dropped: {row['rows']:,} without {row['column']} ({row['reason']})" for row in self.dropped.to_pylist()
        ]
        one = [f"{name} {values[0]}" for name, values in self.describes.items() if len(values) == 1]
        lines.append(f"All of: {', '.join(one)}")
        for name, values in self.describes.items():
            if len(values) > 1 and name not in modelled:
                again = ", with each edit once per run" if name == "trace_run_id" else ""
                lines.append(f"Pooled: {name} {', '.join(map(str, values))}{again}")
        return "\n".join(lines) + "\n"


def select(
    store: Readable, names: Sequence[str], where: Sequence[str] = (), *, tracing_window: int | None = None
) -> Selection:
    """The rows of traced_edits for which every condition holds and no column of `names` is NULL.

    where: SQL conditions over the columns of traced_edits; they may read the store's other relations.
    tracing_window: window size, in layers, of the tracing effects. None: the window of each edit.
    Raises UserError for an unknown column, for a condition that DuckDB refuses, and where no row is left.
    """
    with store.once().reading() as con:
        make_chain(con, {"tracing_window": tracing_window})
        rows = con.sql(f"FROM {TRACED_EDITS}")
        check_columns(names, rows.columns)
        try:
            for condition in where:
                rows = rows.filter(condition)
            return _selected(rows, names, where)
        except duckdb.Error as error:
            raise UserError(_bad_condition(where, rows.columns, error)) from error


def _selected(rows: duckdb.DuckDBPyRelation, names: Sequence[str], where: Sequence[str]) -> Selection:
    kinds = dict(zip(rows.columns, map(str, rows.types), strict=True))
    rows = rows.project(f"*, {_first_missing(names, kinds)} AS missing, {_why()} AS why")
    counts = "missing, why, count(*) AS n, count(DISTINCT fact_id) AS facts"
    dropped = rows.filter("missing IS NOT NULL").aggregate(counts, "missing, why").order("n DESC, missing, why")
    table = dropped.to_arrow_table().rename_columns(_DROPPED.names).cast(_DROPPED)
    kept = rows.filter("missing IS NULL")
    values = (f"list(DISTINCT {name}) FILTER ({name} IS NOT NULL)" for name in DESCRIBES)
    [(n, n_facts, *found)] = kept.aggregate(", ".join(["count(*)", "count(DISTINCT fact_id)", *values])).fetchall()
    n_selected = n + sum(table["rows"].to_pylist())
    if not n:
        raise UserError(_nothing(names, where, n_selected, table))
    ordered = kept.order("edit_run_id, trace_run_id, problem, method, fact_id, layer")  # makes sums the same to the bit
    columns = ordered.project(", ".join(_as_number(name, kinds[name]) for name in names)).to_arrow_table()
    describes = {name: sorted(values) for name, values in zip(DESCRIBES, found, strict=True) if values}
    return Selection(columns, n_facts, n_selected, table, describes)


def check_columns(names: Sequence[str], columns: Sequence[str]) -> None:
    """Raise UserError for a name that is not a column of traced_edits."""
    for name in names:
        if name not in columns:
            near = did_you_mean(name, columns, 3)
            raise UserError(f"expected a column of {TRACED_EDITS}, got '{name}'{near}; it has {', '.join(columns)}")


def _bad_condition(where: Sequence[str], columns: Sequence[str], error: duckdb.Error) -> str:
    what = f"expected a SQL condition over the columns of {TRACED_EDITS}, got {' AND '.join(where)!r}"
    names = f"; it has {', '.join(columns)}" if isinstance(error, duckdb.BinderException) else ""
    return f"{what}: {message_of(error)}{names}"


def _first_missing(names: Sequence[str], kinds: dict[str, str]) -> str:
    """SQL for the name of the first column that is NULL or not finite. NULL where there is none."""
    tests = [f"{name} IS NULL{f' OR NOT isfinite({name})' if kinds[name] == 'DOUBLE' else ''}" for name in names]
    branches = [f"WHEN {test} THEN '{name}'" for name, test in zip(names, tests, strict=True)]
    return f"CASE {' '.join(branches)} END"


def _why() -> str:
    """SQL for the reason why the first missing column is missing."""
    return f"""CASE
        WHEN missing IN {OF_THE_TRACE} THEN coalesce(effect_reason, 'undefined')
        WHEN missing IN {OF_THE_FACT} AND source IS NULL THEN 'the store was not given the fact'
        WHEN missing = 'trace_run_id' THEN effect_reason
        ELSE coalesce(reason, 'undefined')
    END"""


def _as_number(name: str, kind: str) -> str:
    return f"{name}::INTEGER AS {name}" if kind == "BOOLEAN" else name


def _nothing(names: Sequence[str], where: Sequence[str], n_selected: int, dropped: pa.Table) -> str:
    """The error message for a selection without rows."""
    if n_selected:
        reasons = "; ".join(f"{row['rows']:,} have no {row['column']} ({row['reason']})" for row in dropped.to_pylist())
        return f"expected edits with {', '.join(names)}, got none of {n_selected:,}: {reasons}"
    if where:
        return f"expected edits for which {' and '.join(where)}, got none"
    return "expected a store with edits, got one without any: `fasttrace edit` makes them"
