"""A study from one file: facts, traces, second moments, edits, tables, figures and report, resumable at every step.

The shipped ones are in studies/: the paper's two, one for SmolLM2, and the demo.
"""

import difflib
import tomllib
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from importlib.resources import files
from itertools import zip_longest
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fasttrace.editing import prepare_edit, second_moments
from fasttrace.editing.cost import EditCost, adam_rate, edit_cost
from fasttrace.editing.edit import DEFAULT_CONTEXTS, DEFAULT_WINDOW
from fasttrace.editing.essence import TEXTS
from fasttrace.editing.hyperparameters import METHODS, settings_for, window_of
from fasttrace.editing.moments import DEFAULT_TOKENS, Moments
from fasttrace.editing.problems import PROBLEMS
from fasttrace.errors import UserError
from fasttrace.facts import Fact, distinct, encode_fact, load_facts
from fasttrace.models import DEFAULT_MODEL
from fasttrace.models.adapter import Decoder
from fasttrace.places import check_file, check_folder
from fasttrace.tracing import prepare_trace
from fasttrace.tracing.cost import block_rate, linear_flops
from fasttrace.tracing.known import known_run
from fasttrace.tracing.sweep import DEFAULT_MEMORY
from fasttrace.workflow import edit_into, known_into, trace_into

if TYPE_CHECKING:
    from fasttrace.store import Store

Bar = Callable[[str, int | None], AbstractContextManager[Callable[[int], None]]]
Stages = Callable[[], AbstractContextManager[Callable[[str, int, int], None]]]
Say = Callable[[str], None]

SOLVED = ("rome", "memit")  # methods that solve with second moments, which the cache folder keeps

_TEXT, _TEXTS, _FLAG = "a text", "a list of texts", "true or false"
_NUMBER, _NUMBERS, _SHARE = "a whole number", "a list of whole numbers", "a number"
_KNOWN, _SIGMA, _LAYERS = "true, false or a whole number", "a number or a text", "a list of layers, or how many"
# What each table of a study file may hold, and of what kind.
KEYS: dict[str, dict[str, str]] = {
    "study": {
        "model": _TEXT, "dtype": _TEXT, "device": _TEXT, "protocol": _TEXT, "seed": _NUMBER, "memory": _TEXT,
        "facts": "a table", "trace": "tables", "moments": "a table", "edit": "tables",
    },
    "facts": {"file": _TEXT, "relation": _TEXT, "limit": _NUMBER, "known": _KNOWN, "order": _TEXT},
    "trace": {
        "windows": _NUMBERS, "samples": _NUMBER, "noise": _TEXT, "sigma": _SIGMA, "module": _TEXT,
        "method": _TEXT, "tokens": _TEXT, "target": _TEXT, "verify_top": _NUMBER, "keep_samples": _FLAG,
    },
    "moments": {"corpus": _TEXT, "tokens": _NUMBER, "ridge": _SHARE},
    "edit": {
        "methods": _TEXTS, "problems": _TEXTS, "layers": _LAYERS, "window_size": _NUMBER,
        "contexts": _NUMBER, "essence": _NUMBER, "sigma": _SIGMA, "noise": _TEXT, "noise_sample": _NUMBER,
        "set": "a table",
    },
}  # fmt: skip


@dataclass(frozen=True)
class Study:
    """A study file, checked. facts, moments: its tables; traces, edits: one dict a [[trace]] or [[edit]]."""

    name: str
    model: str = DEFAULT_MODEL
    dtype: str = "float32"
    device: str = "cpu"
    protocol: str = "paper"
    seed: int = 0
    memory: str = DEFAULT_MEMORY
    facts: dict[str, Any] = field(default_factory=dict)
    moments: dict[str, Any] = field(default_factory=dict)
    traces: tuple[dict[str, Any], ...] = ()
    edits: tuple[dict[str, Any], ...] = ()

    @property
    def uses_cache(self) -> bool:
        """True where some edit needs second moments, sampled contexts or essence texts: the cache folder keeps them."""
        return any({*one.get("methods", ["rome"])} & {*SOLVED} or one.get("essence", TEXTS) for one in self.edits)


@dataclass(frozen=True)
class EditCell:
    """One method on one problem: keyword arguments of `prepare_edit`, its hyperparameters apart."""

    method: str
    problem: str
    layers: tuple[int, ...]
    options: dict[str, Any]
    overrides: dict[str, Any]


@dataclass(frozen=True)
class Stage:
    """A line of `--dry-run`. done: of total, what the store has; seconds: expected, of all that is not done."""

    what: str
    unit: str
    total: int
    done: int
    flops: float
    seconds: float


def shipped() -> list[str]:
    """Names of the studies that come with fasttrace."""
    found = (file.name for file in files("fasttrace.studies").iterdir())
    return sorted(name.removesuffix(".toml") for name in found if name.endswith(".toml"))


def load_study(source: str) -> Study:
    """A study by the path of its .toml file, or by the name of a shipped one.

    Raises UserError, naming the file and the key, where it is missing, no TOML, or has an unknown or wrong key.
    """
    path = Path(source)
    if path.suffix == ".toml":
        if not path.is_file():
            raise UserError(f"there is no study file '{source}'; shipped are {', '.join(shipped())}")
        text, name = path.read_bytes(), path.stem
    elif source in shipped():
        text, name = (files("fasttrace.studies") / f"{source}.toml").read_bytes(), source
    else:
        raise UserError(f"'{source}' is neither a .toml file nor a shipped study, {', '.join(shipped())}")
    try:
        raw = tomllib.loads(text.decode("utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"study file '{source}' is not TOML: {error}") from error
    _check(source, "study", raw)
    for part in ("facts", "moments"):
        _check(source, part, raw.get(part, {}))
    for part in ("trace", "edit"):
        for one in raw.get(part, []):
            _check(source, part, one)
    for one in raw.get("edit", []):
        for key, known in (("methods", METHODS), ("problems", tuple(PROBLEMS))):
            wrong = [value for value in one.get(key, []) if value not in known]
            if wrong:
                raise UserError(
                    f"study file '{source}': [edit] {key} has {wrong[0]!r}, some of {', '.join(known)} were wanted"
                )
    order = raw.get("facts", {}).get("order", "given")
    if order not in ("given", "interleaved"):
        raise UserError(f"study file '{source}': [facts] order is {order!r}, given or interleaved was wanted")
    plain = {key: value for key, value in raw.items() if key not in ("trace", "edit")}
    return Study(name=name, **plain, traces=tuple(raw.get("trace", [])), edits=tuple(raw.get("edit", [])))


def _check(source: str, part: str, table: Any) -> None:
    known = KEYS[part]
    for key, value in table.items():
        if key not in known:
            near = difflib.get_close_matches(key, known, 1)
            hint = f"; did you mean {near[0]}?" if near else f"; there are {', '.join(known)}"
            raise UserError(f"study file '{source}': [{part}] has no key '{key}'{hint}")
        if not _is(value, known[key]):
            raise UserError(f"study file '{source}': [{part}] {key} is {value!r}, {known[key]} was wanted")


def _is(value: Any, kind: str) -> bool:
    whole = isinstance(value, int) and not isinstance(value, bool)
    listed = isinstance(value, list) and bool(value)
    numbers = listed and all(isinstance(one, int) and not isinstance(one, bool) for one in value)
    return {
        _TEXT: isinstance(value, str),
        _NUMBER: whole,
        _NUMBERS: numbers,
        _SHARE: whole or isinstance(value, float),
        _TEXTS: listed and all(isinstance(one, str) for one in value),
        _FLAG: isinstance(value, bool),
        _KNOWN: isinstance(value, bool) or (whole and value > 0),
        _SIGMA: whole or isinstance(value, float | str),
        _LAYERS: numbers or (whole and value > 0),
        "a table": isinstance(value, dict),
        "tables": listed and all(isinstance(one, dict) for one in value),
    }[kind]


class Runner:
    """A study on a model and a store. bar, stages: progress; say: one line for the user."""

    def __init__(self, study: Study, store: "Store", model: Decoder, bar: Bar, stages: Stages, say: Say) -> None:
        self.study, self.store, self.model = study, store, model
        self.bar, self.stages, self.say = bar, stages, say
        self.cells = [cell for one in study.edits for cell in self._cells(one)]
        for cell in self.cells:  # complains before anything is computed
            settings_for(model, cell.method, cell.problem, study.protocol, cell.overrides)

    def run(self) -> list[Fact]:
        """Everything the store lacks; returns the facts studied."""
        facts = self.known_facts()
        for trace in self.study.traces:
            plan = self._trace(facts, trace)
            with self.bar(f"Tracing: {_trace_name(trace)}", len(facts)) as done:
                trace_into(self.store, plan, self.study.memory, done)
        moments = self.second_moments()
        for cell in self.cells:
            plan = prepare_edit(
                self.model, facts, method=cell.method, problem=cell.problem, layers=cell.layers, moments=moments,
                seed=self.study.seed, protocol=self.study.protocol, **cell.options, **cell.overrides,
            )  # fmt: skip
            with self.bar(f"Editing: {cell.problem}, {cell.method}", len(facts) * len(cell.layers)) as done:
                edit_into(self.store, plan, self.study.memory, done)
        return facts

    def loaded_facts(self) -> list[Fact]:
        """The facts of the file, in the study's order."""
        chosen = self.study.facts
        facts = load_facts(chosen.get("file"), relation=chosen.get("relation"), limit=chosen.get("limit"))
        return interleaved(facts) if chosen.get("order") == "interleaved" else facts

    def known_facts(self) -> list[Fact]:
        """The facts to study: all, all the model knows, or the first so many of those."""
        facts, known = self.loaded_facts(), self.study.facts.get("known", True)
        if known is False:
            return facts
        enough = None if known is True else known
        with self.bar("Known facts", None if enough else len(facts)) as done:
            verdicts = known_into(self.store, self.model, facts, self.study.protocol, done, enough=enough)
        ids = {verdict["fact_id"] for verdict in verdicts if verdict["known"]}
        kept = [fact for fact in facts if fact.fact_id in ids][:enough]
        self.say(f"    {len(ids)} of {len(verdicts)} facts looked at are known; studying {len(kept)}")
        if not kept:
            raise UserError(f"none of the {len(verdicts)} facts is known to {self.study.model}: nothing to study")
        return kept

    def second_moments(self) -> Moments | None:
        """Of the layers that some method solves at; None where no method needs any."""
        layers = self._solved_layers()
        if not layers:
            return None
        with self.stages() as progress:
            return second_moments(
                self.model, self.study.moments.get("corpus"), tokens=self.study.moments.get("tokens", DEFAULT_TOKENS),
                layers=layers, seed=self.study.seed, ridge=self.study.moments.get("ridge", 0.0), progress=progress,
            )  # fmt: skip

    def plan(self) -> Iterator[Stage]:
        """What `run` would do, without doing it: counts, FLOPs, and seconds at this machine's rates now.

        Which facts are known is taken from the store; the others are taken to be.
        """
        facts, known = self.loaded_facts(), self.study.facts.get("known", True)
        rate = block_rate(self.model)
        if known is not False:
            run_id = known_run(self.model, self.study.protocol)["run_id"]
            sql = "SELECT fact_id, known FROM known WHERE run_id = ?"
            seen = {}
            if self.store.path.exists():
                seen = {row["fact_id"]: row["known"] for row in self.store.query(sql, [run_id]).to_pylist()}
            facts = [fact for fact in facts if seen.get(fact.fact_id, True)][: None if known is True else known]
            yield Stage("known facts", "facts", len(facts), sum(fact.fact_id in seen for fact in facts), 0.0, 0.0)
        for trace in self.study.traces:
            plan = self._trace(facts, trace)
            cost = plan.cost(self.study.memory)
            done = len(self.store.done(plan.run["run_id"]) & {fact.fact_id for fact in facts})
            flops = cost.wave_flops * (1 - done / len(facts))
            yield Stage(f"trace {_trace_name(trace)}", "facts", len(facts), done, flops, flops / rate)
        tokens, layers = self.study.moments.get("tokens", DEFAULT_TOKENS), self._solved_layers()
        if layers:
            keys = sum(sum(linear_flops(self.model, block)) for block in self.model.blocks)
            flops = float(tokens) * (keys + len(layers) * self.model.key_width**2)
            flops *= 1 if self.study.moments.get("corpus") else 2  # the model samples its text first
            yield Stage("second moments", "tokens", tokens, 0, flops, flops / rate)
        encoded = [encode_fact(self.model.tokenizer, fact) for fact in distinct(facts)]
        adam = adam_rate(self.model)
        for cell in self.cells:
            cost_of_cell: EditCost = edit_cost(
                self.model, encoded, cell.layers,
                settings_for(self.model, cell.method, cell.problem, self.study.protocol, cell.overrides),
                method=cell.method, window_size=cell.options.get("window_size", DEFAULT_WINDOW),
                contexts=cell.options.get("contexts", DEFAULT_CONTEXTS), essence=cell.options.get("essence", TEXTS),
            )  # fmt: skip
            done = self._edits_done(cell, {fact.fact_id for fact in facts})
            left = 1 - done / cost_of_cell.edits
            flops = cost_of_cell.flops * left
            seconds = flops / rate + cost_of_cell.adam * left / adam
            yield Stage(f"{cell.problem}, {cell.method}", "edits", cost_of_cell.edits, done, flops, seconds)

    def _edits_done(self, cell: EditCell, ids: set[str]) -> int:
        """Edits of this method and problem in the store, whatever their other settings: they are not settled yet."""
        if not self.store.path.exists():
            return 0
        sql = "SELECT DISTINCT fact_id, layer FROM edits WHERE method = ? AND problem = ?"
        rows = self.store.query(sql, [cell.method, cell.problem]).to_pylist()
        return sum(row["fact_id"] in ids and row["layer"] in cell.layers for row in rows)

    def _trace(self, facts: Sequence[Fact], trace: dict[str, Any]) -> Any:
        # keep: which facts to study is settled before.
        return prepare_trace(
            self.model, facts, keep="all", protocol=self.study.protocol, seed=self.study.seed, **trace
        )

    def _cells(self, one: dict[str, Any]) -> Iterator[EditCell]:
        layers = one.get("layers", self.model.edit_layers())
        if isinstance(layers, int):
            last = self.model.n_layers - 1
            layers = sorted({round(i * last / max(layers - 1, 1)) for i in range(layers)})
        names = ("window_size", "contexts", "essence", "sigma", "noise", "noise_sample")
        options = {name: one[name] for name in names if name in one}
        for problem in one.get("problems", ["error-injection"]):
            for method in one.get("methods", ["rome"]):
                yield EditCell(method, problem, tuple(layers), options, one.get("set", {}))

    def _solved_layers(self) -> list[int]:
        solved = [cell for cell in self.cells if cell.method in SOLVED]
        return sorted(
            {
                at
                for cell in solved
                for layer in cell.layers
                for at in window_of(
                    cell.method, layer, cell.options.get("window_size", DEFAULT_WINDOW), self.model.n_layers
                )
            }
        )


def interleaved(facts: Sequence[Fact]) -> list[Fact]:
    """The facts in turn from each relation, so that a few of them cover many relations."""
    by_relation: dict[str | None, list[Fact]] = {}
    for fact in facts:
        by_relation.setdefault(fact.relation, []).append(fact)
    return [fact for turn in zip_longest(*by_relation.values()) for fact in turn if fact is not None]


def check_results(out: Path) -> None:
    """Raises UserError where `write_results` could not write."""
    for folder in (out, out / "tables", out / "figures"):
        check_folder(folder)
    check_file(out / "report.html", makes_folder=True)


def write_results(store: "Store", out: Path) -> list[Path]:
    """Every table, figure and the report that the store has data for, under `out`; returns their paths."""
    from fasttrace.analysis.figures import paper_figure, save
    from fasttrace.analysis.paper import FIGURES, TABLES, held, what_is_missing
    from fasttrace.analysis.render import render
    from fasttrace.analysis.report import write_report
    from fasttrace.analysis.tables import paper_table

    written, there = [], held(store)
    for number, one in TABLES.items():
        if what_is_missing(there, one) is None:
            table = paper_table(store, number)
            for format, ending in (("markdown", "md"), ("csv", "csv")):
                path = out / "tables" / f"table-{number}.{ending}"
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_text(render(table, format, title=f"Table {number}. {one.title}"), encoding="utf-8")
                written.append(path)
    for number, one in FIGURES.items():
        if what_is_missing(there, one) is None:
            written.append(save(paper_figure(store, number), out / "figures" / f"figure-{number}.svg"))
    return [*written, write_report(store, out / "report.html")]


def _trace_name(trace: dict[str, Any]) -> str:
    windows = ", ".join(map(str, trace.get("windows", [5])))
    words = [trace.get("method", "denoise"), trace.get("module", "mlp"), f"window {windows}"]
    return " ".join(words)
