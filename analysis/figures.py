"""The figures of a study, each from the store alone: read one relation, hand its table to draw.py.

Every function returns a matplotlib Figure that belongs to nobody else (no pyplot), for `save` or a notebook.
"""

from pathlib import Path

import matplotlib
import pyarrow as pa
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from fasttrace.errors import StoreError, UserError
from fasttrace.store import Store

from . import draw
from .regression import layer_correlations, layer_means, regressions
from .relation import relation

FORMATS = (".png", ".svg", ".pdf")


def heatmap(store: Store, fact_id: str, window_size: int | None = None) -> Figure:
    """One fact's grid of p(o_true) restored, tokens × layers, from its newest trace (paper, Figure 2).

    window_size: the tracing window, layers; None takes 5, the paper's choice for its analysis, or the
    smallest there is. The figure names it.
    Raises StoreError where the fact was not traced, or not with that window.
    """
    traces = [row for row in relation(store, "fact_traces").to_pylist() if row["fact_id"] == fact_id]
    if not traces:
        raise StoreError(f"fact {fact_id!r} was not traced in {store.path}")
    sizes = sorted({row["window_size"] for row in traces if row["window_size"] is not None})
    if not sizes:
        raise StoreError(
            f"fact {fact_id!r} has no tracing grid in {store.path}: {traces[0]['reason'] or 'no cells'}"
        )
    wanted = window_size if window_size is not None else (5 if 5 in sizes else sizes[0])
    if wanted not in sizes:
        raise StoreError(
            f"fact {fact_id!r} was not traced with window size {wanted} in {store.path}: "
            f"there is {', '.join(map(str, sizes))}"
        )
    trace = next(row for row in traces if row["window_size"] == wanted)
    cells = relation(store, "fact_cells", {"fact_ids": [fact_id]})
    mine = pa.Table.from_pylist(
        [
            row
            for row in cells.to_pylist()
            if row["run_id"] == trace["trace_run_id"] and row["window_size"] == wanted
        ],
        schema=cells.schema,
    )
    return draw.draw_heatmap(trace, mine)


def peak_histogram(store: Store) -> Figure:
    """Histogram of the layer at which each fact's tracing effect is largest, a panel a window (Figure 1)."""
    return draw.draw_peak_histogram(relation(store, "peak_layers"))


def mean_effect_curve(store: Store) -> Figure:
    """Mean tracing effect at each layer, with its standard error over facts, a line a window (Figure 10)."""
    return draw.draw_mean_effect(relation(store, "mean_effect"))


def effect_vs_score(store: Store, score: str = "rewrite") -> Figure:
    """Edit score against tracing effect, a panel an edited layer with its Pearson ρ (Figures 4 and 15)."""
    return draw.draw_effect_vs_score(
        relation(store, "edit_effects", {"score": score}), layer_correlations(store, score), score
    )


def r2_bars(store: Store, score: str = "rewrite") -> Figure:
    """R² of the score by edited layer, tracing effect and both, for each problem and method (Figure 6)."""
    return draw.draw_r2_bars(regressions(store, score=score))


def score_by_layer(store: Store) -> Figure:
    """Mean rewrite, paraphrase, neighborhood (essence) and overall score by edited layer (Figures 7 to 9)."""
    return draw.draw_score_by_layer(pa.concat_tables([layer_means(store, score) for score in draw.SCORES]))


def save(figure: Figure, path: str | Path) -> Path:
    """Write a figure as .png (200 dots an inch), .svg (text as text) or .pdf; returns the path.

    Raises UserError for any other ending.
    """
    path = Path(path)
    if path.suffix.lower() not in FORMATS:
        raise UserError(f"a figure is saved as {', '.join(FORMATS)}, not as {path.name!r}")
    path.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.fonttype": "none", "pdf.fonttype": 42}):
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=200)
    return path
