"""Adds the rows of other stores to one, after a check that all of them agree."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import duckdb
from duckdb import ColumnExpression, ConstantExpression, StarExpression

from fasttrace.errors import StoreError
from fasttrace.store.connect import quoted, schema_columns, schema_keys
from fasttrace.store.quack import beside
from fasttrace.store.several import selects_in
from fasttrace.store.texts import RELATIONS
from fasttrace.store.write import GIVEN_BY_RUN, TABLES, add_facts, add_run, execute, run_row

Relations = Mapping[str, duckdb.DuckDBPyRelation]

# Relations that are computed from others, or have no other values than their key's.
_DERIVED = ("store_schema", "facts_left_out", "trace_effects")
# Columns that describe how and where a row was made, and so may differ between machines.
_ABOUT = {
    "runs": ("model", "device", "torch_version", "created_at", "seconds", "flops"),
    "mass_measures": ("edit_seconds",),
    "moments": ("path",),
    "edit_prompts": ("judge_error",),
    "mass_prompts": ("judge_error",),
}
# Columns that one store may lack (NULL) and another complete.
_COMPLETED = {
    "facts": ("probes", "case_id", "case_edits", "subject_found"),
    "edit_prompts": ("judged_after",),
    "mass_prompts": ("judged_after",),
}
# What differs of the other columns that may be NULL, or written in another order.
_DIFFERS = {
    ("traces", "counterfactuals"): "list_sort(ours.counterfactuals) <> list_sort(theirs.counterfactuals)",
    ("facts", "meta"): """
        len(list_filter(
            map_entries(CAST(ours.meta AS MAP(VARCHAR, JSON))),
            lambda field: field.value <> map_extract(CAST(theirs.meta AS MAP(VARCHAR, JSON)), field.key)[1]
        )) > 0
    """,
}

_SHOWN = 100  # characters of a value


def merge(con: duckdb.DuckDBPyConnection, into: Path, sources: Mapping[str, Path]) -> list[dict[str, Any]]:
    """Add the rows of attached stores that the store on `con` lacks, within the caller's transaction.

    trace_effects is computed again from the cells. into: the file of `con`. sources: {attached name: file}.
    Returns {relation: rows added} of each source, for the relations that mark facts, edits, verdicts, … as finished.
    Raises StoreError where a store contradicts another, or a row belongs to no run or breaks a constraint.
    """
    there = beside(con)
    read = {
        name: {relation: there.sql(select) for relation, select in selects_in(there, name).items()} for name in sources
    }
    earlier: dict[Path, Relations] = {}
    added = []
    for name, file in sources.items():
        _check_runs(read[name], file)
        _check_values(con, into, earlier, file, read[name])
        added.append(_add(con, read[name]))
        earlier[file] = read[name]
    return added


def _add(con: duckdb.DuckDBPyConnection, theirs: Relations) -> dict[str, Any]:
    counts = {"facts": add_facts(con, theirs["facts"])}
    counts |= {relations[-1][1]: 0 for relations in TABLES.values()}
    counts["judgements"] = 0
    for relation in ("edit_prompts", "mass_prompts"):
        con.register(f"batch_{relation}", theirs[relation])
        counts["judgements"] += execute(con, f"complete_{relation}", {})
    con.register("batch_left_out", theirs["facts_left_out"])
    execute(con, "add_left_out_of_others", {})
    for run in _runs(theirs):
        batch = _batch(theirs, run)
        marks, rows = batch[-1]
        new = add_run(con, run | {"seconds": 0.0, "flops": None}, batch)
        if new:
            # A store may have a part of a run that was merged before, whose time is counted.
            [(every,)] = rows.count("*").fetchall()
            part = new / every  # 1.0 for a run that is all new, whose numbers stay as they are
            flops = None if run["flops"] is None else run["flops"] * part
            execute(con, "add_seconds", run | {"seconds": run["seconds"] * part, "flops": flops})
        counts[marks] += new
    return counts


def _runs(theirs: Relations) -> list[dict[str, Any]]:
    return [run_row(dict(zip(theirs["runs"].columns, row, strict=True))) for row in theirs["runs"].fetchall()]


def _batch(theirs: Relations, run: Mapping[str, Any]) -> list[tuple[str, duckdb.DuckDBPyRelation]]:
    """[(relation, its rows of the run)] in the form that `Store.add` takes."""
    of_run = ColumnExpression("run_id") == ConstantExpression(run["run_id"])
    batch = []
    for _, relation in TABLES[run["kind"]]:
        given = [column for column in GIVEN_BY_RUN if column in theirs[relation].columns]
        batch.append((relation, theirs[relation].filter(of_run).select(StarExpression(exclude=given))))
    return batch


def _check_runs(theirs: Relations, file: Path) -> None:
    """Raises StoreError where a row belongs to no run of its store with the relation's kind and the row's protocol.

    Such a row would be left out silently.
    """
    runs = _runs(theirs)
    for relation in RELATIONS:
        if relation == "runs" or "run_id" not in schema_columns()[relation]:
            continue
        has_protocol = "protocol" in schema_columns()[relation]
        written = {run["run_id"]: run["protocol"] for run in runs if _writes(run["kind"], relation)}
        for run_id, *protocol in theirs[relation].unique("run_id, protocol" if has_protocol else "run_id").fetchall():
            if run_id not in written or (has_protocol and written[run_id] != protocol[0]):
                raise StoreError(
                    f"the relation {relation} of the store {file} has rows of the run {run_id!r}, but its runs have no "
                    "such run of that kind and protocol"
                )


def _writes(kind: str, relation: str) -> bool:
    return relation in [name for _, name in TABLES[kind]] or (kind == "trace" and relation == "trace_effects")


def _check_values(
    con: duckdb.DuckDBPyConnection, into: Path, earlier: Mapping[Path, Relations], file: Path, theirs: Relations
) -> None:
    """Raises StoreError where a row of a source has another value than the row of the same key on `con`.

    earlier: the sources that were added before, one of which may have the other value.
    """
    for relation in RELATIONS:
        if relation in _DERIVED:
            continue
        con.register("theirs", theirs[relation])
        for key, column, *values in _conflicts(con, relation, relation):
            source = next((one for one, rows in earlier.items() if _has_conflict(con, relation, rows[relation])), into)
            ours, other = map(_shown, values)
            raise StoreError(
                f"the stores {source} and {file} differ in {relation} ({key}): {column} is {ours} in the first and "
                f"{other} in the second"
            )


def _shown(value: str | None) -> str:
    """A value for a sentence."""
    if value is None:
        return "NULL"
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[:_SHOWN]}…"


def _has_conflict(con: duckdb.DuckDBPyConnection, relation: str, rows: duckdb.DuckDBPyRelation) -> bool:
    con.register("earlier", rows)
    return any(_conflicts(con, relation, "earlier"))


def _conflicts(con: duckdb.DuckDBPyConnection, relation: str, ours: str) -> Iterator[tuple[str, str, Any, Any]]:
    """(key, column, our value, their value) of the first row of `theirs` that differs from the one in `ours`."""
    key = schema_keys()[relation]
    columns = [one for one in schema_columns()[relation] if one not in (*key, *_ABOUT.get(relation, ()))]
    found = " ".join(
        f"WHEN {_differs(relation, one)} THEN ['{one}', ours.{quoted(one)}::VARCHAR, theirs.{quoted(one)}::VARCHAR]"
        for one in columns
    )
    same = " AND ".join(f"ours.{quoted(one)} IS NOT DISTINCT FROM theirs.{quoted(one)}" for one in key)
    keys = ", ".join(f"theirs.{quoted(one)}" for one in key)
    sql = f"""
        SELECT CASE {found} END AS found, {keys}
        FROM theirs JOIN {quoted(ours)} AS ours ON {same}
        WHERE found IS NOT NULL
        ORDER BY {keys}
        LIMIT 1
    """
    for values, *ids in con.execute(sql).fetchall():
        named = ", ".join(f"{name} {value}" for name, value in zip(key, ids, strict=True) if value is not None)
        yield (named, *values)


def _differs(relation: str, column: str) -> str:
    """SQL for whether a column has two values. NaN equals NaN, and NULL equals NULL."""
    if (relation, column) in _DIFFERS:
        return _DIFFERS[relation, column]
    unequal = "<>" if column in _COMPLETED.get(relation, ()) else "IS DISTINCT FROM"
    return f"ours.{quoted(column)} {unequal} theirs.{quoted(column)}"
