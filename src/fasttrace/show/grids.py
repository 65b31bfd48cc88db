"""One fact's traced cells as a grid, with all that a picture of it says."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from .words import DONE, METRICS, cut, how_traced, visible


@dataclass(frozen=True, eq=False)
class Heatmap:
    """One fact's grid at one window size (paper, Figure 2; Meng et al. 2022, Figures 1 and 2).

    values: (tokens, layers) float64 of the metric, NaN where there is no cell. tokens: their texts. begin, end: the
    subject's tokens are [begin, end). clean, corrupted: the metric in the clean pass, and its mean over the corrupted
    passes (None with zeroing). target: the text that is scored. part: which head or expert each cell shows, and whether
    it is of all subject tokens, "" where there is nothing to say.
    """

    values: np.ndarray
    tokens: tuple[str, ...]
    begin: int
    end: int
    prompt: str
    target: str
    clean: float
    corrupted: float | None
    model: str
    module: str
    method: str
    corruption: str
    metric: str
    window: int
    part: str = ""

    @property
    def labels(self) -> list[str]:
        """The tokens, the subject's with a star."""
        return [f"{name}{'*' * self.in_subject(place)}" for place, name in enumerate(self.tokens)]

    def in_subject(self, place: int) -> bool:
        return self.begin <= place < self.end

    @property
    def range(self) -> tuple[float, float]:
        """Lowest and highest value of the colours."""
        return color_range(self.values, self.clean, self.corrupted)

    @property
    def name(self) -> str:
        """The metric, such as p(Paris)."""
        return METRICS[self.metric].name.replace("o_true", self.target)

    @property
    def corrupted_by(self) -> str:
        """What the corrupted passes are called, "" where there are none."""
        if self.corrupted is None:
            return ""
        return "noised" if self.corruption == "noise" else "counterfactual"

    @property
    def how(self) -> str:
        """Model, module, method and window, and the corruption where it is not noise."""
        how = how_traced(self.model, self.module, self.method, self.corruption, [self.window])
        return " · ".join((*how, *filter(None, (self.part,))))

    @property
    def ends(self) -> str:
        """The metric in the clean pass and in the corrupted ones."""
        corrupted = "" if self.corrupted is None else f", {self.corrupted_by} {self.corrupted:.3f}"
        return f"{self.name}{':' * (' ' in self.name)} clean {self.clean:.3f}{corrupted}"

    @property
    def title(self) -> str:
        return f"{self.how}\n{self.ends}"

    @property
    def layer_label(self) -> str:
        """What the layers are."""
        centre = "" if self.window == 1 else f", centre of a window of {self.window}"
        return f"{DONE[self.method]} layer (0-based){centre}"

    @property
    def token_label(self) -> str:
        return "token (* subject, noised)" if self.corrupted_by == "noised" else "token (* subject)"

    @property
    def value_label(self) -> str:
        """What the colours are, with their unit."""
        return f"{self.name} with the layer {DONE[self.method]} ({METRICS[self.metric].unit or 'probability'})"


def heatmap_of(
    fact: Mapping[str, Any],
    cells: pa.Table,
    *,
    model: str,
    module: str,
    method: str,
    corruption: str,
    metric: str,
    tokens: str,
) -> Heatmap:
    """fact: a row of TRACED_FACTS. cells: its rows of CELLS at one window size. The others: of its run.

    Of several heads or experts, the strongest of each cell is shown, and said so.
    """
    column = METRICS[metric].column
    values = grid_of(cells, f"{column}_restored")
    names = [cut(visible(name)) for name in (fact["tokens"] or [])[: len(values)]]
    heads = cells["head"].unique().drop_null().to_pylist()
    part = f"strongest {module} of each cell" if len(heads) > 1 else "".join(f"{module} {head}" for head in heads)
    if tokens == "whole-subject":  # the one row of cells is at the subject's last token
        part = " · ".join(filter(None, (part, "all subject tokens at once")))
        names[-1:] = ["whole subject"]
    return Heatmap(
        values=values,
        tokens=(*names, *[""] * (len(values) - len(names))),
        begin=fact["subject_begin"],
        end=fact["subject_end"],
        prompt=visible(fact["prompt"]),
        target=cut(visible(str(fact["scored"] or fact["target_true"]))),
        clean=0.0 if metric == "kl" else fact[f"{column}_clean"],
        corrupted=fact[f"{column}_noised"],
        model=model,
        module=module,
        method=method,
        corruption=corruption,
        metric=metric,
        window=cells["window_size"][0].as_py(),
        part=part,
    )


def color_range(p_restored: np.ndarray, p_clean: float, p_noised: float | None) -> tuple[float, float]:
    """(low, high) probability of a heatmap's colours: from p_noised, or the lowest cell if lower, to the highest cell.

    The range is at least a tenth of p_clean − p_noised, so that a grid in which nothing is restored looks flat.
    """
    low = float(np.nanmin(p_restored))
    if p_noised is None:  # zeroing has no p_noised, and the range ends at p_clean
        return low, max(p_clean, low + 1e-6)
    low = min(p_noised, low)
    return low, max(float(np.nanmax(p_restored)), low + max(0.1 * (p_clean - p_noised), 1e-6))


def grid_of(cells: pa.Table, column: str) -> np.ndarray:
    """(tokens, layers) float64 of one fact's cells at one window size; NaN where a cell is absent or NULL.

    Of several heads at a token and layer, the one with the largest effect counts, as in trace_effects.
    """
    if cells["head"].null_count < len(cells):
        cells = cells.sort_by([("effect", "descending"), ("head", "ascending")])[::-1]  # the last one is kept
    tokens, layers = (np.asarray(cells[name].to_pylist(), dtype=int) for name in ("token_index", "layer"))
    grid = np.full((int(tokens.max()) + 1, int(layers.max()) + 1), np.nan)
    grid[tokens, layers] = [math.nan if value is None else value for value in cells[column].to_pylist()]
    return grid
