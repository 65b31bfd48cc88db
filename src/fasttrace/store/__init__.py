"""The store: one DuckDB file with every run, trace and edit, opened only for the moment it is needed."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from os import PathLike
from pathlib import Path
from typing import Any

import duckdb
import pyarrow as pa

from fasttrace.facts.record import Fact
from fasttrace.store.connect import SCHEMA_VERSION, check_schema, create, opened, statement
from fasttrace.store.query import Readable, rows_of
from fasttrace.store.several import Stores
from fasttrace.store.write import batch_of, facts_table, write, write_facts

__all__ = ["SCHEMA_VERSION", "Readable", "Store", "Stores", "rows_of"]


class Store(Readable):
    """A study in one DuckDB file. It holds nothing open: every method opens, does its one thing and closes.

    path: the file; made by the first write (or by `create`), read by everything else.
    timeout_s: seconds a method goes on trying while another process has the file open.

    Raises StoreError, one sentence, where the file or its folder cannot serve.
    """

    def __init__(self, path: str | PathLike[str], *, timeout_s: float = 60.0) -> None:
        self.path = Path(path)
        self.timeout_s = timeout_s

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    def create(self) -> None:
        """Make the file if it is not there and open it for writing once: a bad path shows early."""
        create(self.path)
        with opened(self.path, read_only=False, timeout_s=self.timeout_s):
            pass

    def add(self, result: Any) -> int:
        """Add a result (trace, edit, known facts, moments, benchmark) as one transaction.

        result: anything with `run` (dict) and the pyarrow tables of its kind; `run["seconds"]` is the compute
        time of this batch, and is summed over the batches that add rows.
        Rows whose (run_id, fact_id), for edits (run_id, fact_id, layer, problem, method), is in the store
        already are left as they are. A process killed in here leaves the store as it was before.
        Returns the number of facts (edits, verdicts, …) added.
        """
        run, tables = batch_of(result)
        create(self.path)
        with opened(self.path, read_only=False, timeout_s=self.timeout_s) as con:
            return write(con, run, tables)

    def add_facts(self, facts: Iterable[Fact]) -> int:
        """Add facts by fact_id as one transaction; returns how many were new."""
        facts = list(facts)
        facts_table(facts)  # complains before the file is made
        create(self.path)
        with opened(self.path, read_only=False, timeout_s=self.timeout_s) as con:
            return write_facts(con, facts)

    def done(self, run_id: str) -> set[str]:
        """fact_ids that a tracing run, or a run over known facts, has finished."""
        return {row[0] for row in self._rows("done", run_id)}

    def done_edits(self, run_id: str) -> set[tuple[str, int]]:
        """(fact_id, layer) of the edits that an editing run has finished."""
        return {(row[0], row[1]) for row in self._rows("done_edits", run_id)}

    @contextmanager
    def reading(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A read-only connection for one `with` block: several queries on one state of the store."""
        with opened(self.path, read_only=True, timeout_s=self.timeout_s) as con:
            yield con

    @contextmanager
    def writing(self) -> Iterator[duckdb.DuckDBPyConnection]:
        """A connection for one `with` block that is one transaction: all of it, or nothing where the block raises.

        Raises StoreError where the block leaves relations of the store altered or dropped, and undoes it.
        """
        with opened(self.path, read_only=False, timeout_s=self.timeout_s) as con:
            con.begin()
            yield con
            check_schema(con, self.path)
            con.commit()

    def once(self) -> "Store":
        """Itself: one store has every row once."""
        return self

    def relations(self) -> pa.Table:
        """What the file holds: relation, kind ('table' or 'view'), n_rows (NULL for a view), n_columns."""
        return self.query(statement("relations"))

    def _rows(self, name: str, run_id: str) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        with self.reading() as con:
            return con.execute(statement(name), {"run_id": run_id}).fetchall()
