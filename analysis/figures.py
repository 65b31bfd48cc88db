"""The figures of a study. Each is read from a relation of the store and drawn by draw.py.

Every function returns a new matplotlib Figure, made without pyplot, for `save` or a notebook.
"""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

import matplotlib
import pyarrow as pa
import pyarrow.compute as pc
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fasttrace.errors import StoreError, UserError
from fasttrace.places import replacing
from fasttrace.settings.arguments import checked
from fasttrace.show.fonts import readable
from fasttrace.show.words import METRICS
from fasttrace.store import Readable, Stored
from fasttrace.tracing.roles import with_bands
from fasttrace.windows import default_layer

from . import draw
from .draw_edits import draw_edits
from .draw_roles import draw_roles
from .naming import Row
from .paper import (
    OF_TRACES,
    WITH_ESSENCE,
    Effects,
    Numbered,
    RowFilter,
    chosen,
    coverage,
    figure_numbered,
    heatmap_window,
    run_of,
    ways_text,
    what_is_missing,
)
from .regression import KINDS, layer_correlations, layer_means, regression_rows, regressions
from .relation import one_reading, relation

FORMATS = (".png", ".svg", ".pdf")


@checked
@one_reading()
def heatmap(
    store: Stored,
    fact_id: str,
    window_size: int | None = None,
    *,
    localization: str = "denoise",
    metric: str | None = None,
    tokens: str | None = None,
    module: str | None = None,
    run: str | None = None,
) -> Figure:
    """One fact's grid of the metric restored, by default p(o_true), tokens × layers, of one tracing run and window
    (paper, Figure 2). Of several heads, each cell shows the one with the largest effect. The title names model,
    module, method and window.

    window_size: the tracing window in layers. None: 5, the window of the paper's analysis, or the smallest one if the
    fact has no window of 5.
    localization: how it was traced, as "denoise" or "counterfactual". metric: what its effects are made of. tokens,
    module: where it intervened. None: the paper's "probability", "all" and "mlp", or any others where the fact has no
    such trace. run: id of the tracing run, or its start, whose localization and the like then count. None: the newest.
    Raises StoreError where the fact was not traced so, or not with that window, and UserError where there is no such
    run.
    """
    own = run_of(store, run, ["trace"])
    grids = _grids(
        store,
        fact_id,
        RowFilter(
            localization=own.get("localization", localization),
            metric=own.get("metric", metric),
            module=own.get("module", module),
            tokens=tokens,
            trace_run_id=own.get("trace_run_id"),
        ),
    )
    if window_size is None:
        return _heatmap_of(store, _of_window(grids, lambda sizes: 5 if 5 in sizes else sizes[0]))
    trace = next((row for row in grids if row["window_size"] == window_size), None)
    if trace is None:
        sizes = sorted({row["window_size"] for row in grids})
        raise StoreError(
            f"expected a window size of fact {fact_id!r} in {store.where}, one of {', '.join(map(str, sizes))}, "
            f"got {window_size}"
        )
    return _heatmap_of(store, trace)


def _heatmap_of(store: Readable, trace: Row) -> Figure:
    """The heatmap of one row of sql/fact_traces.sql, which is of one fact, run and window."""
    cells = relation(store, "fact_cells", {"fact_ids": [trace["fact_id"]]})
    mine = pc.and_(
        pc.equal(cells["run_id"], trace["trace_run_id"]), pc.equal(cells["window_size"], trace["window_size"])
    )
    return draw.draw_heatmap(trace, cells.filter(mine))


def _grids(store: Readable, fact_id: str, wanted: RowFilter) -> list[Row]:
    """The fact's traces of that kind, a row per run and window. Traces in probabilities, at all tokens and of the MLPs
    come first, the newest of these before the others."""
    traces = [row for row in relation(store, "fact_traces").to_pylist() if row["fact_id"] == fact_id]
    if not traces:
        raise StoreError(f"fact {fact_id!r} was not traced in {store.where}")
    how = {name: getattr(wanted, name) for name in ("localization", "metric", "tokens", "module", "trace_run_id")}
    such = [row for row in traces if all(value in (None, row[name]) for name, value in how.items())]
    if not such:
        names = [name for name in how if name != "trace_run_id" or how[name]]
        asked, there = (
            ", ".join(sorted({" ".join(str(row[name]) for name in names if row[name] is not None) for row in rows}))
            for rows in ([how], traces)
        )
        raise StoreError(f"expected a trace of fact {fact_id!r} in {store.where} by {asked}, got {there}")
    grids = [row for row in such if row["window_size"] is not None]
    if not grids:
        raise StoreError(f"fact {fact_id!r} has no tracing grid in {store.where}: {such[0]['reason'] or 'no cells'}")
    places = {name: place for place, name in enumerate(METRICS)}
    return sorted(grids, key=lambda row: (places[row["metric"]], row["tokens"] != "all", row["module"] != "mlp"))


def _of_window(grids: list[Row], pick: Callable[[Sequence[int]], int]) -> Row:
    """Of the traces like the first, of one model and kind, the newest one of the window that `pick` picks."""
    alike = [row for row in grids if all(row[name] == grids[0][name] for name in _ONE_KIND)]
    window = pick(sorted({row["window_size"] for row in alike}))
    return next(row for row in alike if row["window_size"] == window)


_ONE_KIND = ("model", "protocol", "localization", "metric", "tokens", "module")


@checked
@one_reading()
def paper_figure(
    store: Stored,
    number: int,
    *,
    fact_id: str | None = None,
    layer: int | None = None,
    **effects: Unpack[Effects],
) -> Figure:
    """One of the paper's Figures 1, 2, 4 and 6 to 22 for the store's edits and traces.

    fact_id: the fact of Figure 2. None: the fact whose p(o_true) the noise lowered most.
    layer: the edited layer of Figures 4 and 14. None: the layer at which the model is edited by default (the paper's
    choice; `fasttrace.windows.default_layer`), or the edited layer nearest to it. The panel's title names the layer.
    effects: window_size, localization, metric, module, run: which tracing effects are shown, or compared with edits
    (`paper.Effects`). Figures 12 and 13 keep their window of 10, and Figures 21 and 22 zeroing.
    Raises UserError for another number. Raises StoreError where data are missing, with the commands that make them.
    """
    one = figure_numbered(number).at(**chosen(store, effects))
    missing = what_is_missing(coverage(store), one)
    if missing:
        raise StoreError(f"Figure {number} ({one.title}): {missing}")
    if one.kind == "heatmap":
        hurt = _most_hurt(store, one) if fact_id is None else {"fact_id": fact_id}
        fact_id = str(hurt["fact_id"])
        grids = [row for row in _grids(store, fact_id, one.rows) if one.rows.of_traces(row)]
        grids = [row for row in grids if row["model"] == hurt.get("model", row["model"])]
        if not grids:
            window = one.rows.window_size
            raise StoreError(f"fact {fact_id!r} was not traced with a window of {window} in {store.where}")
        return _heatmap_of(store, _of_window(grids, heatmap_window))
    if one.kind == "curve":
        return draw.draw_mean_effect(_traced(store, "mean_effect", one))
    if one.kind == "peaks":
        return draw.draw_peak_histogram(_traced(store, "peak_layers", one))
    if one.kind == "bars":
        return draw.draw_r2_bars(one.rows.kept(regressions(store, one.scores[0], **one.rows.choice())))
    if one.kind == "layers":
        means = pa.concat_tables([_means(store, score) for score in one.scores])
        wanted = {"problem": one.rows.problem, "edit_run_id": one.rows.edit_run_id}
        return draw.draw_score_by_layer(_kept(means, wanted))
    return _scatter(store, one, layer)


def _scatter(store: Readable, one: Numbered, layer: int | None) -> Figure:
    """Score against effect at every edited layer, or at one layer for the kind scatter-one."""
    score = one.scores[0]
    rhos = one.rows.kept(layer_correlations(store, score, **one.rows.choice()))
    pairs = one.rows.kept(pairs_table(store, score, **one.rows.choice()))
    if one.kind == "scatter-one":
        layers = sorted(set(pairs["layer"].to_pylist()))
        if layer is None:
            chosen = _default_layers(store, pairs)
        elif layer in layers:
            chosen = dict.fromkeys(pairs["edit_run_id"].to_pylist(), layer)
        else:
            raise StoreError(
                f"expected an edited layer of {store.where}, one of {', '.join(map(str, layers))}, got {layer}"
            )
        rhos, pairs = (
            table.filter([chosen.get(row["edit_run_id"]) == row["layer"] for row in table.to_pylist()])
            for table in (rhos, pairs)
        )
    return draw.draw_effect_vs_score(pairs, rhos, score)


def _default_layers(store: Readable, pairs: pa.Table) -> dict[str, int]:
    """{editing run: its edited layer nearest to its model's default layer, the lower of two}."""
    traced = relation(store, "mean_effect").to_pylist()
    edited: dict[tuple[str, str], set[int]] = {}
    for run, model, layer in zip(*(pairs[name].to_pylist() for name in ("edit_run_id", "model", "layer")), strict=True):
        edited.setdefault((run, model), set()).add(layer)
    chosen = {}
    for (run, model), layers in edited.items():
        n_layers = 1 + max(row["layer"] for row in traced if row["model"] == model)
        default = default_layer(n_layers, name=model)
        chosen[run] = min(layers, key=lambda one: (abs(one - default), one))
    return chosen


def pairs_table(store: Readable, score: str, **choice: Any) -> pa.Table:
    """Tracing effect and score of every edit that has both. Columns: KEYS, fact_id, layer, effect, score."""
    rows = []
    for keys, arrays in regression_rows(store, score, **choice):
        count = len(arrays["x"])
        columns = {name: pa.array([value] * count, KINDS[name]) for name, value in keys.items() if name != "score"}
        names = {"fact_id": "fact_id", "layer": "layer", "x": "effect", "y": "score"}
        rows.append(pa.table(columns | {name: pa.array(arrays[key]) for key, name in names.items()}))
    return pa.concat_tables(rows, promote_options="permissive")


@checked
@one_reading()
def role_figure(store: Stored, **effects: Unpack[Effects]) -> Figure:
    """Mean indirect effects by token role and layer, a panel for each tracing run and window (Meng et al. 2022, Figures
    2 and 3), and heads or experts × layers for runs of these.

    effects: localization, metric, module, window_size, run (`paper.Effects`): only the runs with that value. None: all
    runs, and of their windows the one nearest to 5 (of heads, experts and blocks: to 1).
    Raises StoreError where no run at single tokens has these values, and UserError where there is no such run.
    """
    asked = chosen(store, effects, ["trace"])
    there = role_effects(store)
    table = _kept(there, {name: asked.get(name) for name in OF_TRACES})
    if asked.get("window_size") is None:
        table = _one_window(table)
    if not len(table):
        such = " and ".join(f"{name.replace('_', ' ')} {value}" for name, value in asked.items() if value is not None)
        has = f"those of {ways_text(there.to_pylist())}" if len(there) else "none"
        what = f"a trace at single tokens{such and f' with {such}'} in {store.where}"
        raise StoreError(f"expected {what}, got {has}")
    return draw_roles(table)


@checked
@one_reading()
def edits_figure(store: Stored, *, run: str | None = None) -> Figure:
    """What N edits do: rewrite, greedy match, neighborhood, perplexity and other measures by number of edits, one line
    per mass edit.

    run: id of a mass edit, or its start; None: all.
    Raises StoreError where the store has no such mass edit, and UserError where there is no such run.
    """
    table = _kept(relation(store, "edits_by_number"), {"edit_run_id": run_of(store, run, ["mass"]).get("edit_run_id")})
    if not len(table):
        raise StoreError(f"expected facts edited into one model (fasttrace mass) in {store.where}, got none")
    return draw_edits(table)


def role_effects(store: Readable) -> pa.Table:
    """The rows of sql/effects_by_role.sql with 95 % bands, `low` and `high`."""
    return with_bands(relation(store, "effects_by_role"))


def _one_window(table: pa.Table) -> pa.Table:
    """Of each run the rows of one window size: the nearest to the paper's 5, or to 1 for heads, experts and blocks."""
    rows = table.select(["trace_run_id", "module", "window_size"]).to_pylist()
    usual = {row["trace_run_id"]: 1 if row["module"] in ("head", "expert", "block") else 5 for row in rows}
    sizes: dict[str, set[int]] = {}
    for row in rows:
        sizes.setdefault(row["trace_run_id"], set()).add(row["window_size"])
    chosen = {run: min((abs(size - usual[run]), size) for size in found)[1] for run, found in sizes.items()}
    return table.filter(pa.array([chosen[row["trace_run_id"]] == row["window_size"] for row in rows], pa.bool_()))


def _means(store: Readable, score: str) -> pa.Table:
    if score == WITH_ESSENCE:
        return relation(store, "layer_means_with_essence")
    return layer_means(store, score)


def _traced(store: Readable, name: str, one: Numbered) -> pa.Table:
    """The rows of a query over tracing runs that are of a figure."""
    return _kept(relation(store, name), {column: getattr(one.rows, column) for column in OF_TRACES})


def _kept(table: pa.Table, wanted: Mapping[str, Any]) -> pa.Table:
    """The rows that have these values in these columns. None keeps every value."""
    for column, value in wanted.items():
        if value is not None:
            table = table.filter(pc.equal(table[column], value))
    return table


def _most_hurt(store: Readable, one: Numbered) -> Row:
    """The trace of the fact whose p(o_true) the corruption lowered most; with zeroing, that the model knows best."""
    rows: list[Row] = [row for row in _traced(store, "fact_traces", one).to_pylist() if row["kept"]]
    return max(rows, key=lambda row: row["p_clean"] - (row["p_noised"] or 0.0))


@checked
def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as .png (200 dots per inch), .svg (with text as text) or .pdf. Return the path.

    The file has no date and no random ids, so the same figure has the same bytes.
    Raises UserError for any other ending, and where the file cannot be written.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"expected a file that ends in {', '.join(FORMATS)}, got {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"svg.fonttype": "none", "svg.hashsalt": "fasttrace", "pdf.fonttype": 42}
    date = {".svg": {"Date": None}, ".pdf": {"CreationDate": None}}.get(path.suffix.lower())
    with matplotlib.rc_context(settings), replacing(path) as draft, readable(figure, path.suffix.lower() == ".svg"):
        FigureCanvasAgg(figure)
        figure.savefig(draft, dpi=200, metadata=date)
    return path
