"""Mean indirect effects by token role and layer (Meng et al. 2022, arXiv 2202.05262, Figures 2 and 3)."""

from typing import Any

import numpy as np
import pyarrow as pa

from fasttrace.errors import UserError
from fasttrace.settings.columns import stored_settings
from fasttrace.settings.trace import Metric
from fasttrace.show.words import ROLE_WORDS

ROLES = tuple(ROLE_WORDS)
AVERAGES = pa.schema(
    [
        ("window_size", pa.int32()),
        ("role", pa.string()),
        ("layer", pa.int32()),
        ("head", pa.int32()),
        ("n", pa.int64()),
        ("mean_effect", pa.float64()),
        ("sem_effect", pa.float64()),
        ("low", pa.float64()),
        ("high", pa.float64()),
    ]
)
# Metric → the columns of its value in a cell, in the clean pass (None: 0) and in the corrupted passes.
_COLUMNS: dict[Metric, tuple[str, str | None, str]] = {
    "probability": ("p_restored", "p_clean", "p_noised"),
    "log-probability": ("logprob_restored", "logprob_clean", "logprob_noised"),
    "logit-difference": ("logit_diff_restored", "logit_diff_clean", "logit_diff_noised"),
    "kl": ("kl_restored", None, "kl_noised"),
}


def role_of(token: int, subject_begin: int, subject_end: int, length: int) -> str | None:
    """The role of a prompt's token, or None before the subject.

    A subject of one token is "last-subject", and so is the subject's last token where it ends the prompt.
    length: number of tokens of the prompt.
    """
    if token < subject_begin:
        return None
    if token == subject_end - 1:
        return "last-subject"
    if token == length - 1:
        return "last-prompt"
    if token < subject_end:
        return "first-subject" if token == subject_begin else "middle-subject"
    return "first-after" if token == subject_end else "further"


def average_by_role(settings: str, facts: pa.Table, cells: pa.Table) -> pa.Table:
    """AVERAGES: the mean over facts of the indirect effect at each window size, role, layer and head.

    settings: the run's, as JSON. facts, cells: those of a TraceResult. A fact's effect at a role is the mean over its
    tokens of that role. A fact without the run's metric, such as one without an o_false, is left out.

    Raises UserError where a cell is of all subject tokens at once, which have no one role.
    """
    asked = stored_settings("trace", settings)
    if asked["tokens"] == "whole-subject":
        raise UserError("average: expected a trace with one token per cell, got tokens whole-subject")
    value, clean, noised = _COLUMNS[asked["metric"]]
    about = {row["fact_id"]: row for row in facts.to_pylist() if row["kept"]}
    sign = -1.0 if asked["metric"] == "kl" else 1.0
    sums: dict[tuple[Any, ...], list[float]] = {}
    names = ("fact_id", "window_size", "token_index", "layer", "head", value)
    for fact_id, window, token, layer, head, m in zip(*(cells[name].to_pylist() for name in names), strict=True):
        fact = about[fact_id]
        role = role_of(token, fact["subject_begin"], fact["subject_end"], len(fact["tokens"]))
        base = (0.0 if clean is None else fact[clean]) if asked["method"] in ("noise", "zero") else fact[noised]
        if role is None or m is None or base is None:
            continue
        moved = base - m if asked["method"] in ("noise", "zero") else m - base
        sums.setdefault((window, role, layer, head, fact_id), []).append(sign * moved)
    of_facts: dict[tuple[Any, ...], list[float]] = {}
    for key, moved_by in sums.items():
        of_facts.setdefault(key[:-1], []).append(float(np.mean(moved_by)))
    rows = []
    for key in sorted(of_facts, key=_order):
        values = np.array(of_facts[key])
        sem = float(values.std(ddof=1) / np.sqrt(len(values))) if len(values) > 1 else None
        rows.append(dict(zip(AVERAGES.names, (*key, len(values), float(values.mean()), sem), strict=False)))
    return with_bands(pa.Table.from_pylist(rows, schema=pa.schema(list(AVERAGES)[:-2])))


def with_bands(means: pa.Table) -> pa.Table:
    """The rows with their 95 % confidence band: mean ± Student's t quantile of n − 1 degrees of freedom × sem. It is
    NULL for one fact."""
    from scipy.stats import t  # imported here, because a GPU machine without scipy can still trace

    n, mean, sem = (means[name].to_numpy(zero_copy_only=False) for name in ("n", "mean_effect", "sem_effect"))
    half = t.ppf(0.975, np.maximum(n - 1, 1)) * sem.astype(float)
    ends = (pa.array(end, pa.float64(), from_pandas=True) for end in (mean - half, mean + half))
    low, high = ends
    return means.append_column("low", low).append_column("high", high)


def _order(key: tuple[Any, ...]) -> tuple[Any, ...]:
    window, role, layer, head = key
    return window, ROLES.index(role), layer, -1 if head is None else head
