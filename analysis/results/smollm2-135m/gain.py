"""Ask what makes the tracing effect's gain in R² on facts whose effect is concentrated (Table 2), and write gain.csv.

A gain can come from a few edits far below a score of 0, from a few facts, or from a relation that most facts have. So
each cell of Table 2 has its gain again with a floor at 0, on the layers where the method works, without the one and the
three facts that it depends on most, and with effects that are permuted between facts. Permuted effects keep every
outlier and the number of facts, and lose every relation, so `p_permuted` counts neither as evidence.

Usage: python gain.py [STORE], by default the folder store/ beside this file.
"""

import csv
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

import fasttrace as ft
from fasttrace.analysis.regression import regression_rows

PERMUTATIONS = 10_000
HERE = Path(__file__).parent
Rows = dict[str, np.ndarray]


def grid(rows: Rows) -> tuple[np.ndarray, np.ndarray]:
    """Effects and scores, both (facts, layers), of the facts that have every layer."""
    facts, layers = (np.unique(rows[name], return_inverse=True)[1] for name in ("fact_id", "layer"))
    x = np.full((facts.max() + 1, layers.max() + 1), np.nan)
    y = x.copy()
    x[facts, layers], y[facts, layers] = rows["x"], rows["y"]
    whole = ~np.isnan(x).any(1)
    return x[whole], y[whole]


def gain(x: np.ndarray, y: np.ndarray) -> float:
    """R² of a line per layer, less R² of a mean per layer. x, y: (facts, layers)."""
    centred = x - x.mean(0)
    return float(explained((centred * y).sum(0), (centred**2).sum(0)) / ((y - y.mean()) ** 2).sum())


def explained(xy: np.ndarray, xx: np.ndarray) -> np.ndarray:
    """Sum over layers (the last axis) of the squares that each layer's line explains."""
    return np.divide(xy**2, xx, out=np.zeros_like(xy), where=xx > 0).sum(-1)


def permuted(x: np.ndarray, y: np.ndarray) -> tuple[float, float]:
    """The 95 % quantile of the gain when facts have each other's effects, and the share that reach the found one."""
    random, n = np.random.default_rng(0), len(x)
    centred = x - x.mean(0)
    orders = random.permuted(np.tile(np.arange(n), (PERMUTATIONS, 1)), axis=1)
    xy = np.stack([centred[orders, layer] @ y[:, layer] for layer in range(x.shape[1])], axis=1)
    gains = explained(xy, (centred**2).sum(0)) / ((y - y.mean()) ** 2).sum()
    at_least = (gains >= gain(x, y) * (1 - 1e-12)).sum()
    return float(np.quantile(gains, 0.95)), float((at_least + 1) / (PERMUTATIONS + 1))


def without(x: np.ndarray, y: np.ndarray, count: int) -> float:
    """The gain without `count` facts. Each is the one whose removal lowers the gain most."""
    kept = np.arange(len(x))
    for _ in range(count):
        kept = min((np.delete(kept, place) for place in range(len(kept))), key=lambda rest: gain(x[rest], y[rest]))
    return gain(x[kept], y[kept])


def cells(store: Any, score: str, **choice: Any) -> dict[tuple[str, str], tuple[np.ndarray, np.ndarray]]:
    asked = {"localization": "denoise", "tokens": "all", "subset": "concentrated", **choice}
    found = regression_rows(store, score, **asked)
    return {(keys["problem"], keys["method"]): grid(rows) for keys, rows in found if len(rows["x"])}


def main() -> None:
    place = Path(sys.argv[1]) if len(sys.argv) > 1 else HERE / "store"
    store = ft.Store(place)
    plain, floored = cells(store, "rewrite"), cells(store, "rewrite_floored")
    working, every = cells(store, "rewrite", layers="working"), cells(store, "rewrite", subset="all")
    numbers: dict[str, Callable[[tuple[str, str]], float]] = {
        "facts": lambda cell: len(plain[cell][0]),
        "below_0": lambda cell: int((plain[cell][1] < 0).sum()),
        "gain": lambda cell: gain(*plain[cell]),
        "gain_floored": lambda cell: gain(*floored[cell]),
        "gain_working": lambda cell: gain(*working[cell]),
        "gain_without_1": lambda cell: without(*plain[cell], 1),
        "gain_without_3": lambda cell: without(*plain[cell], 3),
        "permuted_95": lambda cell: permuted(*plain[cell])[0],
        "p_permuted": lambda cell: permuted(*plain[cell])[1],
        "p_permuted_floored": lambda cell: permuted(*floored[cell])[1],
        "gain_all_facts": lambda cell: gain(*every[cell]),
        "p_permuted_all_facts": lambda cell: permuted(*every[cell])[1],
    }
    with (HERE / "gain.csv").open("w", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["problem", "method", *numbers])
        for cell in sorted(plain):
            rows.writerow([*cell, *(f"{number(cell):.6g}" for number in numbers.values())])


if __name__ == "__main__":
    main()
