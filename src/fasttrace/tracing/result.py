"""What a sweep returns: its run, and tables of facts, cells, samples and routing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from fasttrace.errors import UserError, shown
from fasttrace.facts import Fact
from fasttrace.runs import Run
from fasttrace.settings.arguments import checked
from fasttrace.settings.columns import stored_settings
from fasttrace.show.grids import Heatmap, heatmap_of
from fasttrace.show.results import Shown
from fasttrace.show.words import ROLE_WORDS, count, how_traced
from fasttrace.tracing.effects import CELLS, SAMPLES, TRACED_FACTS
from fasttrace.tracing.known import NOT_SAID, UNLIKELY
from fasttrace.tracing.roles import average_by_role
from fasttrace.tracing.routing import ROUTING

if TYPE_CHECKING:
    from matplotlib.axes import Axes

USUAL_WINDOW = 5  # of the paper's analysis
SOME_IDS = 3  # fact ids that an error names

Role = Literal["first-subject", "middle-subject", "last-subject", "first-after", "further", "last-prompt"]


@dataclass(frozen=True, eq=False, repr=False)
class TraceResult(Shown):
    """run: the `runs` row, with the seconds and flops of this result.

    facts: TRACED_FACTS, one row per fact, traced or left out. cells: CELLS, one row per grid cell. samples: SAMPLES,
    one row per grid cell and sample with keep_samples, else empty. routing: ROUTING, one row per pass, token, layer and
    chosen expert with keep_routing, else empty.
    """

    TABLES: ClassVar = ("cells", "facts", "samples", "routing")

    run: Run
    facts: pa.Table
    cells: pa.Table
    samples: pa.Table
    routing: pa.Table

    @checked
    def average(self, *, by: Literal["role"] = "role") -> pa.Table:
        """The mean over facts of the indirect effect, for each window size, token role and layer (and head).

        The indirect effect is by how much a cell moves the run's metric, in its own units: towards the clean pass, or
        away from it with methods noise and zero. Returns roles.AVERAGES, with standard errors over facts and 95 %
        bands. Roles: first-subject, middle-subject, last-subject, first-after, further, last-prompt.
        Source: Meng et al. 2022 (arXiv 2202.05262), Figures 2 and 3.
        """
        return average_by_role(self.run["settings"], self.facts, self.cells)

    @checked
    def plot(
        self,
        fact: Fact | str | None = None,
        *,
        window: int | None = None,
        head: int | None = None,
        ax: Any = None,
    ) -> "Axes":
        """Draw one fact's grid: tokens down, layers across, the run's metric as colour (paper, Figure 2).

        fact: the fact or its fact_id; None where the result has one traced fact. window: None: 5 layers, or the
        smallest window size there is. head: of heads or experts, the one to show; None: the strongest in each cell.
        ax: matplotlib axes to draw on; None: those of a new figure, `plot().figure`.

        Raises UserError where the result has no such grid.
        Source: Meng et al. 2022 (arXiv 2202.05262), Figure 1.
        """
        heat = self.heatmap(fact, window, head, what="plot")
        from fasttrace.show.heatmap import draw_heatmap, heatmap_size
        from fasttrace.show.style import axes_to_draw_on

        return draw_heatmap(axes_to_draw_on(ax, *heatmap_size(heat)), heat)

    @checked
    def plot_roles(self, *, window: int | None = None, role: Role | None = None, ax: Any = None) -> "Axes":
        """Draw the mean indirect effect by token role and layer, with 95 % bands over the facts.

        window: as in `plot`. role: of a trace of heads or experts, which are drawn down the layers, the role to show;
        None: the last subject token. ax: as in `plot`.

        Raises UserError where no fact has an effect, and where a cell is of all subject tokens at once.
        Source: Meng et al. 2022 (arXiv 2202.05262), Figures 2 and 3.
        """
        means = self.average(by="role")
        if not len(means):
            raise UserError("plot_roles: expected a traced fact with an effect, got none")
        size = self._window("plot_roles", sorted(set(means["window_size"].to_pylist())), window)
        rows = means.filter(pc.equal(means["window_size"], size)).to_pylist()
        asked = stored_settings("trace", self.run["settings"])
        by_head = any(row["head"] is not None for row in rows)
        title = f"{' · '.join(self._how([size]))}: {count(max(row['n'] for row in rows), 'fact')}"
        if role is not None and not by_head:
            raise UserError("plot_roles: role: expected a trace with a cell for each head or expert, got another")
        from fasttrace.show.roles import LAYER_LABEL, draw_role_heads, draw_role_lines, effect_label
        from fasttrace.show.style import axes_to_draw_on, color_bar, dress

        axes = axes_to_draw_on(ax, 9.0, 4.0)
        if not by_head:
            return draw_role_lines(axes, rows, asked["metric"], title)
        shown_role = role or "last-subject"
        if not any(row["role"] == shown_role for row in rows):
            there = sorted({row["role"] for row in rows})
            raise UserError(f"plot_roles: role: expected one of {', '.join(there)}, got {shown_role}")
        image = draw_role_heads(axes, rows, shown_role, f"{title}, {ROLE_WORDS[shown_role]}")
        dress(axes, LAYER_LABEL, asked["module"]).grid(visible=False)
        color_bar(axes.figure, image, axes, effect_label(asked["metric"]))
        return axes

    def heatmap(
        self,
        fact: Fact | str | None = None,
        window: int | None = None,
        head: int | None = None,
        *,
        what: str = "heatmap",
    ) -> Heatmap:
        """One fact's grid with the words of its picture. fact, window, head: as in `plot`. what: the first word of
        errors."""
        row = self._fact(what, fact)
        mine = self.cells.filter(pc.equal(self.cells["fact_id"], row["fact_id"]))
        size = self._window(what, sorted(set(mine["window_size"].to_pylist())), window)
        mine = mine.filter(pc.equal(mine["window_size"], size))
        asked = stored_settings("trace", self.run["settings"])
        if head is not None:
            there = sorted(set(mine["head"].drop_null().to_pylist()))
            if head not in there:
                none = "none with all heads in one cell" if asked["heads"] else f"none with module {asked['module']}"
                some = f"one of {', '.join(map(str, there))}" if there else none
                raise UserError(f"{what}: head: expected {some}, got {head}")
            mine = mine.filter(pc.equal(mine["head"], head))
        how = {name: asked[name] for name in ("module", "method", "corruption", "metric", "tokens")}
        return heatmap_of(row, mine, model=self.run["model"], **how)

    def _fact(self, what: str, fact: Fact | str | None) -> dict[str, Any]:
        """The row of a traced fact. Raises UserError where it is not one."""
        rows = {row["fact_id"]: row for row in self.facts.to_pylist()}
        traced = self.cells["fact_id"].unique().to_pylist()
        fact_id = fact.fact_id if isinstance(fact, Fact) else fact
        if fact_id is None and len(traced) == 1:
            return rows[traced[0]]
        if fact_id in traced:
            return rows[fact_id]
        if fact_id is None and len(rows) == 1:
            [fact_id] = rows
        if fact_id in rows:
            why = rows[fact_id]["reason"] or "it has no cells"
            way = "; keep all traces it all the same" if why.startswith((NOT_SAID, UNLIKELY)) else ""
            raise UserError(f"{what}: expected a traced fact, got {shown(fact_id)}, which was left out: {why}{way}")
        if not traced and rows:
            first, why = next((one["fact_id"], one["reason"]) for one in rows.values())
            left = f"{count(len(rows), 'fact')} left out, such as {shown(first)}: {why}"
            raise UserError(f"{what}: expected a traced fact, got {left}")
        some = f", such as {', '.join(map(shown, traced[:SOME_IDS]))}" if traced else ""
        got = "none" if fact_id is None else shown(fact_id)
        raise UserError(f"{what}: fact: expected one of {count(len(traced), 'traced fact')}{some}, got {got}")

    def _window(self, what: str, sizes: Sequence[int], window: int | None) -> int:
        """The window size to show, of those that there are."""
        if window is None:
            return USUAL_WINDOW if USUAL_WINDOW in sizes else sizes[0]
        if window not in sizes:
            raise UserError(f"{what}: window: expected one of {', '.join(map(str, sizes))}, got {window}")
        return window

    def _how(self, windows: Sequence[int]) -> tuple[str, ...]:
        asked = stored_settings("trace", self.run["settings"])
        return how_traced(self.run["model"], asked["module"], asked["method"], asked["corruption"], windows)

    def _line(self) -> str:
        asked = stored_settings("trace", self.run["settings"])
        kept = sum(self.facts["kept"].to_pylist())
        facts = count(kept, "fact") if kept == len(self.facts) else f"{kept:,} of {count(len(self.facts), 'fact')} kept"
        how = ", ".join(self._how(asked["windows"]))
        return f"{facts}, {how}; {count(len(self.cells), 'cell')}, {self.run['seconds']:.1f} s"

    def _summary(self) -> pa.Table:
        names = ["fact_id", "prompt", "target_true", "p_clean", "p_noised", "kept", "reason"]
        return self.facts.select(names)

    def _picture(self) -> "Axes | None":
        traced = self.cells["fact_id"].unique().to_pylist()
        if not traced:
            return None
        heat = self.heatmap(traced[0])
        from fasttrace.show.heatmap import draw_heatmap, heatmap_size
        from fasttrace.show.style import new_figure

        return draw_heatmap(new_figure(*heatmap_size(heat)).subplots(), heat)


def joined(run: Run, parts: Sequence[TraceResult], order: Sequence[str]) -> TraceResult:
    """The results of a sweep's batches as one. run: that of the sweep. order: every fact_id, as the facts are given."""
    number = {fact_id: i for i, fact_id in enumerate(order)}
    # Workers finish in any order.
    parts = sorted(parts, key=lambda part: min((number[one] for one in part.facts["fact_id"].to_pylist()), default=0))
    facts = pa.concat_tables([TRACED_FACTS.empty_table(), *(part.facts for part in parts)])
    place = np.argsort([number[fact_id] for fact_id in facts["fact_id"].to_pylist()], kind="stable")
    seconds, flops = (sum(part.run[name] for part in parts) for name in ("seconds", "flops"))
    return TraceResult(
        {**run, "seconds": seconds, "flops": flops},
        facts.take(pa.array(place, pa.int64())),
        pa.concat_tables([CELLS.empty_table(), *(part.cells for part in parts)]),
        pa.concat_tables([SAMPLES.empty_table(), *(part.samples for part in parts)]),
        pa.concat_tables([ROUTING.empty_table(), *(part.routing for part in parts)]),
    )
