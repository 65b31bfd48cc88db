"""How the time of ft.trace grows with cells, facts, layers and windows, and how much memory it takes for its budget.

.venv/bin/python bench/bench_scaling.py [--curves cells facts layers windows memory] [--rounds 3] [--facts 1 50]
    [--tokens last-subject] [--out FILE] [--store FILE]

SmolLM2-135M in float32, 10 samples. "layers" uses models of its sizes with random weights and other numbers of blocks.
GFLOP/s: the plan's FLOPs (tracing.cost) over the median time. Memory: the peak resident set of a fresh process minus
its resident set after loading the model.
"""

import argparse
import copy
import ctypes
import gc
import json
from collections.abc import Iterator

from harness import BenchRow, Results, about, command, fresh, peak_bytes, positive, seconds, writes
from transformers import AutoModelForCausalLM

import fasttrace as ft
from fasttrace.models import Decoder
from fasttrace.tracing import prepare_trace

SETTINGS = {"windows": [5], "samples": 10, "sigma": 0.4, "keep": "all", "tokens": "subject"}
# Put after the subject to lengthen a prompt, which has (tokens from the subject on) × layers cells.
CLAUSES = (
    ", which was once the tallest of all the buildings of its country and is seen by many people every year",
    " with its stairs, its lifts, its lamps and the restaurant on the second of its three floors",
)
COUNTS = [1, 5, 20, 50]
LAYERS = (5, 10, 20, 30, 60)
BUDGETS = ("128MB", "256MB", "512MB", "1GB")


def timed(model: Decoder, facts: list[ft.Fact], rounds: int, case: str, **changed) -> BenchRow:
    """The row of one call of ft.trace, with its FLOPs and its number of cells."""
    settings = {**SETTINGS, **changed}
    plan = prepare_trace(model, facts, **settings)
    flops = plan.cost("8GB").flops
    row = {"case": case, "impl": "fasttrace", **seconds(lambda: ft.trace(model, facts, **settings), rounds)}
    cells = sum(len(item.cells) for item in plan.items(plan.encoded))
    return {**row, "GFLOP/s": flops / row["seconds"] / 1e9, "cells": cells, "gigaflop": flops / 1e9}


def cells(model: Decoder, rounds: int) -> Iterator[BenchRow]:
    """One fact, from one traced token to a prompt of some fifty tokens."""
    for number in range(len(CLAUSES) + 1):
        prompt = "The {}" + "".join(CLAUSES[:number]) + " is located in the city of"
        fact = ft.Fact(prompt=prompt, subject="Eiffel Tower", target_true="Paris")
        length = len(model.tokenizer(prompt.format("Eiffel Tower")).input_ids)
        for tokens in ("last-subject", "subject", "all") if number == 0 else ("all",):
            yield timed(model, [fact], rounds, f"prompt of {length} tokens, {tokens}", tokens=tokens)


def facts(model: Decoder, rounds: int) -> Iterator[BenchRow]:
    """Facts in one call, and the same facts in one call each."""
    built_in = ft.load_facts()
    for n in COUNTS:
        few = built_in[:n]
        yield timed(model, few, rounds, f"{n} facts")
        if n > 1:
            single = seconds(lambda few=few: [ft.trace(model, [fact], **SETTINGS) for fact in few], rounds, warm=False)
            yield {"case": f"{n} facts", "impl": "fasttrace, a call a fact", **single}


def layers(model: Decoder, rounds: int) -> Iterator[BenchRow]:
    """Models with fewer and more blocks of the same sizes."""
    for n in LAYERS:
        config = copy.deepcopy(model.hf.config)
        config.__dict__.pop("quantization_config", None)
        config.num_hidden_layers = n
        config.layer_types = None
        made = ft.wrap_model(AutoModelForCausalLM.from_config(config), model.tokenizer, f"smollm2-{n}")
        yield timed(made, ft.load_facts()[:1], rounds, f"{n} layers")


def windows(model: Decoder, rounds: int) -> Iterator[BenchRow]:
    """One window size, four in one call (equal intervals are computed once), and the four in one call each."""
    few = ft.load_facts()[:4]
    for sizes in ([5], [10, 5, 3, 1]):
        yield timed(model, few, rounds, f"windows {sizes}", windows=sizes)
    apart = seconds(lambda: [ft.trace(model, few, **{**SETTINGS, "windows": [w]}) for w in (10, 5, 3, 1)], rounds)
    yield {"case": "windows [10, 5, 3, 1]", "impl": "fasttrace, a call a size", **apart}


def memory(model: Decoder, rounds: int) -> Iterator[BenchRow]:
    """Peak memory of a fresh process for each budget and number of facts."""
    for budget in BUDGETS:
        for n in (1, 5):
            row = {"case": f"{n} facts, memory {budget}", "impl": "fasttrace", "n": 1}
            yield {**row, **fresh(__file__, "--peak", budget, str(n))}


def peak(budget: str, n: int) -> None:
    """Print the peak bytes above the loaded model as JSON. Runs in the fresh process."""
    model = ft.load_model()
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before, after = peak_bytes(lambda: ft.trace(model, ft.load_facts()[:n], memory=budget, **SETTINGS))
    print(json.dumps({"bytes": after - before, "bytes_loaded": before, "bytes_peak": after}))


CURVES = {"cells": cells, "facts": facts, "layers": layers, "windows": windows, "memory": memory}


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", nargs="+", choices=CURVES, default=list(CURVES))
    parser.add_argument("--rounds", type=positive, default=3)
    parser.add_argument("--facts", type=positive, nargs="+", default=COUNTS, help="numbers of facts in that curve")
    parser.add_argument("--tokens", default=SETTINGS["tokens"], help="tokens that are traced")
    parser.add_argument("--peak", nargs=2, metavar=("BUDGET", "FACTS"), help=argparse.SUPPRESS)
    writes(parser.add_argument)
    options = parser.parse_args()
    if options.peak:
        return peak(options.peak[0], int(options.peak[1]))
    COUNTS[:], SETTINGS["tokens"] = options.facts, options.tokens
    context = about("cpu", settings=SETTINGS, dtype="float32")
    with Results("scaling", context, options.out, options.store) as results:
        model = ft.load_model()
        for curve in options.curves:
            for row in CURVES[curve](model, options.rounds):
                results.add({"benchmark": f"scaling with {curve}", **row})
                print(json.dumps(results.rows[-1]), flush=True)


if __name__ == "__main__":
    main()
