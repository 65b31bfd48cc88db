"""The store at full size: 100 million trace cells and 10 million edits (5 problems × 4 methods), made up in SQL.

.venv/bin/python bench/bench_store.py [--size 1.0] [--memory 2GB] [--rounds 3] [--folder /tmp]
    [--out FILE] [--store FILE]

These are timed:
- writing the store batch by batch, with the statements that `Store.add` uses;
- every layer's sums and all R² of one score (Table 3), for all facts and for concentrated facts;
- the effects computed from the cells, instead of read from the store;
- adding one more traced fact and one more edited fact (`Store.add`), and adding them again;
- every check;
- writing Parquet, and adding it to another store.

The regressions of one problem and method are then compared with statsmodels. Each query opens the file anew under
DuckDB's memory limit. bytes: the peak resident set minus the resident set before. Size 1 needs 12 GB, in a temporary
folder inside --folder.
"""

import argparse
import hashlib
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from harness import BenchRow, Results, about, command, peak_bytes, positive, seconds, spread, writes

from fasttrace.analysis.checks import failures
from fasttrace.analysis.regress import MODELS, regress
from fasttrace.analysis.regression import regressions
from fasttrace.analysis.relation import query
from fasttrace.errors import UserError
from fasttrace.places import check_file
from fasttrace.settings.columns import stored_settings
from fasttrace.store import Store, rows_of
from fasttrace.store.connect import opened
from fasttrace.store.write import execute

SQL = Path(__file__).parent / "big_store"
FACTS = 50_000  # × 4 windows × 18 tokens (mean) × 28 layers: 100.8 million cells
BATCH = 500
ROOM = 12e9  # bytes of disk that size 1 needs
LAYERS = 28
EDITED = list(range(0, LAYERS, 3))
PROBLEMS = ("error-injection", "tracing-reversal", "fact-erasure", "fact-amplification", "fact-forcing")
METHODS = ("ft-1", "ft-5", "rome", "memit")
NUMBERS = (
    "n",
    "r2_layer",
    "r2_effect",
    "r2_both",
    "diff",
    "f_value",
    "rmse_layer",
    "rmse_effect",
    "rmse_both",
    "mae_layer",
    "mae_effect",
    "mae_both",
)
LAYER_SUMS = "FROM layer_sums WHERE score = 'rewrite' AND effect_at = 'max' AND subset = $subset AND layers = 'all'"


@dataclass(frozen=True)
class Result:
    """A tracing (cells, samples, routing, facts) or editing (prompts, scores) result as `Store.add` takes it."""

    run: dict[str, Any]
    cells: pa.Table | None = None
    samples: pa.Table | None = None
    routing: pa.Table | None = None
    facts: pa.Table | None = None
    prompts: pa.Table | None = None
    scores: pa.Table | None = None


def run_of(name: str, kind: str) -> dict[str, Any]:
    """The row of a made-up run. Its run_id is a hash like a real one, so that DuckDB's statistics tell runs apart."""
    return {
        "run_id": hashlib.sha256(name.encode()).hexdigest()[:16],
        "kind": kind,
        "model": "made up",
        "model_hash": "0",
        "dtype": "float32",
        "device": "cpu",
        "seed": 0,
        "protocol": "paper",
        "settings": "{}",
        "fasttrace_version": "0",
        "torch_version": "none",
        "created_at": datetime(2026, 1, 1),
        "seconds": 0.0,
        "flops": None,
    }


def fill(store: Store, n_facts: int) -> Iterator[float]:
    """Write the study. Yields the seconds of each batch of traces, which is one transaction."""
    store.create()
    with opened(store.path, read_only=False, timeout_s=1, memory=store.memory) as con:

        def make(relation: str, **params: Any) -> None:
            con.execute((SQL / f"batch_{relation}.sql").read_text(), params)

        make("facts", n_facts=n_facts)
        execute(con, "add_facts", {})
        run = run_of("trace", "trace")
        execute(con, "add_run", run)
        values = {**stored_settings("trace", run["settings"]), **run}
        for first in range(0, n_facts, BATCH):
            make("traces", first_fact=first, end_fact=min(first + BATCH, n_facts))
            make("trace_cells", n_layers=LAYERS)
            begun = time.perf_counter()
            con.begin()
            for relation in ("trace_cells", "trace_effects", "traces"):
                execute(con, f"add_{relation}", values)
            con.commit()
            yield time.perf_counter() - begun
        for problem in PROBLEMS:
            for method in METHODS:
                run = run_of(f"{problem} {method}", "edit")
                execute(con, "add_run", run)
                make("edits", problem=problem, method=method, n_facts=n_facts, layers=EDITED)
                execute(con, "add_edits", run)


def one_more(store: Store, number: int) -> tuple[Result, Result]:
    """The first fact's trace and its edits of one run, under another fact_id."""
    trace, edit = run_of("trace", "trace"), run_of("fact-forcing rome", "edit")

    def rows(relation: str, run: dict[str, Any]) -> pa.Table:
        """The fact's rows without the columns run_id and protocol, which come from the run."""
        with store.reading() as con:
            made = rows_of(con, (SQL / f"one_fact_{relation}.sql").read_text(), {"run_id": run["run_id"]})
        return made.set_column(0, "fact_id", pa.array([f"more/{number}"] * len(made), pa.string()))

    traced = {"cells": "trace_cells", "samples": "trace_samples", "routing": "trace_routing", "facts": "traces"}
    edited = {"prompts": "edit_prompts", "scores": "edits"}
    return (
        Result(trace, **{name: rows(relation, trace) for name, relation in traced.items()}),
        Result(edit, **{name: rows(relation, edit) for name, relation in edited.items()}),
    )


def measured(case: str, impl: str, call: Callable[[], object], rounds: int) -> BenchRow:
    """The row of a call: bytes of a first round, seconds of `rounds` more, and the CPU seconds per round of these."""
    before, most = peak_bytes(call)
    begun = time.process_time()
    row = {"benchmark": "store", "case": case, "impl": impl, **seconds(call, rounds, warm=False)}
    row |= {"cpu_seconds": (time.process_time() - begun) / rounds, "bytes": most - before}
    print(f"{impl}: {row['seconds']:.2f} s, CPU {row['cpu_seconds']:.2f} s, {row['bytes'] / 1e6:.0f} MB", flush=True)
    return row


def once(case: str, impl: str, call: Callable[[], object]) -> BenchRow:
    """The row of a single cold call, for calls that take minutes."""
    begun, cpu = time.perf_counter(), time.process_time()
    before, most = peak_bytes(call)
    row = {"benchmark": "store", "case": case, "impl": impl, **spread([time.perf_counter() - begun])}
    row |= {"cpu_seconds": time.process_time() - cpu, "bytes": most - before}
    print(f"{impl}: {row['seconds']:.1f} s, CPU {row['cpu_seconds']:.1f} s, {row['bytes'] / 1e6:.0f} MB", flush=True)
    return row


def difference(store: Store) -> float:
    """The largest relative difference from statsmodels' numbers, over one problem and method of each data set."""
    rows = regressions(store, problem=PROBLEMS[0], method=METHODS[0]).to_pylist()
    pairs = [(row[name], theirs[name]) for row in rows for theirs in [by_statsmodels(store, row)] for name in NUMBERS]
    return max(abs(a - b) / max(abs(b), 1e-3) for a, b in pairs)


def by_statsmodels(store: Store, row: dict[str, Any]) -> dict[str, float]:
    """NUMBERS of one regression, from the paper's models fitted to its rows."""
    where = [f"{name} IS NOT DISTINCT FROM '{row[name]}'" for name in ("problem", "method", "source")]
    fits = {name: regress(store, name, where=where) for name in MODELS}
    found = {f"r2_{name}": fit.statistics["r2"] for name, fit in fits.items()}
    found |= {f"rmse_{name}": fit.statistics["rmse"] for name, fit in fits.items()}
    found |= {f"mae_{name}": float(np.mean(np.abs(fit.fit.resid))) for name, fit in fits.items()}
    found |= {"n": fits["both"].statistics["n"], "diff": found["r2_both"] - found["r2_layer"]}
    return found | {"f_value": fits["both"].fit.compare_f_test(fits["layer"].fit)[0]}


def measure(store: Store, folder: Path, n_facts: int, rounds: int) -> Iterator[BenchRow]:
    """Fill the store. Yields a row for everything that is timed."""
    batches = list(fill(store, n_facts))
    counted = "SELECT (SELECT count(*) FROM trace_cells) AS cells, (SELECT count(*) FROM edits) AS edits"
    [size] = store.query(counted).to_pylist()
    case = f"{size['cells']:,} cells, {size['edits']:,} edits"
    print(case, f"{store.path.stat().st_size / 1e9:.2f} GB", flush=True)
    row = {"benchmark": "store", "case": case}
    yield {**row, "impl": "the file", "bytes": store.path.stat().st_size}
    yield {**row, "impl": f"a batch of {BATCH} facts written", **spread(batches)}
    timed = {
        "layer_sums": lambda: query(store, LAYER_SUMS, {"subset": "all"}),
        "layer_sums, concentrated facts": lambda: query(store, LAYER_SUMS, {"subset": "concentrated"}),
        "regressions": lambda: regressions(store),
        "regressions, concentrated facts": lambda: regressions(store, subset="concentrated"),
        "regressions, one problem and method": lambda: regressions(store, problem=PROBLEMS[0], method=METHODS[0]),
        "the effects from the cells": lambda: store.query((SQL / "effects_from_cells.sql").read_text()),
        "done": lambda: store.done(run_of("trace", "trace")["run_id"]),
        "done_edits": lambda: store.done_edits(run_of("fact-forcing rome", "edit")["run_id"]),
    }
    yield from (measured(case, impl, call, rounds) for impl, call in timed.items())
    more = [one_more(store, number) for number in range(rounds + 1)]
    for place, impl in enumerate(("a fact traced", "a fact edited")):
        results = iter([pair[place] for pair in more])
        yield measured(case, f"add, {impl}", lambda results=results: store.add(next(results)), rounds)
        again = more[0][place]
        yield measured(case, f"add, {impl}, again", lambda again=again: store.add(again), rounds)
    yield once(case, "checks", lambda: failures(store))
    yield once(case, "to_parquet", lambda: store.to_parquet(folder / "parquet"))
    other = Store(folder / "other.duckdb", memory=store.memory)
    yield once(case, "add_parquet", lambda: other.add_parquet(folder / "parquet"))
    off = difference(store)
    print(f"largest relative difference from statsmodels: {off:.1e}")
    yield {**row, "impl": "regressions against statsmodels", "relative_difference": off}


def check_room(folder: Path, size: float) -> None:
    """Raises UserError where the store cannot be made in the folder, or would not fit."""
    check_file(folder / "big.duckdb")
    free = shutil.disk_usage(folder).free
    if free < ROOM * size:
        raise UserError(f"--folder: expected {ROOM * size / 1e9:.1f} GB free in {folder}, got {free / 1e9:.1f}")


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=float, default=1.0, help="share of the 50,000 facts")
    parser.add_argument("--memory", default="2GB", help="DuckDB's memory limit")
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--folder", type=Path, default=Path("/tmp"), help="parent of the temporary folder")
    writes(parser.add_argument)
    options = parser.parse_args()
    if not FACTS * options.size >= 1:
        raise UserError(f"--size: expected at least {1 / FACTS:g}, which is one fact, got {options.size:g}")
    check_room(options.folder, options.size)
    told = about("cpu", memory_limit=options.memory)
    made = tempfile.TemporaryDirectory(dir=options.folder, prefix="fasttrace-big-store-")
    with Results("store", told, options.out, options.store) as results, made as folder:
        store = Store(Path(folder) / "big.duckdb", memory=options.memory)
        for row in measure(store, Path(folder), int(FACTS * options.size), options.rounds):
            results.add(row)


if __name__ == "__main__":
    main()
