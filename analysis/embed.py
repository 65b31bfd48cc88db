"""The data that the report's script reads: facts, points and tables as compressed JSON."""

import base64
import gzip
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from typing import Any

import matplotlib
import pyarrow as pa
from matplotlib.colors import to_hex

from fasttrace.show.grids import grid_of
from fasttrace.show.style import COLORMAP
from fasttrace.show.words import title_of
from fasttrace.store import Readable

from .exhibit import Exhibit
from .naming import Row, group_names, in_group, own_way
from .relation import relation

# Columns of an edit, in the order of the page. Each fact has one list per column, which takes a third of the bytes of
# one object per edit.
EDIT = (
    "layer",
    "rewrite",
    "paraphrase",
    "neighborhood",
    "essence",
    "overall",
    "p_before",
    "p_after",
    "p_true_before",
    "p_true_after",
    "success",
)
TEXTS = ("subject", "relation", "target_true", "target_false", "prompt", "source")


def embedded(store: Readable, names: list[Row], shown: list[Exhibit], max_bytes: int) -> tuple[str, int]:
    """(the data for the page's script as `packed` text, number of facts in it).

    names: the facts to embed, in order. max_bytes: rough limit of the uncompressed JSON of the facts, which compresses
    to a third or less.
    """
    groups, facts = _facts(store, names, max_bytes)
    places = {row["fact_id"]: place for place, row in enumerate(names)}
    labels = [f"{row['subject'] or row['fact_id']} → {row['target_true'] or '?'}" for row in names]
    points = []
    for exhibit in shown:
        for one in exhibit.points:
            # Facts of points that are not among `names` are labelled by their ids.
            for fact_id in one["fact_ids"]:
                if fact_id not in places:
                    places[fact_id] = len(labels)
                    labels.append(fact_id)
            points.append(
                {
                    "name": one["name"],
                    "run": one["run"],
                    "window": one["window"],
                    "facts": [places[fact_id] for fact_id in one["fact_ids"]],
                    "x": [short(value) for value in one["effects"]],
                    "y": [short(value) for value in one["scores"]],
                }
            )
    csv = {exhibit.key: exhibit.csv for exhibit in shown}
    whole = {"colors": colors(), "groups": groups, "facts": facts, "labels": labels, "points": points, "csv": csv}
    return packed(whole), len(facts)


def _facts(store: Readable, names: list[Row], max_bytes: int) -> tuple[list[Row], list[Row]]:
    """(the editing groups, the facts with their traces and edits). Stops before the facts exceed max_bytes."""
    fact_ids = [row["fact_id"] for row in names]
    grids: dict[tuple[str, str, int], pa.Table] = {}
    cells = relation(store, "fact_cells", {"fact_ids": fact_ids})
    for key, begin, end in _stretches(cells, ("run_id", "fact_id", "window_size")):
        grids[key] = cells.slice(begin, end - begin)
    traces: dict[str, list[Row]] = defaultdict(list)
    all_traces = relation(store, "fact_traces").to_pylist()
    for group, label in group_names(all_traces, always=("window_size",)).items():
        for row in in_group(all_traces, group):
            traces[row["fact_id"]].append(row | {"name": label})
    edits: dict[str, list[Row]] = defaultdict(list)
    all_edits = relation(store, "fact_edits", {"fact_ids": fact_ids}).to_pylist()
    keys = ("problem", "method", "protocol", "model", "window_size", "edit_run_id", "edit_run")
    numbers: dict[tuple[Any, ...], int] = {}
    for row in all_edits:
        row["group"] = numbers.setdefault(tuple(row[key] for key in keys), len(numbers))
        edits[row["fact_id"]].append(row)
    groups = [dict(zip(keys, key, strict=True)) for key in numbers]
    for group, name in group_names(groups).items():
        for one in in_group(groups, group):
            one["name"] = name
    for one in groups:
        one["model"] = title_of(one["model"])

    facts: list[Row] = []
    taken = 0
    for row in names:
        fact_id = row["fact_id"]
        fact = {
            "id": fact_id,
            "traces": [
                _trace(trace, grids.get((trace["trace_run_id"], fact_id, trace["window_size"])))
                # The page shows the first that fits.
                for trace in sorted(traces[fact_id], key=lambda trace: not own_way(trace))
            ],
            "edits": _edits(edits[fact_id]),
            **{key: row[key] or "" for key in TEXTS},
        }
        taken += len(json.dumps(fact, ensure_ascii=False, separators=(",", ":")))
        if taken > max_bytes and facts:
            break
        facts.append(fact)
    return groups, facts


def packed(value: Any) -> str:
    """Gzipped JSON in base64. It is small, and no text of a fact can end the <script> element around it."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return base64.b64encode(gzip.compress(text.encode(), 6, mtime=0)).decode()


def colors(steps: int = 32) -> list[str]:
    """The heatmaps' colours, low to high, as #rrggbb."""
    ramp = matplotlib.colormaps[COLORMAP]
    return [to_hex(ramp(step / (steps - 1))) for step in range(steps)]


def short(value: Any) -> Any:
    """Round to four significant digits, or more if three decimals need them. None for NaN or infinity."""
    if not isinstance(value, float):
        return value
    if not math.isfinite(value):
        return None
    rounded = (float(f"{value:.{digits}g}") for digits in range(4, 17))
    return next((near for near in rounded if f"{near:.3f}" == f"{value:.3f}"), value)


def _trace(row: Row, cells: pa.Table | None) -> Row:
    kept = (
        "name",
        "trace_run_id",
        "protocol",
        "module",
        "localization",
        "metric",
        "window_size",
        "p_clean",
        "p_noised",
        "sigma",
        "counterfactuals",
        "kept",
        "reason",
    )
    grid: dict[str, list[list[Any]]] = {
        name: [] if cells is None else [[short(value) for value in line] for line in grid_of(cells, column).tolist()]
        for name, column in (("p", "p_restored"), ("sem", "p_restored_sem"), ("effect", "effect"))
    }
    place = {"tokens": row["token_texts"] or [], "begin": row["subject_begin"], "end": row["subject_end"]}
    derived = {"model": title_of(row["model"]), "by_layer": _largest(grid["effect"]), "own": own_way(row)}
    return {**{key: short(row[key]) for key in kept}, **place, **grid, **derived}


def _largest(effect: Sequence[Sequence[Any]]) -> list[Any]:
    """The largest effect over tokens at each layer, None where no token has one (trace_effects.effect)."""
    return [max((value for value in layer if value is not None), default=None) for layer in zip(*effect, strict=True)]


def _edits(rows: list[Row]) -> Row:
    columns: Row = {key: [short(row[key]) for row in rows] for key in ("group", *EDIT)}
    # Few edits have a reason or a target, so these two are stored by position.
    for key in ("reason", "target"):
        columns[key] = {str(place): row[key] for place, row in enumerate(rows) if row[key]}
    return columns


def _stretches(table: pa.Table, keys: Iterable[str]) -> Iterable[tuple[tuple[Any, ...], int, int]]:
    """(key, begin, end) of each block of rows with equal keys, in a table sorted by these keys."""
    columns = [table[key].to_pylist() for key in keys]
    begin = 0
    rows = list(zip(*columns, strict=True))
    for place in range(1, len(rows) + 1):
        if place == len(rows) or rows[place] != rows[begin]:
            yield rows[begin], begin, place
            begin = place
