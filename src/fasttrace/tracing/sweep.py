"""A sweep that is ready to run, and runs batch by batch."""

import functools
import time
from collections.abc import Callable, Collection, Hashable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from fasttrace.cluster.crew import Crew
from fasttrace.cluster.pieces import Unit
from fasttrace.facts import EncodedFact
from fasttrace.memory import parse_bytes
from fasttrace.models.adapter import Decoder
from fasttrace.models.generate import greedy_tokens
from fasttrace.models.modes import with_autograd
from fasttrace.runs import Run
from fasttrace.settings.arguments import checked
from fasttrace.settings.common import Noise
from fasttrace.settings.kinds import Size
from fasttrace.settings.trace import Tokens, TraceSettings
from fasttrace.tracing.attribution import AttributionResult, attribute, rank_correlation, row_bytes
from fasttrace.tracing.cost import Cost, screen_cost, screen_flops
from fasttrace.tracing.effects import CELLS, CONTRASTS, SAMPLES, TRACED_FACTS, Grid, fact_row
from fasttrace.tracing.engine import Engine, WavefrontEngine
from fasttrace.tracing.hooked import HookedEngine
from fasttrace.tracing.known import BATCH, verdicts_of
from fasttrace.tracing.measures import LOGIT_DIFF, ROW_OF
from fasttrace.tracing.plan import (
    Cell,
    Heads,
    Intervention,
    TraceItem,
    TraceWave,
    bytes_per_row,
    make_item,
    traced_spots,
)
from fasttrace.tracing.result import TraceResult, joined
from fasttrace.tracing.routing import ROUTING, routing, routing_flops
from fasttrace.tracing.wavefront import WaveResult

ITEMS = 256  # facts whose cells are listed at once, where only their waves are asked for
ENGINES: dict[str, type[Engine]] = {"wavefront": WavefrontEngine, "hooked": HookedEngine}


@dataclass(frozen=True, eq=False, kw_only=True)
class TracePlan:
    """A sweep that is ready to run: `cost` predicts its work, `batches` runs it.

    settings: the given ones with the final σ, distinct windows in descending order, and verify_top, which is a number
    if cells are estimated and None otherwise. heads: those of each cell of a layer. sigma: σ, None without noise.
    unmeasured: fact_id → why these settings cannot measure the fact, which is then left out. verdicts: fact_id → row of
    VERDICTS, where keep is "known" and all facts are tested; None where they are tested while the sweep runs.
    """

    model: Decoder
    encoded: list[EncodedFact]
    settings: TraceSettings
    intervention: Intervention
    heads: list[Heads]
    sigma: float | None
    unmeasured: dict[str, str]
    run: Run
    verdicts: Mapping[str, Mapping[str, Any]] | None = None

    @property
    def measured(self) -> list[EncodedFact]:
        """The facts that these settings can measure."""
        return [fact for fact in self.encoded if fact.fact_id not in self.unmeasured]

    @property
    def counterfactual(self) -> bool:
        """Whether the corrupted passes have the tokens of counterfactual prompts."""
        return self.settings.corruption == "counterfactual"

    @property
    def contrasts(self) -> pa.Table:
        """What each fact is compared with: CONTRASTS, as the facts' rows of TRACED_FACTS will have it."""
        rows = [fact_row(fact, self.sigma, counterfactual=self.counterfactual) for fact in self.encoded]
        return pa.Table.from_pylist(rows, schema=TRACED_FACTS).select(CONTRASTS.names)

    @property
    def tokens(self) -> Tokens:
        """The tokens of the interventions: those asked for, or the method's own."""
        assert self.settings.tokens is not None  # the settings resolve it
        return self.settings.tokens

    @property
    def noise(self) -> Noise:
        """The generator of the noise: the one asked for, or the protocol's own."""
        assert self.settings.noise is not None  # the settings resolve it
        return self.settings.noise

    @functools.cached_property
    def engine(self) -> Engine:
        """What computes the waves."""
        compare, sigma = self.settings.metric == "kl", self.sigma or 0.0
        made = ENGINES[self.settings.engine]
        return made(self.model, self.intervention, sigma, self.noise, self.settings.seed, compare)

    def cost(self, memory: str | int | None = None) -> Cost:
        """Predict FLOPs, bytes, waves and peak memory for tracing every fact that can be measured. No pass runs, but
        with engine "hooked" one of each length, which is measured. There, waves are forwards.

        memory: as in `batches`.
        """
        items, budget = self.items(self.measured), self._budget(memory)
        spots = sum(len(traced_spots(item.encoded, self.tokens)) for item in items)
        cells = spots * len(self.settings.windows) * self.model.n_layers * len(self.heads)
        if self.settings.verify_top is None:
            cost = self.engine.cost(items, budget, cells)
        else:
            cost = screen_cost(self.model, items, self.intervention, budget, cells, self.settings.verify_top)
        if not self.settings.keep_routing:
            return cost
        more = sum(routing_flops(self.model, item) for item in items)
        return replace(cost, flops=cost.flops + more, wave_flops=cost.wave_flops + more)

    def rate(self) -> float:
        """FLOP/s that this machine reaches now with the plan's engine, as measured."""
        return self.engine.rate(self._budget(None))

    @checked
    @with_autograd
    def batches(
        self,
        *,
        memory: Size | None = None,
        skip: frozenset[str] | set[str] = frozenset(),
        only: frozenset[str] | set[str] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[TraceResult]:
        """Yield results as they finish, each with whole facts only. skip: fact_ids to leave out.

        The waves are those of a sweep that skips nothing. So a sweep that continues has the same values bit for bit.
        only: fact_ids of whole waves, as `units` says them, for None all.

        memory: bytes for activations, without the weights; None for the settings' value. progress(n) is called after n
        more facts.
        """
        report, budget = progress or (lambda n: None), self._budget(memory)

        def wanted(fact: EncodedFact) -> bool:
            return only is None or fact.fact_id in only

        unmeasured = [f for f in self.encoded if f.fact_id in self.unmeasured and f.fact_id not in skip and wanted(f)]
        if unmeasured:
            yield self._result([self._left_out(f, self.unmeasured[f.fact_id]) for f in unmeasured], [], 0.0, 0)
            report(len(unmeasured))
        if self.settings.keep == "all":
            yield from self._traced(self.measured, wanted, skip, budget, report)
            return
        first_only = self.settings.scored != "sequence"
        for part in self._blocks(self.measured):
            begun = time.perf_counter()
            if all(f.fact_id in skip or not wanted(f) for f in part):
                continue
            verdicts = self.verdicts
            if verdicts is None:
                verdicts = verdicts_of(self.model, [f.fact for f in part], self.settings.protocol)
            left = [
                self._left_out(f, verdict["reason"], None if first_only else verdict["p_true"])
                for f, verdict in ((f, verdicts[f.fact_id]) for f in part)
                if not verdict["known"] and f.fact_id not in skip and wanted(f)
            ]
            if left:
                yield self._result(left, [], time.perf_counter() - begun, 0)
                report(len(left))
            known = [f for f in part if verdicts[f.fact_id]["known"]]
            yield from self._traced(known, wanted, skip, budget, report)

    def settled(self, crew: Crew, skip: Collection[Hashable] = ()) -> "TracePlan":
        """The plan with verdicts on its facts, if it needs any, so that it can be cut into waves.

        skip: fact_ids that are done. A block of facts that are all done has no verdicts.
        """
        if self.settings.keep != "known" or self.verdicts is not None:
            return self
        blocks = [part for part in self._blocks(self.measured) if any(fact.fact_id not in skip for fact in part)]
        asked = (([fact.fact for fact in part], self.settings.protocol) for part in blocks)
        found: dict[str, Mapping[str, Any]] = {}
        for verdicts in crew.map(verdicts_of, asked):
            found |= verdicts
        return replace(self, verdicts=found)

    @staticmethod
    def _blocks(facts: Sequence[EncodedFact]) -> list[Sequence[EncodedFact]]:
        """The facts that are tested, answered or estimated together."""
        return [facts[i : i + BATCH] for i in range(0, len(facts), BATCH)]

    def announce(self) -> None:
        """As of every plan. The facts that are left out have a row with the reason."""

    def joined(self, parts: Sequence[TraceResult], *, whole: bool = True) -> TraceResult:
        """The results of some batches as one, facts in the order in which they were given."""
        return joined(self.run, parts, [fact.fact_id for fact in self.encoded])

    def units(self) -> list[Unit]:
        """Every fact by its fact_id. One that is left out costs nothing.

        Where facts are still to be tested (see `settled`), all that are tested together count as one wave.
        """
        found = [Unit(fact_id, 0.0, True) for fact_id in self.unmeasured]
        costs: dict[object, int] = {}

        def unit(fact: EncodedFact, begins: bool) -> Unit:
            [item] = self.items([fact])
            alike = item.rows, item.corrupted, len(item.targets), item.passes.begin, item.passes.end, item.cells
            if alike not in costs:
                costs[alike] = self.engine.flops(item)
            return Unit(fact.fact_id, float(costs[alike]), begins)

        screened, tested = self.settings.verify_top is not None, self.settings.keep == "known"
        if not tested and not screened:
            return found + list(map(unit, self.measured, self._begins(self.measured)))
        for part in self._blocks(self.measured):
            known = part
            if tested and self.verdicts is not None:
                known = [f for f in part if self.verdicts.get(f.fact_id, {}).get("known")]
                traced = {fact.fact_id for fact in known}
                found += [Unit(f.fact_id, 0.0, not n) for n, f in enumerate(part) if f.fact_id not in traced]
            whole = screened or self.verdicts is None
            begins = [not n for n in range(len(known))] if whole else self._begins(known)
            found += map(unit, known, begins)
        return found

    def _begins(self, facts: Sequence[EncodedFact]) -> list[bool]:
        """Whether a wave begins with each of the facts."""
        budget, begins, done = self._budget(None), list[bool](), 0
        reached = 0
        while done < len(facts):
            reached = min(reached + ITEMS, len(facts))
            firsts = [True] + [False] * (reached - done - 1)
            seen = -1
            for wave in self.engine.split(self.items(facts[done:reached]), budget):
                number = wave.items[0][0]
                firsts[number] = firsts[number] or number > seen
                seen = wave.items[-1][0]
            # The last wave may go on with facts that are not read yet.
            last = len(firsts) if reached == len(facts) else max(n for n, first in enumerate(firsts) if first)
            begins += firsts[:last]
            done += last
        return begins

    def _budget(self, memory: str | int | None) -> int:
        return parse_bytes(self.settings.memory if memory is None else memory)

    def items(self, facts: Sequence[EncodedFact], targets: Sequence[Sequence[int]] | None = None) -> list[TraceItem]:
        """The facts with their cells. targets: each fact's scored tokens; None for o_true, or for its first token."""
        if targets is None:
            whole = self.settings.scored == "sequence"
            targets = [f.target_true_ids if whole else f.target_true_ids[:1] for f in facts]
        windows, tokens, n_layers = self.settings.windows, self.tokens, self.model.n_layers
        method, corruption, samples = self.intervention.method, self.settings.corruption, self.settings.samples
        options: dict[str, Any] = {"corruption": corruption, "samples": samples, "heads": self.heads}
        return [
            make_item(f, windows, n_layers, tokens, method, t, **options) for f, t in zip(facts, targets, strict=True)
        ]

    def _traced(
        self,
        facts: Sequence[EncodedFact],
        wanted: Callable[[EncodedFact], bool],
        skip: Collection[str],
        budget: int,
        report: Callable[[int], None],
    ) -> Iterator[TraceResult]:
        """Yield the results of those of the facts that are wanted and not skipped, wave by wave.

        budget: bytes for activations.
        """
        targets = None
        if self.settings.scored == "argmax-first":
            blocks = [part for part in self._blocks(facts) if any(f.fact_id not in skip and wanted(f) for f in part)]
            answers = (greedy_tokens(self.model, [f.ids for f in part], 1, keep_end=True) for part in blocks)
            facts = [fact for part in blocks for fact in part]
            targets = [one for part in answers for one in part]
            targets = [target for fact, target in zip(facts, targets, strict=True) if wanted(fact)]
        facts = [fact for fact in facts if wanted(fact)]
        skipped = {number for number, fact in enumerate(facts) if fact.fact_id in skip}
        if len(skipped) == len(facts):
            return
        items = self.items(facts, targets)
        begun = time.perf_counter()
        screened = self.settings.verify_top is not None
        finished = self._screened(items, skipped, budget) if screened else self._exact(items, skipped, budget)
        for rows, grids, flops in finished:
            chosen = None
            if self.settings.keep_routing:
                chosen = self._routing((grid.item for grid in grids), budget)
                flops += sum(routing_flops(self.model, grid.item) for grid in grids)
            yield self._result(rows, grids, time.perf_counter() - begun, flops, chosen)
            report(len(rows))
            begun = time.perf_counter()

    def _exact(
        self, items: list[TraceItem], skipped: Collection[int], budget: int
    ) -> Iterator[tuple[list[dict[str, object]], list[Grid], int]]:
        """Yield (rows of TRACED_FACTS, grids, FLOPs) of the facts that each wave finishes."""
        for done, clean, noised, values in self._waves(items, skipped, budget):
            grids = [self._grid(items[n], clean[n], noised[n], values[n]) for n in done]
            rows = [self._row(items[n], grid) for n, grid in zip(done, grids, strict=True)]
            yield rows, grids, sum(self.engine.flops(items[n]) for n in done)

    def _waves(self, items: list[TraceItem], skipped: Collection[int], budget: int) -> Iterator["_Finished"]:
        """Yield the values of the facts that each wave finishes."""
        waves = self.engine.split(items, budget, skipped)
        last_wave = {number: i for i, wave in enumerate(waves) for number, _ in wave.items}
        values: dict[int, dict[Cell, np.ndarray]] = {}
        for i, wave, result in self._results(items, waves, budget):
            for (number, cell), p in result.cells.items():
                values.setdefault(number, {})[cell] = p
            done = [number for number, _ in wave.items if last_wave[number] == i]
            if done:
                mine = {n: values.pop(n, {}) for n in done}
                yield _Finished(done, result.clean, result.noised, mine)

    def _results(
        self, items: list[TraceItem], waves: list[TraceWave], budget: int
    ) -> Iterator[tuple[int, TraceWave, WaveResult]]:
        """Yield (number, wave, result) of every wave. On a GPU the next wave starts before the result is awaited."""
        ahead = 1 if self.model.device.type == "cuda" else 0
        tidy = len(waves) > 1
        started: list[Callable[[], WaveResult]] = []
        for i in range(len(waves) + ahead):
            if i < len(waves):
                started.append(self.engine.start(items, waves[i], budget, tidy=tidy))
            if i >= ahead:
                yield i - ahead, waves[i - ahead], started.pop(0)()

    def _screened(
        self, items: list[TraceItem], skipped: Collection[int], budget: int
    ) -> Iterator[tuple[list[dict[str, object]], list[Grid], int]]:
        """As `_exact`, but with estimates of all cells and exact values of those with the largest estimates."""
        verify_top = self.settings.verify_top
        assert verify_top is not None
        rows = budget // max(bytes_per_row(self.model), row_bytes(self.model))
        row = ROW_OF[self.settings.metric]
        for i in range(0, len(items), BATCH):
            part = items[i : i + BATCH]
            here = {number - i for number in skipped}
            left = [number for number in range(len(part)) if number not in here]
            if not left:
                continue
            found = attribute(
                self.model,
                part,
                self.sigma or 0.0,
                self.noise,
                self.settings.seed,
                module=self.intervention.module,
                memory_rows=rows,
                logit_diff=row == LOGIT_DIFF,
            )
            chosen = []
            for number, item in enumerate(part):
                estimate = np.array([found.estimates[number][cell][row].mean() for cell in item.cells])
                rises = found.noised[number][row].mean() > found.clean[number][row, 0]
                if rises and self.settings.metric != "probability":
                    estimate = -estimate  # the largest effects, relative to clean − noised, are the smallest values
                best = np.argsort(-estimate, kind="stable")[:verify_top]
                chosen.append(replace(item, cells=tuple(item.cells[i] for i in best)))
            verified = self._waves(chosen, here, budget) if verify_top else _unverified(found, left)
            for done, clean, noised, values in verified:
                about, grids, flops = [], [], 0
                for n in done:
                    grid = self._grid(part[n], clean[n], noised[n], values[n], found.estimates[n])
                    cells = list(values[n])
                    ranks = rank_correlation(
                        np.array([found.estimates[n][c][row].mean() for c in cells]),
                        np.array([values[n][c][row].mean() for c in cells]),
                    )
                    grids.append(grid)
                    about.append(self._row(part[n], grid, ranks))
                    flops += screen_flops(self.model, part[n], self.intervention, chosen[n].cells)
                yield about, grids, flops

    def _grid(
        self,
        item: TraceItem,
        clean: np.ndarray,
        noised: np.ndarray,
        values: dict[Cell, np.ndarray],
        screened: dict[Cell, np.ndarray] | None = None,
    ) -> Grid:
        spots, engine = traced_spots(item.encoded, self.tokens), self.settings.engine
        return Grid(item, spots, self.heads, clean, noised, values, screened, engine)

    def _row(self, item: TraceItem, grid: Grid, rank: float | None = None) -> dict[str, object]:
        return fact_row(
            item.encoded,
            self.sigma,
            engine=self.settings.engine,
            reason="; ".join(item.encoded.misfits) or None if self.counterfactual else None,
            scored=self.model.tokenizer.decode(list(item.targets)),
            rank_correlation=rank,
            counterfactual=self.counterfactual,
            measured=grid.measured(self.settings.metric),
        )

    def _left_out(self, fact: EncodedFact, reason: str, p_clean: float | None = None) -> dict[str, object]:
        return fact_row(
            fact,
            self.sigma,
            engine=self.settings.engine,
            p_clean=p_clean,
            reason=reason,
            kept=False,
            counterfactual=self.counterfactual,
        )

    def _routing(self, items: Iterable[TraceItem], budget: int) -> pa.Table:
        """ROUTING of the items. budget: bytes for activations."""
        drawn = (self.sigma or 0.0, self.noise, self.settings.seed)
        return routing(self.model, list(items), *drawn, budget // bytes_per_row(self.model))

    def _result(
        self,
        rows: list[dict[str, object]],
        grids: list[Grid],
        seconds: float,
        flops: int,
        chosen: pa.Table | None = None,
    ) -> TraceResult:
        """chosen: ROUTING of the grids' facts, or None where it is not kept."""
        asked, n_layers, method = self.settings, self.model.n_layers, self.intervention.method
        tables = [
            grid.tables(asked.windows, n_layers, asked.protocol, method, asked.metric, asked.keep_samples)
            for grid in grids
        ]
        return TraceResult(
            {**self.run, "seconds": seconds, "flops": float(flops)},
            pa.Table.from_pylist(rows, schema=TRACED_FACTS),
            pa.concat_tables([CELLS.empty_table(), *(cells for cells, _ in tables)]),
            pa.concat_tables([SAMPLES.empty_table(), *(samples for _, samples in tables)]),
            ROUTING.empty_table() if chosen is None else chosen,
        )


class _Finished(NamedTuple):
    """Facts whose cells are all computed, by index.

    clean, noised: as in WaveResult. cells: fact → cell → (M, runs).
    """

    facts: list[int]
    clean: dict[int, np.ndarray]
    noised: dict[int, np.ndarray]
    cells: dict[int, dict[Cell, np.ndarray]]


def _unverified(found: AttributionResult, facts: list[int]) -> Iterator[_Finished]:
    """Yield the base values of the facts alone, as `_waves` would if no cell were to be computed."""
    yield _Finished(facts, found.clean, found.noised, {n: {} for n in facts})
