"""The paper's tables and figures by number, with the edits and effects that each needs and commands that make them.

To add a table or figure of the same kinds, add an entry here.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Annotated, Any, TypedDict

import pyarrow as pa

from fasttrace.errors import UserError, did_you_mean
from fasttrace.settings.kinds import MOST_LAYERS, Bounds
from fasttrace.settings.trace import TraceSettings
from fasttrace.show.words import METRICS, title_of
from fasttrace.store import Readable

from .commands import store_name
from .naming import LOCALIZATIONS, MODULES, Row
from .relation import query, relation

PROBLEMS = ("error-injection", "tracing-reversal", "fact-erasure", "fact-amplification", "fact-forcing")
METHODS = ("ft-1", "ft-5", "rome", "memit")
ZSRE = "zsre"  # in the form of the paper's experiments, "Question: … Answer:"
ZSRE_FORMS = (ZSRE, "zsre-bare")
WITH_ESSENCE = "overall with essence"  # the mean of all four scores


@dataclass(frozen=True)
class RowFilter:
    """The edits and tracing effects of a table or figure. None selects every value, each in separate rows.

    window_size: tracing window in layers; None: the window of each edit, or every window where there are no edits.
    localization, metric: how a tracing run localizes facts, and what its effects are made of (sql/trace_runs.sql).
    module, tokens: whose outputs a tracing run replaces, and at which tokens. trace_run_id, edit_run_id: one run alone.
    zsre: only edits of zsRE's facts in the form of the paper's experiments, or only edits of other data sets' facts.
    zsRE's bare form is in neither.
    model: part of the model's name, where the paper names a model.
    """

    problem: str | None = None
    method: str | None = None
    localization: str | None = "denoise"
    metric: str | None = "probability"
    module: str | None = "mlp"
    tokens: str | None = None
    window_size: int | None = None
    trace_run_id: str | None = None
    edit_run_id: str | None = None
    effect_at: str = "max"
    subset: str = "all"
    zsre: bool = False
    model: str | None = None

    def choice(self) -> dict[str, Any]:
        """Keyword arguments of `regressions`, `certainty` and `regression_rows`."""
        names = ("problem", "method", *OF_TRACES, "edit_run_id", "effect_at", "subset")
        return {name: getattr(self, name) for name in names}

    def kept(self, table: pa.Table) -> pa.Table:
        """The rows of a table of regressions for this data set and model, in the paper's order.

        Regressions without a row, as of two runs without a common fact, are left out.
        """
        rows = [
            row
            for row in table.to_pylist()
            if self._has_data_set(row["source"])
            and (self.model is None or self.model in row["model"])
            and row.get("n", 1) > 0
        ]
        rows.sort(key=lambda row: (_place(PROBLEMS, row["problem"]), _place(METHODS, row["method"])))
        return pa.Table.from_pylist(rows, schema=table.schema)

    def of_edits(self, row: Row, scores: tuple[str, ...]) -> bool:
        """Whether a row of edit_coverage matches these edits and has all the scores."""
        wanted = {"problem": self.problem, "method": self.method, "edit_run_id": self.edit_run_id}
        return (
            all(value in (None, row[name]) for name, value in wanted.items())
            and self._has_data_set(row["source"])
            and (self.model is None or self.model in row["model"])
            and all(row["essence" if score == WITH_ESSENCE else score] for score in scores)
        )

    def _has_data_set(self, source: str | None) -> bool:
        return source == ZSRE if self.zsre else source not in ZSRE_FORMS

    def of_traces(self, row: Row) -> bool:
        """Whether a row of trace_coverage, or of a query over tracing runs, matches these effects."""
        return all(getattr(self, name) in (None, row[name]) for name in OF_TRACES) and (
            self.model is None or self.model in row["model"]
        )

    def commands(self, store: Readable) -> list[str]:
        """Command lines that make these traces and edits in this store, with … for values to choose."""
        facts = " --facts zsre_mend_eval.json" if self.zsre else ""
        model = f" --model {_FULL_NAMES.get(self.model, self.model)}" if self.model else ""
        common = f"{model}{facts} --store {store_name(store)}"
        trace = " ".join(["fasttrace trace", *_trace_options(self.localization, self.metric, self.module)])
        trace += f" --tokens {self.tokens}" if self.tokens else ""
        edit = "fasttrace edit --known"
        edit += f" --problem {self.problem}" if self.problem else " --problem …"
        edit += f" --method {self.method}" if self.method else " --method …"
        return [f"{trace} --windows {self.window_size or 5}{common}", f"{edit} --layers …{common}"]


COMPARED = ("r2", "errors", "bars", "scatter", "scatter-one")
"""Kinds of tables and figures that compare edits with tracing effects."""
TRACED = ("heatmap", "peaks", "curve")
"""Kinds of figures that show tracing effects alone."""
OF_TRACES = ("localization", "metric", "module", "tokens", "window_size", "trace_run_id")
"""The columns by which tracing effects are chosen."""


class Effects(TypedDict, total=False):
    """Keywords that choose the tracing effects of a table or figure. None: the table's or figure's own.

    window_size: tracing window in layers; own: the window of each edit, and where no edits are shown every window.
    localization: how the traces localize facts, such as "counterfactual" or "zero"; own: mostly denoising with noise.
    metric: what their effects are made of; own: the probability, or with a localization every metric, in rows of its
    own. module: whose outputs they replace; own: the MLPs'. run: id of a tracing run or of an editing run, or the start
    of one; own: every run, each in rows of its own.
    """

    window_size: Annotated[int | None, Bounds(1, most=MOST_LAYERS)]
    localization: str | None
    metric: str | None
    module: str | None
    run: str | None


@dataclass(frozen=True)
class Numbered:
    """A table or figure of the paper. kind: which function makes it. scores: the edit scores it shows, in order."""

    number: int
    kind: str
    title: str
    rows: RowFilter = RowFilter()
    scores: tuple[str, ...] = ("rewrite",)

    def at(
        self,
        window_size: int | None = None,
        localization: str | None = None,
        metric: str | None = None,
        module: str | None = None,
        trace_run_id: str | None = None,
        edit_run_id: str | None = None,
    ) -> "Numbered":
        """The same with the effects of that tracing window, localization, metric, module and run (`Effects`; `run_of`
        says which kind of run an id is of).

        window_size: changes nothing where the paper names one and edits are compared with it, or where nothing is
        traced. localization: changes nothing where the paper names another than denoising with noise, or nothing is
        traced. The others change nothing where nothing is traced, and edit_run_id nothing where nothing is edited.
        Raises UserError for an unknown localization, metric or module.
        """
        for name, value, known in (
            ("localization", localization, LOCALIZATIONS),
            ("metric", metric, METRICS),
            ("module", module, MODULES),
        ):
            if value not in (None, *known):
                raise UserError(f"expected a {name} of {', '.join(known)}, got {value!r}{did_you_mean(value, known)}")
        rows, words = self.rows, []
        if self.kind not in TRACED:
            rows = replace(rows, edit_run_id=edit_run_id)
        if self.kind == "layers":
            return replace(self, rows=rows)
        if window_size is not None and (rows.window_size is None or self.kind in TRACED):
            rows = replace(rows, window_size=window_size)
            words += [f"window {window_size}"] if self.kind in TRACED else []
        if localization is not None and rows.localization == "denoise":
            rows, words = replace(rows, localization=localization, metric=None), [*words, localization]
        if metric is not None:
            rows, words = replace(rows, metric=metric), [*words, metric]
        if module is not None:
            rows, words = replace(rows, module=module), [*words, module]
        if trace_run_id is not None:
            rows, words = replace(rows, trace_run_id=trace_run_id), [*words, f"run {trace_run_id[:8]}"]
        return replace(self, rows=rows, title=", ".join([self.title, *words]))


_ROME = RowFilter(problem="error-injection", method="rome")
_INJECTION = RowFilter(problem="error-injection")
_ZEROED = replace(_ROME, localization="zero", tokens="whole-subject")  # Appendix B zeroes all subject tokens at once
_FULL_NAMES = {"gpt2-xl": "openai-community/gpt2-xl"}  # for commands

TABLES = {
    one.number: one
    for one in (
        Numbered(1, "r2", "R² of ROME's rewrite score, error injection", _ROME),
        Numbered(
            2,
            "r2",
            "R² of the rewrite score, facts with concentrated tracing effects",
            RowFilter(subset="concentrated"),
        ),
        Numbered(3, "r2", "R² of the rewrite score"),
        Numbered(4, "r2", "R² of the paraphrase score", scores=("paraphrase",)),
        Numbered(5, "r2", "R² of the neighborhood score", scores=("neighborhood",)),
        Numbered(6, "r2", "R² of the overall score", scores=("overall",)),
        Numbered(7, "errors", "Errors of ROME's regressions, error injection", _ROME, ("rewrite", "overall")),
        Numbered(
            8, "errors", "Errors of ROME's regressions on zsRE", replace(_ROME, zsre=True), ("rewrite", "overall")
        ),
    )
}

FIGURES = {
    one.number: one
    for one in (
        # Section 3.2: a tracing window of 5 by default.
        Numbered(1, "peaks", "Layers where facts' tracing effects peak", RowFilter(window_size=5)),
        Numbered(2, "heatmap", "Tracing grid of one fact"),
        Numbered(4, "scatter-one", "ROME's rewrite score against the tracing effect at one layer", _ROME),
        Numbered(6, "bars", "R² of the rewrite score by problem and method"),
        Numbered(7, "layers", "Scores by edited layer", _INJECTION, ("rewrite", "paraphrase", "neighborhood")),
        Numbered(8, "layers", "Essence score by edited layer", _INJECTION, ("essence",)),
        Numbered(
            9,
            "layers",
            "Overall score by edited layer, without and with essence",
            _INJECTION,
            ("overall", WITH_ESSENCE),
        ),
        Numbered(10, "curve", "Mean tracing effect by layer and window"),
        Numbered(11, "peaks", "Layers where facts' tracing effects peak, by window"),
        Numbered(12, "bars", "R² of the rewrite score, tracing window 10", RowFilter(window_size=10)),
        # Appendix C: GPT2-XL is traced with a window of 10.
        Numbered(13, "bars", "R² of the rewrite score, GPT2-XL, window 10", RowFilter(model="gpt2-xl", window_size=10)),
        Numbered(
            14,
            "scatter-one",
            "Rewrite magnitude against the absolute effect at the last subject token, one layer",
            replace(_ROME, effect_at="last-subject-absolute"),
            ("magnitude",),
        ),
        Numbered(15, "scatter", "ROME's rewrite score against the tracing effect, layer by layer", _ROME),
        Numbered(
            16,
            "scatter",
            "ROME's rewrite score against the effect at the last subject token",
            replace(_ROME, effect_at="last-subject"),
        ),
        Numbered(
            17,
            "scatter",
            "Fact forcing with FT-5: rewrite score against the tracing effect",
            RowFilter(problem="fact-forcing", method="ft-5"),
        ),
        Numbered(18, "scatter", "ROME's overall score against the tracing effect", _ROME, ("overall",)),
        Numbered(19, "scatter", "zsRE: ROME's rewrite score against the tracing effect", replace(_ROME, zsre=True)),
        Numbered(
            20,
            "scatter",
            "zsRE: ROME's overall score against the tracing effect",
            replace(_ROME, zsre=True),
            ("overall",),
        ),
        Numbered(21, "scatter", "ROME's rewrite score against the effect of zeroing", _ZEROED),
        Numbered(22, "scatter", "ROME's overall score against the effect of zeroing", _ZEROED, ("overall",)),
    )
}
ILLUSTRATIONS = {3: "an example of CounterFact", 5: "a drawing of the editing problems"}


def table_numbered(number: int) -> Numbered:
    """The paper's table of that number. Raises UserError where there is none."""
    if number not in TABLES:
        raise UserError(f"expected a table of the paper, one of {', '.join(map(str, TABLES))}, got {number}")
    return TABLES[number]


def figure_numbered(number: int) -> Numbered:
    """The paper's figure of that number. Raises UserError where there is none that shows results."""
    if number in ILLUSTRATIONS:
        raise UserError(f"Figure {number} of the paper is {ILLUSTRATIONS[number]}: there are no results in it to draw")
    if number not in FIGURES:
        raise UserError(f"expected a figure of the paper, one of {', '.join(map(str, FIGURES))}, got {number}")
    return FIGURES[number]


@dataclass(frozen=True)
class Coverage:
    """The data that a store has for tables and figures, read once.

    traces: rows of sql/trace_coverage.sql. edits: rows of sql/edit_coverage.sql. n_traced: facts of tracing runs, also
    those that have no effect.
    """

    store: Readable
    traces: list[Row]
    edits: list[Row]
    n_traced: int


def coverage(store: Readable) -> Coverage:
    """Read the coverage of a store."""
    [traced] = query(store.once(), "SELECT count(*) AS n FROM traces").to_pylist()
    traces, edits = (relation(store, name).to_pylist() for name in ("trace_coverage", "edit_coverage"))
    return Coverage(store, traces, edits, traced["n"])


def heatmap_window(sizes: Sequence[int]) -> int:
    """The window of Figure 2, of those that there are: the largest of at most 10, the window of Meng et al."""
    return max((size for size in sizes if size <= 10), default=min(sizes))


def compared_traces(there: Coverage, one: Numbered) -> list[Row]:
    """The rows of trace_coverage with effects of a table or figure, of which those that no edit of it is compared with
    are left out, and of a heatmap those of other windows."""
    traces = [row for row in there.traces if one.rows.of_traces(row)]
    if one.kind == "heatmap" and traces:
        window = heatmap_window([row["window_size"] for row in traces])
        return [row for row in traces if row["window_size"] == window]
    edits = [row for row in there.edits if one.rows.of_edits(row, one.scores)]
    if one.kind in TRACED or not edits:
        return traces
    compared = {(row["model"], one.rows.window_size or row["window_size"]) for row in edits}
    return [row for row in traces if (row["model"], row["window_size"]) in compared]


def what_is_missing(there: Coverage, one: Numbered) -> str | None:
    """Why the store lacks the data for a table or figure, with commands that make the data. None if it has the data."""
    path, (trace, edit) = there.store.where, one.rows.commands(there.store)
    edits = [row for row in there.edits if one.rows.of_edits(row, one.scores)]
    traces = compared_traces(there, one)
    if one.kind in TRACED:
        needed = [("tracing effects", traces, trace)]
    elif one.kind == "layers":
        needed = [("edits", edits, edit)]
    else:
        needed = [("tracing effects", traces, trace), ("edits", edits, edit)]
    absent = [(name, command) for name, found, command in needed if not found]
    if absent:
        try:
            TraceSettings(**_trace_settings(one.rows.localization, one.rows.metric, one.rows.module))
        except UserError as error:
            return f"no trace can have such effects ({error})"
        names, commands = zip(*absent, strict=True)
        if not there.traces and there.n_traced:
            why = "see reason in the relation traces, and whether p_noised is below p_clean"
            return f"no fact traced in {path} has a tracing effect ({why}); trace more facts with: {trace}"
        has = f" (which has traces of {ways_text(there.traces)})" if not traces and there.traces else ""
        return f"no such {' and '.join(names)} are in {path}{has}; make them with: {' ; '.join(commands)}"
    if one.rows.subset == "concentrated" and not any(row["concentrated"] for row in traces):
        return f"no fact traced in {path} has its effect concentrated in few layers; trace more facts with: {trace}"
    return None


def ways_text(traces: Sequence[Row]) -> str:
    """The ways in which facts were traced, such as "mlp by denoise (windows 5 and 10) and attn by zero (window 5)".

    traces: rows of trace_coverage. A model, a metric and tokens are named where rows differ in them or are not the
    paper's.
    """
    models = {row["model"] for row in traces}
    windows: dict[str, set[int]] = {}
    for row in sorted(traces, key=lambda row: (MODULES.index(row["module"]), LOCALIZATIONS.index(row["localization"]))):
        words = [f"{row['module']} by {row['localization']}"]
        words += [f"in {row['metric']}"] if row["metric"] != "probability" else []
        words += [f"of {title_of(row['model'])}"] if len(models) > 1 else []
        windows.setdefault(" ".join(words), set()).add(row["window_size"])
    said = [f"{way} (window{'s' * (len(sizes) > 1)} {_and(sorted(sizes))})" for way, sizes in windows.items()]
    if len(said) > MOST_WAYS + 1:
        said[MOST_WAYS:] = [f"{len(said) - MOST_WAYS} others"]
    return _and(said)


MOST_WAYS, MOST_RUNS = 5, 8  # that a sentence lists


def _and(words: Sequence[Any]) -> str:
    *most, last = map(str, words)
    return f"{', '.join(most)} and {last}" if most else last


def run_of(store: Readable, run: str | None, kinds: Sequence[str] = ("trace", "edit", "mass")) -> dict[str, Any]:
    """The arguments of `Numbered.at` that choose a run: of a tracing run also how it traced.

    run: the id of a run of these kinds, or the start of one. None: {}.
    Raises UserError where the store has no such run, or several whose ids start so.
    """
    if run is None:
        return {}
    there = [row for row in relation(store, "all_runs").to_pylist() if row["kind"] in kinds]
    found = [row for row in there if row["run_id"] == run] or [row for row in there if row["run_id"].startswith(run)]
    if len(found) != 1:
        listed = [f"{row['run_id']} ({row['kind']})" for row in found or there]
        if len(listed) > MOST_RUNS + 1:
            listed[MOST_RUNS:] = [f"{len(listed) - MOST_RUNS} others"]
        if not there:
            raise UserError(f"run: expected a run of kind {' or '.join(kinds)}, got {run!r}: {store.where} has none")
        what = f"expected the id of one run in {store.where}, one of {', '.join(listed)}"
        raise UserError(f"{what}, got {run!r}{', which several begin with' if found else ''}")
    [one] = found
    if one["kind"] != "trace":
        return {"edit_run_id": one["run_id"]}
    [how] = query(store.once(), _HOW, [one["run_id"]]).to_pylist()
    return {"trace_run_id": one["run_id"], **how}


_HOW = "SELECT localization, metric, module FROM trace_runs WHERE run_id = ?"


def chosen(store: Readable, effects: Effects, kinds: Sequence[str] = ("trace", "edit", "mass")) -> dict[str, Any]:
    """The arguments of `Numbered.at` for the effects that a caller asks for. kinds: of runs, as for `run_of`.

    Raises UserError as `run_of`, and where the run has other effects than are asked for.
    """
    asked: dict[str, Any] = {name: value for name, value in effects.items() if value is not None}
    own = run_of(store, run := asked.pop("run", None), kinds)
    for name in own.keys() & asked.keys():
        if own[name] != asked[name]:
            raise UserError(f"{name}: expected {own[name]}, as run {run} has it, or no run, got {asked[name]}")
    return own | asked


def others_text(there: Coverage, shown: Sequence[Numbered]) -> str | None:
    """Which effects tables or figures show, and which others the store has. None where it has no others."""
    traced = [one for one in shown if one.kind != "layers"]
    used = [row for row in there.traces if any(row in compared_traces(there, one) for one in traced)]
    kinds = {_kind(row) for row in used}
    others = [row for row in there.traces if _kind(row) not in kinds]
    if not used or not others:
        return None
    return f"shown: traces of {ways_text(used)}; the store also has {ways_text(others)}"


def _kind(row: Row) -> tuple[Any, ...]:
    """What tells the traces of a row from others, but for their run."""
    return tuple(row[name] for name in ("model", *OF_TRACES) if name != "trace_run_id")


def _trace_settings(localization: str | None, metric: str | None, module: str | None) -> dict[str, Any]:
    """The settings of such traces, where they differ from the defaults."""
    method = (localization or "denoise").removeprefix("counterfactual").removeprefix("-") or "denoise"
    found = {"corruption": "counterfactual"} if (localization or "").startswith("counterfactual") else {}
    found |= {"method": method} if method != "denoise" else {}
    found |= {"module": module} if module not in (None, "mlp") else {}
    return found | ({"metric": metric} if metric not in (None, "probability") else {})


def _trace_options(*asked: str | None) -> list[str]:
    """The options of `fasttrace trace` that make such traces. asked: as for `_trace_settings`."""
    settings = _trace_settings(*asked)
    pairs = ["--pairs"] if "corruption" in settings else []
    return pairs + [f"--{name} {value}" for name, value in settings.items()]


def _place(order: tuple[str, ...], name: str) -> int:
    return order.index(name) if name in order else len(order)
