"""Ask whether ε makes the gain of FT-5 in fact amplification on concentrated facts, and write gain-epsilon.csv.

The facts of that cell of Table 2 are edited again with half and with twice the study's ε. Takes 20 minutes on one core,
and writes into the current folder.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from gain import HERE, Facts, Grid, cells, facts_of, judged, write

import fasttrace as ft

PROBLEM, METHOD = "fact-amplification", "ft-5"
LAYERS = [0, 6, 12, 17, 23, 29]
STUDY = 5e-4
TRIED = (2.5e-4, 1e-3)


def with_scores(one: Grid, scores: pa.Table) -> Grid:
    """The same facts and effects with the rewrite scores of other edits."""
    found = {(row["fact_id"], row["layer"]): row["rewrite"] for row in scores.to_pylist()}
    return one._replace(y=np.array([[found[fact, layer] for layer in LAYERS] for fact in one.facts]))


def row_of(epsilon: float, one: Grid, facts: Facts) -> dict[str, Any]:
    spread = {"rewrite_mean": float(one.y.mean()), "rewrite_least": float(one.y.min())}
    return {"epsilon": epsilon, **spread, **judged(one, facts)}


def gains() -> Iterator[dict[str, Any]]:
    store = ft.Store(HERE / "store")
    one, known = cells(store, "rewrite")[PROBLEM, METHOD], facts_of(store)
    yield row_of(STUDY, one, known)
    model, facts = ft.load_model("smollm2-135m"), [fact for fact in ft.load_facts() if fact.fact_id in one.facts]
    for epsilon in TRIED:
        asked: dict[str, Any] = {"problem": PROBLEM, "method": METHOD, "essence": 0, "memory": "4GB"}
        edits = ft.edit(model, facts, layers=LAYERS, epsilon=epsilon, **asked)
        yield row_of(epsilon, with_scores(one, edits.scores), known)


if __name__ == "__main__":
    write(Path("gain-epsilon.csv"), sorted(gains(), key=lambda row: row["epsilon"]))
