"""Ask what makes the tracing effect's gain in R². Write gain.csv and gain-scores.csv.

A gain can come from a few edits far below a score of 0, from a few facts, from how well the model knows a fact, from
the relation that a fact is of, or from where the model stores it. So each gain is found again

- with a floor at 0, and without the one and the three facts that it depends on most,
- on the layers that can act,
- beyond p: with a line per layer in the log-odds of p(o_true) for the clean and for the noised prompt,
- within relations: with a mean per relation and layer.

`p_permuted` is the share of gains that are as large when facts have each other's effects. It keeps every outlier and
the number of facts, so neither counts as evidence. Beyond p, what is exchanged is the effect less its lines. Within
relations, only facts of the same relation exchange theirs. `by_relation_low` and `by_relation_high` are the 95 %
bootstrap interval when relations are resampled instead of facts.

gain.csv has the gains of Table 2 (facts whose effect is concentrated), gain-scores.csv those of Tables 3 to 6.

Usage: python gain.py [STORE], by default the folder store/ beside this file. It writes into the current folder.
"""

import csv
import sys
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

import fasttrace as ft
from fasttrace.analysis.certainty import Sample
from fasttrace.analysis.regression import regression_rows
from fasttrace.analysis.relation import query

PERMUTATIONS = 10_000
HERE = Path(__file__).parent
Cell = tuple[str, str]


class Grid(NamedTuple):
    """The rows of one regression, of the facts that have every layer.

    facts: their ids. x, y: (facts, layers), effect and score. known: (facts, k), what has a coefficient at every layer
    besides the effect. groups: (facts,), which facts may exchange their effects.
    """

    facts: np.ndarray
    x: np.ndarray
    y: np.ndarray
    known: np.ndarray
    groups: np.ndarray

    def without(self, place: int) -> "Grid":
        return Grid(*(np.delete(part, place, axis=0) for part in self))

    def beyond(self, known: dict[str, list[float]]) -> "Grid":
        """The same rows, with a line per layer in each of the facts' numbers."""
        more = np.array([known[fact] for fact in self.facts])
        return self._replace(known=np.column_stack([self.known, more]))

    def within(self, relations: dict[str, str]) -> "Grid":
        """The same rows, with a mean per relation and layer."""
        groups = relation_numbers(self, relations)
        return self._replace(known=np.eye(groups.max() + 1)[groups], groups=groups)


def relation_numbers(one: Grid, relations: dict[str, str]) -> np.ndarray:
    return np.unique([relations[fact] for fact in one.facts], return_inverse=True)[1]


def grid(rows: dict[str, np.ndarray]) -> Grid:
    ids, facts = np.unique(rows["fact_id"], return_inverse=True)
    layers = np.unique(rows["layer"], return_inverse=True)[1]
    x, y = (np.full((facts.max() + 1, layers.max() + 1), np.nan) for _ in range(2))
    x[facts, layers], y[facts, layers] = rows["x"], rows["y"]
    whole = ~np.isnan(x + y).any(1)
    count = int(whole.sum())
    return Grid(ids[whole], x[whole], y[whole], np.ones((count, 1)), np.zeros(count, int))


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
    """The gains when facts of the same group have each other's effects, less what `known` explains of them."""
    keys = one.groups + np.random.default_rng(0).random((PERMUTATIONS, len(one.x)))
    orders = np.empty(keys.shape, int)
    orders[:, np.argsort(one.groups, kind="stable")] = np.argsort(keys, axis=1)
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
    how = {"localization": "denoise", "metric": "probability", "tokens": "all"}
    asked = {**how, "subset": "concentrated", **choice}
    found = regression_rows(store, score, **asked)
    return {(keys["problem"], keys["method"]): grid(rows) for keys, rows in found if len(rows["x"])}


class Facts(NamedTuple):
    """What is known of every fact: the log-odds of p(o_true) for the clean and the noised prompt, and the relation."""

    odds: dict[str, list[float]]
    relations: dict[str, str]


def facts_of(store: ft.Store) -> Facts:
    wanted = """
        SELECT fact_id, relation, p_clean, p_noised
        FROM traces
        JOIN trace_runs USING (run_id)
        WHERE p_noised IS NOT NULL AND localization = 'denoise' AND metric = 'probability'
    """
    rows = query(store, wanted).to_pylist()
    odds = {row["fact_id"]: [float(np.log(p / (1 - p))) for p in (row["p_clean"], row["p_noised"])] for row in rows}
    return Facts(odds, {row["fact_id"]: row["relation"] for row in rows})


def judged(one: Grid, facts: Facts) -> dict[str, Any]:
    beyond, within = one.beyond(facts.odds), one.within(facts.relations)
    relation, layer = np.indices(one.x.shape)
    relation = relation_numbers(one, facts.relations)[relation]
    ends = Sample(relation.ravel(), layer.ravel(), one.x.ravel(), one.y.ravel()).intervals(1000, 0.95, 0)
    return {
        "facts": len(one.x),
        "gain": gain(one),
        "p_permuted": p_value(one),
        "gain_beyond_p": gain(beyond),
        "p_permuted_beyond_p": p_value(beyond),
        "gain_within_relations": gain(within),
        "p_permuted_within_relations": p_value(within),
        "by_relation_low": ends["diff_low"],
        "by_relation_high": ends["diff_high"],
        "gain_without_1": gain(without(one, 1)),
        "gain_without_3": gain(without(one, 3)),
    }


def concentrated(store: ft.Store) -> Iterator[dict[str, Any]]:
    """The rows of gain.csv, one for each problem and method."""
    facts, floored = facts_of(store), cells(store, "rewrite_floored")
    for (problem, method), one in sorted(cells(store, "rewrite").items()):
        yield {
            "problem": problem,
            "method": method,
            **judged(one, facts),
            "below_0": int((one.y < 0).sum()),
            "gain_floored": gain(floored[problem, method]),
            "permuted_95": float(np.quantile(permuted(one), 0.95)),
        }


def of_scores(store: ft.Store) -> Iterator[dict[str, Any]]:
    """The rows of gain-scores.csv, one for each score, problem and method."""
    facts = facts_of(store)
    for score in ("rewrite", "paraphrase", "neighborhood", "overall"):
        acting = cells(store, score, subset="all", layers="acting")
        for (problem, method), one in sorted(cells(store, score, subset="all").items()):
            fewer = acting[problem, method]
            yield {
                "score": score,
                "problem": problem,
                "method": method,
                **judged(one, facts),
                "gain_beyond_p_without_3": gain(without(one.beyond(facts.odds), 3)),
                "gain_acting": gain(fewer),
                "gain_acting_without_1": gain(without(fewer, 1)),
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
    write(Path("gain.csv"), concentrated(study))
    write(Path("gain-scores.csv"), of_scores(study))
