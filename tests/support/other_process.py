"""Functions that a second process runs on a store while a test watches."""

import os
import signal
import tempfile
import time
from pathlib import Path
from typing import Any

import duckdb
from made_results import made_trace

from fasttrace.errors import UserError
from fasttrace.store import Store, Stores, connect, merging
from fasttrace.store.migrate import upgrade

LAYERS, TOKENS = 12, 8


def batch(fact_ids: list[str]) -> Any:
    return made_trace(fact_ids, layers=LAYERS, tokens=TOKENS, seconds=1.0)


def write_batches(path: Path, fact_ids: list[str], acknowledged: Any) -> None:
    """Write one transaction a fact, skip the facts already stored, and acknowledge each commit after it returns."""
    store = Store(path)
    done = store.done("t0")
    for fact_id in fact_ids:
        if fact_id not in done:
            store.add(batch([fact_id]))
            acknowledged.send(fact_id)
    acknowledged.send(None)


def write_all(path: Path, fact_ids: list[str]) -> None:
    """Write one transaction a fact, whether or not the store has the fact."""
    for fact_id in fact_ids:
        Store(path).add(batch([fact_id]))


def write_in_halves(path: Path, fact_ids: list[str], seen: Any) -> None:
    """Write one transaction a fact. After half of them, wait until the reader has seen some."""
    middle = len(fact_ids) // 2
    write_all(path, fact_ids[:middle])
    if seen.wait(60):
        write_all(path, fact_ids[middle:])


def hold(path: Path, held: Any, seconds: float) -> None:
    """Keep the file open for writing for `seconds`."""
    con = duckdb.connect(str(path))
    held.set()
    time.sleep(seconds)
    con.close()


def killed_in_an_upgrade(path: Path) -> None:
    """Die after the upgrade of an older store has run and before it is committed."""

    def upgrade_and_die(con: duckdb.DuckDBPyConnection, version: int) -> None:
        upgrade(con, version)
        os.kill(os.getpid(), signal.SIGKILL)

    connect.upgrade = upgrade_and_die
    Store(path).add(batch(["f0"]))


def killed_after_an_upgrade(path: Path) -> None:
    """Die after the upgrade of an older store is committed and before a later change is."""
    with Store(path).writing() as con:
        con.execute("DELETE FROM mass_edits").fetchall()
        os.kill(os.getpid(), signal.SIGKILL)


def write_at(path: Path, fact_ids: list[str], start: Any) -> None:
    """Run `write_all` once every process is ready."""
    start.wait(60)
    write_all(path, fact_ids)


def read_several(paths: list[Path], trying: Any, answer: Any) -> None:
    """Send the number of traces in several stores, one of which may be locked at first."""
    trying.set()
    answer.send(len(Stores(paths, timeout_s=30).query("SELECT * FROM traces")))


def as_nobody(path: Path, what: str, answer: Any) -> None:
    """Try to write ('add') or read ('query') as user nobody. Send the error's type and message."""
    result = batch(["f0"])
    with tempfile.TemporaryDirectory() as folder:  # lazy imports must run before root's rights are dropped
        Store(Path(folder) / "warm.duckdb").add(result)
        Store(Path(folder) / "warm.duckdb").query("SELECT 1")
    if os.getuid() == 0:
        os.setuid(65534)
    try:
        if what == "add":
            Store(path, timeout_s=1).add(result)
        else:
            Store(path, timeout_s=1).query("SELECT 1")
    except UserError as error:
        answer.send((type(error).__name__, str(error)))
    else:
        answer.send(("nothing", ""))


def killed_in_a_merge(path: Path, others: list[Path]) -> None:
    """Die after the last store is merged and before that is committed."""
    add = merging._add

    def add_and_die(con: duckdb.DuckDBPyConnection, theirs: Any) -> Any:
        added = add(con, theirs)
        calls.append(added)
        if len(calls) == len(others):
            os.kill(os.getpid(), signal.SIGKILL)
        return added

    calls: list[Any] = []
    merging._add = add_and_die
    Store(path).merge(*others)
