"""Whole sweeps by fasttrace and by its peers: the released way, batched hooks, TransformerLens, nnsight, pyvene.

make bench-peers [ARGS="--models smollm2-135m --peers hooks"], which makes .venv-peers and then runs
.venv/bin/python bench/bench_peers.py --store build/bench.duckdb [--loads …] [--models …] [--peers …] [--rounds 1]

The loads:
fact        "The Eiffel Tower is located in the city of" → " Paris", the subject's tokens × all layers, window 5, 10
            samples of released noise, in SmolLM2-135M and in a model of GPT-2's size with random weights.
ioi-blocks  Indirect-object identification: four prompts such as "When Mary and John went to the store, John gave a
            drink to", whose counterfactuals have Mary for the second John. Every block's output at every token is put
            from the clean into the corrupted pass, window 1, and logit(Mary) − logit(John) is measured. GPT-2's size.
ioi-heads   The same for every attention head's output before the output projection, and only the first prompt.

Every peer runs in a process of .venv-peers with the same weights, dtype and threads, without gradients, and with its
library's default attention. Its grid is first compared with fasttrace's. A peer whose grid differs, or that fails, is
reported and not timed. fasttrace computes no cell before the first token at which a counterfactual differs, where
nothing can change. Peers do as their documentation shows, and also leave these cells out where their way says so.
"""

import argparse
import copy
import itertools
import json
import os
import subprocess
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from harness import ROOT, BenchRow, Results, about, command, positive, seconds, spread, writes
from ioi import FACTS, ioi_grid
from ioi import SETTINGS as IOI
from one_fact import FACT, SETTINGS, fast_grid
from transformers import AutoModelForCausalLM, GPT2Config

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.facts import encode_fact
from fasttrace.models import Decoder

WIDTH = 84  # of the column of names
PYTHON = ROOT / ".venv-peers" / "bin" / "python"


def smollm2() -> Decoder:
    return ft.load_model("smollm2-135m")


def gpt2() -> Decoder:
    """A model of GPT-2's size and initialisation (seed 0), with SmolLM2's tokenizer: GPT-2's own is only on the hub."""
    torch.manual_seed(0)
    return ft.wrap_model(AutoModelForCausalLM.from_config(GPT2Config()), smollm2().tokenizer, "gpt2-124m-random")


MODELS = {"smollm2-135m": smollm2, "gpt2-124m-random": gpt2}


class OneFact:
    """One fact, whose subject gets noise."""

    benchmark = "one fact traced"
    measure, symbol = "difference", "|Δp|"
    models = tuple(MODELS)
    peers = {  # noqa: RUF012
        "float32": ("released", "hooks", "transformer_lens", "nnsight", "pyvene"),
        "bfloat16": ("hooks",),
    }
    facts = (FACT,)
    settings = SETTINGS

    def task(self, model: Decoder) -> dict[str, Any]:
        """What a peer's `Noised` is made of."""
        fact = encode_fact(model.tokenizer, FACT)
        return {
            "kind": "noise",
            "ids": list(fact.ids),
            "target_ids": list(fact.target_true_ids),
            "subject": [fact.subject_begin, fact.subject_end],
            "window": SETTINGS["windows"][0],
            "samples": SETTINGS["samples"],
            "sigma": SETTINGS["sigma"],
            "width": model.width,
        }

    def grid(self, model: Decoder) -> np.ndarray:
        """(tokens, L)."""
        return fast_grid(model, "subject")

    def cells(self, grid: np.ndarray) -> str:
        """The grid's size in words."""
        return f"{grid.shape[0]} subject tokens × {grid.shape[1]} layers"

    def limit(self, dtype: str, expected: np.ndarray) -> float:
        """The largest |Δp| that counts as equal: in float32 1e-5, or less where every p is small (random weights)."""
        largest = float(expected.max())
        return min(1e-5, 1e-4 * largest) if dtype == "float32" else 0.1 * largest


@dataclass(frozen=True)
class Ioi:
    """Prompts with counterfactuals. module: "block" or "head"."""

    module: str
    facts: Sequence[ft.Fact]
    measure, symbol = "logit_difference", "|Δ logit difference|"
    models = ("gpt2-124m-random",)
    peers = {"float32": ("hooks", "transformer_lens", "nnsight")}  # noqa: RUF012

    @property
    def benchmark(self) -> str:
        return f"IOI traced, {self.module}s"

    @property
    def settings(self) -> Mapping[str, Any]:
        return {**IOI, "module": self.module}

    def task(self, model: Decoder) -> dict[str, Any]:
        """What a peer's `Paired` is made of."""
        encoded = [encode_fact(model.tokenizer, fact) for fact in self.facts]
        return {
            "kind": "counterfactual",
            "by_head": self.module == "head",
            "clean": [one.ids for one in encoded],
            "corrupted": [one.counterfactuals[0] for one in encoded],
            "answers": [(*one.target_true_ids, *(one.target_false_ids or ())) for one in encoded],
        }

    def grid(self, model: Decoder) -> np.ndarray:
        """(prompts, T, L, H), with H = 1 for blocks."""
        return ioi_grid(model, self.facts, self.module)

    def cells(self, grid: np.ndarray) -> str:
        """The grid's size in words."""
        n, length, layers, heads = grid.shape
        words = f"{n} prompt{'s' * (n > 1)} × {length} tokens × {layers} layers"
        return f"{words} × {heads} heads" if self.module == "head" else words

    def limit(self, dtype: str, expected: np.ndarray) -> float:
        """The largest difference that counts as equal: 1e-5 of the largest value or of 1, or less if the grid's own
        differences are small (random weights)."""
        return min(1e-5 * max(1.0, float(np.abs(expected).max())), 1e-4 * float(np.ptp(expected)))


Load = OneFact | Ioi
LOADS: dict[str, Load] = {
    "fact": OneFact(),
    "ioi-blocks": Ioi("block", FACTS),
    "ioi-heads": Ioi("head", FACTS[:1]),
}


def export(model: Decoder, folder: Path) -> None:
    """Write the weights in a form that plain transformers loads."""
    config = copy.deepcopy(model.hf.config)
    config.__dict__.pop("quantization_config", None)  # from the GGUF file; the weights are no longer quantized
    plain = AutoModelForCausalLM.from_config(config)
    plain.load_state_dict(model.hf.state_dict())
    plain.save_pretrained(folder)
    model.tokenizer.save_pretrained(folder)


def ask(
    peer: str, load: Load, folder: Path, dtype: str, rounds: int, expected: np.ndarray, timeout: float
) -> list[BenchRow]:
    """Run a peer. Returns a row for each way of using it; a row without a time has an `error`."""
    threads = str(torch.get_num_threads())
    most = load.limit(dtype, expected)
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
        rows = [judge(peer, load, np.load(file), expected, most) for file in sorted(Path(out).glob("*.npz"))]
    return [*rows, {"impl": peer, "error": failed}] if failed else rows


def judge(peer: str, load: Load, found: np.lib.npyio.NpzFile, expected: np.ndarray, most: float) -> BenchRow:
    """The row of a result that a peer wrote, whose grid is compared once more."""
    row: BenchRow = {"impl": f"{peer}: {found['way']}"}
    grid = found["grid"]
    if str(found["error"]):
        return {**row, "error": str(found["error"])}
    if grid.shape != expected.shape:
        return {**row, "error": f"expected a grid of {expected.shape}, got {grid.shape}"}
    difference = row[load.measure] = float(np.abs(grid - expected).max())
    if not difference <= most:
        return {**row, "error": f"differs by {difference:.2g}, more than {most:.2g}"}
    # Without rounds, the compared sweep is the only one timed, and it is cold.
    timed = found["seconds"].tolist() or [float(found["first"])]
    return {**row, **spread(timed), "cold": not len(found["seconds"])}


def fasttrace_row(model: Decoder, load: Load, expected: np.ndarray, rounds: int) -> BenchRow:
    difference = float(np.abs(load.grid(model) - expected).max())
    return {"impl": "fasttrace", load.measure: difference, **seconds(lambda: load.grid(model), rounds)}


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


def show(row: BenchRow, load: Load, fast: BenchRow) -> None:
    """Print a line of the table."""
    difference = f"{row[load.measure]:.1e}" if load.measure in row else "      –"
    if "error" in row:
        print(f"  {row['impl']:{WIDTH}} {difference}  {row['error']}", flush=True)
    else:
        times = row["seconds"] / fast["seconds"]
        print(
            f"  {row['impl']:{WIDTH}} {difference}  {row['seconds']:8.2f} s  {times:6.1f} ×  n={row['n']}", flush=True
        )


def compared(name: str, loads: Sequence[str], options: argparse.Namespace) -> Iterator[BenchRow]:
    """Yield and print the rows of one model: for each load and dtype fasttrace's, then its peers'."""
    with tempfile.TemporaryDirectory(prefix="fasttrace-peers-") as place:
        folder = Path(place)
        export(MODELS[name](), folder)
        for load in (LOADS[one] for one in loads):
            model = ft.load_model(folder)
            (folder / "task.json").write_text(json.dumps(load.task(model)))
            expected = load.grid(model)
            np.save(folder / "expected.npy", expected)
            for dtype in (one for one in options.dtypes if one in load.peers):
                case = f"{name} {dtype}, {load.cells(expected)}"
                print(f"{load.benchmark}: {case}\n  {'':{WIDTH}} max {load.symbol}   median")
                fast = fasttrace_row(ft.load_model(folder, dtype=dtype), load, expected, options.fast_rounds)
                peers = [peer for peer in options.peers if peer in load.peers[dtype]]
                asked = (ask(peer, load, folder, dtype, options.rounds, expected, options.timeout) for peer in peers)
                for row in itertools.chain([fast], itertools.chain.from_iterable(asked)):
                    show(row, load, fast)
                    yield {"benchmark": load.benchmark, "case": case, **row}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--loads", nargs="+", choices=LOADS, default=list(LOADS))
    parser.add_argument("--models", nargs="+", choices=MODELS, help="by default, each load's own")
    parser.add_argument("--peers", nargs="*", choices=OneFact.peers["float32"], default=OneFact.peers["float32"])
    parser.add_argument("--dtypes", nargs="+", choices=OneFact.peers, default=list(OneFact.peers))
    parser.add_argument("--rounds", type=int, default=1, help="timed sweeps of a peer (0: time the compared sweep)")
    parser.add_argument("--fast-rounds", type=positive, default=5, help="timed sweeps of fasttrace")
    parser.add_argument("--timeout", type=float, default=3600, help="seconds for all ways of using a peer")
    writes(parser.add_argument)
    options = parser.parse_args()
    peers = pinned() if options.peers else {}
    loads = {
        name: {"settings": LOADS[name].settings, "prompts": [fact.text for fact in LOADS[name].facts]}
        for name in options.loads
    }
    with Results("peers", about("cpu", peers=peers, loads=loads), options.out, options.store) as results:
        for name in options.models or MODELS:
            wanted = [load for load in options.loads if options.models or name in LOADS[load].models]
            for row in compared(name, wanted, options) if wanted else ():
                results.add(row)


if __name__ == "__main__":
    main()
