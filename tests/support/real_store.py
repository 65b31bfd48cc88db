"""A store filled by the engines: a small random model, traced by every method, corruption and metric, and edited."""

from dataclasses import replace
from pathlib import Path

import torch
from edit_cases import FACTS
from made_results import made_known
from small_models import small_model

import fasttrace as ft

PAIRED = [
    replace(FACTS[0], counterfactual_subject=("New York", "capital city", "Rome")),  # the last does not fit
    replace(FACTS[1], counterfactual_prompt="Rome is the capital of"),
]
# What is traced beside noise, probabilities and MLPs.
OTHERS = (
    {"corruption": "counterfactual", "windows": [3, 1]},
    {"corruption": "counterfactual", "method": "noise", "metric": "logit-difference", "module": "attn"},
    {"corruption": "counterfactual", "method": "attribution", "module": "head", "verify_top": 5},
    {"corruption": "counterfactual", "module": "head", "heads": "at-once", "keep_samples": True},
    {"metric": "kl", "module": "head", "keep_samples": True},
    {"metric": "kl", "method": "noise", "module": "block"},
    {"metric": "log-probability", "module": "head", "heads": [0, 2], "method": "noise"},
    {"metric": "log-probability"},
    {"metric": "logit-difference", "method": "zero"},
    {"metric": "logit-difference", "method": "attribution", "verify_top": 5},
)


def real_store(path: Path, tokenizer) -> ft.Store:
    """Both protocols, every localization method, corruption and metric, heads, experts, kept samples and routing, and
    edits of two problems: a few thousand rows."""
    model, store = small_model("llama", tokenizer, torch.float32), ft.Store(path)
    store.add_facts(PAIRED)
    shared = {"samples": 3, "sigma": 0.4, "keep": "all"}
    for method in ("denoise", "noise", "zero", "attribution"):
        noise = {} if method == "zero" else shared
        store.add(ft.trace(model, FACTS, windows=[3, 1], method=method, **{"keep": "all"} | noise))
    for asked in OTHERS:
        drawn = {} if asked.get("corruption") or asked.get("method") == "zero" else {"samples": 3, "sigma": 0.4}
        store.add(ft.trace(model, PAIRED, **{"windows": [1], "keep": "all"} | drawn | asked))
    for protocol in ("paper", "released"):
        store.add(ft.trace(model, FACTS, windows=[3], protocol=protocol, keep_samples=True, **shared))
        for problem in ("error-injection", "fact-forcing"):
            edit = ft.edit(
                model, FACTS, method="ft-1", problem=problem, layers=[0, 2], protocol=protocol, window_size=3, steps=2,
                essence=0,
            )  # fmt: skip
            store.add(edit)
    mixture = small_model("olmoe", tokenizer, torch.float32)
    asked = {"module": "expert", "keep_routing": True, "samples": 3, "sigma": 0.4, "keep": "all"}
    store.add(ft.trace(mixture, FACTS, windows=[1], **asked))
    store.add(made_known([fact.fact_id for fact in FACTS]))
    return store
