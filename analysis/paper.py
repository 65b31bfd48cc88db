"""The paper's tables and figures by number, with the edits and effects that each needs and commands that make them.

To add a table or figure of the same kinds, add an entry here.
"""

import shlex
from dataclasses import dataclass, replace
from typing import Any

import pyarrow as pa

from fasttrace.errors import UserError, did_you_mean
from fasttrace.settings.trace import TraceSettings
from fasttrace.show.words import METRICS
from fasttrace.store import Readable

from .naming import LOCALIZATIONS, Row
from .relation import relation

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
    tokens: the tokens that a tracing run intervenes at. zsre: only edits of zsRE's facts in the form of the paper's
    experiments, or only edits of other data sets' facts. zsRE's bare form is in neither.
    model: part of the model's name, where the paper names a model.
    """

    problem: str | None = None
    method: str | None = None
    localization: str | None = "denoise"
    metric: str | None = "probability"
    tokens: str | None = None
    window_size: int | None = None
    effect_at: str = "max"
    subset: str = "all"
    zsre: bool = False
    model: str | None = None

    def choice(self) -> dict[str, Any]:
        """Keyword arguments of `regressions`, `certainty` and `regression_rows`."""
        names = ("problem", "method", "localization", "metric", "tokens", "window_size", "effect_at", "subset")
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
        wanted = {"problem": self.problem, "method": self.method}
        return (
            all(value in (None, row[name]) for name, value in wanted.items())
            and self._has_data_set(row["source"])
            and (self.model is None or self.model in row["model"])
            and all(row["essence" if score == WITH_ESSENCE else score] for score in scores)
        )

    def _has_data_set(self, source: str | None) -> bool:
        return source == ZSRE if self.zsre else source not in ZSRE_FORMS

    def of_traces(self, row: Row) -> bool:
        """Whether a row of trace_coverage matches these effects."""
        names = ("localization", "metric", "tokens", "window_size")
        return all(getattr(self, name) in (None, row[name]) for name in names) and (
            self.model is None or self.model in row["model"]
        )

    def commands(self, store: Readable) -> list[str]:
        """Command lines that make these traces and edits in this store, with … for values to choose."""
        facts = " --facts zsre_mend_eval.json" if self.zsre else ""
        model = f" --model {_FULL_NAMES.get(self.model, self.model)}" if self.model else ""
        path = next(iter(store.files.values()))
        file = "…" if path.is_dir() else shlex.quote(str(path))  # a folder of Parquet files is only read
        common = f"{model}{facts} --store {file}"
        trace = " ".join(["fasttrace trace", *_trace_options(self.localization, self.metric)])
        trace += f" --tokens {self.tokens}" if self.tokens else ""
        edit = "fasttrace edit --known"
        edit += f" --problem {self.problem}" if self.problem else " --problem …"
        edit += f" --method {self.method}" if self.method else " --method …"
        return [f"{trace} --windows {self.window_size or 5}{common}", f"{edit} --layers …{common}"]


COMPARED = ("r2", "errors", "bars", "scatter", "scatter-one")
"""Kinds of tables and figures that compare edits with tracing effects."""


@dataclass(frozen=True)
class Numbered:
    """A table or figure of the paper. kind: which function makes it. scores: the edit scores it shows, in order."""

    number: int
    kind: str
    title: str
    rows: RowFilter = RowFilter()
    scores: tuple[str, ...] = ("rewrite",)

    def at(
        self, window_size: int | None = None, localization: str | None = None, metric: str | None = None
    ) -> "Numbered":
        """The same with the effects of that tracing window, localization and metric.

        window_size: None changes nothing, and so does any window where the paper names one or no edit is compared with
        an effect. localization: None changes nothing, and so does any where the paper names another than denoising with
        noise, or nothing is traced. metric: None is the probability, or with a localization every metric.
        Raises UserError for an unknown localization or metric.
        """
        for name, value, known in (("localization", localization, LOCALIZATIONS), ("metric", metric, METRICS)):
            if value not in (None, *known):
                raise UserError(f"expected a {name} of {', '.join(known)}, got {value!r}{did_you_mean(value, known)}")
        rows, words = self.rows, []
        if window_size is not None and rows.window_size is None and self.kind in COMPARED:
            rows = replace(rows, window_size=window_size)
        if localization is not None and rows.localization == "denoise" and self.kind != "layers":
            rows, words = replace(rows, localization=localization, metric=None), [localization]
        if metric is not None and self.kind != "layers":
            rows, words = replace(rows, metric=metric), [*words, metric]
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
        Numbered(1, "peaks", "Layers where facts' tracing effects peak, window 5", RowFilter(window_size=5)),
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

    traces: rows of sql/trace_coverage.sql. edits: rows of sql/edit_coverage.sql.
    """

    store: Readable
    traces: list[Row]
    edits: list[Row]


def coverage(store: Readable) -> Coverage:
    """Read the coverage of a store."""
    return Coverage(store, relation(store, "trace_coverage").to_pylist(), relation(store, "edit_coverage").to_pylist())


def what_is_missing(there: Coverage, one: Numbered) -> str | None:
    """Why the store lacks the data for a table or figure, with commands that make the data. None if it has the data."""
    path, (trace, edit) = there.store.where, one.rows.commands(there.store)
    edits = [row for row in there.edits if one.rows.of_edits(row, one.scores)]
    traces = [row for row in there.traces if one.rows.of_traces(row)]
    if one.kind in ("peaks", "curve", "heatmap"):
        needed = [("tracing effects", traces, trace)]
    elif one.kind == "layers":
        needed = [("edits", edits, edit)]
    else:
        compared = {(row["model"], one.rows.window_size or row["window_size"]) for row in edits}
        traces = [row for row in traces if not edits or (row["model"], row["window_size"]) in compared]
        needed = [("tracing effects", traces, trace), ("edits", edits, edit)]
    absent = [(name, command) for name, found, command in needed if not found]
    if absent:
        try:
            TraceSettings(**_trace_settings(one.rows.localization, one.rows.metric))
        except UserError as error:
            return f"no trace can have such effects ({error})"
        names, commands = zip(*absent, strict=True)
        return f"no such {' and '.join(names)} are in {path}; make them with: {' ; '.join(commands)}"
    if one.rows.subset == "concentrated" and not any(row["concentrated"] for row in traces):
        return f"no fact traced in {path} has its effect concentrated in few layers; trace more facts with: {trace}"
    return None


def _trace_settings(localization: str | None, metric: str | None) -> dict[str, Any]:
    """The settings of such traces, where they differ from the defaults."""
    method = (localization or "denoise").removeprefix("counterfactual").removeprefix("-") or "denoise"
    found = {"corruption": "counterfactual"} if (localization or "").startswith("counterfactual") else {}
    found |= {"method": method} if method != "denoise" else {}
    return found | ({"metric": metric} if metric not in (None, "probability") else {})


def _trace_options(localization: str | None, metric: str | None) -> list[str]:
    """The options of `fasttrace trace` that make such traces."""
    asked = _trace_settings(localization, metric)
    pairs = ["--pairs"] if "corruption" in asked else []
    return pairs + [f"--{name} {value}" for name, value in asked.items()]


def _place(order: tuple[str, ...], name: str) -> int:
    return order.index(name) if name in order else len(order)
