"""The two engines on one fact: the wavefront, and hooks on transformers' own forward, with equal grids.

The loads: SmolLM2-135M, and a random mixture of experts of SmolLM2's width with its tokenizer (12 layers, 16 experts of
768 keys, two a row). "The Eiffel Tower is located in the city of", window 5, 10 samples, subject tokens.
Run: .venv/bin/python bench/bench_engines.py [--out FILE] [--store FILE]
Times are medians over --rounds, in which the engines take turns.
"""

import argparse
import json
from collections.abc import Iterator
from time import perf_counter
from typing import Any

import numpy as np
import torch
from harness import BenchRow, Results, about, command, device, positive, spread, writes
from one_fact import FACT, SETTINGS

import fasttrace as ft

ENGINES = ("wavefront", "hooked")


def mixture(tokenizer: Any) -> Any:
    """A random mixture of experts, wrapped."""
    from transformers import MixtralConfig, MixtralForCausalLM

    torch.manual_seed(0)
    config = MixtralConfig(
        vocab_size=len(tokenizer), hidden_size=576, intermediate_size=768, num_hidden_layers=12, num_attention_heads=9,
        num_key_value_heads=3, num_local_experts=16, num_experts_per_tok=2, initializer_range=0.05,
    )  # fmt: skip
    return ft.wrap_model(MixtralForCausalLM(config), tokenizer, "a random mixture of 16 experts")


def grid(model: Any, engine: str) -> np.ndarray:
    """(cells,) p_restored, in one order."""
    found = ft.trace(model, [FACT], tokens="subject", engine=engine, **SETTINGS).cells.to_pandas()
    return found.sort_values(["window_size", "token_index", "layer"]).p_restored.to_numpy()


def compared(options: argparse.Namespace) -> Iterator[BenchRow]:
    """Yield a row for each model and engine."""
    real = ft.load_model(device=options.device)
    for model in (real, mixture(real.tokenizer)):
        grids = {engine: grid(model, engine) for engine in ENGINES}
        difference = float(np.abs(grids["wavefront"] - grids["hooked"]).max())
        assert difference < 1e-5
        times: dict[str, list[float]] = {engine: [] for engine in ENGINES}
        for _ in range(options.rounds):
            for engine in ENGINES:
                begun = perf_counter()
                grid(model, engine)
                times[engine].append(perf_counter() - begun)
        rows = {engine: spread(times[engine]) for engine in ENGINES}
        rows["wavefront"]["times_faster"] = rows["hooked"]["seconds"] / rows["wavefront"]["seconds"]
        rows["wavefront"]["difference"] = difference
        for engine in ENGINES:
            yield {"benchmark": "engines", "case": model.name, "impl": engine, **rows[engine]}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--device", type=device, default="cpu")
    writes(parser.add_argument)
    options = parser.parse_args()
    with Results("engines", about(options.device), options.out, options.store) as results:
        for row in compared(options):
            results.add(row)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
