"""The sweep against one hooked transformers forward per cell, with equal grids, and against the run's own GEMM peak.

The load: SmolLM2-135M, "The Eiffel Tower is located in the city of", window 5, 10 samples, released noise.
Run: .venv/bin/python bench/bench_sweep.py [--out FILE] [--store FILE]
The sweep's time is a median over --rounds; the rival runs once. bench_gptj.py is the standard benchmark of a GPU.
"""

import argparse
import json
import time
from collections.abc import Iterator

import numpy as np
from harness import BenchRow, Results, about, command, device, positive, seconds, spread, writes
from hooked_trace import Noise, hooked_trace
from one_fact import FACT, SETTINGS, fast_grid

import fasttrace as ft
from fasttrace.facts import encode_fact
from fasttrace.tracing import prepare_trace
from fasttrace.tracing.cost import gemm_peak


def hooked(model, encoded, tokens):
    """The rival's p (tokens, L, 10): every cell is a whole forward of 11 rows."""
    noise = 0.4 * np.random.RandomState(1).randn(10, encoded.subject_end - encoded.subject_begin, model.width)
    corrupted = Noise(encoded.subject_begin, noise)
    return hooked_trace(model.hf, encoded.ids, encoded.target_true_ids, corrupted, 5, tokens).patched.p


def swept(options: argparse.Namespace) -> Iterator[BenchRow]:
    """Yield a row for each dtype and choice of tokens, and the rival's row where the two are compared."""
    for dtype in ("float32", "bfloat16"):
        model = ft.load_model(dtype=dtype, device=options.device)
        encoded = encode_fact(model.tokenizer, FACT)
        for tokens in ("subject", "all"):
            flops = prepare_trace(model, [FACT], tokens=tokens, **SETTINGS).cost("8GB").flops
            before = gemm_peak(model)
            row = {
                "benchmark": "sweep",
                "case": f"{model.name} {dtype}, tokens {tokens}",
                "impl": "fasttrace",
                **seconds(lambda t=tokens, m=model: ft.trace(m, [FACT], tokens=t, **SETTINGS), options.rounds),
                "tflop": flops / 1e12,
            }
            # The mean of the peak before and after, because the speed of a shared host changes.
            peak = (before + gemm_peak(model)) / 2
            row["gemm_peak_gflops"] = peak / 1e9
            row["GFLOP/s"] = flops / row["seconds"] / 1e9
            row["fraction_of_peak"] = flops / row["seconds"] / peak
            if dtype == "float32" and not options.no_rival:
                place = range(encoded.subject_begin, encoded.subject_end if tokens == "subject" else len(encoded.ids))
                begun = time.perf_counter()
                restored = hooked(model, encoded, place)
                rival = spread([time.perf_counter() - begun])
                row["times_faster"] = rival["seconds"] / row["seconds"]
                row["difference"] = float(np.abs(fast_grid(model, tokens) - restored.mean(-1)).max())
                assert row["difference"] < 1e-5
                yield {"benchmark": "sweep", "case": row["case"], "impl": "one hooked forward a cell", **rival}
            yield row


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--device", type=device, default="cpu")
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--no-rival", action="store_true", help="leave out the hooked forwards")
    writes(parser.add_argument)
    options = parser.parse_args()
    with Results("sweep", about(options.device), options.out, options.store) as results:
        for row in swept(options):
            results.add(row)
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
