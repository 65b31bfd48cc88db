"""The paper's tables from a store."""

from collections.abc import Sequence
from typing import Any, Unpack

import pyarrow as pa

from fasttrace.errors import StoreError
from fasttrace.settings.arguments import checked
from fasttrace.settings.kinds import Count
from fasttrace.store import Readable, Stored

from .certainty import COLUMNS, SHARES, certainty
from .naming import Row, score_label
from .paper import Effects, chosen, coverage, table_numbered, what_is_missing
from .regression import FLOORED, KEYS, LAYERS, Choice, regressions
from .relation import one_reading, relation
from .render import noted, render
from .sentences import fewer_layers, outside

# Columns that tell runs apart: shown only where rows differ in them.
_DISTINGUISHING = (
    "protocol",
    "model",
    "module",
    "localization",
    "metric",
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
@one_reading()
def r2_table(store: Stored, score: str = "rewrite", *, resamples: Count = 1000, **choice: Unpack[Choice]) -> pa.Table:
    """R² of a score by layer, tracing effect and both, with the F-test's p: the paper's Tables 1 to 6.

    resamples: number of bootstrap samples for the intervals (see `certainty`); 0 leaves the intervals out.
    choice: problem, method, window_size, protocol, effect_at, … as for `regressions`.
    Columns: problem, method, any other columns that distinguish the rows, n, n_facts, n_left_out; n_below_0 where a
    score is below 0 and n_outside where an effect is outside 0 to 1; r2_layer, r2_effect, r2_both and diff, each with
    its 95 % interval as X_low, X_high; p_value (edits independent), p_clustered (by fact); r2_layer_acting and
    diff_acting where a layer cannot act; r2_layer_working, diff_working, p_working (sql/edited_layers.sql).
    Where a score of a problem and method is below 0, a second row has the score with a floor at 0, and a column `score`
    tells the two apart.
    """
    return _r2_columns(fits_with_floor(store, score, resamples=resamples, **choice), intervals=resamples > 0)


@checked
@one_reading()
def paper_table(
    store: Stored,
    number: int,
    *,
    resamples: Count = 1000,
    **effects: Unpack[Effects],
) -> pa.Table:
    """One of the paper's Tables 1 to 8 for the store's edits and traces.

    effects: window_size, localization, metric, module, run: which tracing effects the edits are compared with
    (`paper.Effects`). By default those of the edits' own window, of the MLPs, by denoising with noise, in
    probabilities.
    Tables 1 to 6 have the columns of `r2_table`. Tables 7 and 8 have problem, method, any other columns that
    distinguish the rows, n, n_below_0 and n_outside as `r2_table`, edit_metric (a score, also with a floor at 0 where
    one is below 0), regression_metric (R2, RMSE, MAE), predictor (layer, effect, both), value.
    Raises UserError for another number. Raises StoreError where data are missing, with the commands that make them.
    """
    one = table_numbered(number).at(**chosen(store, effects))
    missing = what_is_missing(coverage(store), one)
    if missing:
        raise StoreError(f"Table {number} ({one.title}): {missing}")
    if one.kind == "r2":
        fits = fits_with_floor(store, one.scores[0], resamples=resamples, **one.rows.choice())
        return _r2_columns(one.rows.kept(fits), intervals=resamples > 0)
    return _errors(
        [one.rows.kept(fits_with_floor(store, score, resamples=0, **one.rows.choice())) for score in one.scores]
    )


def _errors(of_scores: Sequence[pa.Table]) -> pa.Table:
    """Tables 7 and 8. of_scores: the regressions of each score. The notes say what holds on fewer layers."""
    fits = pa.concat_tables(of_scores)
    apart = ["problem", "method", *_differing(fits.drop(["score"])), "n", *_notable(fits)]
    rows = [
        {
            **{name: fit[name] for name in apart},
            "edit_metric": fit["score"],
            "regression_metric": metric,
            "predictor": predictor,
            "value": fit[f"{column}_{predictor}"],
        }
        for fit in fits.to_pylist()
        for metric, column in (("R2", "r2"), ("RMSE", "rmse"), ("MAE", "mae"))
        for predictor in ("layer", "effect", "both")
    ]
    kinds = [pa.field(name, fits.schema.field(name).type) for name in apart]
    texts = [pa.field(name, pa.string()) for name in ("edit_metric", "regression_metric", "predictor")]
    table = pa.Table.from_pylist(rows, schema=pa.schema([*kinds, *texts, pa.field("value", pa.float64())]))
    notes = []
    for one in of_scores:
        if plain := _plain(one):
            name = score_label(plain[0]["score"]).capitalize()
            notes += [f"{name}: {said}" for said in (*fewer_layers(plain), *outside(plain))]
    return noted(table, notes)


def fits_with_certainty(
    store: Readable, score: str = "rewrite", *, resamples: int = 1000, **choice: Unpack[Choice]
) -> pa.Table:
    """The table of `regressions` with the columns of `certainty`, and the same regressions on fewer layers.

    X_acting, X_working for X in n_layers, r2_layer, r2_both, diff and p: on the layers that can act and on those that
    work (`Choice`), NULL where no edit is at such a layer. They are absent if the choice itself names layers.
    """
    fits, sure = regressions(store, score, **choice), certainty(store, score, resamples=resamples, **choice)
    assert fits.select(KEYS) == sure.select(KEYS), "expected one query's rows in one order"
    for name in COLUMNS:
        fits = fits.append_column(name, sure[name])
    for layers in LAYERS[1:] if choice.get("layers", "all") == "all" else ():
        narrower: Choice = {**choice, "layers": layers}
        fewer = regressions(store, score, **narrower)
        found = {_place(row): row for row in fewer.to_pylist()}
        rows = [found.get(_place(row), {}) for row in fits.to_pylist()]
        for name, column in _ON_FEWER.items():
            values = pa.array([row.get(column) for row in rows], fewer.schema.field(column).type)
            fits = fits.append_column(f"{name}_{layers}", values)
    return fits


_ON_FEWER = {"n_layers": "n_layers", "r2_layer": "r2_layer", "r2_both": "r2_both", "diff": "diff", "p": "p_value"}


def _place(row: Row) -> tuple[Any, ...]:
    """What regressions of other layers, or of the score with a floor, have in common with this one."""
    return tuple(row[key] for key in KEYS if key not in ("score", "layers"))


def fits_with_floor(
    store: Readable, score: str = "rewrite", *, resamples: int = 1000, **choice: Unpack[Choice]
) -> pa.Table:
    """The table of `fits_with_certainty`, and below each regression that a floor at 0 changes the one with a floor."""
    fits = fits_with_certainty(store, score, resamples=resamples, **choice)
    # An overall score above 0 may have a part below 0.
    if score not in FLOORED or not (score == "overall" or any(fits["n_below_0"].to_pylist())):
        return fits
    floored = fits_with_certainty(store, FLOORED[score], resamples=resamples, **choice)
    second = {_place(row): row for row in floored.to_pylist()}
    pairs = [
        (row, *([other] if row["n_below_0"] or _differ(row, other) else []))
        for row in fits.to_pylist()
        if (other := second[_place(row)])
    ]
    return pa.Table.from_pylist([row for pair in pairs for row in pair], schema=fits.schema)


def _differ(row: Row, other: Row) -> bool:
    """Whether shares differ by more than the rounding of sums, whose order changes from query to query."""
    return any(row[name] is not None and abs(row[name] - other[name]) > 1e-9 for name in SHARES)


def _r2_columns(fits: pa.Table, intervals: bool) -> pa.Table:
    spread = [f"{name}{end}" for name in SHARES for end in (("", "_low", "_high") if intervals else ("",))]
    shown = ["problem", "method", *_differing(fits), "n", "n_facts", "n_left_out", *_notable(fits), *spread]
    shown += ["p_value", "p_clustered"]
    if "n_layers_acting" in fits.column_names:
        idle = fits["n_layers_acting"].to_pylist() != fits["n_layers"].to_pylist()
        shown += [
            *(("r2_layer_acting", "diff_acting") if idle else ()),
            "r2_layer_working",
            "diff_working",
            "p_working",
        ]
    plain = _plain(fits)
    return noted(fits.select(shown), [*fewer_layers(plain), *outside(plain)])


def _notable(fits: pa.Table) -> list[str]:
    """The counts of scores below 0 and of effects outside 0 to 1, where there are any."""
    return [name for name in ("n_below_0", "n_outside") if any(fits[name].to_pylist())]


def _plain(fits: pa.Table) -> list[Row]:
    """The regressions with an edit, without those of the same edits with a floor."""
    rows = [row for row in fits.to_pylist() if row["n"]]
    return [row for row in rows if row["score"] not in FLOORED.values()] or rows


@checked
@one_reading()
def layer_table(store: Stored) -> pa.Table:
    """Mean rewrite, paraphrase, neighborhood and overall score at each edited layer (paper, Figures 7 and 9).

    Columns: problem, method, any other columns that distinguish the rows, layer, n, rewrite, paraphrase, neighborhood,
    overall; where a score X is below 0, also X_below_0, X_floored and overall_floored.
    """
    table = relation(store, "scores_by_layer")
    numbers = ["layer", "n", "rewrite", "paraphrase", "neighborhood", "overall"]
    if below := [score for score in FLOORED if any(table[f"{score}_below_0"].to_pylist())]:
        numbers += [f"{score}_below_0" for score in below]
        numbers += [FLOORED[score] for score in FLOORED if score in below or score == "overall"]
    return table.select(["problem", "method", *_differing(table), *numbers])


@checked
@one_reading()
def summary(store: Stored, score: str = "rewrite", *, width: int | None = None, **choice: Unpack[Choice]) -> str:
    """R² of the score, then the mean scores by layer, as text. Either is left out where it has no row.

    choice: as for `regressions`.
    """
    parts = {
        f"R² of the {score.replace('_', ' ')} score": r2_table(store, score, resamples=0, **choice),
        "Mean scores by edited layer": layer_table(store),
    }
    return "\n".join(render(table, title=title, width=width) for title, table in parts.items() if len(table))


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
