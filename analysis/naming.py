"""Text of numbers and groups of results, for figures and sentences."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, get_args

from fasttrace.settings.trace import Module
from fasttrace.show.words import METRICS, title_of

Row = dict[str, Any]
Group = tuple[tuple[str, Any], ...]
GROUP = (
    "problem",
    "method",
    "protocol",
    "model",
    "module",
    "localization",
    "metric",
    "tokens",
    "window_size",
    "source",
)
RUNS = {"edit_run_id": "edit_run", "trace_run_id": "trace_run"}
"""The columns of run ids, and the columns that name the runs by the settings in which they differ (sql/run_names.sql).
Results of different runs are never pooled (regression.KEYS)."""

_EFFECTS = {
    "denoise": "tracing effect",
    "noise": "effect of noising",
    "zero": "effect of zeroing",
    "attribution": "estimated effect",
    "counterfactual": "counterfactual tracing effect",
    "counterfactual-noise": "effect of the counterfactual",
    "counterfactual-attribution": "estimated counterfactual effect",
}
LOCALIZATIONS = tuple(_EFFECTS)
"""How tracing runs localize facts, as sql/trace_runs.sql names it."""
MODULES: tuple[str, ...] = get_args(Module)
"""Whose outputs a tracing run replaces."""

OWN_WAY = {"localization": "denoise", "metric": "probability", "module": "mlp", "tokens": "all"}
"""The paper's own causal tracing, by the columns of sql/trace_runs.sql."""

LEAST_P = "1e-4"  # a smaller p value is not written out


def number(value: float | None, digits: int = 3) -> str:
    """A number for a label: fixed decimals, a true minus sign, an en dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0.0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def score_label(score: str) -> str:
    """The name of a score on an axis or above a panel."""
    if score == "magnitude":
        return "rewrite magnitude (p(o_false) − p(o_true) after the edit)"
    first, *rest = score.replace("_", " ").split(" ")
    return " ".join([first, "score", *rest])


def effect_label(localization: str, effect_at: str = "max", metric: str = "probability") -> str:
    """What an axis of tracing effects shows (docs/algorithms.md, sections 6 and 7), with its unit in parentheses.

    localization, metric: as in sql/trace_runs.sql. effect_at: as in `regressions`. An absolute effect is one on the
    probability, whatever the metric.
    """
    where = "" if effect_at == "max" else " at the last subject token"
    absolute = effect_at == "last-subject-absolute"
    if localization == "zero":
        of = "p(o_true)" if absolute else f"share of {METRICS[metric].name}"
        return f"{of} deleted by zeroing{where}"
    name = _EFFECTS[localization]
    from_clean = localization in ("noise", "counterfactual-noise")
    gained = "p_clean − p" if from_clean else "p_restored − p_noised"
    unit = gained if absolute else f"share of {METRICS[metric].lost}"
    if localization.startswith("counterfactual"):
        unit = unit.replace("noised", "counterfactual")
    return f"{'absolute ' * absolute}{name}{where} ({unit})"


def method_and_corruption(localization: str) -> tuple[str, str]:
    """The settings `method` and `corruption` of a localization, which sql/trace_runs.sql made of them."""
    if not localization.startswith("counterfactual"):
        return localization, "noise"
    return localization.removeprefix("counterfactual").removeprefix("-") or "denoise", "counterfactual"


def own_way(row: Mapping[str, Any]) -> bool:
    """Whether a row is of the paper's own causal tracing, which comes first: of MLPs, at one token a cell, by denoising
    with noise, in probabilities."""
    return all(row.get(key, own) in (own, None) for key, own in OWN_WAY.items())


def outside_text(values: Iterable[float], what: str = "effects") -> str:
    """How many tracing effects, or other values, lie outside 0 to 1, "" if none does."""
    values = list(values)
    count = sum(not 0 <= value <= 1 for value in values)
    verb = "lies" if count == 1 else "lie"
    return f"{count:,} of {len(values):,} {what} {verb} outside 0 to 1" if count else ""


def common_text(rows: Sequence[Row], keys: Sequence[str] = GROUP) -> str:
    """What all rows are of, such as "gpt-j · mlp · denoise · window 5": the values of the keys in which they do
    not differ, but for the metric, the tokens and the protocol of the paper, and data sets."""
    named = []
    for key in ("model", *(key for key in keys if key not in ("model", "protocol", "source", "tokens"))):
        [value, *others] = {row.get(key) for row in rows}
        if not others and value is not None and (key, value) != ("metric", "probability"):
            named.append(title_of(value) if key == "model" else _word(key, value))
    return " · ".join(named)


def p_text(p: float | None, digits: int = 3) -> str:
    """'p = 0.031', 'p < 1e-4' as the paper prints it, or 'p –' where no test was possible."""
    if p is None or not math.isfinite(p):
        return "p –"
    if p < float(LEAST_P):
        return f"p < {LEAST_P}"
    return f"p = {p:.{digits if p >= 0.5 * 10.0**-digits else max(digits, 4)}f}"  # never 0.000


HEADINGS = {
    "window_size": "window",
    "n": "edits",
    "n_facts": "facts",
    "n_layers": "layers",
    "n_left_out": "left out",
    "n_below_0": "below 0",
    "n_outside": "outside",
    "r2_layer": "R² layer",
    "r2_effect": "R² effect",
    "r2_both": "R² both",
    "diff": "gain",
    "p_value": "p",
    "r2_layer_acting": "R² layer, acting",
    "diff_acting": "gain, acting",
    "r2_layer_working": "R² layer, working",
    "diff_working": "gain, working",
    "p_working": "p, working",
    "f_value": "F",
    "rho": "ρ",
    "sem_effect": "standard error",
    "regression_metric": "error",
    "edit_metric": "score",
}
"""Words for the columns of tables. A column that is not here has its name with spaces."""


def heading(column: str) -> str:
    """The words above a column in text, Markdown, LaTeX and the report. CSV and JSON keep the column's name."""
    plain = column.removesuffix("_paper")
    words = HEADINGS.get(plain, plain.replace("_", " "))
    return words if plain == column else f"{words}, paper"


def group_names(
    rows: Iterable[Mapping[str, Any]],
    always: Sequence[str] = ("problem", "method"),
    apart: Sequence[str] = (),
) -> dict[Group, str]:
    """A short name for every group of rows, made of the keys `always` and the keys in which the groups differ.

    Groups whose names are otherwise equal are told apart by the settings in which their runs differ, or by the start of
    a run's id where no setting differs.
    apart: keys that the reader sees elsewhere, such as in a panel's title. Groups that differ in them may share a name.
    """
    rows = list(rows)
    keys = [key for key in (*GROUP, *RUNS) if rows and key in rows[0]]
    groups = list(dict.fromkeys(tuple((key, row[key]) for key in keys) for row in rows))
    differing = {key for key in GROUP if key in keys and key not in apart and len({row[key] for row in rows}) > 1}
    shown = [key for key in keys if key in always or key in differing]
    names = {
        group: " · ".join(_word(key, value) for key, value in group if key in shown and value is not None)
        for group in groups
    }
    run_names = {row[key]: row.get(RUNS[key]) for key in keys if key in RUNS for row in rows}
    for by_id in (False, True):
        for members in _alike(names, apart):
            differ = [key for key in keys if key in RUNS and len({dict(group)[key] for group in members}) > 1]
            for group in members:
                runs = {key: dict(group)[key] for key in differ}
                words = [_run_id(key, run) if by_id else _run_name(key, run, run_names) for key, run in runs.items()]
                names[group] = " · ".join([names[group], *filter(None, words)])
    return names


def _alike(names: Mapping[Group, str], apart: Sequence[str]) -> list[list[Group]]:
    """The sets of groups that share a name and the keys `apart`."""
    found: dict[tuple[Any, ...], list[Group]] = {}
    for group, name in names.items():
        found.setdefault((name, *(dict(group).get(key) for key in apart)), []).append(group)
    return [members for members in found.values() if len(members) > 1]


def _word(key: str, value: Any) -> str:
    if key == "model":
        return title_of(value)
    return f"window {value}" if key == "window_size" else str(value)


def _run_name(key: str, run: str | None, run_names: Mapping[str | None, str | None]) -> str | None:
    name = run_names.get(run)
    return name and f"{key.removesuffix('_run_id')} {name}"


def _run_id(key: str, run: str | None) -> str:
    return f"{key.removesuffix('_run_id')} run {run[:8]}" if run else "no trace"


def in_group(rows: Iterable[Row], group: Group) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in group)]


def p_cell(p: float | None, digits: int = 3) -> str:
    """The same for a cell of a table: '0.031', '<1e-4' or '–'."""
    return p_text(p, digits).removeprefix("p ").removeprefix("= ").replace("< ", "<")


def percent(share: float) -> str:
    """A share as a percentage with one decimal, or "less than 0.1 %" where that would show 0."""
    if 0 < share < 0.0005:
        return "less than 0.1\u00a0%"
    return f"{number(100 * share, 1)}\u00a0%"


def points(share: float) -> str:
    """A difference of two shares in percentage points, with one decimal, or three if it is below 0.1 points."""
    value = 100 * share
    return f"{number(value, 1 if abs(value) >= 0.1 or value == 0 else 3)} points"
