"""`trace`: a causal-tracing sweep over many facts, whole or batch by batch."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa

from fasttrace.errors import UserError
from fasttrace.facts import EncodedFact, Fact, distinct, encode_fact
from fasttrace.models.adapter import Decoder
from fasttrace.runs import describe_run
from fasttrace.tracing.corrupt import NOISES, noise_sigma
from fasttrace.tracing.effects import CELLS, TRACED_FACTS, check_protocol, fact_row, grid_table
from fasttrace.tracing.known import BATCH, check_known
from fasttrace.tracing.plan import Cell, TraceItem, bytes_per_row, make_item, split_waves, traced_tokens
from fasttrace.tracing.wavefront import run_wave

DEFAULT_MEMORY = "512MB"


@dataclass(frozen=True, eq=False)
class TraceResult:
    """run: the `runs` row. facts: TRACED_FACTS, one row a fact, kept or not. cells: CELLS, one row a grid cell."""

    run: dict[str, Any]
    facts: pa.Table
    cells: pa.Table


def parse_bytes(text: str | int) -> int:
    """Bytes of "512MB", "8GB" or a plain number. Raises UserError otherwise."""
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(|[kKMGT]i?B)\s*", str(text))
    if match is None or float(match[1]) <= 0:
        raise UserError(f"memory '{text}' is not a size such as 512MB or 8GB")
    unit = match[2].upper().rstrip("B").rstrip("I")
    return int(float(match[1]) * 1024 ** " KMGT".index(unit or " "))


def prepare_trace(
    model: Decoder,
    facts: Sequence[Fact],
    *,
    windows: Sequence[int] = (5,),
    samples: int = 10,
    noise: str = "philox",
    sigma: float | str | None = None,
    tokens: str = "all",
    keep: str = "known",
    protocol: str = "paper",
    seed: int = 0,
) -> "TracePlan":
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
    if noise not in NOISES:
        raise UserError(f"noise '{noise}' is not one of {', '.join(NOISES)}")
    if keep not in ("known", "all"):
        raise UserError(f"keep '{keep}' is neither 'known' nor 'all'")
    encoded = [encode_fact(model.tokenizer, fact) for fact in distinct(facts)]
    for fact in encoded:
        model.check_length(len(fact.ids) + len(fact.target_true_ids) - 1, f"fact '{fact.fact.fact_id}'")
    traced_tokens(encoded[0], tokens)
    value = noise_sigma(model, encoded, sigma)
    unique = sorted(set(windows), reverse=True)
    settings = {
        "windows": unique,
        "samples": samples,
        "noise": noise,
        "sigma": value,
        "module": "mlp",
        "method": "denoise",
        "tokens": tokens,
        "keep": keep,
    }
    run = describe_run("trace", model, settings, seed=seed, protocol=protocol)
    return TracePlan(model, encoded, run, tuple(unique), samples, noise, value, tokens, keep, protocol, seed)


@dataclass(frozen=True, eq=False)
class TracePlan:
    """A sweep ready to run; `batches` computes it."""

    model: Decoder
    encoded: list[EncodedFact]
    run: dict[str, Any]
    windows: tuple[int, ...]
    samples: int
    noise: str
    sigma: float
    tokens: str
    keep: str
    protocol: str
    seed: int

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
                fact_row(f, self.sigma, v["p_true"], None, v["reason"])
                for f, v in zip(part, verdicts, strict=True)
                if not v["known"]
            ]
            if left:
                yield self._result(left, [], time.perf_counter() - begun)
                report(len(left))
            known = [f for f, v in zip(part, verdicts, strict=True) if v["known"]]
            yield from self._traced(known, memory, report)

    def _traced(
        self, todo: list[EncodedFact], memory: str | int, report: Callable[[int], None]
    ) -> Iterator[TraceResult]:
        """The facts' grids, wave by wave."""
        model = self.model
        items = [make_item(f, self.windows, model.n_layers, self.tokens) for f in todo]
        waves = split_waves(items, self.samples, parse_bytes(memory) // bytes_per_row(model))
        last_wave = {number: i for i, wave in enumerate(waves) for number, _ in wave.items}
        restored: dict[int, dict[Cell, np.ndarray]] = {}
        begun = time.perf_counter()
        for i, wave in enumerate(waves):
            result = run_wave(model, items, wave, self.samples, self.sigma, self.noise, self.seed)
            for (number, cell), p in result.restored.items():
                restored.setdefault(number, {})[cell] = p
            done = [number for number, _ in wave.items if last_wave[number] == i]
            rows = [
                fact_row(items[n].encoded, self.sigma, result.clean[n], float(result.noised[n].mean()), None)
                for n in done
            ]
            grids = [
                grid_table(
                    items[n].encoded,
                    self.windows,
                    traced_tokens(items[n].encoded, self.tokens),
                    model.n_layers,
                    restored.pop(n, {}),
                    result.noised[n],
                    result.clean[n],
                    self.protocol,
                    self.tokens == "all",
                )
                for n in done
            ]
            if done:
                yield self._result(rows, grids, time.perf_counter() - begun)
                report(len(done))
                begun = time.perf_counter()

    def items(self) -> list[TraceItem]:
        """Every fact's cells, for planning."""
        return [make_item(f, self.windows, self.model.n_layers, self.tokens) for f in self.encoded]

    def _result(self, rows: list[dict[str, object]], grids: list[pa.Table], seconds: float) -> TraceResult:
        cells = pa.concat_tables(grids) if grids else CELLS.empty_table()
        return TraceResult({**self.run, "seconds": seconds}, pa.Table.from_pylist(rows, schema=TRACED_FACTS), cells)


def trace(
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
    keep: str = "known",
    protocol: str = "paper",
    seed: int = 0,
    memory: str | int = DEFAULT_MEMORY,
    progress: Callable[[int], None] | None = None,
) -> TraceResult:
    """Causal tracing of MLP outputs: the exact grid of every fact and window size, in one sweep.

    windows: window sizes w (layers). samples: n noise samples. noise: "philox" (default: depends on seed,
    fact, sample, token and dimension only) or "released" (RandomState(1), afresh for every fact). sigma: a
    number, "3sd" or None (published for the model, else 3sd over the facts given). tokens: "all", "subject"
    or "last-subject". keep: "known" traces the facts the model knows and records why others are left out;
    "all" traces every one. protocol: "paper" or "released" (facts kept, and the fraction's definition).
    memory: bytes for activations; a larger sweep runs in several waves with the same values. progress(n):
    called after n more facts.

    Returns a TraceResult; probabilities are of the whole target, means over samples.
    Raises UserError for a bad setting.
    Source: paper, section 3.2; ALGORITHMS, sections 1 and 8.
    """
    if module != "mlp" or method != "denoise":
        raise UserError(
            f"module '{module}' with method '{method}' cannot be traced, module 'mlp' with 'denoise' was wanted"
        )
    plan = prepare_trace(
        model,
        facts,
        windows=windows,
        samples=samples,
        noise=noise,
        sigma=sigma,
        tokens=tokens,
        keep=keep,
        protocol=protocol,
        seed=seed,
    )
    parts = list(plan.batches(memory=memory, progress=progress))
    order = {f.fact.fact_id: i for i, f in enumerate(plan.encoded)}
    table = pa.concat_tables([TRACED_FACTS.empty_table(), *(p.facts for p in parts)])
    place = np.argsort([order[i] for i in table["fact_id"].to_pylist()], kind="stable")
    return TraceResult(
        {**plan.run, "seconds": sum(p.run["seconds"] for p in parts)},
        table.take(pa.array(place, pa.int64())),
        pa.concat_tables([CELLS.empty_table(), *(p.cells for p in parts)]),
    )
