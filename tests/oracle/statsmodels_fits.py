"""The numbers of `regressions` from statsmodels' least squares on the raw rows. Slow."""

import warnings
from typing import Any, Unpack

import numpy as np
import pyarrow as pa
from statsmodels.formula.api import ols

from fasttrace.analysis.regression import KEYS, KINDS, Choice, chosen_rows
from fasttrace.store import Store

FITTED = (
    "r2_layer", "r2_effect", "r2_both", "diff", "f_value", "df_num", "df_den", "p_value", "rmse_layer",
    "rmse_effect", "rmse_both", "mae_layer", "mae_effect", "mae_both",
)  # fmt: skip
_TYPES = KINDS | dict.fromkeys(FITTED, pa.float64())


def check_with_statsmodels(store: Store, score: str = "rewrite", **choice: Unpack[Choice]) -> pa.Table:
    """Return one row a regression, in the order of `regressions`, with the columns KEYS, n, n_left_out and FITTED."""
    rows = []
    for identity, group in chosen_rows(store, score, **choice):
        used = group.dropna(subset=["x", "y"])
        rows.append(identity | {"n": len(used), "n_left_out": len(group) - len(used)} | _by_statsmodels(used))
    columns = [*KEYS, "n", "n_left_out", *FITTED]
    return pa.table({name: pa.array([row[name] for row in rows], _TYPES.get(name)) for name in columns})


def _by_statsmodels(used: Any) -> dict[str, float | None]:
    """Fit the three models to one group. used: frame with layer, x, y."""
    if not len(used):
        return dict.fromkeys(FITTED)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a layer whose x does not vary makes the design singular; its rank is used
        layer, effect, both = (ols(f"y ~ {terms}", used).fit() for terms in ("C(layer)", "x", "C(layer) * x"))
    fits = {"layer": layer, "effect": effect, "both": both}
    out: dict[str, float | None] = dict.fromkeys(FITTED)
    out |= {f"rmse_{name}": float(np.sqrt(np.mean(fit.resid**2))) for name, fit in fits.items()}
    out |= {f"mae_{name}": float(np.mean(np.abs(fit.resid))) for name, fit in fits.items()}
    out |= {"df_num": float(layer.df_resid - both.df_resid), "df_den": float(both.df_resid)}
    if np.ptp(used["y"]) <= 1e-12 * np.abs(used["y"]).max():  # y does not vary, so R² is undefined
        return out
    out |= {f"r2_{name}": float(fit.rsquared) for name, fit in fits.items()}
    out["diff"] = float(both.rsquared - layer.rsquared)
    if both.df_resid > 0 and layer.df_resid > both.df_resid and both.ssr > 1e-12 * both.centered_tss:
        f_value, p_value, _ = both.compare_f_test(layer)
        out |= {"f_value": float(f_value), "p_value": float(p_value)}
    return out
