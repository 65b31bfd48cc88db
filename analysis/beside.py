"""The paper's Tables 1 to 6 beside a store's, number by number."""

import csv
from importlib.resources import files

import pyarrow as pa

from fasttrace.errors import StoreError
from fasttrace.settings.arguments import checked
from fasttrace.settings.kinds import Count
from fasttrace.store import Stored

from .evidence import NoEvidence, evidence_of
from .naming import Row
from .relation import one_reading


def published() -> list[Row]:
    """The paper's Tables 1 to 6: table, score, problem, method, r2_layer, r2_effect, r2_both, diff, p_value (text)."""
    text = (files("fasttrace.analysis") / "published.csv").read_text(encoding="utf-8")
    kinds = dict.fromkeys(("r2_layer", "r2_effect", "r2_both", "diff"), lambda value: float(value) if value else None)
    kinds |= {"table": int, "p_value": lambda value: value or None}
    return [
        {name: kinds.get(name, str)(value) for name, value in row.items()} for row in csv.DictReader(text.splitlines())
    ]


@checked
@one_reading()
def beside_paper(
    store: Stored,
    *,
    model: str | None = None,
    protocol: str | None = None,
    window_size: int | None = None,
    resamples: Count = 1000,
) -> pa.Table:
    """Every cell of the paper's Tables 1 to 6 that the store has, the paper's number beside the store's.

    Columns: table, score, problem, method, then for X in r2_layer, r2_effect, r2_both, diff: X_paper, X, X_low, X_high;
    p_paper, p_value, p_clustered, n, n_facts, n_below_0 (Tables 1 to 6 of the store have these scores also with a floor
    at 0), r2_layer_acting (without layers that cannot act).
    model, protocol, window_size, resamples: as for `claims`.
    Raises StoreError as `claims`, and where no cell has the edits of one run.
    """
    evidence, rows, why = evidence_of(store, model, protocol, window_size, resamples), [], "none"
    for cell in published():
        subset = "concentrated" if cell["table"] == 2 else "all"
        try:
            ours = evidence.fits(cell["score"], subset=subset).get((cell["problem"], cell["method"]))
        except NoEvidence as absent:
            ours, why = None, str(absent)
        if ours is None:
            continue
        row = {name: cell[name] for name in ("table", "score", "problem", "method")}
        for name in ("r2_layer", "r2_effect", "r2_both", "diff"):
            row |= {f"{name}_paper": cell[name]} | {
                f"{name}{end}": ours[f"{name}{end}"] for end in ("", "_low", "_high")
            }
        names = ("p_value", "p_clustered", "n", "n_facts", "n_below_0", "r2_layer_acting")
        row |= {"p_paper": cell["p_value"], **{name: ours[name] for name in names}}
        rows.append(row)
    if not rows:
        raise StoreError(f"expected edits of traced facts in {store.where} for the paper's tables, got {why}")
    return pa.Table.from_pylist(rows)
