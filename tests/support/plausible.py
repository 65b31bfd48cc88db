"""A made-up study in the form that fasttrace stores, with effects and scores shaped like real ones."""

import json
from typing import Any

import numpy as np
import pyarrow as pa
from made_results import CELLS, FACTS, MASS_PROMPTS, PROMPTS, ROUTING, SAMPLES, SCORES, Made, made_run

from fasttrace.editing.breaks import MEASURES, NORMS, TASKS
from fasttrace.facts.record import Fact
from fasttrace.store.connect import schema_columns

N_LAYERS = 30
EDITED = (0, 4, 8, 12, 16, 20, 24, 29)
HOSTILE = '</script><script>window.broken = 1</script><img src="x" onerror="window.broken = 2">'

PLACES = [
    ("Eiffel Tower", "Paris", "Rome"),
    ("Colosseum", "Rome", "Athens"),
    ("Brandenburg Gate", "Berlin", "Vienna"),
    ("Kremlin", "Moscow", "Warsaw"),
    ("Big Ben", "London", "Dublin"),
    ("Sagrada Família", "Barcelona", "Lisbon"),
    ("Atomium", "Brussels", "Zurich"),
    ("Hagia Sophia", "Istanbul", "Cairo"),
    ("Louvre", "Paris", "Madrid"),
    ("Parthenon", "Athens", "Naples"),
    ("Rijksmuseum", "Amsterdam", "Oslo"),
    ("Charles Bridge", "Prague", "Budapest"),
    ("Tivoli Gardens", "Copenhagen", "Helsinki"),
    ("Uffizi", "Florence", "Geneva"),
    ("Prado", "Madrid", "Porto"),
    ("Tokyo Skytree", "Tokyo", "Seoul"),
    ("東京タワー", "Tokyo", "Osaka"),
    ("Opera House", "Sydney", "Perth"),
    ("CN Tower", "Toronto", "Boston"),
    ("$100 $bill Museum", "Denver", "Dallas"),
    ("Alamo", "San Antonio", "Houston"),
    ("Space Needle", "Seattle", "Portland"),
    ("Unhurt Hall", "Leeds", "York"),
    (f"Mall {HOSTILE}", "Dubai", "Doha"),
]
UNHURT = "place-22"  # corruption does not lower its p(o_true), so it has no fractional effect
HOSTILE_ID = "place-23"


def study_facts(prefix: str = "place", count: int = len(PLACES)) -> list[Fact]:
    return [
        Fact(
            "The {} is located in the city of",
            subject,
            true,
            false,
            relation="city",
            fact_id=f"{prefix}-{place:02d}",
            paraphrases=(f"Where is the {subject}? In", f"To see the {subject}, go to"),
            neighborhood=("The Pantheon is in",),
        )
        for place, (subject, true, false) in enumerate(PLACES[:count])
    ]


def _run(run_id: str, kind: str, settings: dict[str, Any], **changes: Any) -> dict[str, Any]:
    about = {"model": "smollm2-135m", "model_hash": "9f2c41d07ab3", "settings": json.dumps(settings)}
    return made_run(run_id, kind, **(about | changes))


def trace_result(
    facts: list[Fact],
    windows: tuple[int, ...] = (5,),
    localization: str = "denoise",
    width: float = 4.0,
    tokens: str = "all",
    **run: Any,
) -> Made:
    """Grids with an early site at the last subject token and a late site at the prompt's last token.

    width: of each site, in layers. tokens: the setting of that name; "whole-subject" leaves one cell a layer, at the
    last subject token. Zeroing raises p_clean a little between the sites. The fact "…-21" is left out.
    """
    about, cells, zeroed = [], [], localization == "zero"
    for fact in facts:
        rng = np.random.default_rng(list(fact.fact_id.encode()))
        words = fact.subject.split(" ")
        words_of = ["The", *(f" {word}" for word in words), " is", " located", " in", " the", " city", " of"]
        begin, end = 1, 1 + len(words)
        p_clean, p_noised = rng.uniform(0.4, 0.95), rng.uniform(0.002, 0.1)
        if fact.fact_id.endswith("-22"):
            p_clean, p_noised = 0.31, 0.34
        kept = not fact.fact_id.endswith("-21")
        about.append(
            {
                "fact_id": fact.fact_id,
                "prompt": fact.text,
                "subject": fact.subject,
                "relation": fact.relation,
                "target_true": fact.target_true,
                "target_false": fact.target_false,
                "p_clean": p_clean,
                "p_noised": p_noised if kept and not zeroed else None,
                "tokens": words_of,
                "subject_begin": begin,
                "subject_end": end,
                "sigma": 0.094,
                "kept": kept,
                "reason": None if kept else "o_true is not among the first 36 greedy tokens",
                "scored": f" {fact.target_true}" if kept else None,
                "rank_correlation": None,
            }
        )
        if not kept:
            continue
        early, late = rng.normal(4, 1.5), rng.normal(24, 1.5)
        for window in windows:
            for token, text in enumerate(words_of):
                if tokens == "whole-subject" and token != end - 1:
                    continue
                height = {end - 1: (0.5, early), len(words_of) - 1: (0.3, late)}.get(token, (0.04, early))
                for layer in range(N_LAYERS):
                    shape = height[0] * window / 5 * np.exp(-(((layer - height[1]) / width) ** 2))
                    share = 0.0 if token < begin else min(shape * rng.uniform(0.8, 1.2), 1.0)
                    effect: float | None = share if p_noised < p_clean else None
                    p = p_noised + share * (p_clean - p_noised)
                    if zeroed:
                        effect = share - rng.uniform(0.0, 0.05)
                        p = p_clean * (1 - effect)
                    cells.append(
                        {
                            "fact_id": fact.fact_id,
                            "window_size": window,
                            "token_index": token,
                            "token": text,
                            "layer": layer,
                            "p_restored": p,
                            "p_restored_sem": 0.1 * p * (1 - p),
                            "effect": effect,
                            "approximate": False,
                            "p_screened": None,
                        }
                    )
    settings = {
        "windows": list(windows),
        "samples": 10,
        "noise": "philox",
        "sigma": 0.094,
        "module": "mlp",
        "method": localization,
        "tokens": tokens,
    }
    return Made(
        _run(run.pop("run_id", "trace-1"), "trace", settings, **run),
        facts=_table(about, FACTS),
        cells=_table(cells, CELLS),
        samples=_table([], SAMPLES),
        routing=_table([], ROUTING),
    )


def edit_result(
    facts: list[Fact],
    problem: str = "error-injection",
    method: str = "rome",
    essence: float | None = None,
    **run: Any,
) -> Made:
    """Noisy scores that fall with the layer and do not depend on the tracing effect. essence: score of every edit."""
    scores, prompts = [], []
    for fact in facts:
        rng = np.random.default_rng(list(f"{fact.fact_id}{problem}".encode()))
        for layer in EDITED:
            rewrite = float(np.clip(1.02 - 0.85 / (1 + np.exp(-(layer - 23) / 2.2)) - abs(rng.normal(0, 0.18)), 0, 1))
            paraphrase, neighborhood = rewrite * rng.uniform(0.5, 0.95), rng.uniform(0.7, 0.95)
            key = {
                "fact_id": fact.fact_id,
                "problem": problem,
                "method": method,
                "layer": layer,
                "window_size": 5,
            }
            p_before, p_true = rng.uniform(0.001, 0.02), rng.uniform(0.4, 0.9)
            p_after = p_before + rewrite * (1 - p_before)
            scores.append(
                key
                | {
                    "rewrite": rewrite,
                    "paraphrase": paraphrase,
                    "neighborhood": neighborhood,
                    "essence": essence,
                    "overall": (rewrite + paraphrase + neighborhood) / 3,
                    "p_before": p_before,
                    "p_after": p_after,
                    "p_true_before": p_true,
                    "p_true_after": (1 - p_after) * 0.5,
                    "magnitude": p_after - (1 - p_after) * 0.5,
                    "success": p_after > (1 - p_after) * 0.5,
                    "delta_norm": 1.3,
                    "denominator": 0.8,
                    "loss": 0.1,
                    "reason": "its δ is zero" if layer == max(EDITED) and method in ("rome", "memit") else None,
                }
            )
            prompts.append(
                key
                | {
                    "kind": "rewrite",
                    "prompt_index": 0,
                    "prompt": fact.text,
                    "target_tokens": 1,
                    "p_before": p_before,
                    "p_after": p_after,
                    "p_true_before": p_true,
                    "p_true_after": 0.1,
                    "expect": "changed",
                    "match_before": False,
                    "match_after": rewrite > 0.5,
                    "score": rewrite,
                }
            )
    settings = {"layers": list(EDITED), "problem": problem, "method": method, "steps": 20}
    return Made(
        _run(run.pop("run_id", f"edit-{problem}-{method}"), "edit", settings, **run),
        scores=_table(scores, SCORES),
        prompts=_table(prompts, PROMPTS),
    )


def mass_result(facts: list[Fact], counts: tuple[int, ...] = (4, 8, 12), **run: Any) -> Made:
    """Facts edited into one model. Their scores fall as the number of edits grows."""
    rows = []
    for n_edits in counts:
        for place, fact in enumerate(facts[:n_edits]):
            rewrite = float(np.clip(1 - 0.03 * n_edits + np.random.default_rng([n_edits, place]).normal(0, 0.05), 0, 1))
            rows.append(
                {
                    "n_edits": n_edits,
                    "fact_id": fact.fact_id,
                    "position": place + 1,
                    "problem": "error-injection",
                    "method": "memit",
                    "layer": 6,
                    "window_size": 5,
                    "rewrite": rewrite,
                    "paraphrase": 0.7 * rewrite,
                    "neighborhood": 0.9,
                    "overall": (1.7 * rewrite + 0.9) / 3,
                    "p_before": 0.01,
                    "p_after": rewrite,
                    "success": rewrite > 0.5,
                }
            )
    settings = {
        "problem": "error-injection",
        "method": "memit",
        "layer": 6,
        "at_once": 4,
        "score_every": 1,
        "steps": 25,
    }
    columns = schema_columns()["mass_edits"]
    table = pa.table({name: [row.get(name) for row in rows] for name in columns if name not in ("run_id", "protocol")})
    prompts = [
        {"n_edits": row["n_edits"], "fact_id": row["fact_id"], "kind": "rewrite", "prompt_index": 0, "prompt": "?"}
        | {"target_tokens": 1, "p_before": row["p_before"], "p_after": row["p_after"]}
        for row in rows
    ]
    measured = [{"model_index": 0, "n_edits": n_edits} for n_edits in counts]
    norms = [
        row | {"layer": layer, "weight_norm": 20.0 + n, "weight_norm_unedited": 20.0, "change_norm": 2.0 + n + layer}
        for n, row in enumerate(measured)
        for layer in (5, 6)
    ]
    texts = {"entropy_unedited": 6.0, "texts": 8, "perplexity_unedited": 9.0, "held_out_tokens": 500}
    measures = [
        row | texts | {"edit_seconds": 2.0 * row["n_edits"], "perplexity": 9.5 + n, "entropy": 5.75 - n / 4}
        for n, row in enumerate(measured)
    ]
    tasks = [
        row
        | {"task": "quiz", "metric": "acc,none", "value": 0.5, "value_sem": 0.1, "value_unedited": 0.6, "samples": 9}
        for row in measured
    ]
    made = {
        "scores": table,
        "prompts": _table(prompts, MASS_PROMPTS),
        "measures": pa.Table.from_pylist(measures, schema=MEASURES),
        "norms": pa.Table.from_pylist(norms, schema=NORMS),
        "tasks": pa.Table.from_pylist(tasks, schema=TASKS),
    }
    return Made(_run(run.pop("run_id", "mass-1"), "mass", settings, **run), **made)


def _table(rows: list[dict[str, Any]], columns: dict[str, pa.DataType]) -> pa.Table:
    return pa.Table.from_pylist(rows, schema=pa.schema(list(columns.items())))
