"""From probabilities to grids: fractional effects, standard errors and the tables a sweep returns."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from fasttrace.facts.tokens import EncodedFact
from fasttrace.tracing.plan import Cell, Spot
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
    ]
)
CELLS = pa.schema(
    [
        ("fact_id", pa.string()),
        ("window_size", pa.int32()),
        ("token_index", pa.int32()),
        ("token", pa.string()),
        ("layer", pa.int32()),
        ("p_restored", pa.float64()),
        ("p_restored_sem", pa.float64()),
        ("effect", pa.float64()),
        ("approximate", pa.bool_()),
        ("p_screened", pa.float64()),
    ]
)
SAMPLES = pa.schema(
    [
        ("fact_id", pa.string()),
        ("window_size", pa.int32()),
        ("token_index", pa.int32()),
        ("layer", pa.int32()),
        ("sample", pa.int32()),
        ("p_restored", pa.float64()),
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


def sample_mean(samples: np.ndarray) -> float:
    """samples: (n,) → their mean. It is exact for equal samples, where a sum and a division might round."""
    return float(samples[0] + (samples - samples[0]).mean())


def standard_error(samples: np.ndarray) -> float | None:
    """samples: (n,) → the standard error of their mean (n − 1 in the denominator). None for a single sample."""
    spread = samples - samples[0]
    return float(spread.std(ddof=1) / np.sqrt(len(samples))) if len(samples) > 1 else None


def fact_row(
    encoded: EncodedFact,
    sigma: float | None,
    p_clean: float | None = None,
    p_noised: float | None = None,
    reason: str | None = None,
    scored: str | None = None,
    rank_correlation: float | None = None,
) -> dict[str, object]:
    """A row of TRACED_FACTS. scored: the text whose probability was traced. reason: why the fact was left out."""
    fact = encoded.fact
    return {
        "fact_id": fact.fact_id,
        "prompt": fact.text,
        "subject": fact.subject,
        "relation": fact.relation,
        "target_true": fact.target_true,
        "target_false": fact.target_false,
        "p_clean": p_clean,
        "p_noised": p_noised,
        "tokens": list(encoded.tokens),
        "subject_begin": encoded.subject_begin,
        "subject_end": encoded.subject_end,
        "sigma": sigma,
        "kept": reason is None,
        "reason": reason,
        "scored": scored,
        "rank_correlation": rank_correlation,
    }


@dataclass(frozen=True, eq=False)
class Grid:
    """The traced values of one fact.

    spots: where the interventions are made. values: cell → (runs,) p. unreached: (runs,) p of every cell before the
    spots, where the corruption cannot reach; None if those tokens are not reported. screened: cell → (runs,) estimate
    if the grid is approximate, else None. `values` then holds only the exact values of the verified cells.
    """

    encoded: EncodedFact
    spots: Sequence[Spot]
    values: Mapping[Cell, np.ndarray]
    p_clean: float
    p_noised: float | None
    unreached: np.ndarray | None = None
    screened: Mapping[Cell, np.ndarray] | None = None

    def tables(
        self, windows: Sequence[int], n_layers: int, protocol: str, method: str, keep_samples: bool
    ) -> tuple[pa.Table, pa.Table]:
        """(CELLS, SAMPLES): every window size, reported token and layer; SAMPLES is empty unless keep_samples."""
        cells, samples = [], []
        for window in windows:
            table, drawn = self._window(window, n_layers, protocol, method)
            cells.append(table)
            if keep_samples:
                samples.append(drawn())
        return pa.concat_tables(cells), pa.concat_tables([SAMPLES.empty_table(), *samples])

    def _window(
        self, window: int, n_layers: int, protocol: str, method: str
    ) -> tuple[pa.Table, Callable[[], pa.Table]]:
        names = self.encoded.tokens
        runs = [window_interval(layer, window, n_layers) for layer in range(n_layers)]
        before = range(self.spots[0].token) if self.unreached is not None else range(0)
        rows: list[tuple[int, str, list[Cell | None]]] = [(t, names[t], [None] * n_layers) for t in before]
        for first, count in self.spots:
            # A spot of several tokens is reported at its last token.
            text = "".join(names[first : first + count])
            rows.append((first + count - 1, text, [Cell(first, *run, count) for run in runs]))
        places: list[Cell | None] = [cell for _, _, row in rows for cell in row]
        # Several layers may share one clipped interval; its samples are read once.
        known = {cell: self._value(cell) for cell in set(places)}
        stat = {cell: (sample_mean(p), standard_error(p)) for cell, p in known.items()}
        p = np.array([stat[cell][0] for cell in places])
        effect = fractional_effect(p, self.p_clean, self.p_noised, protocol, method)
        index, layer = np.repeat([r[0] for r in rows], n_layers), np.tile(np.arange(n_layers), len(rows))
        screened = None if self.screened is None else [sample_mean(self.screened[c]) if c else None for c in places]
        count = len(places)
        common = [
            pa.array([self.encoded.fact_id] * count, pa.string()),
            pa.array(np.full(count, window), pa.int32()),
            pa.array(index, pa.int32()),
        ]
        table = pa.table(
            [
                *common,
                pa.array([text for _, text, row in rows for _ in row], pa.string()),
                pa.array(layer, pa.int32()),
                pa.array(p),
                pa.array([stat[cell][1] for cell in places], pa.float64()),
                pa.nulls(count, pa.float64()) if effect is None else pa.array(effect),
                pa.array([bool(c) and c not in self.values for c in places], pa.bool_()),
                pa.array([None] * count if screened is None else screened, pa.float64()),
            ],
            schema=CELLS,
        )

        def drawn() -> pa.Table:
            each = np.stack([known[cell] for cell in places])
            n = each.shape[1]
            columns = [column.take(np.repeat(np.arange(count), n)) for column in (*common, pa.array(layer, pa.int32()))]
            sample = pa.array(np.tile(np.arange(n), count), pa.int32())
            return pa.table([*columns, sample, pa.array(each.reshape(-1))], schema=SAMPLES)

        return table, drawn

    def _value(self, cell: Cell | None) -> np.ndarray:
        if cell is None:
            assert self.unreached is not None
            return self.unreached
        if cell in self.values:
            return self.values[cell]
        assert self.screened is not None
        return self.screened[cell]
