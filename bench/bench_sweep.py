"""The sweep against one hooked transformers forward per cell, equal before it is timed; and against the
GEMM peak measured in the same run.

The load: SmolLM2-135M, "The Eiffel Tower is located in the city of", window 5, 10 samples, released noise.
Run: .venv/bin/python bench/bench_sweep.py [--out FILE] (medians of several; one round of the slow rival).
--device cuda --random: a Llama of GPT-J's size with random weights, made on the device.
"""

import argparse
import json
import platform
import statistics
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "oracle"))

from hooked_trace import hooked_trace

import fasttrace as ft
from fasttrace.facts import encode_fact
from fasttrace.ops.linear import linear
from fasttrace.tracing import prepare_trace
from fasttrace.tracing.cost import sweep_flops

FACT = ft.Fact(prompt="The {} is located in the city of", subject="Eiffel Tower", target_true="Paris")
SETTINGS = {"windows": [5], "samples": 10, "sigma": 0.4, "noise": "released", "keep": "all"}


def seconds(call, rounds):
    """Median seconds of `rounds` calls, after one not counted."""
    call()
    taken = []
    for _ in range(rounds):
        begun = time.perf_counter()
        call()
        taken.append(time.perf_counter() - begun)
    return statistics.median(taken)


def gemm_peak(model):
    """FLOP/s of the largest product the sweep is made of: 2048 rows into the keys."""
    x, w = (torch.randn(n, model.width, device=model.device).to(model.dtype) for n in (2048, model.key_width))

    def product():
        linear(x, w)
        if model.device.type == "cuda":
            torch.cuda.synchronize()

    best = min(seconds(product, 20) for _ in range(3))
    return 2 * 2048 * model.width * model.key_width / best


def random_llama(dtype, device):
    """28 layers, d = 4096, m = 16384, 16 heads: GPT-J's sizes in Llama's layout."""
    from small_models import trained_tokenizer
    from transformers import AutoModelForCausalLM, LlamaConfig

    tokenizer = trained_tokenizer()
    config = LlamaConfig(
        vocab_size=50400, hidden_size=4096, intermediate_size=16384, num_hidden_layers=28, num_attention_heads=16,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    with torch.device(device):
        hf = AutoModelForCausalLM.from_config(config, dtype=getattr(torch, dtype))
    return ft.wrap_model(hf, tokenizer, "random-llama")


def hooked(model, encoded, tokens):
    """The rival: every cell a whole forward of 11 rows."""
    noise = np.random.RandomState(1).randn(10, encoded.subject_end - encoded.subject_begin, model.width)
    return hooked_trace(
        model.hf, encoded.ids, encoded.target_true_ids, encoded.subject_begin, encoded.subject_end,
        noise, 0.4, 5, tokens,
    )  # fmt: skip


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--random", action="store_true", help="random weights of GPT-J's size")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--no-rival", action="store_true", help="leave out the hooked forwards")
    options = parser.parse_args()
    rows = []
    for dtype in ("float32", "bfloat16"):
        load = random_llama if options.random else lambda dtype, device: ft.load_model(dtype=dtype, device=device)
        model = load(dtype, options.device)
        encoded = encode_fact(model.tokenizer, FACT)
        peak = gemm_peak(model)
        for tokens in ("subject", "all"):
            taken = seconds(lambda t=tokens, m=model: ft.trace(m, [FACT], tokens=t, **SETTINGS), options.rounds)
            flops = sweep_flops(prepare_trace(model, [FACT], tokens=tokens, **SETTINGS))
            row = {
                "dtype": dtype,
                "tokens": tokens,
                "seconds": taken,
                "tflop": flops / 1e12,
                "gemm_peak_gflops": peak / 1e9,
                "fraction_of_peak": flops / taken / peak,
            }
            if dtype == "float32" and not (options.no_rival or options.random):
                place = range(encoded.subject_begin, encoded.subject_end if tokens == "subject" else len(encoded.ids))
                begun = time.perf_counter()
                _, _, restored = hooked(model, encoded, place)
                row["hooked_seconds"] = time.perf_counter() - begun
                row["times_faster"] = row["hooked_seconds"] / taken
                cells = ft.trace(model, [FACT], tokens=tokens, **SETTINGS).cells.to_pandas()
                cells = cells[cells.token_index >= encoded.subject_begin].sort_values(["token_index", "layer"])
                found = cells.p_restored.to_numpy().reshape(len(place), model.n_layers)
                row["largest_difference"] = float(np.abs(found - restored.mean(-1)).max())
                assert row["largest_difference"] < 1e-5
            rows.append(row)
            print(json.dumps(row), flush=True)
    if options.out:
        commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True).stdout.strip()
        about = {
            "commit": commit,
            "torch": torch.__version__,
            "cpu": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "capability": torch.backends.cpu.get_cpu_capability(),
            "command": " ".join(["python", *sys.argv]),
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps({"about": about, "sweeps": rows}, indent=2) + "\n")


if __name__ == "__main__":
    main()
