"""From probabilities to grids: fractional effects, standard errors and the tables a sweep returns."""

from collections.abc import Sequence

import numpy as np
import pyarrow as pa

from fasttrace.errors import UserError
from fasttrace.facts.tokens import EncodedFact
from fasttrace.tracing.plan import Cell, window_interval

PROTOCOLS = ("paper", "released")

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
    ]
)


def check_protocol(protocol: str) -> str:
    """The protocol itself. Raises UserError where it is neither "paper" nor "released"."""
    if protocol not in PROTOCOLS:
        raise UserError(f"protocol '{protocol}' is not one of {', '.join(PROTOCOLS)}")
    return protocol


def fractional_effect(p_restored: np.ndarray, p_clean: float, p_noised: float, protocol: str) -> np.ndarray | None:
    """Fractional tracing effect of a grid of probabilities, or None where the corruption did not hurt.

    paper (section 4.1): (p_restored − p_noised) / (p_clean − p_noised). released: max(0, …) of the same with
    max(p_clean, largest p_restored of the grid) for p_clean. Where p_noised ≥ p_clean there is nothing to
    restore and the fraction is undefined.
    """
    if p_noised >= p_clean:
        return None
    if protocol == "paper":
        return (p_restored - p_noised) / (p_clean - p_noised)
    original = max(p_clean, float(p_restored.max()))
    return np.maximum(0.0, (p_restored - p_noised) / abs(original - p_noised))


def standard_error(samples: np.ndarray) -> float | None:
    """Standard error of the mean over noise samples (n - 1 in the denominator); None for one sample."""
    return float(samples.std(ddof=1) / np.sqrt(len(samples))) if len(samples) > 1 else None


def fact_row(
    encoded: EncodedFact, sigma: float, p_clean: float | None, p_noised: float | None, reason: str | None
) -> dict[str, object]:
    """A row of TRACED_FACTS."""
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
    }


def grid_table(
    encoded: EncodedFact,
    windows: Sequence[int],
    tokens: range,
    n_layers: int,
    restored: dict[Cell, np.ndarray],
    noised: np.ndarray,
    p_clean: float,
    protocol: str,
    report_all: bool,
) -> pa.Table:
    """CELLS of one fact: every window size, reported token and layer.

    report_all: also report the tokens before the subject, whose restoration gives the corrupted score.
    """
    first = 0 if report_all else tokens.start
    reported = range(first, tokens.stop)
    p_noised = float(noised.mean())
    parts = []
    for window in windows:
        # Several layers may share one clipped interval; its samples are read once.
        runs = [window_interval(layer, window, n_layers) for layer in range(n_layers)]
        stat = {
            (t, run): (s.mean(), standard_error(s))
            for t in reported
            for run in set(runs)
            for s in (restored[Cell(t, *run)] if t >= tokens.start else noised,)
        }
        p = np.array([[stat[t, run][0] for run in runs] for t in reported])
        sem = [stat[t, run][1] for t in reported for run in runs]
        effect = fractional_effect(p, p_clean, p_noised, protocol)
        count = p.size
        parts.append(
            pa.table(
                [
                    pa.array([encoded.fact.fact_id] * count, pa.string()),
                    pa.array(np.full(count, window), pa.int32()),
                    pa.array(np.repeat(np.arange(first, tokens.stop), n_layers), pa.int32()),
                    pa.array([encoded.tokens[t] for t in reported for _ in runs], pa.string()),
                    pa.array(np.tile(np.arange(n_layers), len(reported)), pa.int32()),
                    pa.array(p.reshape(-1)),
                    pa.array(sem, pa.float64()),
                    pa.nulls(count, pa.float64()) if effect is None else pa.array(effect.reshape(-1)),
                ],
                schema=CELLS,
            )
        )
    return pa.concat_tables(parts)
