"""ΔW of the closed-form methods as their papers write it, in NumPy's float64. All arrays have a column per key.

K: (m, n) new keys. R: (d, n) residuals. C: (m, m). K_p: (m, p) keys of earlier edits. Sources: Meng et al. 2022 (arXiv
2210.07229), equation 14; Gupta et al. 2024 (arXiv 2403.14236), equation 13; Fang et al. 2024 (arXiv 2410.02355),
equation 14.
"""

import numpy as np


def memit(R, K, C, K_p, covariance_weight, norm_weight=0.0):
    system = covariance_weight * C + K_p @ K_p.T + K @ K.T + norm_weight * np.eye(len(C))
    return R @ K.T @ np.linalg.inv(system)


pmet = memit  # Li et al. 2023 (arXiv 2308.08742): only R differs


def emmet(R, K, C, K_p, covariance_weight, norm_weight=0.0, slack=0.0):
    B = np.linalg.inv(covariance_weight * C + K_p @ K_p.T + norm_weight * np.eye(len(C)))
    inner = K.T @ B @ K
    if K.shape[1] > 1:
        inner = inner + slack * np.eye(len(inner))
    return R @ np.linalg.inv(inner) @ K.T @ B


def alphaedit(R, K, C, K_p, norm_weight, null_threshold):
    values, vectors = np.linalg.eigh(C)
    kept = vectors[:, values < null_threshold]
    P = kept @ kept.T
    return R @ K.T @ P @ np.linalg.inv(K_p @ K_p.T @ P + K @ K.T @ P + norm_weight * np.eye(len(C)))
