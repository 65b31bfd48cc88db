"""Runs one peer: in each way of using it, compares its grid with fasttrace's, and times it only if they are equal.

python -m peers.run PEER FOLDER --dtype D --rounds R --limit X --threads T --out FOLDER

Run it in bench/ with the Python of .venv-peers. It writes OUT/0.npz, OUT/1.npz, … in the order of the peer's ways, each
with the way, the grid, the seconds of each round (none if the grid differs by more than X), the seconds of the compared
sweep, and the error.
"""

import argparse
import importlib
import os
import time
import traceback
from pathlib import Path

import numpy as np
import torch
from peers.task import Task, read


def attempt(sweep, model, task: Task, way: str, rounds: int, limit: float) -> dict:
    """The result of one way of using the peer. An exception becomes its `error`."""
    found = {"grid": np.empty(0), "seconds": [], "first": np.nan, "error": ""}
    try:
        begun = time.perf_counter()
        grid = found["grid"] = np.asarray(sweep(model, task, way))
        found["first"] = time.perf_counter() - begun
        if grid.shape == task.expected.shape and np.abs(grid - task.expected).max() <= limit:
            for _ in range(rounds):
                begun = time.perf_counter()
                sweep(model, task, way)
                found["seconds"].append(time.perf_counter() - begun)
    except Exception as error:
        traceback.print_exc()
        found["error"] = f"{type(error).__name__}: {error}"
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--dtype", required=True)
    parser.add_argument("--rounds", type=int, required=True)
    parser.add_argument("--limit", type=float, required=True, help="the largest difference that counts as equal")
    parser.add_argument("--threads", type=int, required=True)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    if not options.out.is_dir():
        parser.exit(2, f"{parser.prog}: --out: expected a folder, got {options.out}\n")
    torch.set_num_threads(options.threads)
    peer = importlib.import_module(f"peers.{options.peer}")
    task = read(options.folder, options.dtype)
    model = peer.wrap(task)
    ways, sweep = peer.SWEEPS[type(task)]
    for number, way in enumerate(ways):
        found = attempt(sweep, model, task, way, options.rounds, options.limit)
        # Renamed when complete, because this process may be stopped at any moment and its folder is read then.
        draft = options.out / f"{number}.tmp"
        with draft.open("wb") as file:
            np.savez(file, way=way, **found)
        os.replace(draft, options.out / f"{number}.npz")


if __name__ == "__main__":
    main()
