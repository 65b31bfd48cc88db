"""A plan that is computed in pieces or shares has the values of a plan that is computed whole, to the bit.

No Ray is needed: a worker computes a piece by `plan.batches(only=…)`.
"""

import random
from dataclasses import replace

import pytest
import torch
from edit_cases import CONTEXTS
from small_models import FAMILIES, small_model

import fasttrace as ft
from fasttrace.cluster.crew import Alone
from fasttrace.cluster.pieces import pieces, waves
from fasttrace.editing import prepare_edit
from fasttrace.tracing import prepare_trace

SUBJECTS = ("Eiffel Tower", "New York", "Tower", "Paris Tower", "The Tower of Rome", "Rome", "City Tower")
PROMPTS = ("The {} is located in the city of", "{} is the capital of", "The city of {} is in")
FACTS = [
    ft.Fact(prompt=prompt, subject=subject, target_true=true, target_false="York")
    for prompt in PROMPTS
    for subject, true in zip(SUBJECTS, ("Paris", "Rome", "New", "Paris", "Rome", "France", "Paris"), strict=True)
]
# The waves are of several facts, of one each, or one fact is in several.
TRACES = {
    "waves of facts": {"memory": "6MB"},
    "facts in waves": {"memory": "1MB"},
    "known": {"memory": "6MB", "keep": "known"},
    "estimates": {"memory": "6MB", "method": "attribution", "verify_top": 3},
    "answers": {"memory": "6MB", "scored": "argmax-first"},
    "counterfactuals": {"memory": "6MB", "metric": "logit-difference"},
}
EDITS = {
    "rome": {"method": "rome", "contexts": CONTEXTS},
    "ft-1": {"method": "ft-1"},
    "ft-5": {"method": "ft-5", "problem": "fact-forcing"},
}


def tables(result):
    """The values of a result."""
    named = [getattr(result, name) for name in ("facts", "cells", "scores", "prompts") if hasattr(result, name)]
    return [table for table in named if not isinstance(table, list)]


def check_cuts(plan, workers):
    """Check that pieces, in any order, and shares are the whole. Returns the number of pieces."""
    whole = plan.joined(list(plan.batches()))
    settled = plan.settled(Alone(plan.model))
    work = pieces(settled.units(), workers)
    random.Random(0).shuffle(work)
    found = settled.joined([settled.joined(list(settled.batches(only=piece.keys))) for piece in work])
    assert tables(found) == tables(whole)
    mine = [Alone(plan.model).share(plan, (n, 3)) for n in (1, 2, 3)]
    every = frozenset().union(*mine)
    parts = [part for some in mine for part in plan.batches(skip=set(every - some))]
    assert tables(plan.joined(parts)) == tables(whole)
    return len(work)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("asked", TRACES, ids=str)
def test_a_sweep(small_tokenizer, asked, dtype):
    model = small_model("llama", small_tokenizer, dtype)
    given = {"keep": "all", "windows": [3], "samples": 2, "sigma": 0.4, **TRACES[asked]}
    if given["memory"] == "6MB" and dtype == torch.bfloat16:
        given["memory"] = "3MB"
    # Estimates are made for 32 facts at a time.
    again = [replace(fact, fact_id=f"{fact.fact_id}/again") for fact in FACTS] if asked == "estimates" else []
    plan = prepare_trace(model, FACTS + again, **given)
    assert check_cuts(plan, 2) > 1


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_a_sweep_of_every_family(small_tokenizer, family):
    model = small_model(family, small_tokenizer, torch.float32)
    plan = prepare_trace(model, FACTS, keep="all", windows=[3, 1], samples=2, sigma=0.4, memory="6MB")
    assert check_cuts(plan, 3) > 1


@pytest.mark.parametrize("asked", EDITS, ids=str)
def test_edits(small_tokenizer, asked, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = small_model("llama", small_tokenizer, torch.float32)
    given = dict(EDITS[asked])
    if given["method"] == "rome":
        (tmp_path / "corpus.txt").write_text("The city of Paris is the capital of France. " * 200)
        given |= {"corpus": tmp_path / "corpus.txt", "ridge": 0.1}
    plan = prepare_edit(model, FACTS[:7], layers=[1, 3], window_size=3, sigma=0.4, memory="3MB", steps=3, **given)
    assert check_cuts(plan, 2) > 1


def test_waves_begin_where_the_sweep_begins_them(small_tokenizer):
    """Cutting a wave would give products of fewer rows, and so perhaps other last digits."""
    model = small_model("llama", small_tokenizer, torch.float32)
    plan = prepare_trace(model, FACTS, keep="all", windows=[3, 1], samples=2, sigma=0.4, memory="6MB")
    found = [[unit.key for unit in wave.units] for wave in waves(plan.units())]
    assert found == [batch.facts["fact_id"].to_pylist() for batch in plan.batches()]
    assert max(map(len, found)) > 1
