"""The standard load of a GPU: sweeps of GPT-J-6B at full size with random weights, made on the device, and prompts as
long as CounterFact's (8 tokens, 7 traced), window 5, 10 samples.

python bench/bench_gptj.py [--device cuda] [--facts 20] [--dtypes bfloat16 float32] [--out FILE]
python bench/bench_gptj.py --device cpu --tiny --facts 3      (the same, small enough to be tried anywhere)

Held against one hooked transformers forward a cell, of the same dtype, in the same run, and equal before it is timed;
and against the product peak measured in the same run.
"""

import argparse
import gc
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from transformers import GPTJConfig, GPTJForCausalLM, PreTrainedTokenizerFast

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "oracle"))

from harness import DEVICE, Row, about, seconds, spread, write
from hooked_trace import hooked_trace
from one_fact import fast_grid

import fasttrace as ft
from fasttrace.facts import encode_fact
from fasttrace.models import Decoder
from fasttrace.tracing import prepare_trace
from fasttrace.tracing.cost import gemm_peak

SETTINGS = {"windows": [5], "samples": 10, "sigma": 0.1, "noise": "released", "keep": "all", "tokens": "all"}
TINY = {"n_embd": 64, "n_layer": 4, "n_head": 4, "rotary_dim": 8}
# A float32 product sums 16,384 terms in whatever order; both sides of a bfloat16 comparison round at every step.
LIMIT = {"float32": 1e-5, "bfloat16": 2e-2}


def made_facts(n: int) -> list[ft.Fact]:
    """Facts of eight words, the subject the second and third."""
    names = [f"{chr(65 + i // 26)}{chr(97 + i % 26)}" for i in range(n)]
    return [ft.Fact(prompt="The {} is in the city of", subject=f"Tower {name}", target_true="Rome") for name in names]


def word_tokenizer(facts: list[ft.Fact]) -> PreTrainedTokenizerFast:
    """A token a word."""
    from tokenizers import Tokenizer, models, pre_tokenizers

    words = sorted({word for fact in facts for word in (fact.prompt.format(fact.subject) + " Rome").split()})
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(["?", *words])}, unk_token="?"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=raw)


def random_gptj(tokenizer: PreTrainedTokenizerFast, dtype: str, device: str, tiny: bool) -> Decoder:
    """GPT-J's config with random weights; tied to nothing, so nothing is downloaded."""
    torch.manual_seed(0)
    config = GPTJConfig(**(TINY if tiny else {}))
    with torch.device(device):
        hf = GPTJForCausalLM._from_config(config, dtype=getattr(torch, dtype)).eval()
    return ft.wrap_model(hf, tokenizer, "gptj-6b-random" if not tiny else "gptj-tiny-random")


def hooked(model: Decoder, fact: ft.Fact) -> np.ndarray:
    """(tokens, L, samples) by the rival: every cell a whole forward of 11 rows."""
    encoded = encode_fact(model.tokenizer, fact)
    begin, end = encoded.subject_begin, encoded.subject_end
    noise = np.random.RandomState(1).randn(SETTINGS["samples"], end - begin, model.width)
    _, _, restored = hooked_trace(
        model.hf, encoded.ids, encoded.target_true_ids, begin, end, noise, SETTINGS["sigma"], 5,
        range(begin, len(encoded.ids)),
    )  # fmt: skip
    return restored


def one_dtype(dtype: str, facts: list[ft.Fact], options: argparse.Namespace) -> list[Row]:
    """Rows of the sweep of all facts in one call, and of the rival on one fact."""
    model = random_gptj(word_tokenizer(facts), dtype, options.device, options.tiny)
    encoded = encode_fact(model.tokenizer, facts[0])
    assert (len(encoded.ids), encoded.subject_begin, encoded.subject_end) == (8, 1, 3)
    case = f"{model.name} {dtype}, 8 tokens, 7 traced"

    exact = hooked(model, facts[0])
    difference = float(np.abs(fast_grid(model, "all", facts[0], SETTINGS) - exact.mean(-1)).max() / exact.mean())
    assert difference < LIMIT[dtype], f"{case}: differs by {difference} of p from one hooked forward a cell"
    begun = time.perf_counter()
    hooked(model, facts[0])
    rival = spread([time.perf_counter() - begun])

    flops = prepare_trace(model, facts, **SETTINGS).cost(options.memory).wave_flops
    before = gemm_peak(model)
    taken = seconds(lambda: ft.trace(model, facts, memory=options.memory, **SETTINGS), options.rounds)
    peak = (before + gemm_peak(model)) / 2
    per_fact = taken["seconds"] / len(facts)
    row = {
        "benchmark": "sweep", "case": f"{case}, {len(facts)} facts in one call", "impl": "fasttrace", **taken,
        "seconds_a_fact": per_fact, "tflop": flops / 1e12, "GFLOP/s": flops / taken["seconds"] / 1e9,
        "gemm_peak_gflops": peak / 1e9, "fraction_of_peak": flops / taken["seconds"] / peak,
        "times_faster": rival["seconds"] / per_fact, "relative_difference": difference,
    }  # fmt: skip
    if options.device.startswith("cuda"):
        torch.cuda.reset_peak_memory_stats()
        ft.trace(model, facts, memory=options.memory, **SETTINGS)
        row["bytes"] = torch.cuda.max_memory_allocated()
    return [row, {"benchmark": "sweep", "case": f"{case}, 1 fact", "impl": "one hooked forward a cell", **rival}]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default=DEVICE)
    parser.add_argument("--facts", type=int, default=20)
    parser.add_argument("--dtypes", nargs="+", choices=LIMIT, default=list(LIMIT)[::-1])
    parser.add_argument("--memory", default="16GB", help="for activations")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--tiny", action="store_true", help="4 layers of 64 dimensions: to try this file anywhere")
    parser.add_argument("--out", type=Path)
    options = parser.parse_args()
    rows = []
    for dtype in options.dtypes:
        for row in one_dtype(dtype, made_facts(options.facts), options):
            rows.append(row)
            print(json.dumps(row), flush=True)
        # After each dtype, so that one which fails or runs out of time takes nothing from the other.
        write("gptj", rows, about(options.device, settings=SETTINGS, memory=options.memory), options.out)
        gc.collect()  # and its model makes room for the next


if __name__ == "__main__":
    main()
