"""Runs a study: facts, traces, second moments, edits, tables, figures and report, resumable at every step."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from fasttrace.cluster.crew import Crew
from fasttrace.cluster.ray_cluster import gpus_of
from fasttrace.editing.collect import check_moments, planned_moments
from fasttrace.editing.cost import EditCost, adam_rate, edit_cost
from fasttrace.editing.edit import check_edit, plan_edit
from fasttrace.editing.hyperparameters import settings_for, window_of
from fasttrace.editing.moments import FACTOR_BYTES, Moments
from fasttrace.editing.problems import PROBLEMS
from fasttrace.errors import StoreError, UserError
from fasttrace.facts import EncodedFact, Fact, distinct
from fasttrace.memory import parse_bytes
from fasttrace.models.adapter import Decoder
from fasttrace.models.encode import encoded_facts
from fasttrace.models.flops import block_rate
from fasttrace.models.load import load_tokenizer
from fasttrace.places import check_file, check_folder, check_replaceable, replacing
from fasttrace.settings.base import carried, replaced
from fasttrace.settings.edit import EditSettings
from fasttrace.settings.methods import SOLVED, method_settings, reads_moments
from fasttrace.settings.study import EditTable
from fasttrace.settings.trace import TraceSettings
from fasttrace.show.words import count
from fasttrace.studies.load import Study
from fasttrace.tracing import TraceResult, prepare_trace
from fasttrace.tracing.cost import weight_bytes
from fasttrace.tracing.known import known_run
from fasttrace.workflow import (
    collect_moments,
    edit_into,
    has_edited,
    has_traced,
    known_into,
    known_stored,
    reasons,
    trace_into,
)

if TYPE_CHECKING:
    from fasttrace.store import Store

Bar = Callable[[str, int | None, str], AbstractContextManager[Callable[[int], None]]]
Stages = Callable[[], AbstractContextManager[Callable[[str, int, int], None]]]
Say = Callable[[str], None]


@dataclass(frozen=True)
class Stage:
    """A line of `--dry-run`. done: how many of `total` the store has. flops, seconds: expected for the others."""

    what: str
    unit: str
    total: int
    done: int
    flops: float
    seconds: float


@dataclass(frozen=True)
class ForWorkers:
    """What `--dry-run` says about workers. gpus: of each. memory: bytes of each, for the weights, activations and what
    solves keep."""

    workers: int
    gpus: float
    memory: int

    def row(self, seconds: float) -> dict[str, Any]:
        """The hours that the work takes, which takes one worker these seconds."""
        return {
            "workers": self.workers,
            "hours": seconds / self.workers / 3600,
            "gpu_hours": seconds * self.gpus / 3600,
            "memory_bytes": self.memory,
        }


class Runner:
    """Runs a study with those who compute and a store.

    bar, stages: show progress. say: prints a line for the user. show: shows the first fact that a sweep traced.
    """

    def __init__(
        self,
        study: Study,
        store: "Store",
        crew: Crew,
        bar: Bar,
        stages: Stages,
        say: Say,
        show: Callable[[TraceResult], None] | None = None,
    ) -> None:
        self.study, self.store, self.crew, self.show = study, store, crew, show
        self.bar, self.stages, self.say = bar, stages, say
        # What `run` computed, as `has_run` finds it again.
        self.runs: dict[str, Any] = {"known": None, "tested": [], "fact_ids": [], "traces": [], "edits": []}
        self.about: _About = crew.ask(_about)
        self.cells = [cell for one in study.edits for cell in self._cells(one)]
        # Errors are raised before the first trace, which may take hours.
        last = self.about.n_layers - 1
        if beyond := [layer for cell in self.cells for layer in cell.layers or () if layer > last]:
            raise UserError(
                f"[edit] layers: expected some of 0 to {last}, as in [{last}], or how many as a number, got {beyond[0]}"
            )
        if self._solved_layers():
            try:
                crew.ask(check_moments, study.moments)
            except UserError as error:
                raise UserError(f"[moments] {error}") from None

    def check(self, facts: Sequence[Fact]) -> None:
        """Raise UserError where a trace or an edit of these facts would be refused, and StoreError where the store has
        other counterfactuals of them. No pass runs."""
        for trace in self.study.traces:
            plan = self.crew.ask(prepare_trace, facts, settings=trace)
            self.store.check_contrasts(plan.run["run_id"], plan.contrasts)
        for cell in self.cells:
            self.crew.ask(check_edit, facts, cell)

    def run(self) -> list[Fact]:
        """Compute everything that the store lacks. Returns the facts studied."""
        facts = self.paired(self.known_facts())
        self.check(facts)
        self.runs["fact_ids"] = [fact.fact_id for fact in facts]
        for trace in self.study.traces:
            plan = self.crew.ask(prepare_trace, facts, settings=trace)
            if plan.unmeasured:
                self.say(f"    {_trace_name(trace)}: {len(plan.measured)} of {len(facts)} facts can be measured")
            self.runs["traces"].append([plan.run["run_id"], plan.contrasts.to_pylist()])
            only = self.crew.share(plan, self.shard)
            with self.bar(f"Tracing: {_trace_name(trace)}", len(facts) if only is None else len(only), "facts") as done:
                trace_into(self.store, plan, done, self.show, crew=self.crew, only=only)
        moments = self.second_moments()
        for cell in self.cells:
            edits = plan_edit(self.crew, facts, cell, moments=moments)
            self.runs["edits"].append([edits.run["run_id"], list(edits.layers)])
            only = self.crew.share(edits, self.shard)
            total = len(facts) * len(edits.layers) if only is None else len(only)
            with self.bar(f"Editing: {cell.problem}, {cell.method}", total, "edits") as done:
                edit_into(self.store, edits, done, crew=self.crew, only=only)
            if (why := reasons(self.store, edits)) is not None:
                self.say(f"    {cell.problem}, {cell.method}: {why}")
        return facts

    @property
    def shard(self) -> tuple[int, int] | None:
        """The share of every plan that is computed, None for all."""
        return self.study.settings.shard

    def paired(self, facts: Sequence[Fact]) -> list[Fact]:
        """`Study.paired` with the model's tokenizer."""
        return list(facts) if self.study.facts.pairs is None else self.study.paired(self.crew.ask(_tokenizer), facts)

    def known_facts(self) -> list[Fact]:
        """The facts to study: all facts, those that the model knows, or the first N of those."""
        facts, known = self.study.loaded.facts, self.study.facts.known
        if known is False:
            return facts
        enough = None if known is True else known
        with self.bar("Known facts", None if enough else len(facts), "facts") as done:
            verdicts = known_into(self.store, self.crew, facts, self.study.settings.protocol, done, enough=enough)
        self.runs["known"] = self.crew.ask(known_run, self.study.settings.protocol)["run_id"]
        self.runs["tested"] = [verdict["fact_id"] for verdict in verdicts]
        ids = {verdict["fact_id"] for verdict in verdicts if verdict["known"]}
        kept = [fact for fact in distinct(facts) if fact.fact_id in ids][:enough]
        self.say(f"    {len(ids)} of {len(verdicts)} tested facts are known; studying {len(kept)}")
        if not kept:
            raise UserError(
                f"of {count(len(verdicts), 'fact')} none is known to {self.study.settings.model}: nothing to study"
            )
        return kept

    def second_moments(self) -> Moments | None:
        """The second moments of every layer at which a method solves with them, or None where no method does."""
        layers = self._solved_layers()
        if not layers:
            return None
        with self.stages() as progress:
            moments: Moments = collect_moments(self.crew, replaced(self.study.moments, layers=layers), progress)
            return moments

    def plan(self) -> Iterator[Stage]:
        """Yield what `run` would do: counts, FLOPs, and the seconds expected at this machine's current rates.

        The store says which facts are known. A fact that it has no verdict on counts as known.
        """
        facts, known = self.study.loaded.facts, self.study.facts.known
        rate = self.crew.ask(block_rate)
        if known is not False:
            run_id = self.crew.ask(known_run, self.study.settings.protocol)["run_id"]
            sql = "SELECT fact_id, known FROM known WHERE run_id = ?"
            seen = {}
            if self.store.path.exists():
                seen = {row["fact_id"]: row["known"] for row in self.store.query(sql, [run_id]).to_pylist()}
            facts = [fact for fact in facts if seen.get(fact.fact_id, True)][: None if known is True else known]
            yield Stage("known facts", "facts", len(facts), sum(fact.fact_id in seen for fact in facts), 0.0, 0.0)
        facts = self.paired(facts)
        for trace in self.study.traces:
            plan = self.crew.ask(prepare_trace, facts, settings=trace)
            self.store.check_contrasts(plan.run["run_id"], plan.contrasts)
            cost = plan.cost()
            done = len(self.store.done(plan.run["run_id"]) & {fact.fact_id for fact in facts})
            flops = cost.wave_flops * (1 - done / len(facts))
            yield Stage(f"trace {_trace_name(trace)}", "facts", len(facts), done, flops, flops / rate)
        tokens, layers = self.study.moments.tokens, self._solved_layers()
        if layers:
            collected = self.crew.ask(planned_moments, self.study.moments, layers)
            flops = collected.flops + collected.sampling
            yield Stage("second moments", "tokens", tokens if collected.passes else 0, 0, flops, flops / rate)
        encoded = self.crew.ask(encoded_facts, facts)
        adam = self.crew.ask(adam_rate)
        for cell in self.cells:
            cost_of_cell = self.crew.ask(_cost, cell, encoded)
            done = self._edits_done(cell, {fact.fact_id for fact in facts})
            left = 1 - done / cost_of_cell.edits
            flops = cost_of_cell.flops * left
            seconds = flops / rate + cost_of_cell.adam * left / adam
            yield Stage(f"{cell.problem}, {cell.method}", "edits", cost_of_cell.edits, done, flops, seconds)

    def for_workers(self, workers: int) -> ForWorkers:
        """What the study takes of each of some workers."""
        asked = self.study.settings
        kept = FACTOR_BYTES if self._solved_layers() else 0
        memory = self.about.weights + parse_bytes(asked.memory) + kept
        return ForWorkers(workers, gpus_of(asked, asked.device), memory)

    def _edits_done(self, cell: EditSettings, ids: set[str]) -> int:
        """Number of edits of this method, problem and window size in the store, made with the study's model, dtype,
        protocol and seed. Contexts and hyperparameters are not compared, because they are not final before the edits
        are prepared."""
        if not self.store.path.exists():
            return 0
        same = {
            "method": cell.method,
            "problem": cell.problem,
            "window_size": cell.window_size,
            "model_hash": self.about.model_hash,
            "dtype": self.about.dtype,
            "edits.protocol": cell.protocol,
            "seed": cell.seed,
        }
        sql = f"SELECT DISTINCT fact_id, layer FROM edits JOIN runs USING (run_id) WHERE {' = ? AND '.join(same)} = ?"
        rows = self.store.query(sql, list(same.values())).to_pylist()
        return sum(row["fact_id"] in ids and row["layer"] in (cell.layers or ()) for row in rows)

    def _cells(self, table: EditTable) -> Iterator[EditSettings]:
        """Yield the settings of every method on every problem of a table, each once."""
        layers = self.about.edit_layers if table.layers is None else table.layers
        if isinstance(layers, int):
            last = self.about.n_layers - 1
            layers = sorted({round(i * last / max(layers - 1, 1)) for i in range(layers)})
        for problem in dict.fromkeys(table.problems):
            for method in dict.fromkeys(table.methods):
                own = method_settings(method, dict(table.set)) if table.set else None
                cell: dict[str, Any] = {"method": method, "problem": problem, "layers": layers, "hyperparameters": own}
                if method not in SOLVED:
                    cell["contexts"] = None  # of the table's other methods
                yield carried(EditSettings, table, **cell)

    def _solved_layers(self) -> list[int]:
        solved = [cell for cell in self.cells if reads_moments(cell.method, cell.hyperparameters)]
        return sorted(
            {
                at
                for cell in solved
                for layer in cell.layers or ()
                for at in window_of(cell.method, layer, cell.window_size, self.about.n_layers)
            }
        )


class _About(NamedTuple):
    """What a study asks about its model. edit_layers: those that are edited by default. weights: their bytes."""

    model_hash: str
    dtype: str
    n_layers: int
    edit_layers: tuple[int, ...]
    weights: int


def _about(model: Decoder) -> _About:
    layers = tuple(model.edit_layers())
    return _About(model.model_hash, model.dtype_name, model.n_layers, layers, weight_bytes(model))


def _tokenizer(model: Decoder) -> Any:
    return model.tokenizer


def _cost(model: Decoder, cell: EditSettings, facts: Sequence[EncodedFact]) -> EditCost:
    own = settings_for(model, cell.method, cell.problem, cell.protocol, cell.hyperparameters)
    return edit_cost(
        model,
        facts,
        cell.layers or (),
        own,
        method=cell.method,
        window_size=cell.window_size,
        contexts=len(cell.contexts) - 1 if isinstance(cell.contexts, Sequence) else cell.contexts or 0,
        essence=cell.essence,
        anew=cell.protocol == "released" and PROBLEMS[cell.problem].corrupted,
    )


def has_run(study: Study, store: "Store", runs: Mapping[str, Any]) -> bool:
    """Whether the store has everything that a study computed. runs: a `Runner`'s, after its `run`.

    Raises StoreError where the store has another fact under the fact_id of one that was studied.
    """
    if not store.path.exists():
        return False
    facts, ids = distinct(study.loaded.facts), runs["fact_ids"]
    of_test, studied = set(runs["tested"]), set(ids)
    tested = [fact for fact in facts if fact.fact_id in of_test]
    facts = [fact for fact in facts if fact.fact_id in studied]
    if study.facts.pairs is not None:
        asked = study.settings
        facts = study.paired(load_tokenizer(asked.model, asked.dtype, tokenizer=asked.tokenizer), facts)
    judged = any(edit.judge_url is not None for edit in study.edits)
    return (
        (not tested or known_stored(store, tested, runs["known"]) is not None)
        and all(has_traced(store, facts, run_id, contrasts) for run_id, contrasts in runs["traces"])
        and all(has_edited(store, facts, run_id, ids, layers) for run_id, layers in runs["edits"])
        and not (judged and any(store.failed_judgements(run_id) for run_id, _ in runs["edits"]))
    )


# What `write_results` writes beside the report.
_WRITTEN = ("tables/table-*", "tables/claims.*", "tables/beside-paper.*", "figures/figure-*")


def check_results(out: Path) -> None:
    """Raise UserError where `write_results` could not write."""
    for folder in (out, out / "tables", out / "figures"):
        check_folder(folder)
    check_file(out / "report.html", makes_folder=True)
    for pattern in _WRITTEN:
        for path in out.glob(pattern):
            check_replaceable(path)


def write_results(store: "Store", out: Path, model: str, protocol: str, window_size: int | None = None) -> list[Path]:
    """Write every table and figure that the store has data for, the paper's claims and the report. Returns their paths.

    model, protocol: whose results the claims are held to. out: the folder for all. window_size: tracing window in
    layers that edits are compared with; None: that of each edit.
    """
    from fasttrace.analysis.beside import beside_paper
    from fasttrace.analysis.claims import claims
    from fasttrace.analysis.figures import paper_figure, save
    from fasttrace.analysis.paper import COMPARED, FIGURES, TABLES, Numbered, coverage, what_is_missing
    from fasttrace.analysis.relation import asking_once
    from fasttrace.analysis.render import render
    from fasttrace.analysis.report import write_report
    from fasttrace.analysis.tables import paper_table

    def size(one: Numbered) -> int | None:
        return window_size if one.kind in COMPARED else None

    with asking_once():
        there = coverage(store)
        wanted, figures = (
            [(n, one, size(one)) for n, one in catalogue.items() if what_is_missing(there, one.at(size(one))) is None]
            for catalogue in (TABLES, FIGURES)
        )
        tables = {
            f"table-{n}": (f"Table {n}. {one.title}", paper_table(store, n, window_size=own)) for n, one, own in wanted
        }
        with suppress(StoreError):  # no edit of the model is traced
            tables["claims"] = (
                "The paper's claims, and what was found",
                claims(store, model=model, protocol=protocol, window_size=window_size),
            )
            # Not of several runs, as the claims then say.
            beside = beside_paper(store, model=model, protocol=protocol, window_size=window_size)
            tables["beside-paper"] = "The paper's Tables 1 to 6 beside this study", beside
        written = []
        for name, (title, table) in tables.items():
            for format, ending in (("markdown", "md"), ("csv", "csv")):
                path = out / "tables" / f"{name}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                with replacing(path) as draft:
                    draft.write_text(render(table, format, title=title), encoding="utf-8")
                written.append(path)
        for number, _, own in figures:
            figure = paper_figure(store, number, window_size=own)
            written.append(save(figure, out / "figures" / f"figure-{number}.svg"))
        return [*written, write_report(store, out / "report.html")]


def _trace_name(trace: TraceSettings) -> str:
    """A trace by what tells it from the others of a study."""
    kind = "" if trace.corruption == "noise" else f"{trace.corruption} "
    metric = "" if trace.metric == "probability" else f", {trace.metric}"
    return f"{kind}{trace.method} {trace.module} window {', '.join(map(str, trace.windows))}{metric}"
