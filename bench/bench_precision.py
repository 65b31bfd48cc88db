"""How far grids in bfloat16 (or tf32 on a GPU) differ from the same grids in float32, cell by cell.

Run: .venv/bin/python bench/bench_precision.py [--facts 12] [--dtype bfloat16] [--device cpu]
    [--out FILE] [--store FILE]
The load: built-in facts that the float32 model knows, window 5, 10 samples, subject tokens, one σ for both.
"""

import argparse
import json

import numpy as np
from harness import Results, about, command, device, positive, writes

import fasttrace as ft

SETTINGS = {"tokens": "subject", "keep": "all", "sigma": 0.375}  # σ is near 3sd of these facts
KEY = ["fact_id", "window_size", "token_index", "layer"]


def known_facts(model, count):
    """The first `count` known facts, from each relation in turn."""
    facts = ft.load_facts(order="interleaved", limit=4 * count)
    verdicts = ft.check_known(model, facts).verdicts.to_pylist()
    return [fact for fact, verdict in zip(facts, verdicts, strict=True) if verdict["known"]][:count]


def compare(exact, other):
    """Differences of two results of the same facts: probabilities, effects, and each fact's peak layer."""
    a, b = exact.cells.to_pandas(), other.cells.to_pandas()
    both = a.merge(b, on=KEY, suffixes=("", "_other"), validate="one_to_one")
    gap = (both.p_restored - both.p_restored_other).abs()
    peaks = {}
    for name in ("p_restored", "p_restored_other"):
        rows = both.loc[both.groupby("fact_id")[name].idxmax()]
        peaks[name] = rows.set_index("fact_id").layer
    moved = (peaks["p_restored"] - peaks["p_restored_other"]).abs()
    p = exact.facts.to_pandas()[["p_clean", "p_noised"]] - other.facts.to_pandas()[["p_clean", "p_noised"]]
    return {
        "facts": len(moved),
        "cells": len(both),
        "p_mean_difference": float(gap.mean()),
        "p_worst_difference": float(gap.max()),
        "p_mean_sem": float(both.p_restored_sem.mean()),
        "p_clean_worst_difference": float(p.p_clean.abs().max()),
        "effect_mean_difference": float((both.effect - both.effect_other).abs().mean()),
        "correlation": float(np.corrcoef(both.p_restored, both.p_restored_other)[0, 1]),
        "facts_whose_peak_layer_moves": int((moved > 0).sum()),
        "largest_move_of_a_peak_in_layers": int(moved.max()),
        "seconds_float32": exact.run["seconds"],
        "seconds": other.run["seconds"],
    }


@command
def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--facts", type=positive, default=12)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--device", type=device, default="cpu")
    writes(parser.add_argument)
    options = parser.parse_args()
    told = about(options.device, settings=SETTINGS)
    with Results(f"precision-{options.dtype}", told, options.out, options.store) as results:
        exact = ft.load_model(device=options.device)
        other = ft.load_model(dtype=options.dtype, device=options.device)
        facts = known_facts(exact, options.facts)
        one, two = (ft.trace(model, facts, **SETTINGS) for model in (exact, other))
        case = f"{exact.name} against float32"
        row = {"benchmark": "precision", "case": case, "impl": options.dtype, "n": 1, **compare(one, two)}
        print(json.dumps(row, indent=2))
        results.add(row)


if __name__ == "__main__":
    main()
