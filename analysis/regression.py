"""Does localization inform editing? R² of the edit score by layer, by tracing effect and by both.

SQL computes everything but the p values: the edits with their effects (sql/traced_edits.sql), sums over layers
(sql/layer_sums.sql), fits (sql/group_fits.sql) and regressions (sql/regressions.sql). Runs are never pooled. A row
belongs to one editing run (edit_run_id: its model, seed, protocol, method and settings), one tracing run
(trace_run_id: its corruption, samples, metric, module, heads, method and window size) of the same model weights and
protocol, and one data set (source). regress.py fits any other formula.
"""

from collections.abc import Iterator
from typing import Annotated, Any, TypedDict, Unpack

import numpy as np
import pyarrow as pa
from scipy import stats

from fasttrace.errors import UserError, did_you_mean
from fasttrace.settings.arguments import checked
from fasttrace.settings.kinds import MOST_LAYERS, Bounds
from fasttrace.store import Readable, Stored

from .relation import relation

FLOORED = {score: f"{score}_floored" for score in ("rewrite", "paraphrase", "overall")}
"""The scores that have no floor in the paper's formulas, and the names of the same with a floor at 0."""
SCORES = ("rewrite", "paraphrase", "neighborhood", "essence", "overall", "magnitude", *FLOORED.values())
EFFECTS = ("max", "last-subject", "last-subject-absolute")
SUBSETS = ("all", "concentrated")
LAYERS = ("all", "acting", "working")
DESCRIBES = (
    "problem",
    "method",
    "protocol",
    "model",
    "module",
    "localization",
    "metric",
    "tokens",
    "window_size",
    "edit_run",
    "trace_run",
    "edit_run_id",
    "trace_run_id",
    "source",
)
"""The columns that describe an edit and the traces that it is compared with. edit_run and trace_run name the settings
in which the runs differ from the store's other runs of their kind (sql/run_names.sql)."""
KEYS = (*DESCRIBES, "score", "effect_at", "subset", "layers")
"""The columns that identify a regression. Rows that differ in any of them are never pooled."""
KINDS = dict.fromkeys(KEYS, pa.string()) | {"window_size": pa.int32()}
AT_ONCE = 2_000_000
"""Largest number of edits that are in memory together, about 1 GB."""

GroupRows = tuple[dict[str, Any], dict[str, np.ndarray]]


class Choice(TypedDict, total=False):
    """Keywords that choose regressions. None keeps every value, each in separate rows.

    effect_at: the tracing effect: the largest fraction over tokens ("max", the default), the fraction at the last
    subject token ("last-subject"), or the probability restored there ("last-subject-absolute"; paper, Figure 14).
    subset: "all" facts (the default), or only facts whose effect is "concentrated" in few layers (paper, Table 2;
    sql/concentrated_facts.sql). window_size: tracing window in layers; None: the window of each edit. source: the
    facts' data set, such as "counterfact". localization: how the tracing run localizes facts, such as "denoise", "zero"
    or "counterfactual" (sql/trace_runs.sql). metric: what its effects are made of. module: whose output it replaced.
    tokens: the tokens at which the tracing run intervened. trace_run_id, edit_run_id: one run alone. layers: "all"
    edited layers (the default), only the "acting" ones, at which an edit can change anything, or only the "working"
    ones, whose mean rewrite score is at least 0.9 of the best layer's (sql/edited_layers.sql).
    """

    effect_at: str
    subset: str
    layers: str
    window_size: Annotated[int | None, Bounds(1, most=MOST_LAYERS)]
    protocol: str | None
    source: str | None
    problem: str | None
    method: str | None
    module: str | None
    localization: str | None
    metric: str | None
    tokens: str | None
    model: str | None
    trace_run_id: str | None
    edit_run_id: str | None


@checked
def regressions(store: Stored, score: str = "rewrite", **choice: Unpack[Choice]) -> pa.Table:
    """R² of a score by edited layer, tracing effect and both, one row per regression (paper, Tables 1 to 8).

    score: rewrite | paraphrase | neighborhood | essence | overall | magnitude, or with a floor at 0 rewrite_floored |
    paraphrase_floored | overall_floored.
    Columns: KEYS, then n (edits used), n_facts, n_layers, n_left_out (edits without an effect or a score),
    n_facts_left_out, n_below_0 (edits with a score below 0), n_outside (edits with an effect below 0 or above 1),
    effect_min, effect_max, r2_layer, r2_effect, r2_both, diff = r2_both − r2_layer, f_value (both against layer;
    edits count as independent), df_num, df_den, rmse_layer, rmse_effect, rmse_both, mae_layer, mae_effect, mae_both
    (root mean square and mean absolute errors, in units of the score), rho, p_value.
    Undefined numbers are NULL.
    Raises UserError for an unknown score, effect_at, subset or layers.
    Source: paper, section 4.3 and Appendix B.
    """
    table = _relation(store, "regressions_of_score", score, choice)
    p_values = [_f_tail(row["f_value"], row["df_num"], row["df_den"]) for row in table.to_pylist()]
    return table.append_column("p_value", pa.array(p_values, pa.float64()))


@checked
def layer_means(store: Stored, score: str = "rewrite") -> pa.Table:
    """Mean of a score at each edited layer (paper, Figures 7 to 9).

    Columns: problem, method, protocol, model, window_size, edit_run, edit_run_id, score, layer, n, n_left_out,
    n_below_0, mean, sd, sem. Raises UserError for an unknown score.
    """
    _check("score", score, SCORES)
    return relation(store, "layer_means_of_score", {"score": score})


@checked
def layer_correlations(store: Stored, score: str = "rewrite", **choice: Unpack[Choice]) -> pa.Table:
    """Pearson's ρ of tracing effect and score at each edited layer (paper, Figure 15).

    Columns: KEYS, layer, n, n_left_out, rho, p_value (two-sided, Student's t with n − 2 degrees of freedom).
    Raises UserError for an unknown score, effect_at, subset or layers.
    """
    table = _relation(store, "layer_correlations_of_score", score, choice)
    p_values = [_rho_tail(row["rho"], row["n"]) for row in table.to_pylist()]
    return table.append_column("p_value", pa.array(p_values, pa.float64()))


def regression_rows(store: Readable, score: str = "rewrite", **choice: Unpack[Choice]) -> Iterator[GroupRows]:
    """(KEYS of a regression, its rows as arrays fact_id, layer, x, y), in the order of `regressions`.

    x = tracing effect, y = score, float64. Rows without x or y are left out.
    """
    for identity, group in chosen_rows(store, score, **choice):
        used = group.dropna(subset=["x", "y"])
        yield identity, {name: used[name].to_numpy() for name in ("fact_id", "layer", "x", "y")}


def chosen_rows(
    store: Readable, score: str = "rewrite", **choice: Unpack[Choice]
) -> Iterator[tuple[dict[str, Any], Any]]:
    """(KEYS of a regression, a pandas frame of all its rows), in the order of `regressions`.

    Columns: those of sql/regression_input.sql. x or y is NaN where an edit lacks it. A large store is read by problem
    and method, one pair at a time.
    """
    for part in _parts(store, choice):
        frame = _relation(store, "regression_input", score, part).to_pandas()
        for keys, group in frame.groupby(list(KEYS), sort=False, dropna=False):
            yield {name: None if value != value else value for name, value in zip(KEYS, keys, strict=True)}, group


def _parts(store: Readable, choice: Choice) -> list[Choice]:
    """The choice alone, or one choice per problem and method if the store has more than AT_ONCE edits."""
    cells = relation(store, "edits_by_cell").to_pylist()
    if sum(cell["edits"] for cell in cells) <= AT_ONCE:
        return [choice]
    named = [{name: cell[name] for name in ("problem", "method")} for cell in cells]
    return [
        {**choice, "problem": cell["problem"], "method": cell["method"]}
        for cell in named
        if all(choice.get(name) in (None, value) for name, value in cell.items())
    ]


def _f_tail(f_value: float | None, df_num: float, df_den: float) -> float | None:
    return None if f_value is None else float(stats.f.sf(f_value, df_num, df_den))


def _rho_tail(rho: float | None, n: int) -> float | None:
    if rho is None or n < 3:  # two points always lie on a line
        return None
    if abs(rho) == 1:
        return 0.0
    t = abs(rho) * np.sqrt((n - 2) / ((1 - rho) * (1 + rho)))
    return float(2 * stats.t.sf(t, n - 2))


def _relation(store: Readable, name: str, score: str, choice: Choice) -> pa.Table:
    """The rows of sql/<name>.sql for the chosen regressions. Runs are chosen before any edit is read."""
    rows: dict[str, Any] = {"score": score, "effect_at": "max", "subset": "all", "layers": "all", "source": None}
    runs: dict[str, Any] = {}
    for key, value in choice.items():
        if key in rows:
            rows[key] = value
        elif key in Choice.__annotations__:
            runs["tracing_window" if key == "window_size" else key] = value
        else:
            names = Choice.__annotations__
            raise UserError(f"expected one of {', '.join(names)}, got {key!r}{did_you_mean(key, names)}")
    for key, known in (("score", SCORES), ("effect_at", EFFECTS), ("subset", SUBSETS), ("layers", LAYERS)):
        _check(key, rows[key], known)
    return relation(store, name, rows, runs=runs)


def _check(name: str, value: str, known: tuple[str, ...]) -> None:
    if value not in known:
        raise UserError(f"expected one of {', '.join(known)} as {name}, got {value!r}{did_you_mean(value, known)}")
