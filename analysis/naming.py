"""Text of numbers, tokens and groups of results, for figures and sentences."""

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

Row = dict[str, Any]
Group = tuple[tuple[str, Any], ...]
GROUP = ("problem", "method", "protocol", "model", "module", "localization", "window_size", "source")
RUNS = ("edit_run_id", "trace_run_id")  # results of different runs are never pooled (regression.KEYS)


def number(value: float | None, digits: int = 3) -> str:
    """A number for a label: fixed decimals, a true minus sign, an en dash for None, NaN and infinity."""
    if value is None or not math.isfinite(value):
        return "–"
    text = f"{value:.{digits}f}"
    if float(text) == 0.0:
        text = text.lstrip("-")
    return text.replace("-", "−")


def p_text(p: float | None) -> str:
    """'p = 0.031', 'p < 0.001', or 'p –' where no test was possible."""
    if p is None or not math.isfinite(p):
        return "p –"
    return "p < 0.001" if p < 0.001 else f"p = {p:.3f}"


def group_names(
    rows: Iterable[Mapping[str, Any]],
    always: Sequence[str] = ("problem", "method"),
    apart: Sequence[str] = (),
) -> dict[Group, str]:
    """A short name for every group of rows, made of the keys `always` and the keys in which the groups differ.

    The start of a run's id is added only to names that are otherwise equal.
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
    alike: dict[tuple[Any, ...], list[Group]] = {}
    for group in groups:
        alike.setdefault((names[group], *(dict(group).get(key) for key in apart)), []).append(group)
    for (name, *_), members in alike.items():
        if len(members) > 1:
            run_keys = [key for key in keys if key in RUNS and len({dict(group)[key] for group in members}) > 1]
            for group in members:
                names[group] = " · ".join([name, *(_word(key, dict(group)[key]) for key in run_keys)])
    return names


def _word(key: str, value: Any) -> str:
    if key == "window_size":
        return f"window {value}"
    if key in RUNS:
        return f"{key.removesuffix('_run_id')} run {str(value)[:8]}" if value else "no trace"
    return str(value)


def in_group(rows: Iterable[Row], group: Group) -> list[Row]:
    return [row for row in rows if all(row[key] == value for key, value in group)]


def visible(token: str) -> str:
    """A token's text without outer spaces, with line breaks and tabs made visible, or ␣ if nothing remains."""
    text = token.strip(" ").replace("\n", "⏎").replace("\t", "⇥").replace("\r", "⏎")
    return text or "␣"


def p_cell(p: float | None) -> str:
    return p_text(p).removeprefix("p ").removeprefix("= ")


def percent(share: float) -> str:
    """A share as a percentage with one decimal, or "less than 0.1 %" where that would show 0."""
    if 0 < share < 0.0005:
        return "less than 0.1\u00a0%"
    return f"{number(100 * share, 1)}\u00a0%"


def points(share: float) -> str:
    """A difference of two shares in percentage points, with one decimal, or three if it is below 0.1 points."""
    value = 100 * share
    return f"{number(value, 1 if abs(value) >= 0.1 or value == 0 else 3)} points"


def plural(count: int, word: str) -> str:
    return f"{count:,} {word}" if count == 1 else f"{count:,} {word}s"
