"""The store: one DuckDB file with every run, trace and edit, opened only for as long as it is needed."""

from collections.abc import Callable, Hashable, Iterable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from os import PathLike
from os.path import samestat
from pathlib import Path
from typing import Annotated, Any, TypeVar

import pyarrow as pa

from fasttrace.errors import StoreError
from fasttrace.facts.fields import LeftOuts
from fasttrace.facts.record import Facts
from fasttrace.optional import duckdb  # first, so that PackageError is raised where it is missing
from fasttrace.places import is_same, replacing
from fasttrace.settings.arguments import checked
from fasttrace.settings.kinds import MOST_SECONDS, Bounds
from fasttrace.store import parquet
from fasttrace.store.connect import check_schema, create, opened
from fasttrace.store.failures import check_new, patiently
from fasttrace.store.folder import files_of
from fasttrace.store.merging import merge
from fasttrace.store.migrate import SCHEMA_VERSION
from fasttrace.store.quack import Address, place_of
from fasttrace.store.query import Readable, Stored, rows_of
from fasttrace.store.several import Stores
from fasttrace.store.texts import statement
from fasttrace.store.write import (
    Result,
    batch_of,
    check_contrasts,
    facts_table,
    write,
    write_facts,
    write_judgements,
    write_left_out,
)

T = TypeVar("T")

__all__ = ["SCHEMA_VERSION", "Readable", "Result", "Store", "Stored", "Stores", "rows_of"]


class Store(Readable):
    """A study in one DuckDB file. The file stays closed between calls: every method opens it and closes it again.

    A file of an older schema version is read as it is. The first write upgrades it in place, before it adds anything.
    A folder that `to_parquet` wrote is read as a store, too. Its relations are views, and it is never written.
    A store that `fasttrace serve` serves has many readers and writers at once. Its queries run on the server.

    path: the file, such a folder, or a server's address as in "quack:localhost:9494". The first write (or `create`)
        creates the file.
    timeout_s: for how many seconds a method retries while another process has the file open.
    memory: DuckDB's memory_limit for a query, such as "2GB". Data beyond it go to a folder beside the file. None is
        DuckDB's default, 80 % of the machine's memory.

    Raises StoreError where the file or its folder cannot be used.
    """

    @checked
    def __init__(
        self,
        path: str | PathLike[str],
        *,
        timeout_s: Annotated[float, Bounds(0, most=MOST_SECONDS)] = 60.0,
        memory: str | None = None,
    ) -> None:
        if not str(path):
            raise StoreError("store: expected the name of a file, got an empty one")
        self.path = place_of(path)
        self.timeout_s = timeout_s
        self.memory = memory

    def __repr__(self) -> str:
        return f"Store({str(self.path)!r})"

    @property
    def folder(self) -> Path | None:
        """The folder of the file, None where the store is behind a server."""
        return None if isinstance(self.path, Address) else self.path.parent

    @property
    def files(self) -> dict[str, Path]:
        """The file, under the name ""."""
        return {"": self.path}

    def create(self) -> None:
        """Create the file if it does not exist and open it once for writing, so that a bad path shows early."""
        create(self.path)
        with self._opened(read_only=False):
            pass

    def check(self) -> None:
        """Raise StoreError where the first write would, without creating or upgrading a file."""
        if not self.path.exists():
            check_new(self.path)
            return
        with opened(self.path, read_only=False, timeout_s=self.timeout_s, memory=self.memory, upgrades=False):
            pass

    @checked
    def add(self, result: Result) -> int:
        """Add a result (trace, edit, known facts, moments, benchmark) as one transaction.

        result: its `run` and the pyarrow tables of its kind. `run["seconds"]` is the compute time of this batch, and is
            summed over the batches that add rows.

        Rows that are already in the store do not change. They are recognised by (run_id, fact_id), and edits by
        (run_id, fact_id, layer, problem, method). A process that is killed here leaves the store as it was.
        Returns the number of facts (edits, verdicts, …) added.
        """
        run, tables = batch_of(result)
        create(self.path)
        return self._change(lambda con: write(con, run, tables))

    @checked
    def add_facts(self, facts: Facts) -> int:
        """Add facts by fact_id as one transaction. Returns how many were new.

        A fact's counterfactuals are not part of it here: each run has its own.
        Raises StoreError where the store has another fact under the same fact_id.
        """
        facts_table(facts)  # raises before the file is created
        create(self.path)
        return self._change(lambda con: write_facts(con, facts))

    @checked
    def add_left_out(self, source: str, left_out: LeftOuts) -> int:
        """Store which records of a source are no facts, and why, instead of what is stored of it.

        left_out: of `read_facts`. A store that says just this is only read, and without any none is made.
        Returns the number of rows written.
        """
        wanted = {(one.record, one.reason, one.part) for one in left_out}
        stored = self.query(statement("left_out_of"), {"source": source}).to_pylist() if self.path.exists() else []
        if wanted == {(row["record"], row["reason"], row["part"]) for row in stored}:
            return 0
        create(self.path)
        return self._change(lambda con: write_left_out(con, source, left_out))

    def check_contrasts(self, run_id: str, contrasts: pa.Table) -> None:
        """Raise StoreError where a tracing run has a fact with other counterfactuals, or another target_false.

        contrasts: CONTRASTS, as of `TracePlan.contrasts`.
        """
        if self.path.exists():
            with self._opened(read_only=True) as con:
                check_contrasts(con, run_id, contrasts)

    @checked
    def to_parquet(self, folder: str | PathLike[str]) -> None:
        """Write the store atomically as folder/<relation>.parquet (zstd), for other tools or `add_parquet`.

        Raises StoreError where the folder exists.
        """
        folder = Path(folder)
        with self.reading(folders=[folder.parent]) as con:
            parquet.export(con, folder)

    @checked
    def add_parquet(self, folder: str | PathLike[str]) -> int:
        """Add a store that `to_parquet` wrote, as `merge` does. Returns the number of facts (edits, verdicts, …) added.

        Raises StoreError as `merge`, and where the folder is not such a store.
        """
        files_of(Path(folder))
        [added] = self.merge(folder)
        return sum(number for relation, number in added.items() if relation not in ("store", "facts", "judgements"))

    @checked
    def merge(self, *others: "Store | str | PathLike[str]") -> list[dict[str, Any]]:
        """Add what other stores have and this one lacks, as one transaction. No row is added twice.

        others: stores, files or folders that `to_parquet` wrote, also of older schema versions. They are only read.

        A run that is in several stores gets the facts (edits, …) that it lacks here, with their share of its seconds
        and flops. Where a judge has judged a text in one store alone, its verdict is kept, and so is its error where
        there is no verdict. Fields of a fact that one store lacks are completed.

        Returns a row a store: its name, the facts and the marks of finished work (traces, edits, known, …) that were
        added, and the texts that got a judge's word.
        Raises StoreError where a store cannot be read, or where two stores have different values under one key. A
        run's model name, device, torch version and times may differ, and so may the place of moments. This store then
        does not change.
        """
        sources = _sources(self.path, others)
        if self.path.exists():
            return self._merged(sources)
        check_new(self.path)
        with replacing(self.path, keep=True) as draft:
            new = Store(draft, timeout_s=self.timeout_s, memory=self.memory)
            new.create()
            added = new._merged(sources)
            with new._opened(read_only=False) as con:
                con.execute("CHECKPOINT")  # close() would ignore its errors, and the log beside the draft is dropped
            made = draft.stat()
        return added if samestat(made, self.path.stat()) else self._merged(sources)  # into a store made meanwhile

    def _merged(self, sources: Mapping[str, Path]) -> list[dict[str, Any]]:
        def change(con: duckdb.DuckDBPyConnection) -> list[dict[str, Any]]:
            con.begin()
            added = merge(con, self.path, sources)
            con.commit()
            return added

        added = self._change(change, stores=sources)
        return [{"store": str(file)} | counts for file, counts in zip(sources.values(), added, strict=True)]

    @checked
    def done(self, run_id: str) -> set[str]:
        """The fact_ids that a tracing run, or a knowledge test, has finished."""
        return {row[0] for row in self._rows("done", run_id)}

    @checked
    def done_edits(self, run_id: str) -> set[tuple[str, int]]:
        """(fact_id, layer) of the edits that an editing run has finished."""
        return {(row[0], row[1]) for row in self._rows("done_edits", run_id)}

    @checked
    def edits_without_probes(self, run_id: str) -> int:
        """How many edits of a run were stored before their facts had probes, as by a fasttrace without them."""
        rows = self._rows("edits_without_probes", run_id)
        return int(rows[0][0]) if rows else 0

    @checked
    def failed_judgements(self, run_id: str) -> list[tuple[str, tuple[str, ...], str]]:
        """(prompt, answers, text) of every text of an editing run that a judge failed to judge."""
        return [(prompt, tuple(answers), text) for prompt, answers, text in self._rows("failed_judgements", run_id)]

    @checked
    def add_judgements(self, run_id: str, judgements: pa.Table) -> None:
        """Set what a judge says now of such texts, as one transaction.

        judgements: prompt, answers and generated_after as in `edit_prompts`, with judged_after and judge_error.
        """
        self._change(lambda con: write_judgements(con, run_id, judgements))

    @property
    def key(self) -> Hashable:
        """As of every `Readable`. The limit of the memory is the connection's."""
        return super().key, self.memory

    @contextmanager
    def reading(self, *, folders: Iterable[Path] = ()) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a read-only connection. All queries in the `with` block see the same state of the store.

        folders: the folders whose files the queries may read. They can read no other file.
        """
        with self._opened(read_only=True, folders=folders) as con:
            yield con

    @contextmanager
    def writing(self, *, folders: Iterable[Path] = ()) -> Iterator[duckdb.DuckDBPyConnection]:
        """Yield a connection. The `with` block is one transaction, which is rolled back where the block raises.

        folders: the folders whose files the queries may read and write. They can reach no other file.
        Raises StoreError, and rolls back, where the block alters or drops a relation of the store.
        """
        with self._opened(read_only=False, folders=folders) as con:
            con.begin()
            yield con
            check_schema(con, self.path)
            con.commit()

    def once(self) -> "Store":
        """This store itself, because one store has every row once."""
        return self

    def relations(self) -> pa.Table:
        """The relations of the file: relation, kind ('table' or 'view'), n_rows (NULL for a view), n_columns."""
        return self.query(statement("relations"))

    def _opened(
        self, *, read_only: bool, stores: Mapping[str, Path] | None = None, folders: Iterable[Path] = ()
    ) -> AbstractContextManager[duckdb.DuckDBPyConnection]:
        return opened(
            self.path,
            read_only=read_only,
            timeout_s=self.timeout_s,
            memory=self.memory,
            stores=stores,
            folders=folders,
        )

    def _change(
        self, change: Callable[[duckdb.DuckDBPyConnection], T], *, stores: Mapping[str, Path] | None = None
    ) -> T:
        """Call `change`, which is one transaction, and again where other writers of a server were first."""

        def attempt() -> T:
            with self._opened(read_only=False, stores=stores) as con:
                return change(con)

        return patiently(attempt, self.timeout_s)

    def _rows(self, name: str, run_id: str) -> list[tuple[Any, ...]]:
        if not self.path.exists():
            return []
        with self.reading() as con:
            return con.execute(statement(name), {"run_id": run_id}).fetchall()


def _sources(into: Path, others: tuple[Store | str | PathLike[str], ...]) -> dict[str, Path]:
    """{attached name: file} of the stores to merge. No file's stem has such a name.

    Raises StoreError where there is none, one is given twice, or one is `into`.
    """
    if not others:
        raise StoreError("merge: expected one store or more, got none")
    files = [one.path if isinstance(one, Store) else place_of(one) for one in others]
    for place, file in enumerate(files):
        if is_same(file, into):
            raise StoreError(f"merge: expected stores other than {into}, which they are merged into, got it among them")
        if any(is_same(file, other) for other in files[:place]):
            raise StoreError(f"the store {file} is given twice: give it once")
    return {f"merged/{place}": file for place, file in enumerate(files)}
