"""The load that sweeps are compared on: one fact, window 5, 10 samples of released noise, and its grid."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import fasttrace as ft
from fasttrace.models import Decoder

FACT = ft.Fact(prompt="The {} is located in the city of", subject="Eiffel Tower", target_true="Paris")
SETTINGS = {"windows": [5], "samples": 10, "sigma": 0.4, "noise": "released", "keep": "all"}


def fast_grid(model: Decoder, tokens: str, fact: ft.Fact = FACT, settings: Mapping[str, Any] = SETTINGS) -> np.ndarray:
    """fasttrace's p_restored (tokens, L) at the tokens from the subject on that were computed."""
    traced = ft.trace(model, [fact], **{**settings, "tokens": tokens})
    [begin] = traced.facts["subject_begin"].to_pylist()
    cells = traced.cells.to_pandas()
    cells = cells[cells.token_index >= begin].sort_values(["token_index", "layer"])
    return cells.p_restored.to_numpy().reshape(-1, model.n_layers)
