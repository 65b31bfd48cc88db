"""The paper's tables from a store."""

from collections.abc import Sequence
from typing import Annotated, Any, Unpack

import pyarrow as pa

from fasttrace.errors import StoreError
from fasttrace.settings.arguments import checked
from fasttrace.settings.kinds import MOST_LAYERS, Bounds, Count
from fasttrace.store import Readable, Stored

from .certainty import COLUMNS, SHARES, certainty
from .paper import coverage, table_numbered, what_is_missing
from .regression import KEYS, Choice, regressions
from .relation import relation
from .render import render

# Columns that tell runs apart: shown only where rows differ in them.
_DISTINGUISHING = (
    "protocol",
    "model",
    "module",
    "localization",
    "tokens",
    "window_size",
    "source",
    "score",
    "effect_at",
    "subset",
    "layers",
    "edit_run",
    "trace_run",
    "edit_run_id",
    "trace_run_id",
)


@checked
def r2_table(store: Stored, score: str = "rewrite", *, resamples: Count = 1000, **choice: Unpack[Choice]) -> pa.Table:
    """R² of a score by layer, tracing effect and both, with the F-test's p: the paper's Tables 1 to 6.

    resamples: number of bootstrap samples for the intervals (see `certainty`); 0 leaves the intervals out.
    choice: problem, method, window_size, protocol, effect_at, … as for `regressions`.
    Columns: problem, method, any other columns that distinguish the rows, n, n_facts, n_left_out; r2_layer, r2_effect,
    r2_both and diff, each with its 95 % interval as X_low, X_high; p_value (edits independent), p_clustered (by fact).
    """
    return _r2_columns(fits_with_certainty(store, score, resamples=resamples, **choice), intervals=resamples > 0)


@checked
def paper_table(
    store: Stored,
    number: int,
    *,
    resamples: Count = 1000,
    window_size: Annotated[int | None, Bounds(1, most=MOST_LAYERS)] = None,
) -> pa.Table:
    """One of the paper's Tables 1 to 8 for the store's edits and traces.

    window_size: tracing window in layers that the edits are compared with; None: the window of each edit.
    Tables 1 to 6 have the columns of `r2_table`. Tables 7 and 8 have problem, method, any other columns that
    distinguish the rows, n, edit_metric (a score), regression_metric (R2, RMSE, MAE), predictor (layer, effect, both),
    value.
    Raises UserError for another number. Raises StoreError where data are missing, with the commands that make them.
    """
    one = table_numbered(number).at_window(window_size)
    missing = what_is_missing(coverage(store), one)
    if missing:
        raise StoreError(f"Table {number} ({one.title}): {missing}")
    if one.kind == "r2":
        fits = one.rows.kept(fits_with_certainty(store, one.scores[0], resamples=resamples, **one.rows.choice()))
        return _r2_columns(fits, intervals=resamples > 0)
    fits = one.rows.kept(pa.concat_tables([regressions(store, score, **one.rows.choice()) for score in one.scores]))
    apart = ["problem", "method", *_differing(fits)]
    rows = [
        {
            **{name: fit[name] for name in (*apart, "n")},
            "edit_metric": fit["score"],
            "regression_metric": metric,
            "predictor": predictor,
            "value": fit[f"{column}_{predictor}"],
        }
        for fit in fits.to_pylist()
        for metric, column in (("R2", "r2"), ("RMSE", "rmse"), ("MAE", "mae"))
        for predictor in ("layer", "effect", "both")
    ]
    kinds = [pa.field(name, fits.schema.field(name).type) for name in (*apart, "n")]
    texts = [pa.field(name, pa.string()) for name in ("edit_metric", "regression_metric", "predictor")]
    return pa.Table.from_pylist(rows, schema=pa.schema([*kinds, *texts, pa.field("value", pa.float64())]))


def fits_with_certainty(
    store: Readable, score: str = "rewrite", *, resamples: int = 1000, **choice: Unpack[Choice]
) -> pa.Table:
    """The table of `regressions` with the columns of `certainty`: intervals and clustered tests."""
    fits, sure = regressions(store, score, **choice), certainty(store, score, resamples=resamples, **choice)
    assert fits.select(KEYS) == sure.select(KEYS), "expected one query's rows in one order"
    for name in COLUMNS:
        fits = fits.append_column(name, sure[name])
    return fits


def _r2_columns(fits: pa.Table, intervals: bool) -> pa.Table:
    spread = [f"{name}{end}" for name in SHARES for end in (("", "_low", "_high") if intervals else ("",))]
    counts = ["n", "n_facts", "n_left_out"]
    return fits.select(["problem", "method", *_differing(fits), *counts, *spread, "p_value", "p_clustered"])


@checked
def layer_table(store: Stored) -> pa.Table:
    """Mean rewrite, paraphrase, neighborhood and overall score at each edited layer (paper, Figures 7 and 9).

    Columns: problem, method, any other columns that distinguish the rows, layer, n, rewrite, paraphrase, neighborhood,
    overall.
    """
    table = relation(store, "scores_by_layer")
    numbers = ["layer", "n", "rewrite", "paraphrase", "neighborhood", "overall"]
    return table.select(["problem", "method", *_differing(table), *numbers])


@checked
def summary(store: Stored, score: str = "rewrite", *, width: int | None = None, **choice: Unpack[Choice]) -> str:
    """R² of the score, then the mean scores by layer, as text. choice: as for `regressions`."""
    parts = [
        render(r2_table(store, score, resamples=0, **choice), title=f"R² of the {score} score", width=width),
        render(layer_table(store), title="Mean scores by edited layer", width=width),
    ]
    return "\n".join(parts)


def _differing(table: pa.Table) -> list[str]:
    """The first columns of _DISTINGUISHING that together distinguish as many rows as all of them do."""
    taken: list[str] = []
    classes = len(set(_rows(table, ["problem", "method"])))
    for name in _DISTINGUISHING:
        if name in table.column_names:
            finer = len(set(_rows(table, ["problem", "method", *taken, name])))
            if finer > classes:
                taken, classes = [*taken, name], finer
    return taken


def _rows(table: pa.Table, names: Sequence[str]) -> list[tuple[Any, ...]]:
    return list(zip(*(table[name].to_pylist() for name in names), strict=True))
