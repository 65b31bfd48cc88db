"""R² by layer, by effect and by both from its definition, with numpy's lstsq, one group at a time."""

import numpy as np
from scipy.special import betainc


def fits(layer: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, float | None]:
    """Return the numbers of fasttrace.analysis.regressions, None if undefined. layer, x, y: (n,) arrays without NaN."""
    largest = np.abs(y).max()
    y = y - y.mean()  # allowed, as every design has a constant; lstsq keeps more digits near zero
    dummies = (layer[:, None] == np.unique(layer)[None, :]).astype(float)
    ones = np.ones((len(y), 1))
    designs = {
        "layer": dummies,
        "effect": np.hstack([ones, x[:, None]]),
        "both": np.hstack([dummies, dummies * x[:, None]]),
    }
    resid = {name: _resid(design, y) for name, design in designs.items()}
    rest = {name: float(np.sum(left**2)) for name, left in resid.items()}
    total = float(np.sum((y - y.mean()) ** 2))
    out: dict[str, float | None] = {f"rmse_{name}": np.sqrt(rest[name] / len(y)) for name in rest}
    out |= {f"mae_{name}": float(np.mean(np.abs(left))) for name, left in resid.items()}
    rank = {name: np.linalg.matrix_rank(design) for name, design in designs.items()}
    out["df_num"] = rank["both"] - rank["layer"]
    out["df_den"] = len(y) - rank["both"]
    varies = np.ptp(y) > 1e-12 * largest
    out |= {f"r2_{name}": 1 - rest[name] / total if varies else None for name in rest}
    out["diff"] = (rest["layer"] - rest["both"]) / total if varies else None
    out["f_value"] = out["p_value"] = None
    if varies and out["df_num"] > 0 and out["df_den"] > 0 and rest["both"] > 1e-12 * total:
        f = ((rest["layer"] - rest["both"]) / out["df_num"]) / (rest["both"] / out["df_den"])
        out["f_value"] = f
        share = out["df_den"] / (out["df_den"] + out["df_num"] * f)
        out["p_value"] = float(betainc(out["df_den"] / 2, out["df_num"] / 2, share))
    return out


def _resid(design: np.ndarray, y: np.ndarray) -> np.ndarray:
    beta, *_ = np.linalg.lstsq(design, y, rcond=None)
    return y - design @ beta
