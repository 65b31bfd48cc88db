"""Writes results to the store: one transaction per batch, and no row twice."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any, Protocol

import duckdb
import pyarrow as pa
import pyarrow.compute as pc

from fasttrace.errors import StoreError
from fasttrace.facts.fields import LeftOut
from fasttrace.facts.probe import Probe
from fasttrace.facts.record import Fact, meta_json
from fasttrace.places import why_full
from fasttrace.runs import Run
from fasttrace.settings.columns import stored_settings
from fasttrace.store.connect import schema_columns, utc_now
from fasttrace.store.texts import statement

# Kind of run → (attribute of the result, relation). A row of the last relation marks its fact or edit as finished.
TABLES: dict[str, tuple[tuple[str, str], ...]] = {
    "trace": (
        ("cells", "trace_cells"),
        ("samples", "trace_samples"),
        ("routing", "trace_routing"),
        ("facts", "traces"),
    ),
    "edit": (("prompts", "edit_prompts"), ("scores", "edits")),
    "mass": (
        ("measures", "mass_measures"),
        ("norms", "mass_norms"),
        ("tasks", "mass_tasks"),
        ("prompts", "mass_prompts"),
        ("scores", "mass_edits"),
    ),
    "facts": (("verdicts", "known"),),
    "moments": (("moments", "moments"),),
    "bench": (("benches", "benches"),),
}
# Relations without an index, which would be larger than the rows. statements/guard_<relation>.sql replaces it.
GUARDED = ("trace_cells", "trace_samples", "trace_routing", "edits", "edit_prompts", "mass_prompts")
# Later batches of a run must agree with the first on these, because they describe every row of the run.
IDENTITY = ("kind", "model_hash", "dtype", "seed", "protocol", "fasttrace_version")
Batch = Sequence[tuple[str, pa.Table | duckdb.DuckDBPyRelation]]
"""[(relation, its rows without the columns of GIVEN_BY_RUN)], in the order of TABLES."""
_RUN_COLUMNS = (
    "run_id",
    "kind",
    "model",
    "model_hash",
    "dtype",
    "device",
    "seed",
    "protocol",
    "settings",
    "fasttrace_version",
    "torch_version",
    "created_at",
)
GIVEN_BY_RUN = ("run_id", "protocol")
_LEFT_OUT = pa.schema([("record", pa.string()), ("reason", pa.string()), ("part", pa.bool_())])


class Result(Protocol):
    """Argument of `Store.add`. It has a run, and the pyarrow tables that `TABLES` names for the run's kind."""

    @property
    def run(self) -> Run:
        """Its row of `runs`. seconds is the compute time of this batch."""
        ...


def batch_of(result: Result) -> tuple[dict[str, Any], list[tuple[str, pa.Table]]]:
    """(the run's row, [(relation, its rows)]) of a result, checked against the schema.

    Raises StoreError where the run lacks a field, or a table lacks a column or has an unknown one.
    """
    run = run_row(getattr(result, "run", None))
    tables = []
    for attribute, relation in TABLES[run["kind"]]:
        table = _moments_table(result) if relation == "moments" else getattr(result, attribute, None)
        if not isinstance(table, pa.Table):
            raise StoreError(
                f"a result of kind '{run['kind']}': expected a pyarrow Table as its '{attribute}', "
                f"got {type(table).__name__}"
            )
        tables.append((relation, conform(table, relation, attribute)))
    return run, tables


def run_row(run: object) -> dict[str, Any]:
    """The `run` of a result as a row of runs.

    Raises StoreError where it is not a dict, lacks a field, or has an unknown kind.
    """
    if not isinstance(run, Mapping):
        raise StoreError(f"a result's 'run': expected a dict, got {type(run).__name__}")
    kind = run.get("kind")
    if kind not in TABLES:
        raise StoreError(f"a result's run: expected its kind to be one of {', '.join(TABLES)}, got {kind!r}")
    missing = [name for name in ("run_id", "settings", "fasttrace_version") if not run.get(name)]
    if missing:
        raise StoreError(f"a result's run of kind '{kind}' lacks {', '.join(missing)}")
    row = {name: run.get(name) for name in _RUN_COLUMNS}
    row["device"] = row["device"] or "cpu"
    row["torch_version"] = row["torch_version"] or "none"
    row["created_at"] = _naive_utc(row["created_at"])
    row["seconds"] = float(run.get("seconds") or 0.0)
    row["flops"] = run.get("flops")
    return row


def conform(table: pa.Table, relation: str, name: str) -> pa.Table:
    """`table` with the columns of `relation`, without those in GIVEN_BY_RUN. NaN becomes NULL, which means undefined.

    Raises StoreError where a column is missing or unknown.
    """
    expected = [column for column in schema_columns()[relation] if column not in GIVEN_BY_RUN]
    if relation == "facts":
        expected = list(schema_columns()[relation])
    missing = [column for column in expected if column not in table.column_names]
    unknown = [column for column in table.column_names if column not in expected]
    if missing or unknown:
        parts = [f"lacks {', '.join(missing)}"] if missing else []
        parts += [f"has the unknown {', '.join(unknown)}"] if unknown else []
        raise StoreError(f"the table '{name}' for the relation {relation} {' and '.join(parts)}")
    columns = []
    for column in expected:
        values = table[column]
        if pa.types.is_floating(values.type):
            values = pc.if_else(pc.is_nan(values), pa.scalar(None, values.type), values)
        columns.append(values)
    return pa.table(dict(zip(expected, columns, strict=True)))


def write(con: duckdb.DuckDBPyConnection, run: dict[str, Any], tables: Batch) -> int:
    """Add the rows that the store lacks, in one transaction. Returns the number of facts (edits, …) added.

    Raises StoreError where the run is in the store under another identity, or a row breaks a constraint.
    """
    con.begin()
    added = add_run(con, run, tables)
    con.commit()
    return added


def add_run(con: duckdb.DuckDBPyConnection, run: dict[str, Any], tables: Batch) -> int:
    """`write` within the caller's transaction."""
    _check_identity(con, run)
    execute(con, "add_run", run)
    for relation, table in tables:
        con.register(f"batch_{relation}", table)
    for relation, table in tables:
        if relation in GUARDED:
            _check_keys(con, relation, run)
        elif relation == "traces":
            check_contrasts(con, run["run_id"], table)
    added = 0
    for relation, _ in tables:
        if relation == "traces":
            execute(con, "add_trace_effects", {**stored_settings("trace", run["settings"]), **run})
        added = execute(con, f"add_{relation}", run)  # only the last relation's number is returned
    if added:
        execute(con, "add_seconds", run)
    return added


def write_facts(con: duckdb.DuckDBPyConnection, facts: Iterable[Fact]) -> int:
    """Add the facts that the store lacks, in one transaction. Returns their number.

    Raises StoreError where one fact_id means two different facts.
    """
    con.begin()
    added = add_facts(con, facts_table(facts))
    con.commit()
    return added


def add_facts(con: duckdb.DuckDBPyConnection, table: pa.Table | duckdb.DuckDBPyRelation) -> int:
    """`write_facts` within the caller's transaction. table: rows of the relation facts."""
    con.register("batch_facts", table)
    differ = con.execute(statement("facts_that_differ")).fetchall()
    if differ and differ[0][1]:
        raise StoreError(
            f"the store has the fact {differ[0][0]!r} with other probes, or in another case: use another store, or "
            "give it another fact_id"
        )
    if differ:
        raise StoreError(f"the store has another fact with the fact_id {differ[0][0]!r}: give each fact a unique id")
    execute(con, "complete_facts", {})
    return execute(con, "add_facts", {})


def write_left_out(con: duckdb.DuckDBPyConnection, source: str, left_out: Sequence[LeftOut]) -> int:
    """Replace what the store says of the records of a source that are no facts, in one transaction.

    Returns the number of rows.
    """
    con.begin()
    execute(con, "remove_left_out", {"source": source})
    rows = [{"record": one.record, "reason": one.reason, "part": one.part} for one in left_out]
    con.register("batch_left_out", pa.Table.from_pylist(rows, schema=_LEFT_OUT))
    added = execute(con, "add_left_out", {"source": source})
    con.commit()
    return added


def write_judgements(con: duckdb.DuckDBPyConnection, run_id: str, judgements: pa.Table) -> None:
    """Set what a judge says of a run's texts that it had failed to judge, in one transaction."""
    con.begin()
    con.register("batch_judgements", judgements)
    for relation in ("edit_prompts", "mass_prompts"):
        execute(con, f"judge_{relation}", {"run_id": run_id})
    con.commit()


def facts_table(facts: Iterable[Fact]) -> pa.Table:
    """Facts as rows of the relation facts, which has no counterfactuals. A fact that occurs twice is one row."""
    columns = schema_columns()["facts"]
    rows: dict[str, dict[str, Any]] = {}
    for fact in facts:
        row = {name: getattr(fact, name) for name in columns}
        row["probes"] = [asdict(probe) for probe in fact.probes]
        row["meta"] = meta_json(fact) if fact.meta else None
        first = rows.setdefault(fact.fact_id, row)
        if first | {name: row[name] for name in ("subject_found", "meta")} != row:
            raise StoreError(f"two facts have the fact_id {fact.fact_id!r}: give each fact a unique id")
    return pa.table(
        {name: pa.array([row[name] for row in rows.values()], _type(kind)) for name, kind in columns.items()}
    )


_PROBE = pa.struct(
    [(name, pa.list_(pa.string()) if name == "answers" else pa.string()) for name in Probe.__dataclass_fields__]
)


def _type(kind: str) -> pa.DataType:
    """The type of a column of facts."""
    plain = {"VARCHAR": pa.string(), "VARCHAR[]": pa.list_(pa.string()), "INTEGER": pa.int32(), "JSON": pa.string()}
    return plain.get(kind) or pa.list_(_PROBE)


def _moments_table(result: Result) -> pa.Table:
    """The row of the relation moments, from the fields of the result or of its run."""
    table = getattr(result, "moments", None)
    if isinstance(table, pa.Table):
        return table
    row: dict[str, Any] = {}
    for column in schema_columns()["moments"]:
        if column in GIVEN_BY_RUN:
            continue
        value = getattr(result, column, None)
        row[column] = result.run.get(column) if value is None else value
        if row[column] is None:
            raise StoreError(f"a result of kind 'moments' lacks '{column}'")
    row["layers"] = [int(layer) for layer in row["layers"]]
    row["path"] = str(row["path"])
    return pa.Table.from_pylist([row])


def _check_identity(con: duckdb.DuckDBPyConnection, run: dict[str, Any]) -> None:
    stored = con.execute(statement("run_identity"), {"run_id": run["run_id"]}).fetchall()
    for name, value in zip(IDENTITY, stored[0] if stored else (), strict=bool(stored)):
        if value != run[name]:
            raise StoreError(
                f"the run {run['run_id']} is in the store with {name} {value!r} and cannot continue with "
                f"{run[name]!r}: use another store for it"
            )


def execute(con: duckdb.DuckDBPyConnection, name: str, values: Mapping[str, Any]) -> int:
    """Execute a statement of statements/ with those values that it names. Returns the number of rows added.

    Raises StoreError where a row breaks a constraint.
    """
    sql = statement(name)
    names = set(re.findall(r"\$(\w+)", sql))
    try:
        rows = con.execute(sql, {key: value for key, value in values.items() if key in names}).fetchall()
    except duckdb.Error as error:
        if why_full(error) is not None:
            raise  # `opened` names the file
        run = f" of the run {values['run_id']}" if "run_id" in values else ""
        reason = str(error).strip().splitlines()[0]
        raise StoreError(f"a row{run} does not fit the store ({name}): {reason}") from error
    return int(rows[0][0])


def _check_keys(con: duckdb.DuckDBPyConnection, relation: str, run: Mapping[str, Any]) -> None:
    for fact_id, reason in con.execute(statement(f"guard_{relation}")).fetchall():
        raise StoreError(
            f"a row of the run {run['run_id']} does not fit the store ({relation}): the fact {fact_id!r} {reason}"
        )


def check_contrasts(con: duckdb.DuckDBPyConnection, run_id: str, contrasts: pa.Table) -> None:
    """Raise StoreError where the run has a fact with other counterfactuals, or another target_false.

    contrasts: rows of the relation traces, of which these columns and fact_id are read.
    """
    con.register("batch_traces", contrasts)
    for fact_id, others in con.execute(statement("traces_that_differ"), {"run_id": run_id}).fetchall():
        what = "other counterfactuals" if others else "another o_false"
        raise StoreError(
            f"the run {run_id} is in the store with {what} of the fact {fact_id!r}: use the same or another store"
        )


def _naive_utc(moment: object) -> datetime:
    if moment is None:
        return utc_now()
    if isinstance(moment, str):
        try:
            moment = datetime.fromisoformat(moment)
        except ValueError as error:
            raise StoreError(f"a run's created_at: expected YYYY-MM-DDTHH:MM:SS, got {moment!r}") from error
    if not isinstance(moment, datetime):
        raise StoreError(f"a run's created_at: expected a datetime, got {type(moment).__name__}")
    return moment.astimezone(UTC).replace(tzinfo=None) if moment.tzinfo else moment
