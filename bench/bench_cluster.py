"""What a pool of Ray workers costs: the driver's part of a piece, the gain of a second worker, bytes over the network.

.venv/bin/python bench/bench_cluster.py [--parts pieces commits efficiency bytes] [--small] [--facts 60]
    [--out FILE] [--store FILE]

pieces: pieces of nothing through a pool of two workers, so that all the time is that of handing out and taking back.
commits: small results of one fact each, added to a store file one by one, as the driver does for each piece.
efficiency: a sweep of real facts by one process with two threads, by one worker with one CPU and by two workers with
one CPU each. `efficiency` is half of one worker's time over that of two. Starting the workers is a row of its own.
bytes: what the driver sends and gets for a fact of a sweep, and for an edit.

All on SmolLM2-135M. --small has few pieces and facts: it shows that the benchmark runs.
"""

import argparse
import json
import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import torch
from harness import BenchRow, Results, about, command, positive, spread, writes

import fasttrace as ft
from fasttrace.cluster.pieces import WAVES, Unit
from fasttrace.cluster.pool import Pool, pool
from fasttrace.editing import prepare_edit
from fasttrace.settings.cluster import WorkerSettings
from fasttrace.tracing import TraceResult, prepare_trace

MODEL = {"source": "smollm2-135m"}
SWEEP = {"windows": [5], "samples": 10, "sigma": 0.4, "keep": "all"}
EDIT = {"method": "ft-1", "layers": [6]}
LEAST = {"windows": [1], "samples": 1, "sigma": 0.4, "keep": "all", "tokens": "last-subject"}


class Nothing:
    """A plan whose pieces are nothing to compute."""

    def __init__(self, count: int, model_hash: str | None) -> None:
        self.count, self.run = count, {"model_hash": model_hash}

    def settled(self, crew: Any, skip: Any = ()) -> "Nothing":
        return self

    def announce(self) -> None:
        pass

    def units(self) -> list[Unit]:
        return [Unit(n, 1.0, True) for n in range(self.count * WAVES)]

    def batches(self, *, only: frozenset[int], **_: object) -> Iterator[int]:
        yield len(only)

    def joined(self, parts: list[int], *, whole: bool = True) -> int:
        return sum(parts)


def nothing(model: Any) -> None:
    """What a worker is asked to see whether it is ready."""


@contextmanager
def workers(count: int) -> Iterator[tuple[Pool, float]]:
    """(A pool on this machine whose workers have one CPU each, the seconds until all of them were ready)."""
    own = "RAY_OVERRIDE_RESOURCES"
    before = os.environ.get(own)
    os.environ[own] = json.dumps({"CPU": count})
    begun = time.perf_counter()
    try:
        with pool(MODEL, WorkerSettings(workers=count)) as made:
            while not all(member.ready for member in made.state.members):
                made.ask(nothing)
            yield made, time.perf_counter() - begun
    finally:
        os.environ.pop(own)
        if before is not None:
            os.environ[own] = before


def pieces(count: int) -> Iterator[BenchRow]:
    with workers(2) as (made, started):
        yield {"benchmark": "cluster: start", "case": "2 workers", "impl": "ray", **spread([started])}
        plan = Nothing(count, made.model_hash)
        begun, spent = time.perf_counter(), time.process_time()
        done = sum(made.batches(plan))
        taken, spent = time.perf_counter() - begun, time.process_time() - spent
        assert done == count * WAVES
        assert made.state.pieces == count
    row = {"benchmark": "cluster: pieces", "case": f"{count} of nothing, 2 workers", "impl": "ray", **spread([taken])}
    yield {**row, "ms_a_piece": 1e3 * taken / count, "driver_cpu_ms_a_piece": 1e3 * spent / count}


def commits(count: int) -> Iterator[BenchRow]:
    """One fact is traced, and its result is added under other names, since only its size matters."""
    model = ft.load_model()
    plan = prepare_trace(model, ft.load_facts(limit=1), **LEAST)
    [result] = plan.batches()
    taken = []
    with tempfile.TemporaryDirectory() as folder:
        store = ft.Store(Path(folder) / "commits.duckdb")
        store.add_facts([replace(plan.encoded[0].fact, fact_id=str(n)) for n in range(count)])
        for n in range(count):
            named_so = renamed(result, str(n))
            begun = time.perf_counter()
            store.add(named_so)
            taken.append(time.perf_counter() - begun)
    row = {"benchmark": "cluster: commits", "case": f"{count} results of a fact", "impl": "store", **spread(taken)}
    yield {**row, "cells": len(result.cells)}


def renamed(result: TraceResult, fact_id: str) -> TraceResult:
    """The result as one of another fact."""
    tables = {}
    for name in ("facts", "cells", "samples", "routing"):
        table = getattr(result, name)
        at = table.column_names.index("fact_id")
        tables[name] = table.set_column(at, table.schema.field(at), pa.array([fact_id] * len(table), pa.string()))
    return replace(result, **tables)


def efficiency(count: int) -> Iterator[BenchRow]:
    model = ft.load_model()
    plan = prepare_trace(model, ft.load_facts(order="interleaved", limit=count), **SWEEP)
    case = f"{count} facts"
    row = {"benchmark": "cluster: efficiency", "case": case}
    begun = time.perf_counter()
    sum(len(part.facts) for part in plan.batches())
    yield {**row, "impl": f"one process, {torch.get_num_threads()} threads", **spread([time.perf_counter() - begun])}
    alone = 0.0
    for number in (1, 2):
        with workers(number) as (made, started):
            yield {"benchmark": "cluster: start", "case": f"{number} workers", "impl": "ray", **spread([started])}
            begun = time.perf_counter()
            done = sum(len(part.facts) for part in made.batches(plan))
            taken = time.perf_counter() - begun
            assert done == count
            found = {**row, "impl": f"{number} workers, 1 CPU each", "pieces": made.state.pieces, **spread([taken])}
        if number == 1:
            alone = taken
        else:
            found["efficiency"] = alone / 2 / taken
        yield found


def network(count: int) -> Iterator[BenchRow]:
    model, facts = ft.load_model(), ft.load_facts(order="interleaved", limit=count)
    plans = {"trace": prepare_trace(model, facts, **SWEEP), "edit": prepare_edit(model, facts, **EDIT)}
    with workers(2) as (made, _):
        for name, plan in plans.items():
            sent, got = made.state.bytes_sent, made.state.bytes_got
            begun = time.perf_counter()
            for _ in made.batches(plan):
                pass
            row = {"benchmark": "cluster: bytes", "case": f"{name}, {count} facts", "impl": "ray"}
            yield {
                **row,
                **spread([time.perf_counter() - begun]),
                "bytes_sent_a_fact": (made.state.bytes_sent - sent) / count,
                "bytes_got_a_fact": (made.state.bytes_got - got) / count,
            }


PARTS = {"pieces": pieces, "commits": commits, "efficiency": efficiency, "bytes": network}
COUNTS = {"pieces": 10_000, "commits": 300, "efficiency": 60, "bytes": 20}
SMALL = {"pieces": 200, "commits": 10, "efficiency": 4, "bytes": 2}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--small", action="store_true", help="few pieces and facts")
    parser.add_argument("--facts", type=positive, help="facts of the sweep of efficiency")
    writes(parser.add_argument)
    options = parser.parse_args()
    counts = dict(SMALL if options.small else COUNTS)
    if options.facts is not None:
        counts["efficiency"] = options.facts
    with Results("cluster", about("cpu", settings={"sweep": SWEEP, "edit": EDIT}), options.out, options.store) as found:
        for part in options.parts:
            for row in PARTS[part](counts[part]):
                found.add(row)
                print(line(row), flush=True)


def line(row: BenchRow) -> str:
    """A row of the table that is printed."""
    known = {"benchmark", "case", "impl", "seconds", "quartiles", "n"}
    more = ", ".join(f"{name} {value:.4g}" for name, value in row.items() if name not in known)
    return f"{row['benchmark']:20}  {row['case']:30}  {row['impl']:26}  {row['seconds']:10.4g} s  {more}".rstrip()


if __name__ == "__main__":
    main()
