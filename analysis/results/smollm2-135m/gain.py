"""Ask what makes the tracing effect's gain in R². Write gain.csv and gain-scores.csv.

A gain can come from a few edits far below a score of 0, from a few facts, from how well the model knows a fact, or from
where it stores it. So gain.csv has each gain of Table 2 (facts whose effect is concentrated) again with a floor at 0,
on the layers where the method works, without the one and the three facts that it depends on most, and beyond p(o_true)
of the clean and the noised prompt, whose log-odds then have a line per layer too. Each is held to effects that are
permuted between facts. These keep every outlier and the number of facts, and lose every relation, so `p_permuted`
counts neither as evidence. gain-scores.csv has the gains of Tables 3 to 6 (all facts), also beyond p.

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


def judged(one: Grid, known: dict[str, list[float]]) -> dict[str, Any]:
    beyond = one.beyond(known)
    return {
        "gain": gain(one),
        "p_permuted": p_value(one),
        "gain_beyond_p": gain(beyond),
        "p_permuted_beyond_p": p_value(beyond),
    }


def concentrated(store: ft.Store) -> Iterator[dict[str, Any]]:
    """The rows of gain.csv, one for each problem and method."""
    known = knowledge(store)
    plain, floored, working = (
        cells(store, score, **choice)
        for score, choice in (("rewrite", {}), ("rewrite_floored", {}), ("rewrite", {"layers": "working"}))
    )
    for (problem, method), one in sorted(plain.items()):
        yield {
            "problem": problem,
            "method": method,
            "facts": len(one.x),
            "below_0": int((one.y < 0).sum()),
            **judged(one, known),
            "permuted_95": float(np.quantile(permuted(one), 0.95)),
            "gain_floored": gain(floored[problem, method]),
            "p_permuted_floored": p_value(floored[problem, method]),
            "gain_working": gain(working[problem, method]),
            "gain_without_1": gain(without(one, 1)),
            "gain_without_3": gain(without(one, 3)),
        }


def of_scores(store: ft.Store) -> Iterator[dict[str, Any]]:
    """The rows of gain-scores.csv, one for each score, problem and method."""
    known = knowledge(store)
    for score in ("rewrite", "paraphrase", "neighborhood", "overall"):
        for (problem, method), one in sorted(cells(store, score, subset="all").items()):
            yield {
                "score": score,
                "problem": problem,
                "method": method,
                "facts": len(one.x),
                **judged(one, known),
                "gain_beyond_p_without_3": gain(without(one.beyond(known), 3)),
            }


def write(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write rows as CSV, numbers to six digits."""
    table = [{name: f"{v:.6g}" if isinstance(v, float) else v for name, v in row.items()} for row in rows]
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(table[0]))
        writer.writeheader()
        writer.writerows(table)


if __name__ == "__main__":
    study = ft.Store(sys.argv[1] if len(sys.argv) > 1 else HERE / "store")
    write(HERE / "gain.csv", concentrated(study))
    write(HERE / "gain-scores.csv", of_scores(study))
