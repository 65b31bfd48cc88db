"""The load on which sweeps are compared: one fact, window 5, 10 samples of released noise, and its grid."""

from collections.abc import Mapping
from typing import Any

import numpy as np

import fasttrace as ft
from fasttrace.models import Decoder
from fasttrace.tracing import TraceResult

FACT = ft.Fact(prompt="The {} is located in the city of", subject="Eiffel Tower", target_true="Paris")
SETTINGS = {"windows": [5], "samples": 10, "sigma": 0.4, "noise": "released", "keep": "all"}


def first_grid(model: Decoder, traced: TraceResult) -> np.ndarray:
    """The first fact's p_restored (tokens, L), at the traced tokens from the subject on."""
    first = traced.facts.slice(0, 1).to_pylist()[0]
    cells = traced.cells.to_pandas()
    cells = cells[(cells.fact_id == first["fact_id"]) & (cells.token_index >= first["subject_begin"])]
    return cells.sort_values(["token_index", "layer"]).p_restored.to_numpy().reshape(-1, model.n_layers)


def fast_grid(model: Decoder, tokens: str, fact: ft.Fact = FACT, settings: Mapping[str, Any] = SETTINGS) -> np.ndarray:
    """`first_grid` of a sweep of one fact."""
    return first_grid(model, ft.trace(model, [fact], **{**settings, "tokens": tokens}))
