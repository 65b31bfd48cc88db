"""`trace`: a causal-tracing sweep over many facts, whole or batch by batch."""

import time
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np
import pyarrow as pa

from fasttrace.errors import UserError
from fasttrace.facts import EncodedFact, Facts
from fasttrace.memory import parse_bytes
from fasttrace.models.adapter import Decoder, Model
from fasttrace.models.corrupt import noise_sigma
from fasttrace.models.encode import encoded_facts
from fasttrace.models.generate import greedy_tokens
from fasttrace.models.modes import with_autograd
from fasttrace.runs import Run, describe_run
from fasttrace.settings.arguments import checked, takes
from fasttrace.settings.base import argument, carried, replaced, run_settings, settings
from fasttrace.settings.common import Noise
from fasttrace.settings.kinds import Size
from fasttrace.settings.trace import Tokens, TraceSettings
from fasttrace.tracing.attribution import AttributionResult, attribute, rank_correlation, row_bytes
from fasttrace.tracing.cost import Cost, item_flops, screen_cost, screen_flops, sweep_cost
from fasttrace.tracing.effects import CELLS, SAMPLES, TRACED_FACTS, Grid, fact_row, sample_mean
from fasttrace.tracing.known import BATCH, check_known
from fasttrace.tracing.plan import (
    Cell,
    Intervention,
    Spot,
    TraceItem,
    TraceWave,
    bytes_per_row,
    make_item,
    split_waves,
    traced_spots,
)
from fasttrace.tracing.wavefront import WaveResult, start_wave


@dataclass(frozen=True, eq=False)
class TraceResult:
    """run: the `runs` row, with the seconds and flops of this result.

    facts: TRACED_FACTS, one row per fact, traced or left out. cells: CELLS, one row per grid cell. samples: SAMPLES,
    one row per grid cell and noise sample with keep_samples, else empty.
    """

    run: Run
    facts: pa.Table
    cells: pa.Table
    samples: pa.Table


@dataclass(frozen=True, eq=False, kw_only=True)
class TracePlan:
    """A sweep that is ready to run: `cost` predicts its work, `batches` runs it.

    settings: the given ones with the final σ, distinct windows in descending order, and verify_top, which is a number
    if cells are estimated and None otherwise. sigma: σ, None if nothing is corrupted.
    """

    model: Decoder
    encoded: list[EncodedFact]
    settings: TraceSettings
    intervention: Intervention
    sigma: float | None
    run: Run

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

    def cost(self, memory: str | int | None = None) -> Cost:
        """Predict FLOPs, bytes, waves and peak memory for tracing every fact. No pass runs.

        memory: as in `batches`.
        """
        items, budget = self.items(self.encoded), self._budget(memory)
        every_token = self.tokens == "all"
        rows = sum(len(i.encoded.ids) if every_token else len(self._spots(i.encoded)) for i in items)
        cells = rows * len(self.settings.windows) * self.model.n_layers
        if self.settings.verify_top is None:
            return sweep_cost(self.model, items, self.intervention, budget, cells)
        return screen_cost(self.model, items, self.intervention, budget, cells, self.settings.verify_top)

    @checked
    @with_autograd
    def batches(
        self,
        *,
        memory: Size | None = None,
        skip: frozenset[str] | set[str] = frozenset(),
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[TraceResult]:
        """Yield results as they finish, each with whole facts only. skip: fact_ids to leave out.

        The waves are those of a sweep that skips nothing. So a sweep that continues has the same values bit for bit.

        memory: bytes for activations, without the weights; None for the settings' value. progress(n) is called after n
        more facts.
        """
        report, budget = progress or (lambda n: None), self._budget(memory)
        if self.settings.keep == "all":
            yield from self._traced(self.encoded, skip, budget, report)
            return
        first_only = self.settings.target != "sequence"
        for i in range(0, len(self.encoded), BATCH):
            begun = time.perf_counter()
            part = self.encoded[i : i + BATCH]
            if all(f.fact_id in skip for f in part):
                continue
            found = check_known(self.model, [f.fact for f in part], protocol=self.settings.protocol)
            verdicts = found.verdicts.to_pylist()
            left = [
                fact_row(f, self.sigma, None if first_only else v["p_true"], reason=v["reason"])
                for f, v in zip(part, verdicts, strict=True)
                if not v["known"] and f.fact_id not in skip
            ]
            if left:
                yield self._result(left, [], time.perf_counter() - begun, 0)
                report(len(left))
            known = [f for f, v in zip(part, verdicts, strict=True) if v["known"]]
            yield from self._traced(known, skip, budget, report)

    def _budget(self, memory: str | int | None) -> int:
        return parse_bytes(self.settings.memory if memory is None else memory)

    def items(self, facts: Sequence[EncodedFact], targets: Sequence[Sequence[int]] | None = None) -> list[TraceItem]:
        """The facts with their cells. targets: each fact's scored tokens; None for o_true, or for its first token."""
        if targets is None:
            whole = self.settings.target == "sequence"
            targets = [f.target_true_ids if whole else f.target_true_ids[:1] for f in facts]
        windows, tokens, n_layers = self.settings.windows, self.tokens, self.model.n_layers
        method = self.intervention.method
        return [make_item(f, windows, n_layers, tokens, method, t) for f, t in zip(facts, targets, strict=True)]

    def _spots(self, encoded: EncodedFact) -> list[Spot]:
        return traced_spots(encoded, self.tokens, self.intervention.method)

    def _traced(
        self, facts: list[EncodedFact], skip: Collection[str], budget: int, report: Callable[[int], None]
    ) -> Iterator[TraceResult]:
        """Yield the results of the facts that are not skipped, wave by wave. budget: bytes for activations."""
        skipped = {number for number, fact in enumerate(facts) if fact.fact_id in skip}
        if len(skipped) == len(facts):
            return
        targets = None
        if self.settings.target == "argmax-first":
            targets = greedy_tokens(self.model, [f.ids for f in facts], 1, keep_end=True)
        items = self.items(facts, targets)
        begun = time.perf_counter()
        screened = self.settings.verify_top is not None
        finished = self._screened(items, skipped, budget) if screened else self._exact(items, skipped, budget)
        for rows, grids, flops in finished:
            yield self._result(rows, grids, time.perf_counter() - begun, flops)
            report(len(rows))
            begun = time.perf_counter()

    def _exact(
        self, items: list[TraceItem], skipped: Collection[int], budget: int
    ) -> Iterator[tuple[list[dict[str, object]], list[Grid], int]]:
        """Yield (rows of TRACED_FACTS, grids, FLOPs) of the facts that each wave finishes."""
        for done, clean, noised, values in self._waves(items, skipped, budget):
            grids = [self._grid(items[n], clean[n], noised[n], values[n]) for n in done]
            rows = [self._row(items[n], grid) for n, grid in zip(done, grids, strict=True)]
            yield rows, grids, sum(item_flops(self.model, items[n], self.intervention) for n in done)

    def _waves(self, items: list[TraceItem], skipped: Collection[int], budget: int) -> Iterator["_Finished"]:
        """Yield the values of the facts that each wave finishes."""
        waves = split_waves(items, self.intervention, budget // bytes_per_row(self.model), skipped)
        last_wave = {number: i for i, wave in enumerate(waves) for number, _ in wave.items}
        values: dict[int, dict[Cell, np.ndarray]] = {}
        for i, wave, result in self._results(items, waves):
            for (number, cell), p in result.cells.items():
                values.setdefault(number, {})[cell] = p
            done = [number for number, _ in wave.items if last_wave[number] == i]
            if done:
                mine = {n: values.pop(n, {}) for n in done}
                yield _Finished(done, result.clean, result.noised, mine)

    def _results(self, items: list[TraceItem], waves: list[TraceWave]) -> Iterator[tuple[int, TraceWave, WaveResult]]:
        """Yield (number, wave, result) of every wave. On a GPU the next wave starts before the result is awaited."""
        ahead = 1 if self.model.device.type == "cuda" else 0
        tidy = len(waves) > 1
        started: list[Callable[[], WaveResult]] = []
        for i in range(len(waves) + ahead):
            if i < len(waves):
                drawn = (self.sigma or 0.0, self.noise, self.settings.seed)
                started.append(start_wave(self.model, items, waves[i], self.intervention, *drawn, tidy=tidy))
            if i >= ahead:
                yield i - ahead, waves[i - ahead], started.pop(0)()

    def _screened(
        self, items: list[TraceItem], skipped: Collection[int], budget: int
    ) -> Iterator[tuple[list[dict[str, object]], list[Grid], int]]:
        """As `_exact`, but with estimates of all cells and exact values of those with the largest estimates."""
        verify_top = self.settings.verify_top
        assert verify_top is not None
        rows = budget // max(bytes_per_row(self.model), row_bytes(self.model))
        for i in range(0, len(items), BATCH):
            part = items[i : i + BATCH]
            here = {number - i for number in skipped}
            left = [number for number in range(len(part)) if number not in here]
            if not left:
                continue
            found = attribute(
                self.model,
                part,
                self.intervention.samples,
                self.sigma or 0.0,
                self.noise,
                self.settings.seed,
                module=self.intervention.module,
                memory_rows=rows,
            )
            chosen = []
            for number, item in enumerate(part):
                estimate = np.array([found.estimates[number][cell].mean() for cell in item.cells])
                best = np.argsort(-estimate, kind="stable")[:verify_top]
                chosen.append(replace(item, cells=tuple(item.cells[i] for i in best)))
            verified = self._waves(chosen, here, budget) if verify_top else _unverified(found, left)
            for done, clean, noised, values in verified:
                about, grids, flops = [], [], 0
                for n in done:
                    grid = self._grid(part[n], clean[n], noised[n], values[n], found.estimates[n])
                    cells = list(values[n])
                    ranks = rank_correlation(
                        np.array([found.estimates[n][c].mean() for c in cells]),
                        np.array([values[n][c].mean() for c in cells]),
                    )
                    grids.append(grid)
                    about.append(self._row(part[n], grid, ranks))
                    flops += screen_flops(self.model, part[n], self.intervention, chosen[n].cells)
                yield about, grids, flops

    def _grid(
        self,
        item: TraceItem,
        p_clean: float,
        noised: np.ndarray,
        values: dict[Cell, np.ndarray],
        screened: dict[Cell, np.ndarray] | None = None,
    ) -> Grid:
        method = self.intervention.method
        # Before the subject the corrupted rows equal the clean ones, so replacing them changes nothing.
        untouched = noised if method == "denoise" else np.full(self.intervention.runs, p_clean)
        report_all = self.tokens == "all" and method != "zero"
        return Grid(
            item.encoded,
            self._spots(item.encoded),
            values,
            p_clean,
            sample_mean(noised) if len(noised) else None,
            untouched if report_all else None,
            screened,
        )

    def _row(self, item: TraceItem, grid: Grid, rank: float | None = None) -> dict[str, object]:
        scored = self.model.tokenizer.decode(list(item.targets))
        return fact_row(item.encoded, self.sigma, grid.p_clean, grid.p_noised, scored=scored, rank_correlation=rank)

    def _result(self, rows: list[dict[str, object]], grids: list[Grid], seconds: float, flops: int) -> TraceResult:
        asked, n_layers, method = self.settings, self.model.n_layers, self.intervention.method
        tables = [grid.tables(asked.windows, n_layers, asked.protocol, method, asked.keep_samples) for grid in grids]
        return TraceResult(
            {**self.run, "seconds": seconds, "flops": float(flops)},
            pa.Table.from_pylist(rows, schema=TRACED_FACTS),
            pa.concat_tables([CELLS.empty_table(), *(cells for cells, _ in tables)]),
            pa.concat_tables([SAMPLES.empty_table(), *(samples for _, samples in tables)]),
        )


class _Finished(NamedTuple):
    """Facts whose cells are all computed, by index.

    clean, noised: as in WaveResult. cells: fact → cell → (runs,) p.
    """

    facts: list[int]
    clean: dict[int, float]
    noised: dict[int, np.ndarray]
    cells: dict[int, dict[Cell, np.ndarray]]


def _unverified(found: AttributionResult, facts: list[int]) -> Iterator[_Finished]:
    """Yield the base values of the facts alone, as `_waves` would if no cell were to be computed."""
    yield _Finished(facts, found.clean, found.noised, {n: {} for n in facts})


@settings("trace")
class PrepareTraceArguments(TraceSettings):
    """Keywords of `prepare_trace`."""

    settings: TraceSettings | None = argument(
        default=None, help="Settings object; keywords add settings that it does not give"
    )


@settings("trace")
class TraceArguments(PrepareTraceArguments):
    """Keywords of `trace`."""

    progress: Callable[[int], None] | None = argument(default=None, help="Called as progress(n) after n more facts")


@takes(PrepareTraceArguments)
def prepare_trace(model: Model, facts: Facts, given: PrepareTraceArguments) -> TracePlan:
    """Check the settings of a sweep, encode its facts and determine σ. No pass runs.

    Raises UserError for a bad setting, for no facts, and for a fact that is too long for the model.
    """
    asked = carried(TraceSettings, given)
    if not facts:
        raise UserError("trace: facts: expected at least one, got none")
    encoded = encoded_facts(model, facts)
    screened = asked.method == "attribution"
    intervention = Intervention(asked.module, "denoise" if screened else asked.method, asked.samples)
    sigma = noise_sigma(model, asked.sigma, asked.sigma_facts) if intervention.corrupted else None
    settled = replaced(
        asked,
        windows=sorted(set(asked.windows), reverse=True),
        sigma=sigma,
        seed=asked.seed if intervention.corrupted else 0,  # without corruption nothing is drawn
        verify_top=asked.verify_top or 0 if screened else None,
    )
    named = run_settings(settled, without=() if intervention.corrupted else ("samples", "noise", "sigma"))
    run = describe_run("trace", model, named, seed=settled.seed, protocol=settled.protocol)
    return TracePlan(model=model, encoded=encoded, settings=settled, intervention=intervention, sigma=sigma, run=run)


@takes(TraceArguments)
def trace(model: Model, facts: Facts, given: TraceArguments) -> TraceResult:
    """Causal tracing: compute the exact grid of every fact and window size in one sweep.

    Returns a TraceResult. Its probabilities are joint probabilities of the scored tokens, averaged over noise samples.
    With method="attribution" every estimated cell is marked `approximate`. A sweep that does not fit into `memory` runs
    in several waves and returns the same values. Facts that keep="known" leaves out are in the result with a reason.

    Raises UserError for a bad setting.
    Source: paper, section 3.2 and Appendix B; docs/algorithms.md, sections 3 to 9; Meng et al. 2022 (arXiv 2202.05262)
    for "block" and "argmax-first"; Nanda 2023, Syed et al. 2023 (arXiv 2310.10348) for "attribution".
    """
    plan = prepare_trace(model, facts, settings=carried(TraceSettings, given))
    parts = list(plan.batches(progress=given.progress))
    order = {f.fact_id: i for i, f in enumerate(plan.encoded)}
    table = pa.concat_tables([TRACED_FACTS.empty_table(), *(p.facts for p in parts)])
    place = np.argsort([order[i] for i in table["fact_id"].to_pylist()], kind="stable")
    seconds, flops = (sum(p.run[name] for p in parts) for name in ("seconds", "flops"))
    return TraceResult(
        {**plan.run, "seconds": seconds, "flops": flops},
        table.take(pa.array(place, pa.int64())),
        pa.concat_tables([CELLS.empty_table(), *(p.cells for p in parts)]),
        pa.concat_tables([SAMPLES.empty_table(), *(p.samples for p in parts)]),
    )
