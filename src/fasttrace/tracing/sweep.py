"""`trace`: a causal-tracing sweep over many facts, whole or batch by batch."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import pyarrow as pa

from fasttrace.errors import UserError
from fasttrace.facts import EncodedFact, Fact, distinct, encode_fact
from fasttrace.models.adapter import Decoder
from fasttrace.models.generate import greedy_tokens
from fasttrace.runs import describe_run
from fasttrace.tracing.attribution import AttributionResult, attribute, rank_correlation, row_bytes
from fasttrace.tracing.corrupt import NOISES, noise_sigma
from fasttrace.tracing.cost import Cost, item_flops, screen_cost, screen_flops, sweep_cost
from fasttrace.tracing.effects import CELLS, SAMPLES, TRACED_FACTS, Grid, check_protocol, fact_row, sample_mean
from fasttrace.tracing.known import BATCH, check_known
from fasttrace.tracing.plan import (
    METHODS,
    MODULES,
    Cell,
    Intervention,
    TraceItem,
    TraceWave,
    bytes_per_row,
    make_item,
    split_waves,
    traced_spots,
)
from fasttrace.tracing.wavefront import WaveResult, start_wave

DEFAULT_MEMORY = "512MB"
SCREEN = "attribution"
TARGETS = ("sequence", "first-token", "argmax-first")


@dataclass(frozen=True, eq=False)
class TraceResult:
    """run: the `runs` row, with the seconds and flops of this result.

    facts: TRACED_FACTS, one row a fact, kept or not. cells: CELLS, one row a grid cell. samples: SAMPLES, one row a
    cell and noise sample where keep_samples was asked for.
    """

    run: dict[str, Any]
    facts: pa.Table
    cells: pa.Table
    samples: pa.Table


def parse_bytes(text: str | int) -> int:
    """Bytes of "512MB", "8GB" or a plain number. Raises UserError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(|[kKMGT]i?B)\s*", str(text))
    if match is None or float(match[1]) <= 0:
        raise UserError(f"memory '{text}' is not a size such as 512MB or 8GB")
    unit = match[2].upper().rstrip("B").rstrip("I")
    return int(float(match[1]) * 1024 ** " KMGT".index(unit or " "))


@dataclass(frozen=True, eq=False)
class TracePlan:
    """A sweep ready to run; `cost` predicts it, `batches` computes it. Fields: see `trace`."""

    model: Decoder
    encoded: list[EncodedFact]
    run: dict[str, Any]
    intervention: Intervention
    windows: tuple[int, ...]
    noise: str
    sigma: float | None
    tokens: str
    target: str
    keep: str
    protocol: str
    seed: int
    keep_samples: bool
    verify_top: int | None

    def cost(self, memory: str | int = DEFAULT_MEMORY) -> Cost:
        """FLOPs, bytes, waves and peak memory, should every fact be traced; nothing is computed."""
        items = self.items(self.encoded)
        rows = sum(len(i.encoded.ids) if self.tokens == "all" else len(self._spots(i.encoded)) for i in items)
        cells = rows * len(self.windows) * self.model.n_layers
        if self.verify_top is None:
            return sweep_cost(self.model, items, self.intervention, parse_bytes(memory), cells)
        return screen_cost(self.model, items, self.intervention, parse_bytes(memory), cells, self.verify_top)

    def batches(
        self,
        *,
        memory: str | int = DEFAULT_MEMORY,
        skip: frozenset[str] | set[str] = frozenset(),
        progress: Callable[[int], None] | None = None,
    ) -> Iterator[TraceResult]:
        """Results as they are finished, each with whole facts only. skip: fact_ids not to compute again.

        memory: bytes for activations (weights not counted). progress(n): called after n more facts.
        """
        todo = [f for f in self.encoded if f.fact.fact_id not in skip]
        report = progress or (lambda n: None)
        if self.keep == "all":
            yield from self._traced(todo, memory, report)
            return
        for i in range(0, len(todo), BATCH):
            begun = time.perf_counter()
            part = todo[i : i + BATCH]
            verdicts = check_known(self.model, [f.fact for f in part], protocol=self.protocol).verdicts.to_pylist()
            left = [
                fact_row(f, self.sigma, v["p_true"] if self.target == "sequence" else None, reason=v["reason"])
                for f, v in zip(part, verdicts, strict=True)
                if not v["known"]
            ]
            if left:
                yield self._result(left, [], time.perf_counter() - begun, 0)
                report(len(left))
            known = [f for f, v in zip(part, verdicts, strict=True) if v["known"]]
            yield from self._traced(known, memory, report)

    def items(self, facts: Sequence[EncodedFact], targets: Sequence[Sequence[int]] | None = None) -> list[TraceItem]:
        """Every fact's cells. targets: the scored tokens; None: o_true's (one token of it, where one is scored)."""
        if targets is None:
            targets = [f.target_true_ids if self.target == "sequence" else f.target_true_ids[:1] for f in facts]
        method, n_layers = self.intervention.method, self.model.n_layers
        return [
            make_item(f, self.windows, n_layers, self.tokens, method, t) for f, t in zip(facts, targets, strict=True)
        ]

    def _spots(self, encoded: EncodedFact) -> list[tuple[int, int]]:
        return traced_spots(encoded, self.tokens, self.intervention.method)

    def _traced(
        self, todo: list[EncodedFact], memory: str | int, report: Callable[[int], None]
    ) -> Iterator[TraceResult]:
        """The facts' grids, wave by wave."""
        targets = None
        if self.target == "argmax-first":
            targets = greedy_tokens(self.model, [f.ids for f in todo], 1) if todo else []
        items = self.items(todo, targets)
        budget = parse_bytes(memory)
        begun = time.perf_counter()
        finished = self._exact(items, budget) if self.verify_top is None else self._screened(items, budget)
        for rows, grids, flops in finished:
            yield self._result(rows, grids, time.perf_counter() - begun, flops)
            report(len(rows))
            begun = time.perf_counter()

    def _exact(self, items: list[TraceItem], budget: int) -> Iterator[tuple[list[dict[str, object]], list[Grid], int]]:
        """(rows of TRACED_FACTS, grids, FLOPs) of the facts that each wave finishes."""
        for done, clean, noised, values in self._waves(items, budget):
            grids = [self._grid(items[n], clean[n], noised[n], values[n]) for n in done]
            rows = [self._row(items[n], grid) for n, grid in zip(done, grids, strict=True)]
            yield rows, grids, sum(item_flops(self.model, items[n], self.intervention) for n in done)

    def _waves(self, items: list[TraceItem], budget: int) -> Iterator[tuple[list[int], Any, Any, Any]]:
        """(finished facts, clean p, noised p, cells) after each wave that finishes facts."""
        waves = split_waves(items, self.intervention, budget // bytes_per_row(self.model))
        last_wave = {number: i for i, wave in enumerate(waves) for number, _ in wave.items}
        values: dict[int, dict[Cell, np.ndarray]] = {}
        for i, wave, result in self._results(items, waves):
            for (number, cell), p in result.cells.items():
                values.setdefault(number, {})[cell] = p
            done = [number for number, _ in wave.items if last_wave[number] == i]
            if done:
                mine = {n: values.pop(n, {}) for n in done}
                yield done, result.clean, result.noised, mine

    def _results(self, items: list[TraceItem], waves: list[TraceWave]) -> Iterator[tuple[int, TraceWave, WaveResult]]:
        """(number, wave, result) of every wave; on a GPU the next wave is started before a result is waited for."""
        ahead = 1 if self.model.device.type == "cuda" else 0
        tidy = len(waves) > 1
        started: list[Callable[[], WaveResult]] = []
        for i in range(len(waves) + ahead):
            if i < len(waves):
                settings = (self.intervention, self.sigma or 0.0, self.noise, self.seed)
                started.append(start_wave(self.model, items, waves[i], *settings, tidy=tidy))
            if i >= ahead:
                yield i - ahead, waves[i - ahead], started.pop(0)()

    def _screened(
        self, items: list[TraceItem], budget: int
    ) -> Iterator[tuple[list[dict[str, object]], list[Grid], int]]:
        """As `_exact`: estimates of every cell from one forward and backward, exact cells where they point."""
        assert self.verify_top is not None
        rows = budget // max(bytes_per_row(self.model), row_bytes(self.model))
        for i in range(0, len(items), BATCH):
            part = items[i : i + BATCH]
            found = attribute(
                self.model, part, self.intervention.samples, self.sigma or 0.0, self.noise, self.seed,
                module=self.intervention.module, memory_rows=rows,
            )  # fmt: skip
            chosen = []
            for number, item in enumerate(part):
                estimate = np.array([found.estimates[number][cell].mean() for cell in item.cells])
                best = np.argsort(-estimate, kind="stable")[: self.verify_top]
                chosen.append(replace(item, cells=tuple(item.cells[i] for i in best)))
            verified = self._waves(chosen, budget) if self.verify_top else _unverified(found, len(part))
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
        # Before the subject the corrupted passes are the clean one's rows, and restoring them restores nothing.
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
        tables = [
            grid.tables(self.windows, self.model.n_layers, self.protocol, self.intervention.method, self.keep_samples)
            for grid in grids
        ]
        return TraceResult(
            {**self.run, "seconds": seconds, "flops": float(flops)},
            pa.Table.from_pylist(rows, schema=TRACED_FACTS),
            pa.concat_tables([CELLS.empty_table(), *(cells for cells, _ in tables)]),
            pa.concat_tables([SAMPLES.empty_table(), *(samples for _, samples in tables)]),
        )


def _unverified(found: AttributionResult, count: int) -> Iterator[tuple[list[int], Any, Any, Any]]:
    """What `_waves` would yield, had no cell to be computed."""
    yield list(range(count)), found.clean, found.noised, {n: {} for n in range(count)}


def prepare_trace(
    model: Decoder,
    facts: Sequence[Fact],
    *,
    windows: Sequence[int] = (5,),
    samples: int = 10,
    noise: str = "philox",
    sigma: float | str | None = None,
    module: str = "mlp",
    method: str = "denoise",
    tokens: str = "all",
    target: str = "sequence",
    keep: str = "known",
    protocol: str = "paper",
    seed: int = 0,
    keep_samples: bool = False,
    verify_top: int | None = None,
) -> TracePlan:
    """Check every setting of a sweep, encode its facts and settle σ; nothing is computed yet.

    Arguments and errors: see `trace`.
    """
    check_protocol(protocol)
    if not facts:
        raise UserError("trace was given no facts, at least one was wanted")
    if not windows or any(not isinstance(w, int) or w < 1 for w in windows):
        raise UserError(f"windows {list(windows)!r} are not a list of whole numbers from 1")
    if samples < 1:
        raise UserError(f"samples {samples} is not a whole number from 1")
    named = (
        ("noise", noise, NOISES), ("module", module, MODULES), ("method", method, (*METHODS, SCREEN)),
        ("target", target, TARGETS), ("keep", keep, ("known", "all")),
    )  # fmt: skip
    for name, given, choices in named:
        if given not in choices:
            raise UserError(f"{name} '{given}' is not one of {', '.join(choices)}")
    if verify_top is not None and method != SCREEN:
        raise UserError(f"verify_top is for method '{SCREEN}', whose cells are estimates; method is '{method}'")
    if verify_top is not None and verify_top < 0:
        raise UserError(f"verify_top {verify_top} is not a whole number from 0")
    if method == SCREEN and tokens == "whole-subject":
        raise UserError(f"tokens 'whole-subject' cannot be screened by '{SCREEN}', one token at a time was wanted")
    encoded = [encode_fact(model.tokenizer, fact) for fact in distinct(facts)]
    for fact in encoded:
        model.check_length(len(fact.ids) + len(fact.target_true_ids) - 1, f"fact '{fact.fact.fact_id}'")
    screen = method == SCREEN
    intervention = Intervention(module, "denoise" if screen else method, samples)
    traced_spots(encoded[0], tokens, intervention.method)
    unique = sorted(set(windows), reverse=True)
    settings: dict[str, Any] = {
        "windows": unique, "module": module, "method": method, "tokens": tokens, "target": target, "keep": keep
    }  # fmt: skip
    value: float | None = None
    if intervention.corrupted:
        value = noise_sigma(model, encoded, sigma)
        settings |= {"samples": samples, "noise": noise, "sigma": value}
    else:
        seed = 0  # nothing is drawn
    if keep_samples:
        settings["keep_samples"] = True
    if screen:
        verify_top = verify_top or 0
        settings["verify_top"] = verify_top
    run = describe_run("trace", model, settings, seed=seed, protocol=protocol)
    return TracePlan(
        model, encoded, run, intervention, tuple(unique), noise, value, tokens, target, keep, protocol, seed,
        keep_samples, verify_top,
    )  # fmt: skip


def trace(
    model: Decoder,
    facts: Sequence[Fact],
    *,
    memory: str | int = DEFAULT_MEMORY,
    progress: Callable[[int], None] | None = None,
    **settings: Any,
) -> TraceResult:
    """Causal tracing: the exact grid of every fact and window size, in one sweep.

    settings, by name:
    windows: window sizes w (layers), default (5,).
    module: "mlp" (default), "attn" or "block": whose output is replaced over the window's layers.
    method: "denoise" (default: the clean pass's outputs into the corrupted passes), "noise" (the corrupted passes'
        into the clean one), "zero" (zeros into the clean one; no noise) or "attribution" (an estimate of "denoise" from
        one forward and one backward pass, marked `approximate` in every row).
    verify_top: with "attribution", so many cells of every fact, the largest estimates, are computed exactly.
    tokens: "all" (default), "subject", "last-subject", one token a cell, or "whole-subject", all of it at once.
    target: what is scored: "sequence" (default: all of o_true), "first-token" of it, or "argmax-first", the first token
        of the model's own answer.
    samples: n noise samples, default 10. noise: "philox" (default: depends on seed, fact, sample, token and dimension
        only) or "released" (RandomState(1), afresh for every fact). sigma: a number, "3sd" or None (default: published
        for the model, else 3sd over the facts given). seed: of "philox", default 0.
    keep: "known" (default) traces the facts the model knows and records why others are left out; "all" every one.
    protocol: "paper" (default) or "released" (facts kept, and the fraction's definition).
    keep_samples: also return every noise sample's p.

    memory: bytes for activations; a larger sweep runs in several waves with the same values. progress(n): called
    after n more facts.

    Returns a TraceResult; probabilities are of the scored tokens together, means over samples.
    Raises UserError for a bad setting.
    Source: paper, section 3.2 and Appendix B; docs/algorithms.md, sections 3 to 9; Meng et al. 2022 (arXiv 2202.05262)
    for "block" and "argmax-first"; Nanda 2023, Syed et al. 2023 (arXiv 2310.10348) for "attribution".
    """
    plan = prepare_trace(model, facts, **settings)
    parts = list(plan.batches(memory=memory, progress=progress))
    order = {f.fact.fact_id: i for i, f in enumerate(plan.encoded)}
    table = pa.concat_tables([TRACED_FACTS.empty_table(), *(p.facts for p in parts)])
    place = np.argsort([order[i] for i in table["fact_id"].to_pylist()], kind="stable")
    effort = {name: sum(p.run[name] for p in parts) for name in ("seconds", "flops")}
    return TraceResult(
        {**plan.run, **effort},
        table.take(pa.array(place, pa.int64())),
        pa.concat_tables([CELLS.empty_table(), *(p.cells for p in parts)]),
        pa.concat_tables([SAMPLES.empty_table(), *(p.samples for p in parts)]),
    )
