"""Ask what makes the tracing effect's gain in R² on facts whose effect is concentrated (Table 2), and write gain.csv.

A gain can come from a few edits far below a score of 0, from a few facts, from how well the model knows a fact, or from
where it stores it. So each cell of Table 2 has its gain again with a floor at 0, on the layers where the method works,
without the one and the three facts that it depends on most, and beyond p(o_true) of the clean and the noised prompt,
whose log-odds then have a line per layer too. Each is held to effects that are permuted between facts. These keep every
outlier and the number of facts, and lose every relation, so `p_permuted` counts neither as evidence. The gains on all
facts (Table 3) follow.

Usage: python gain.py [STORE], by default the folder store/ beside this file.
"""

import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fasttrace as ft
from fasttrace.analysis.regression import regression_rows

PERMUTATIONS = 10_000
HERE = Path(__file__).parent
Cell = tuple[str, str]


class Grid(NamedTuple):
    """The rows of one regression, of the facts that have every layer.

    facts: their ids. x, y: (facts, layers), effect and score. known: (facts, k), what every layer has a line in besides
    the effect, with a first column of ones.
    """

    facts: np.ndarray
    x: np.ndarray
    y: np.ndarray
    known: np.ndarray

    def without(self, place: int) -> "Grid":
        return Grid(*(np.delete(part, place, axis=0) for part in self))

    def beyond(self, known: dict[str, list[float]]) -> "Grid":
        """The same rows, with a line per layer in each fact's numbers."""
        more = np.array([known[fact] for fact in self.facts])
        return self._replace(known=np.column_stack([self.known, more]))


def grid(rows: dict[str, np.ndarray]) -> Grid:
    ids, facts = np.unique(rows["fact_id"], return_inverse=True)
    layers = np.unique(rows["layer"], return_inverse=True)[1]
    x, y = (np.full((facts.max() + 1, layers.max() + 1), np.nan) for _ in range(2))
    x[facts, layers], y[facts, layers] = rows["x"], rows["y"]
    whole = ~np.isnan(x).any(1)
    return Grid(ids[whole], x[whole], y[whole], np.ones((int(whole.sum()), 1)))


def gain(one: Grid, orders: np.ndarray | None = None) -> Any:
    """What the effect adds to R², with a line per layer in everything.

    orders: (n, facts), whose effect each fact has, for n gains at once.
    """
    apart = np.eye(len(one.x)) - one.known @ np.linalg.pinv(one.known)
    x, y = apart @ one.x, apart @ one.y
    if orders is not None:
        x = apart @ x[orders]
    xy, xx = (x * y).sum(-2), (x**2).sum(-2)
    explained = np.divide(xy**2, xx, out=np.zeros_like(xy), where=xx > 1e-13 * (one.x**2).sum()).sum(-1)
    return explained / ((one.y - one.y.mean()) ** 2).sum()


def permuted(one: Grid) -> np.ndarray:
    """The gains when facts have each other's effects."""
    orders = np.random.default_rng(0).permuted(np.tile(np.arange(len(one.x)), (PERMUTATIONS, 1)), axis=1)
    return np.concatenate([gain(one, some) for some in np.array_split(orders, 20)])


def p_value(one: Grid) -> float:
    """The share of permutations whose gain reaches the found one."""
    return float(((permuted(one) >= gain(one) * (1 - 1e-9)).sum() + 1) / (PERMUTATIONS + 1))


def without(one: Grid, count: int) -> Grid:
    """The rows without `count` facts. Each is the one whose removal lowers the gain most."""
    for _ in range(count):
        one = min((one.without(place) for place in range(len(one.x))), key=gain)
    return one


def cells(store: ft.Store, score: str, **choice: Any) -> dict[Cell, Grid]:
    asked = {"localization": "denoise", "tokens": "all", "subset": "concentrated", **choice}
    found = regression_rows(store, score, **asked)
    return {(keys["problem"], keys["method"]): grid(rows) for keys, rows in found if len(rows["x"])}


def knowledge(store: ft.Store) -> dict[str, list[float]]:
    """The log-odds of p(o_true) for the clean and the noised prompt of every fact."""
    rows = store.query("SELECT fact_id, p_clean, p_noised FROM traces WHERE p_noised IS NOT NULL").to_pylist()
    return {row["fact_id"]: [float(np.log(p / (1 - p))) for p in (row["p_clean"], row["p_noised"])] for row in rows}


def gains(store: ft.Store) -> Iterator[dict[str, Any]]:
    """The rows of gain.csv, one for each problem and method."""
    known = knowledge(store)
    plain, floored = cells(store, "rewrite"), cells(store, "rewrite_floored")
    working, every = cells(store, "rewrite", layers="working"), cells(store, "rewrite", subset="all")
    for cell, one in sorted(plain.items()):
        yield {
            "problem": cell[0],
            "method": cell[1],
            "facts": len(one.x),
            "below_0": int((one.y < 0).sum()),
            "gain": gain(one),
            "permuted_95": float(np.quantile(permuted(one), 0.95)),
            "p_permuted": p_value(one),
            "gain_floored": gain(floored[cell]),
            "p_permuted_floored": p_value(floored[cell]),
            "gain_working": gain(working[cell]),
            "gain_without_1": gain(without(one, 1)),
            "gain_without_3": gain(without(one, 3)),
            "gain_beyond_p": gain(one.beyond(known)),
            "p_permuted_beyond_p": p_value(one.beyond(known)),
            "gain_all_facts": gain(every[cell]),
            "p_permuted_all_facts": p_value(every[cell]),
            "gain_all_facts_beyond_p": gain(every[cell].beyond(known)),
            "p_permuted_all_facts_beyond_p": p_value(every[cell].beyond(known)),
        }


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as CSV, numbers to six digits."""
    table = [{name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    write(HERE / "gain.csv", gains(ft.Store(sys.argv[1] if len(sys.argv) > 1 else HERE / "store")))
