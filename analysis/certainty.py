"""Uncertainty of the regressions when every fact has several rows: bootstrap over facts, and tests that know of facts.

The paper's F-test treats all edits as independent, although each fact is edited at several layers. Here whole facts are
resampled (bootstrap), and the same slopes are tested with a covariance that allows the errors of one fact to correlate.
That test rejects too often where facts are few, so there is also Hotelling's, which rejects too seldom there.
All start from sums over (fact, layer), so that many resamples are one matrix product.
"""

from functools import cached_property
from typing import Any

import numpy as np
import pyarrow as pa
from scipy import stats

from fasttrace.errors import UserError
from fasttrace.store import Readable

from .regression import KEYS, KINDS, regression_rows

SHARES = ("r2_layer", "r2_effect", "r2_both", "diff")
TESTED = ("f_clustered", "df_clustered", "p_clustered", "p_hotelling")
COLUMNS = (*(f"{name}_{end}" for name in SHARES for end in ("low", "high")), *TESTED)
DRAWS = 50_000_000  # limit of resamples × facts; above it fewer resamples are drawn, but not fewer than 200
_NOISE = 1e-13  # a variance below this share of the total counts as zero
Numbers = dict[str, float | None]


def certainty(
    store: Readable, score: str = "rewrite", *, resamples: int = 1000, level: float = 0.95, seed: int = 0, **choice: Any
) -> pa.Table:
    """Bootstrap intervals of every R², and two tests of the gain that know of facts, one row per regression.

    choice: as for `regressions`. resamples: number of bootstrap samples, each of which draws as many facts as there
    are, with replacement; 0 leaves the intervals NULL. level: coverage of the percentile interval.
    Columns: KEYS; X_low, X_high for X in r2_layer, r2_effect, r2_both, diff; f_clustered, df_clustered, p_clustered;
    p_hotelling.
    The clustered test is a joint test of the slopes of "both", without layers whose score does not vary. Its degrees of
    freedom are the number of these slopes and df_clustered = facts − 1. Its covariance has the usual correction
    facts / (facts − 1) · (rows − 1) / (rows − parameters). Hotelling's test asks whether effect and score covary at any
    layer (docs/algorithms.md, section 20). Numbers are NULL where there are too few facts.
    Raises UserError for a level outside (0, 1) or a negative number of resamples.
    """
    if not 0 < level < 1 or resamples < 0:
        raise UserError(f"expected a level in (0, 1) and at least 0 resamples, got {level} and {resamples}")
    rows = []
    for keys, group in regression_rows(store, score, **choice):
        fact, layer = (np.unique(group[name], return_inverse=True)[1] for name in ("fact_id", "layer"))
        sample = Sample(fact, layer, group["x"], group["y"])
        rows.append(keys | sample.intervals(resamples, level, seed) | sample.clustered_test() | sample.hotelling())
    return pa.table(
        {name: pa.array([row[name] for row in rows], KINDS.get(name, pa.float64())) for name in (*KEYS, *COLUMNS)}
    )


class Sample:
    """The rows of one regression.

    fact, layer: (n,) int, numbered from 0 without gaps. x, y: (n,) float64, tracing effect and score.
    """

    def __init__(self, fact: np.ndarray, layer: np.ndarray, x: np.ndarray, y: np.ndarray) -> None:
        self.fact, self.layer = fact, layer
        self.n, self.n_facts = len(x), int(fact.max(initial=-1)) + 1
        self.n_layers = int(layer.max(initial=-1)) + 1
        # Centering leaves R² unchanged and reduces cancellation in the sums.
        self.x, self.y = (values - values.mean() if len(values) else values for values in (x, y))

    def intervals(self, resamples: int, level: float, seed: int) -> Numbers:
        """Percentile interval of each R² over resampled facts."""
        empty: Numbers = dict.fromkeys(f"{name}_{end}" for name in SHARES for end in ("low", "high"))
        if self.n_facts < 2 or not resamples:
            return empty
        resamples = max(min(resamples, DRAWS // self.n_facts), min(resamples, 200))
        random = np.random.default_rng(seed)
        sums = self.sums.reshape(self.n_facts, -1)
        block = max(1, 2**22 // self.n_facts)  # resamples per matrix product: 32 MB of counts
        even = np.full(self.n_facts, 1 / self.n_facts)
        found = [
            shares((random.multinomial(self.n_facts, even, size=size) @ sums).reshape(size, self.n_layers, 6))
            for size in _blocks(resamples, block)
        ]
        ends = [100 * (1 - level) / 2, 100 * (1 + level) / 2]
        for name in SHARES:
            values = np.concatenate([part[name] for part in found])
            values = values[np.isfinite(values)]
            if len(values):
                empty[f"{name}_low"], empty[f"{name}_high"] = (float(v) for v in np.percentile(values, ends))
        return empty

    def clustered_test(self) -> Numbers:
        """Wald's F-test that all slopes of y ~ C(layer) * x are 0, with a covariance clustered by fact."""
        none: Numbers = dict.fromkeys(("f_clustered", "df_clustered", "p_clustered"))
        if not self.n:
            return none
        count, sx, sy, sxx, _, syy = self.sums.sum(0).T
        within = sxx - sx**2 / count
        sloped = within > _NOISE * max(float(sxx.sum()), 1e-300)
        free = self.n - self.n_layers - int(sloped.sum())
        # A layer whose score does not vary has slope 0 and no residual, so its slope cannot be tested.
        sloped = np.flatnonzero(sloped & (syy - sy**2 / count > _NOISE * float(syy.sum())))
        if not len(sloped) or free <= 0 or self.n_facts - 1 < len(sloped):
            return none
        apart = self.x - (sx / count)[self.layer]  # x minus its layer's mean
        mean_y = np.bincount(self.layer, self.y, self.n_layers) / count
        slope = np.zeros(self.n_layers)
        slope[sloped] = np.bincount(self.layer, apart * self.y, self.n_layers)[sloped] / within[sloped]
        residual = self.y - mean_y[self.layer] - slope[self.layer] * apart
        if float(residual @ residual) <= 1e-12 * float(self.y @ self.y):
            return none
        pull = np.zeros((self.n_facts, self.n_layers))
        np.add.at(pull, (self.fact, self.layer), apart * residual)
        pull = pull[:, sloped] / within[sloped]
        correction = self.n_facts / (self.n_facts - 1) * (self.n - 1) / free
        covariance = correction * pull.T @ pull
        if np.linalg.matrix_rank(covariance) < len(sloped):
            return none
        f_value = float(slope[sloped] @ np.linalg.solve(covariance, slope[sloped])) / len(sloped)
        df = float(self.n_facts - 1)
        return {
            "f_clustered": f_value,
            "df_clustered": df,
            "p_clustered": float(stats.f.sf(f_value, len(sloped), df)),
        }

    def hotelling(self) -> Numbers:
        """Hotelling's T² that the effect and the score, each less its layer's mean, covary at no layer.

        Each fact is one draw of the vector of their products over layers. The products' own spread is the yardstick,
        not that of residuals, so no slope is estimated before it is tested.
        """
        if not self.n:
            return {"p_hotelling": None}
        count, sx, sy, sxx, _, syy = self.sums.sum(0).T
        within = np.stack([sxx - sx**2 / count, syy - sy**2 / count])
        # A layer counts if effect and score vary there.
        varies = (within > _NOISE * np.maximum([[sxx.sum()], [syy.sum()]], 1e-300)).all(0)
        products = np.zeros((self.n_facts, self.n_layers))
        apart = (self.x - (sx / count)[self.layer]) * (self.y - (sy / count)[self.layer])
        np.add.at(products, (self.fact, self.layer), apart)
        products = products[:, varies]
        n, q = products.shape
        if not q or n <= q:
            return {"p_hotelling": None}
        scale = products.std(0)
        products /= np.where(scale > 0, scale, 1)  # T² is the same in any unit, the rank of the covariance is not
        mean, spread = products.mean(0), np.atleast_2d(np.cov(products, rowvar=False))
        if np.linalg.matrix_rank(spread) < q:
            return {"p_hotelling": None}
        squared = n * float(mean @ np.linalg.solve(spread, mean))
        return {"p_hotelling": float(stats.f.sf(squared * (n - q) / (q * (n - 1)), q, n - q))}

    @cached_property
    def sums(self) -> np.ndarray:
        """(facts, layers, 6): n, Σx, Σy, Σx², Σxy, Σy² of every fact at every layer."""
        place = self.fact * self.n_layers + self.layer
        terms = (None, self.x, self.y, self.x**2, self.x * self.y, self.y**2)
        size = self.n_facts * self.n_layers
        return np.stack([np.bincount(place, term, size) for term in terms], axis=-1).reshape(
            self.n_facts, self.n_layers, 6
        )


def shares(sums: np.ndarray) -> dict[str, np.ndarray]:
    """R² by layer, effect and both, and the gain of both over layer, for many sets of sums. NaN where y does not vary.

    sums: (sets, layers, 6) n, Σx, Σy, Σx², Σxy, Σy² at every layer.
    """
    n, sx, sy, sxx, sxy, syy = np.moveaxis(sums, -1, 0)
    seen = np.where(n > 0, n, 1)
    in_xx, in_xy, in_yy = sxx - sx * sx / seen, sxy - sx * sy / seen, syy - sy * sy / seen
    total = sums.sum(1).T
    all_xx, all_xy, all_yy = (
        total[3] - total[1] ** 2 / total[0],
        total[4] - total[1] * total[2] / total[0],
        total[5] - total[2] ** 2 / total[0],
    )
    with np.errstate(divide="ignore", invalid="ignore"):
        sloped = in_xx > _NOISE * total[3][:, None]
        explained = np.where(sloped, in_xy**2 / in_xx, 0).sum(1)
        varies = all_yy > _NOISE * total[5]
        by_layer = np.where(varies, 1 - in_yy.sum(1) / all_yy, np.nan)
        by_effect = np.where(varies, np.where(all_xx > _NOISE * total[3], all_xy**2 / (all_xx * all_yy), 0), np.nan)
        gain = np.where(varies, explained / all_yy, np.nan)
    return {"r2_layer": by_layer, "r2_effect": by_effect, "r2_both": by_layer + gain, "diff": gain}


def _blocks(total: int, size: int) -> list[int]:
    return [min(size, total - start) for start in range(0, total, size)]
