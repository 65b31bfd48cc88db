"""What another process does with a served store: python quack_driver.py WHAT ARGS, with a DuckDB that has a server."""

import json
import os
import signal
import sys
import time
from importlib import import_module
from pathlib import Path

import other_process
import pyarrow as pa
import pytest
from made_results import made_known
from plausible import edit_result, mass_result, study_facts, trace_result

from fasttrace.errors import StoreError
from fasttrace.facts.fields import LeftOut
from fasttrace.store import Store
from fasttrace.store.texts import RELATIONS

FACTS = study_facts(count=3)


def write(place: str, *ids: str) -> None:
    """Write one transaction a fact."""
    other_process.write_all(place, list(ids))


def read(place: str, until: str) -> None:
    """Print {fact_id: number of cells} of one state of the store after another, until the file `until` exists."""
    sql = """
        SELECT traces.fact_id, count(trace_cells.layer) AS cells
        FROM traces LEFT JOIN trace_cells USING (run_id, fact_id) GROUP BY traces.fact_id
    """
    while True:
        last = Path(until).exists()
        print(json.dumps({row["fact_id"]: row["cells"] for row in Store(place).query(sql).to_pylist()}), flush=True)
        if last:
            return
        time.sleep(0.2)


def die(place: str) -> None:
    """Die at the end of a transaction, before it is committed."""
    module = import_module("fasttrace.store.write")
    execute = module.execute

    def execute_and_die(con, name, values):
        count = execute(con, name, values)
        if name == "add_seconds":
            os.kill(os.getpid(), signal.SIGKILL)
        return count

    module.execute = execute_and_die
    Store(place).add(other_process.batch(["dead"]))


def life(place: str, file: str, folder: str) -> None:
    """Do all that a store can do with a served store and with a file, and assert that they then are the same."""
    ids = [fact.fact_id for fact in FACTS]
    other = Store(Path(folder) / "other.duckdb")
    other.add_facts(more := study_facts("more", 2))
    other.add(trace_result(more, run_id="t2"))
    served, alone = Store(place), Store(file)
    contrasts = {"fact_id": ids, "counterfactuals": pa.array([None] * 3, pa.list_(pa.string()))}
    for store in (served, alone):
        for result in (trace_result(FACTS), edit_result(FACTS), mass_result(FACTS, (1, 3)), made_known(ids)):
            assert store.add(result) > 0
            assert store.add(result) == 0
        assert [store.add_facts(FACTS), store.add_facts(FACTS)] == [3, 0]
        assert store.add_left_out("x", [LeftOut("line 1", None, "o'clock")]) == 1
        assert store.done("trace-1") == set(ids)
        store.check_contrasts("trace-1", pa.table(contrasts | {"target_false": [one.target_false for one in FACTS]}))
        refused(
            "with another o_false",
            lambda s: s.check_contrasts("trace-1", pa.table(contrasts | {"target_false": ["?"] * 3})),
            store,
        )
        refused("with seed 0 and cannot continue with 5", lambda s: s.add(made_known(ids, seed=5)), store)
        [added] = store.merge(other)
        assert (added["facts"], added["traces"]) == (2, 2)
        with store.writing() as con:
            con.execute("UPDATE known SET continuation = ? WHERE fact_id = ?", ["it's", ids[0]]).fetchall()
        refused("the store is open read-only", lambda s: s.query("DELETE FROM known"), store)
        refused("nonsense", lambda s: s.query("FROM nonsense"), store)
    assert rows(served) == rows(alone)
    served.to_parquet(Path(folder) / "parquet")
    assert rows(Store(Path(folder) / "parquet")) == rows(alone)


def refused(sentence, call, store) -> None:
    with pytest.raises(StoreError, match=sentence) as caught:
        call(store)
    assert "\n" not in str(caught.value)


def rows(store: Store) -> dict:
    with store.reading() as con:
        found = {}
        for name in RELATIONS[1:]:
            found[name] = con.sql(f"SELECT * FROM {name} ORDER BY ALL").to_arrow_table().to_pylist()
        return found


def serve(file: str, address: str) -> None:
    """Serve as the verb does, and take a session for abandoned after a second."""
    server = import_module("fasttrace.store.server")
    server.ABANDONED_S = 1.0
    place = import_module("fasttrace.store.quack").place_of(address)
    server.serve(Store(file), place, "token-of-tests", lambda: print("serving", flush=True))


if __name__ == "__main__":
    globals()[sys.argv[1]](*sys.argv[2:])
