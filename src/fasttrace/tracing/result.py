"""What a sweep returns: its run, and tables of facts, cells, samples and routing."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import pyarrow as pa

from fasttrace.runs import Run
from fasttrace.settings.arguments import checked
from fasttrace.tracing.effects import CELLS, SAMPLES, TRACED_FACTS
from fasttrace.tracing.roles import average_by_role
from fasttrace.tracing.routing import ROUTING


@dataclass(frozen=True, eq=False)
class TraceResult:
    """run: the `runs` row, with the seconds and flops of this result.

    facts: TRACED_FACTS, one row per fact, traced or left out. cells: CELLS, one row per grid cell. samples: SAMPLES,
    one row per grid cell and sample with keep_samples, else empty. routing: ROUTING, one row per pass, token, layer and
    chosen expert with keep_routing, else empty.
    """

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
