"""Random results in the form that the engines return, for the tests of store and analysis."""

import itertools
import json
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pyarrow as pa


@dataclass
class Made:
    """A result of any kind: its run and the tables that this kind has."""

    run: dict[str, Any]
    facts: pa.Table | None = None
    cells: pa.Table | None = None
    samples: pa.Table | None = None
    routing: pa.Table | None = None
    scores: pa.Table | None = None
    prompts: pa.Table | None = None
    measures: pa.Table | None = None
    norms: pa.Table | None = None
    tasks: pa.Table | None = None
    verdicts: pa.Table | None = None
    benches: pa.Table | None = None


def made_run(run_id: str, kind: str, **changes: Any) -> dict[str, Any]:
    run = {
        "run_id": run_id,
        "kind": kind,
        "model": "toy",
        "model_hash": "m0",
        "dtype": "float32",
        "device": "cpu",
        "seed": 0,
        "protocol": "paper",
        "settings": json.dumps({"module": "mlp", "method": "denoise" if kind == "trace" else "rome"}),
        "fasttrace_version": "0.1.0",
        "torch_version": "2.13.0",
        "created_at": datetime(2025, 1, 2, 3, 4, 5, tzinfo=UTC),
        "seconds": 1.5,
        "flops": 2e9,
    }
    return run | changes


def made_trace(
    fact_ids: list[str],
    *,
    run_id: str = "t0",
    windows: tuple[int, ...] = (5,),
    layers: int = 4,
    tokens: int = 3,
    seed: int = 0,
    no_effect: tuple[str, ...] = (),
    left_out: tuple[str, ...] = (),
    effects: dict[tuple[str, int], float] | None = None,
    heads: tuple[int | None, ...] = (None,),
    asked: dict[str, Any] | None = None,
    **run: Any,
) -> Made:
    """no_effect: facts whose corruption did not hurt. left_out: facts without cells.
    effects: {(fact_id, layer): largest effect of the layer}, in place of random ones.
    heads: of module head. asked: settings of the run, which also have a part in the numbers."""
    settings = {"module": "mlp", "method": "denoise"} | (asked or {})
    metric, method = settings.get("metric", "probability"), settings["method"]
    engine = settings.get("engine", "wavefront")
    if settings.get("corruption") == "counterfactual" and not seed:
        seed = 1  # with another corruption, other effects
    facts, cells = [], []
    for fact_id in fact_ids:
        rng = np.random.default_rng([seed, *fact_id.encode()])
        p_clean, p_noised = rng.uniform(0.5, 1.0), rng.uniform(0.0, 0.3)
        if fact_id in no_effect:
            p_noised = p_clean
        kept = fact_id not in left_out
        ends = {"logit_diff": (4 * p_clean, 2 * p_noised - 1), "logprob": (np.log(p_clean), np.log(p_noised))}
        if fact_id in no_effect:
            ends["logit_diff"] = (2.0, 2.0)
        ends = {name: ends[name] for name in ("logit_diff", COLUMN_OF[metric]) if name in ends}
        if metric == "kl":
            ends["kl"] = (0.0, 0.0 if fact_id in no_effect else 2 - p_noised)
        facts.append(
            {
                "fact_id": fact_id,
                "prompt": f"{fact_id} is in",
                "subject": fact_id,
                "relation": None,
                "target_true": "Rome",
                "target_false": "Oslo",
                "p_clean": p_clean,
                "p_noised": p_noised if kept else None,
                "tokens": [f"t{i}" for i in range(tokens)],
                "subject_begin": 0,
                "subject_end": 2,
                "sigma": 0.1,
                "kept": kept,
                "reason": None if kept else "not known",
                "scored": " Rome" if kept else None,
                "rank_correlation": None,
                "engine": engine,
            }
            | {f"{name}_clean": clean for name, (clean, _) in ends.items() if kept and name != "kl"}
            | {f"{name}_noised": noised for name, (_, noised) in ends.items() if kept}
        )
        if settings.get("corruption") == "counterfactual":
            facts[-1] |= {"sigma": None, "counterfactuals": ["Sparta is in"] if kept else None}
        if not kept:
            continue
        for window in windows:
            for layer in range(layers):
                top = rng.uniform(-0.1, 1.0)
                if effects and (fact_id, layer) in effects:
                    top = effects[fact_id, layer]
                peak = int(rng.integers(tokens * len(heads)))
                for place, (token, head) in enumerate(itertools.product(range(tokens), heads)):
                    effect = top if place == peak else top - rng.uniform(0.01, 0.5)
                    if asked and metric == "probability":  # so that p stays in [0, 1] and the effect follows from it
                        effect = min(max(effect, 0.0), 1.0)

                    def value(clean: float, noised: float, effect: float = effect) -> float:
                        share = 1 - effect if method == "noise" else effect
                        return noised + share * (clean - noised)

                    cells.append(
                        {
                            "fact_id": fact_id,
                            "window_size": window,
                            "token_index": token,
                            "token": f"t{token}",
                            "layer": layer,
                            "head": head,
                            "p_restored": min(max(value(p_clean, p_noised), 0.0), 1.0),
                            "p_restored_sem": 0.01,
                            "effect": None if fact_id in no_effect else effect,
                            "approximate": False,
                            "p_screened": None,
                            "engine": engine,
                        }
                        | {f"{name}_restored": value(*both) for name, both in ends.items()}
                        | {f"{name}_sem": 0.02 for name in ends}
                    )
    made = {"facts": _table(facts, FACTS), "cells": _table(cells, CELLS)}
    made |= {"samples": _table([], SAMPLES), "routing": _table([], ROUTING)}
    return Made(made_run(run_id, "trace", **({"settings": json.dumps(settings)} | run)), **made)


def made_edit(
    fact_ids: list[str],
    *,
    run_id: str = "e0",
    layers: tuple[int, ...] = (0, 1, 2, 3),
    problem: str = "error-injection",
    method: str = "rome",
    window_size: int = 5,
    seed: int = 1,
    scores: dict[tuple[str, int], dict[str, float | None]] | None = None,
    **run: Any,
) -> Made:
    """scores: {(fact_id, layer): {score: value}}, in place of random ones."""
    rows, prompts = [], []
    for fact_id in fact_ids:
        for layer in layers:
            rng = np.random.default_rng([seed, layer, *fact_id.encode()])
            rewrite, paraphrase, neighborhood = rng.uniform(0, 1, 3) * (1 - 0.1 * layer)
            key = {
                "fact_id": fact_id,
                "problem": problem,
                "method": method,
                "layer": layer,
                "window_size": window_size,
            }
            before_after = {"p_before": 0.1, "p_after": 0.9, "p_true_before": 0.8, "p_true_after": 0.05}
            row = key | before_after
            row |= {"rewrite": rewrite, "paraphrase": paraphrase, "neighborhood": neighborhood}
            row |= {"essence": None, "overall": (rewrite + paraphrase + neighborhood) / 3}
            row |= {"magnitude": 0.85, "success": True}
            row |= {"delta_norm": 1.2, "denominator": 0.4, "loss": 0.3}
            rows.append(row | (scores or {}).get((fact_id, layer), {}))
            for index, kind in enumerate(("rewrite", "paraphrase", "paraphrase", "neighborhood")):
                text = f"{fact_id} {index}"
                named = {"kind": kind, "prompt_index": index, "prompt": text, "target_tokens": 1}
                prompts.append(key | before_after | named)
    edit_run = made_run(run_id, "edit", **run)
    return Made(edit_run, scores=_table(rows, SCORES), prompts=_table(prompts, PROMPTS))


def made_known(fact_ids: list[str], *, run_id: str = "k0", **run: Any) -> Made:
    rows = [
        {
            "fact_id": fact_id,
            "known": i % 2 == 0,
            "p_true": 0.5,
            "p_first_token_top": True,
            "continuation": "Rome and",
            "reason": None,
        }
        for i, fact_id in enumerate(fact_ids)
    ]
    return Made(made_run(run_id, "facts", **run), verdicts=_table(rows, VERDICTS))


def _table(rows: list[dict[str, Any]], fields: dict[str, pa.DataType]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema(list(fields.items())))


S, D, N, B = pa.string(), pa.float64(), pa.int32(), pa.bool_()
FACTS = {
    "fact_id": S, "prompt": S, "subject": S, "relation": S, "target_true": S, "target_false": S,
    "p_clean": D, "p_noised": D, "tokens": pa.list_(S), "subject_begin": N, "subject_end": N, "sigma": D,
    "kept": B, "reason": S, "scored": S, "rank_correlation": D, "p_false_clean": D, "p_false_noised": D,
    "logit_diff_clean": D, "logit_diff_noised": D, "logprob_clean": D, "logprob_noised": D, "kl_noised": D,
    "counterfactuals": pa.list_(S), "engine": S,
}  # fmt: skip
CELLS = {
    "fact_id": S, "window_size": N, "token_index": N, "token": S, "layer": N, "head": N, "p_restored": D,
    "p_restored_sem": D, "effect": D, "approximate": B, "p_screened": D, "p_false_restored": D, "p_false_sem": D,
    "logit_diff_restored": D, "logit_diff_sem": D, "logprob_restored": D, "logprob_sem": D, "kl_restored": D,
    "kl_sem": D, "engine": S,
}  # fmt: skip
SAMPLES = {
    "fact_id": S, "window_size": N, "token_index": N, "layer": N, "head": N, "sample": N, "p_restored": D,
    "logit_diff_restored": D, "engine": S,
}  # fmt: skip
ROUTING = {"fact_id": S, "sample": N, "token_index": N, "layer": N, "expert": N, "weight": D}
COLUMN_OF = {"probability": "p", "log-probability": "logprob", "logit-difference": "logit_diff", "kl": "kl"}
_EDIT = {"fact_id": S, "problem": S, "method": S, "layer": N, "window_size": N}
_P = {"p_before": D, "p_after": D, "p_true_before": D, "p_true_after": D}
SCORES = _EDIT | dict.fromkeys(("rewrite", "paraphrase", "neighborhood", "essence", "overall"), D) | _P
SCORES |= {"magnitude": D, "success": B, "ppl_before": D, "ppl_after": D, "delta_norm": D, "denominator": D}
SCORES |= {"condition": D, "loss": D, "target": S, "reason": S, "experts": S}
PROMPTS = _EDIT | {"kind": S, "prompt_index": N, "prompt": S, "target_tokens": N} | _P
PROMPTS |= {"p_false_before": D, "p_false_after": D, "expect": S, "answer": S}
PROMPTS |= {"match_before": B, "match_after": B, "score": D, "generated_before": S, "generated_after": S}
PROMPTS |= {"exact_before": B, "exact_after": B, "prefix_before": B, "prefix_after": B}
PROMPTS |= {"judged_after": B, "judge_error": S, "answers": pa.list_(S)}
MASS_PROMPTS = {"n_edits": N, "fact_id": S, **{name: kind for name, kind in PROMPTS.items() if name not in _EDIT}}
VERDICTS = {"fact_id": S, "known": B, "p_true": D, "p_first_token_top": B, "continuation": S, "reason": S}
