"""From probabilities to grids: fractional effects, standard errors and the tables a sweep returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fasttrace.facts.tokens import EncodedFact
from fasttrace.settings.trace import Metric
from fasttrace.tracing.measures import KL, LOGIT_DIFF, LOGPROB, P_FALSE, ROW_OF, P, Span, metric_effect
from fasttrace.tracing.plan import WHOLE, Cell, Heads, Spot, TraceItem
from fasttrace.windows import window_interval

TRACED_FACTS = pa.schema(
    [
        ("fact_id", pa.string()),
        ("prompt", pa.string()),
        ("subject", pa.string()),
        ("relation", pa.string()),
        ("target_true", pa.string()),
        ("target_false", pa.string()),
        ("p_clean", pa.float64()),
        ("p_noised", pa.float64()),
        ("tokens", pa.list_(pa.string())),
        ("subject_begin", pa.int32()),
        ("subject_end", pa.int32()),
        ("sigma", pa.float64()),
        ("kept", pa.bool_()),
        ("reason", pa.string()),
        ("scored", pa.string()),
        ("rank_correlation", pa.float64()),
        ("p_false_clean", pa.float64()),
        ("p_false_noised", pa.float64()),
        ("logit_diff_clean", pa.float64()),
        ("logit_diff_noised", pa.float64()),
        ("logprob_clean", pa.float64()),
        ("logprob_noised", pa.float64()),
        ("kl_noised", pa.float64()),
        ("counterfactuals", pa.list_(pa.string())),
        ("engine", pa.string()),
    ]
)
# What a fact is compared with. No run is named after it.
CONTRASTS = pa.schema([TRACED_FACTS.field(name) for name in ("fact_id", "target_false", "counterfactuals")])
CELLS = pa.schema(
    [
        ("fact_id", pa.string()),
        ("window_size", pa.int32()),
        ("token_index", pa.int32()),
        ("token", pa.string()),
        ("layer", pa.int32()),
        ("head", pa.int32()),
        ("p_restored", pa.float64()),
        ("p_restored_sem", pa.float64()),
        ("effect", pa.float64()),
        ("approximate", pa.bool_()),
        ("p_screened", pa.float64()),
        ("p_false_restored", pa.float64()),
        ("p_false_sem", pa.float64()),
        ("logit_diff_restored", pa.float64()),
        ("logit_diff_sem", pa.float64()),
        ("logprob_restored", pa.float64()),
        ("logprob_sem", pa.float64()),
        ("kl_restored", pa.float64()),
        ("kl_sem", pa.float64()),
        ("engine", pa.string()),
    ]
)
SAMPLES = pa.schema(
    [
        ("fact_id", pa.string()),
        ("window_size", pa.int32()),
        ("token_index", pa.int32()),
        ("layer", pa.int32()),
        ("head", pa.int32()),
        ("sample", pa.int32()),
        ("p_restored", pa.float64()),
        ("logit_diff_restored", pa.float64()),
        ("engine", pa.string()),
    ]
)


def fractional_effect(
    p: np.ndarray, p_clean: float, p_noised: float | None, protocol: str, method: str = "denoise"
) -> np.ndarray | None:
    """Fractional tracing effect of a grid of probabilities, or None where there was nothing to restore or lose.

    denoise, paper (section 4.1): (p − p_noised) / (p_clean − p_noised).
    denoise, released: max(0, …) of the same, with the larger of p_clean and the grid's largest p in place of p_clean,
        and the absolute value of the denominator.
    noise: (p_clean − p) / (p_clean − p_noised), the share of the corruption's damage that the cell does.
    zero (paper, Appendix B): (p_clean − p) / p_clean, the share of p that the cell deletes.

    noise and zero are the same in both protocols, because the released code has no runnable version of them. The result
    is None where p_noised ≥ p_clean. For denoise, released, it is None only where the denominator is 0.
    """
    if method == "zero":
        return (p_clean - p) / p_clean if p_clean > 0 else None
    assert p_noised is not None
    if protocol == "released" and method != "noise":
        original = max(p_clean, float(p.max()))
        return np.maximum(0.0, (p - p_noised) / abs(original - p_noised)) if original != p_noised else None
    if p_noised >= p_clean:
        return None
    return (p_clean - p if method == "noise" else p - p_noised) / (p_clean - p_noised)


def sample_mean(samples: np.ndarray) -> np.ndarray:
    """samples: (…, n) → (…), their mean. It is exact for equal samples, where a sum and a division might round."""
    first: np.ndarray = samples[..., 0]
    return first + (samples - samples[..., :1]).mean(-1)


def standard_error(samples: np.ndarray) -> np.ndarray:
    """samples: (…, n) → (…), the standard error of their mean (n − 1 in the denominator). NaN for a single sample."""
    n = samples.shape[-1]
    if n < 2:
        return np.full(samples.shape[:-1], np.nan)
    error: np.ndarray = (samples - samples[..., :1]).std(-1, ddof=1) / np.sqrt(n)
    return error


def fact_row(
    encoded: EncodedFact,
    sigma: float | None,
    *,
    engine: str = "wavefront",
    p_clean: float | None = None,
    reason: str | None = None,
    kept: bool = True,
    scored: str | None = None,
    rank_correlation: float | None = None,
    counterfactual: bool = False,
    measured: dict[str, float | None] | None = None,
) -> dict[str, object]:
    """A row of TRACED_FACTS.

    scored: the text whose probability was traced. reason: why the fact was left out, or which of its counterfactuals
    were. counterfactual: whether counterfactual prompts were the corrupted passes. measured: the columns of
    `Grid.measured`, if it was traced.
    """
    fact = encoded.fact
    return {
        "fact_id": fact.fact_id,
        "prompt": fact.text,
        "subject": fact.subject,
        "relation": fact.relation,
        "target_true": fact.target_true,
        "target_false": fact.contrast,
        "p_clean": p_clean,
        "tokens": list(encoded.tokens),
        "subject_begin": encoded.subject_begin,
        "subject_end": encoded.subject_end,
        "sigma": sigma,
        "kept": kept,
        "reason": reason,
        "scored": scored,
        "rank_correlation": rank_correlation,
        "counterfactuals": list(encoded.fitting) if counterfactual else None,
        "engine": engine,
        **(measured or {}),
    }


@dataclass(frozen=True, eq=False)
class Grid:
    """The traced values of one fact. M is the number of MEASURES.

    item: the fact, with the cells that were computed. spots: where the interventions are made. heads: on which heads,
    or experts.
    clean: (M, 1) measures of the clean pass. noised: (M, n) of the corrupted passes. values: cell → (M, runs).
    screened: cell → (M, runs) estimates if the grid is approximate, else None. `values` then has only the verified
    cells. engine: what computed them.
    """

    item: TraceItem
    spots: Sequence[Spot]
    heads: Sequence[Heads]
    clean: np.ndarray
    noised: np.ndarray
    values: Mapping[Cell, np.ndarray]
    screened: Mapping[Cell, np.ndarray] | None = None
    engine: str = "wavefront"

    def measured(self, metric: Metric) -> dict[str, float | None]:
        """The columns of TRACED_FACTS that say what the clean and the corrupted passes gave."""
        clean = self.clean[:, 0]
        noised = sample_mean(self.noised) if self.noised.shape[1] else np.full(len(clean), np.nan)
        shown = {
            "p_clean": clean[P],
            "p_noised": noised[P],
            "p_false_clean": clean[P_FALSE],
            "p_false_noised": noised[P_FALSE],
            "logit_diff_clean": clean[LOGIT_DIFF],
            "logit_diff_noised": noised[LOGIT_DIFF],
        }
        if metric == "log-probability":
            shown |= {"logprob_clean": clean[LOGPROB], "logprob_noised": noised[LOGPROB]}
        if metric == "kl":
            shown["kl_noised"] = noised[KL]
        return {name: None if np.isnan(value) else float(value) for name, value in shown.items()}

    def tables(
        self, windows: Sequence[int], n_layers: int, protocol: str, method: str, metric: Metric, keep_samples: bool
    ) -> tuple[pa.Table, pa.Table]:
        """(CELLS, SAMPLES): every window size, spot, layer and head; SAMPLES is empty unless keep_samples."""
        cells, samples = [], []
        for window in windows:
            table, drawn = self._window(window, n_layers, protocol, method, metric)
            cells.append(table)
            if keep_samples:
                samples.append(drawn())
        return pa.concat_tables(cells), pa.concat_tables([SAMPLES.empty_table(), *samples])

    def _window(
        self, window: int, n_layers: int, protocol: str, method: str, metric: Metric
    ) -> tuple[pa.Table, Callable[[], pa.Table]]:
        intervals = [window_interval(layer, window, n_layers) for layer in range(n_layers)]
        places = [
            self.item.cell(spot, run, some, method) for spot in self.spots for run in intervals for some in self.heads
        ]
        # Several layers may share one clipped interval, whose samples are read once.
        distinct = list(dict.fromkeys(places))
        number = {cell: i for i, cell in enumerate(distinct)}
        which = np.array([number[cell] for cell in places])
        values = np.stack([self._value(cell, method) for cell in distinct])
        mean, error = sample_mean(values), standard_error(values)
        effect = self._effect(mean[which], protocol, method, metric)
        estimate = np.full(len(distinct), np.nan)
        if self.screened is not None:
            estimate[:] = [np.nan if cell is None else sample_mean(self.screened[cell][P]) for cell in distinct]
        guessed = np.array([cell is not None and cell not in self.values for cell in distinct])
        count, names, each = len(places), self.item.encoded.tokens, n_layers * len(self.heads)
        # A spot of several tokens is reported at its last token.
        texts = ["".join(names[first : first + tokens]) for first, tokens in self.spots]
        last = np.array([first + tokens - 1 for first, tokens in self.spots])
        head = [None if some == WHOLE or some.size > 1 else some.first for some in self.heads]
        keys = {
            "fact_id": pa.array([self.item.encoded.fact_id] * count, pa.string()),
            "window_size": pa.array(np.full(count, window), pa.int32()),
            "token_index": pa.array(np.repeat(last, each), pa.int32()),
            "layer": pa.array(np.tile(np.repeat(np.arange(n_layers), len(self.heads)), len(last)), pa.int32()),
            "head": pa.array(head * (n_layers * len(last)), pa.int32()),
            "engine": pa.array([self.engine] * count, pa.string()),
        }
        columns = {
            **keys,
            "token": pa.array([text for text in texts for _ in range(each)], pa.string()),
            "effect": pa.nulls(count, pa.float64()) if effect is None else pa.array(effect),
            "approximate": pa.array(guessed[which]),
            "p_screened": _column(estimate[which]),
        }
        for row, (name, its_error) in _COLUMNS.items():
            hidden = row in (LOGPROB, KL) and row != ROW_OF[metric]
            columns[name] = pa.nulls(count, pa.float64()) if hidden else _column(mean[which, row])
            columns[its_error] = pa.nulls(count, pa.float64()) if hidden else _column(error[which, row])
        table = pa.table([columns[name] for name in CELLS.names], schema=CELLS)

        def drawn() -> pa.Table:
            n = values.shape[2]
            rows = np.repeat(np.arange(count), n)
            parts = {name: column.take(rows) for name, column in keys.items()}
            parts["sample"] = pa.array(np.tile(np.arange(n), count), pa.int32())
            parts["p_restored"] = _column(values[which, P].reshape(-1))
            parts["logit_diff_restored"] = _column(values[which, LOGIT_DIFF].reshape(-1))
            return pa.table([parts[name] for name in SAMPLES.names], schema=SAMPLES)

        return table, drawn

    def _effect(self, mean: np.ndarray, protocol: str, method: str, metric: Metric) -> np.ndarray | None:
        """mean: (cells, M) → (cells,) effects in the metric, or None where they are not defined."""
        row = ROW_OF[metric]
        clean = float(self.clean[row, 0])
        noised = float(sample_mean(self.noised[row])) if self.noised.shape[1] else None
        if metric == "probability":
            return fractional_effect(mean[:, row], clean, noised, protocol, method)
        return metric_effect(mean[:, row], Span(clean, noised), method)

    def _value(self, cell: Cell | None, method: str) -> np.ndarray:
        if cell is None:
            # Before the first corrupted token the passes are equal, so replacing outputs there changes nothing.
            return self.noised if method == "denoise" else self.clean.repeat(self.item.runs, 1)
        if cell in self.values:
            return self.values[cell]
        assert self.screened is not None
        return self.screened[cell]


# Row of MEASURES → the columns of CELLS that have its mean and its standard error.
_COLUMNS = {
    P: ("p_restored", "p_restored_sem"),
    P_FALSE: ("p_false_restored", "p_false_sem"),
    LOGIT_DIFF: ("logit_diff_restored", "logit_diff_sem"),
    LOGPROB: ("logprob_restored", "logprob_sem"),
    KL: ("kl_restored", "kl_sem"),
}


def _column(values: np.ndarray) -> pa.Array:
    """values: (n,) float64 → a column in which NaN, which stands for undefined, is NULL."""
    return pa.array(values, pa.float64(), from_pandas=True)
