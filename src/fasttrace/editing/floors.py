"""Means of edit scores with a floor at 0, for scores that have none (docs/algorithms.md, section 18)."""

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.compute as pc


def floored_means(sets: Sequence[pa.Table]) -> dict[str, list[float | int]]:
    """Of each set of edits: X_below_0, how many scores X are below 0, and X_floored, the mean with a floor at 0.

    Empty where no score of any set is below 0.
    """
    names = ("rewrite", "paraphrase")
    if not any(pc.any(pc.less(scores[name], 0)).as_py() for scores in sets for name in names):
        return {}
    found: dict[str, list[float | int]] = {}
    for scores in sets:
        parts = {name: pc.max_element_wise(scores[name], 0.0, skip_nulls=False) for name in names}
        whole = pc.add(pc.add(parts["rewrite"], parts["paraphrase"]), scores["neighborhood"])
        for name in (*names, "overall"):
            found.setdefault(f"{name}_below_0", []).append(pc.sum(pc.less(scores[name], 0)).as_py() or 0)
        for name, values in {**parts, "overall": pc.divide(whole, 3.0)}.items():
            found.setdefault(f"{name}_floored", []).append(pc.mean(values).as_py())
    return dict(sorted(found.items(), key=lambda item: item[0].endswith("_floored")))
