"""A store filled by the engines: a small random model, traced by every method and edited."""

from pathlib import Path

import torch
from edit_cases import FACTS
from made_results import made_known
from small_models import small_model

import fasttrace as ft


def real_store(path: Path, tokenizer) -> ft.Store:
    """Both protocols, every localization method, kept samples and edits of two problems: a few thousand rows."""
    model, store = small_model("llama", tokenizer, torch.float32), ft.Store(path)
    store.add_facts(FACTS)
    shared = {"samples": 3, "sigma": 0.4, "keep": "all"}
    for method in ("denoise", "noise", "zero", "attribution"):
        noise = {} if method == "zero" else shared
        store.add(ft.trace(model, FACTS, windows=[3, 1], method=method, **{"keep": "all"} | noise))
    for protocol in ("paper", "released"):
        store.add(ft.trace(model, FACTS, windows=[3], protocol=protocol, keep_samples=True, **shared))
        for problem in ("error-injection", "fact-forcing"):
            edit = ft.edit(
                model, FACTS, method="ft-1", problem=problem, layers=[0, 2], protocol=protocol, window_size=3, steps=2,
                essence=0,
            )  # fmt: skip
            store.add(edit)
    store.add(made_known([fact.fact_id for fact in FACTS]))
    return store
