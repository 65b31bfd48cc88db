"""One whole sweep by fasttrace and by its peers: the released way, batched hooks, TransformerLens, nnsight, pyvene.

make bench-peers [ARGS="--models smollm2-135m --peers hooks"], which makes .venv-peers and then runs
.venv/bin/python bench/bench_peers.py --store build/bench.duckdb [--models …] [--peers …] [--rounds 1] [--out FILE]

The load: "The Eiffel Tower is located in the city of" → " Paris", the subject's tokens × all layers, window 5, 10
samples of released noise, in SmolLM2-135M and in a model of GPT-2's size with random weights. Every peer runs in a
process of .venv-peers with the same weights, dtype and threads, without gradients, and with its library's default
attention. Its grid is first compared with fasttrace's. A peer whose grid differs, or that fails, is reported and not
timed.
"""

import argparse
import copy
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from harness import ROOT, BenchRow, Results, about, command, positive, seconds, spread, writes
from one_fact import FACT, SETTINGS, fast_grid
from transformers import AutoModelForCausalLM, GPT2Config

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.facts import encode_fact
from fasttrace.models import Decoder

PYTHON = ROOT / ".venv-peers" / "bin" / "python"
BENCHMARK = "one fact traced"
PEERS = {
    "float32": ("released", "hooks", "transformer_lens", "nnsight", "pyvene"),
    "bfloat16": ("hooks",),
}


def smollm2() -> Decoder:
    return ft.load_model("smollm2-135m")


def gpt2() -> Decoder:
    """A model of GPT-2's size and initialisation (seed 0), with SmolLM2's tokenizer: GPT-2's own is only on the hub."""
    torch.manual_seed(0)
    return ft.wrap_model(AutoModelForCausalLM.from_config(GPT2Config()), smollm2().tokenizer, "gpt2-124m-random")


MODELS = {"smollm2-135m": smollm2, "gpt2-124m-random": gpt2}


def export(model: Decoder, folder: Path) -> None:
    """Write the weights in a form that plain transformers loads, and the task."""
    config = copy.deepcopy(model.hf.config)
    config.__dict__.pop("quantization_config", None)  # from the GGUF file; the weights are no longer quantized
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.hf.state_dict())
    plain.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)
    fact = encode_fact(model.tokenizer, FACT)
    task = {
        "ids": list(fact.ids),
        "target_ids": list(fact.target_true_ids),
        "subject": [fact.subject_begin, fact.subject_end],
        "window": SETTINGS["windows"][0],
        "samples": SETTINGS["samples"],
        "sigma": SETTINGS["sigma"],
        "width": model.width,
    }
    (folder / "task.json").write_text(json.dumps(task))


def limit(dtype: str, expected: np.ndarray) -> float:
    """The largest |Δp| that counts as equal: in float32 1e-5, or less if the largest p is small (random weights)."""
    largest = float(expected.max())
    return min(1e-5, 1e-4 * largest) if dtype == "float32" else 0.1 * largest


def ask(peer: str, folder: Path, dtype: str, rounds: int, expected: np.ndarray, timeout: float) -> list[BenchRow]:
    """Run a peer. Returns a row for each way of using it; a row without a time has an `error`."""
    threads = str(torch.get_num_threads())
    most = limit(dtype, expected)
    with tempfile.TemporaryDirectory() as out:
        command = [
            str(PYTHON),
            "-m",
            "peers.run",
            peer,
            str(folder),
            "--dtype",
            dtype,
            "--rounds",
            str(rounds),
            "--limit",
            repr(most),
            "--threads",
            threads,
            "--out",
            out,
        ]
        environment = {**os.environ, "OMP_NUM_THREADS": threads, "HF_HUB_OFFLINE": "1", "PYTHONWARNINGS": "ignore"}
        failed = ""
        try:
            done = subprocess.run(
                command, cwd=ROOT / "bench", env=environment, capture_output=True, text=True, timeout=timeout
            )
            failed = "" if done.returncode == 0 else (done.stderr.strip().splitlines() or ["nothing on stderr"])[-1]
        except subprocess.TimeoutExpired:
            failed = f"stopped after {timeout:g} s"
        rows = [judge(peer, np.load(file), expected, most) for file in sorted(Path(out).glob("*.npz"))]
    return [*rows, {"impl": peer, "error": failed}] if failed else rows


def judge(peer: str, found: np.lib.npyio.NpzFile, expected: np.ndarray, most: float) -> BenchRow:
    """The row of a result that a peer wrote, whose grid is compared once more."""
    row: BenchRow = {"impl": f"{peer}: {found['way']}"}
    grid = found["grid"]
    if str(found["error"]):
        return {**row, "error": str(found["error"])}
    if grid.shape != expected.shape:
        return {**row, "error": f"expected a grid of {expected.shape}, got {grid.shape}"}
    row["difference"] = float(np.abs(grid - expected).max())
    if not row["difference"] <= most:
        return {**row, "error": f"differs by {row['difference']:.2g}, more than {most:.2g}"}
    # Without rounds, the compared sweep is the only one timed, and it is cold.
    timed = found["seconds"].tolist() or [float(found["first"])]
    return {**row, **spread(timed), "cold": not len(found["seconds"])}


def fasttrace_row(model: Decoder, expected: np.ndarray, rounds: int) -> BenchRow:
    difference = float(np.abs(fast_grid(model, "subject") - expected).max())
    return {"impl": "fasttrace", "difference": difference, **seconds(lambda: fast_grid(model, "subject"), rounds)}


def pinned() -> dict[str, str]:
    """The versions of the required packages in .venv-peers. Raises UserError where one is missing."""
    if not PYTHON.exists():
        raise UserError(f"expected the peers' Python at {PYTHON}, got none: `make bench-peers` sets it up")
    requirements = (ROOT / "bench/peers/requirements.txt").read_text().splitlines()
    wanted = [line.split("==")[0] for line in requirements if not line.startswith("#")]
    told = subprocess.run([PYTHON, "-m", "pip", "list", "--format=json"], capture_output=True, text=True, check=True)
    found = {one["name"]: one["version"] for one in json.loads(told.stdout) if one["name"] in wanted}
    if missing := [name for name in wanted if name not in found]:
        raise UserError(f"expected {', '.join(missing)} in .venv-peers, got none: `make bench-peers` installs them")
    return found


def show(row: BenchRow, fast: BenchRow) -> None:
    """Print a line of the table."""
    difference = f"{row['difference']:.1e}" if "difference" in row else "      –"
    if "error" in row:
        print(f"  {row['impl']:58} {difference}  {row['error']}", flush=True)
    else:
        times = row["seconds"] / fast["seconds"]
        print(f"  {row['impl']:58} {difference}  {row['seconds']:8.2f} s  {times:6.1f} ×  n={row['n']}", flush=True)


def compared(name: str, options: argparse.Namespace) -> Iterator[BenchRow]:
    """Yield and print the rows of one model: for each dtype fasttrace's, then its peers'."""
    with tempfile.TemporaryDirectory(prefix="fasttrace-peers-") as place:
        folder = Path(place)
        export(MODELS[name](), folder)
        expected = fast_grid(ft.load_model(folder), "subject")
        np.save(folder / "expected.npy", expected)
        for dtype in options.dtypes:
            case = f"{name} {dtype}, {expected.shape[0]} subject tokens × {expected.shape[1]} layers"
            print(f"{case}\n  {'':58} max |Δp|   median")
            fast = fasttrace_row(ft.load_model(folder, dtype=dtype), expected, options.fast_rounds)
            peers = [peer for peer in options.peers if peer in PEERS[dtype]]
            asked = (ask(peer, folder, dtype, options.rounds, expected, options.timeout) for peer in peers)
            for row in itertools.chain([fast], itertools.chain.from_iterable(asked)):
                show(row, fast)
                yield {"benchmark": BENCHMARK, "case": case, **row}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--peers", nargs="*", choices=PEERS["float32"], default=PEERS["float32"])
    parser.add_argument("--dtypes", nargs="+", choices=PEERS, default=list(PEERS))
    parser.add_argument("--rounds", type=int, default=1, help="timed sweeps of a peer (0: time the compared sweep)")
    parser.add_argument("--fast-rounds", type=positive, default=5, help="timed sweeps of fasttrace")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for all ways of using a peer")
    writes(parser.add_argument)
    options = parser.parse_args()
    peers = pinned() if options.peers else {}
    told = about("cpu", peers=peers, settings=SETTINGS, fact=FACT.prompt.format(FACT.subject))
    with Results("peers", told, options.out, options.store) as results:
        for name in options.models:
            for row in compared(name, options):
                results.add(row)


if __name__ == "__main__":
    main()
