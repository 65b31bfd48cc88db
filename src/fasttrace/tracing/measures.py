"""What is measured of every pass: the probability of the scored tokens, and how o_true fares against o_false."""

from typing import NamedTuple

import numpy as np

from fasttrace.settings.trace import Metric

MEASURES = ("p", "p_false", "logit_diff", "logprob", "kl")
"""The rows of an (M, passes) array of what was measured, each NaN where it is not defined or was not asked for.

p: joint probability of the scored tokens. logprob: its logarithm, in nats. Where o_true and o_false differ, at the
position that predicts the first token in which they do: p_false, the probability of o_false's token; logit_diff, the
logit of o_true's token minus that of o_false's. kl: KL divergence of the clean pass's distribution there (without an
o_false: at the position that predicts the first scored token) from this pass's, in nats.
"""
P, P_FALSE, LOGIT_DIFF, LOGPROB, KL = range(len(MEASURES))
ROW_OF: dict[Metric, int] = {"probability": P, "log-probability": LOGPROB, "logit-difference": LOGIT_DIFF, "kl": KL}
NEAR_ZERO = 1e-6  # a difference below this share of the larger value (or of 1) is about 0


def measures(
    logp: np.ndarray,
    first: np.ndarray,
    rows: np.ndarray,
    contrasted: np.ndarray,
    logits: np.ndarray | None,
    kl: np.ndarray | None,
) -> np.ndarray:
    """(M, S) of S sequences.

    logp: (rows,) float64 log p of every scored token, a sequence's together. first, rows: (S,) the row of a sequence's
    first scored token, and of the one whose distribution is compared. contrasted: (S,) bool, whether o_true and o_false
    differ there. logits: (contrasted sequences, 3) of the scored token, o_true's and o_false's. kl: (S,) or None.
    """
    found = np.full((len(MEASURES), len(first)), np.nan)
    found[LOGPROB] = np.minimum(np.add.reduceat(logp, first), 0.0)
    found[P] = np.exp(found[LOGPROB])
    if logits is not None:
        scored, true, false = logits.astype(np.float64).T
        found[LOGIT_DIFF, contrasted] = true - false
        found[P_FALSE, contrasted] = np.exp(np.minimum(logp[rows[contrasted]] + false - scored, 0.0))
    if kl is not None:
        found[KL] = kl
    return found


class Span(NamedTuple):
    """A metric's value in the clean pass, and its mean over the corrupted passes (None without them)."""

    clean: float
    noised: float | None


def metric_effect(values: np.ndarray, span: Span, method: str) -> np.ndarray | None:
    """Effect of cells in a metric other than the probability, or None where the denominator is about 0.

    denoise: (m − m_noised) / (m_clean − m_noised), the share of the metric's loss that a cell restores. noise:
    (m_clean − m) / (m_clean − m_noised), the share of it that a cell does. zero: (m_clean − m) / m_clean.
    Source: Zhang and Nanda 2023 (arXiv 2309.16042), section 2; docs/algorithms.md, section 6.
    """
    lowest = 0.0 if span.noised is None else span.noised
    whole = span.clean - lowest
    if not abs(whole) > NEAR_ZERO * max(1.0, abs(span.clean), abs(lowest)):
        return None
    # + 0.0: no −0.0 where a cell changes nothing and the denominator is negative.
    return (values - lowest if method == "denoise" else span.clean - values) / whole + 0.0
