"""The steps between a model and a store."""

import pytest
import torch
from small_models import small_model

import fasttrace as ft
from fasttrace import workflow
from fasttrace.cluster.crew import Alone
from fasttrace.editing import prepare_edit
from fasttrace.tracing import prepare_trace


def test_enough_known_facts_are_the_first_ones(smollm2, tmp_path, monkeypatch):
    prompt = "The capital of {} is"
    japan, france, italy = (
        ft.Fact(prompt=prompt, subject=subject, target_true=target)
        for subject, target in (("Japan", "Zanzibar"), ("France", "Paris"), ("Italy", "Rome"))
    )
    store = ft.Store(tmp_path / "s.duckdb")
    facts, done = [japan, france, italy], []
    workflow.known_into(store, Alone(smollm2), [italy], "paper", done.append)
    monkeypatch.setattr(workflow, "BATCH", 1)
    verdicts = workflow.known_into(store, Alone(smollm2), facts, "paper", done.append, enough=1)
    assert next(verdict["fact_id"] for verdict in verdicts if verdict["known"]) == france.fact_id


def test_a_sweep_that_grows_or_is_split_is_one_run(small_tokenizer, tmp_path):
    """The default σ of this model is 3sd."""
    model = small_model("llama", small_tokenizer, torch.float32)
    places = [("Eiffel Tower", "Paris"), ("New York", "Rome"), ("Tower", "Paris"), ("Paris Tower", "Rome")]
    facts = [
        ft.Fact(prompt="The {} is located in the city of", subject=subject, target_true=true, target_false="York")
        for subject, true in places
    ]
    whole, grown, first, second = (ft.Store(tmp_path / f"{name}.duckdb") for name in ("w", "g", "a", "b"))

    def sweep(store, some):
        trace = {"keep": "all", "samples": 2, "windows": [3]}
        workflow.trace_into(store, prepare_trace(model, some, **trace), int)
        edit = {"method": "ft-1", "problem": "fact-forcing", "layers": [1], "essence": 0, "steps": 1}
        workflow.edit_into(store, prepare_edit(model, some, **edit), int)

    sweep(whole, facts)
    for some in (facts[:1], facts[:3], facts):
        sweep(grown, some)
    sweep(first, facts[:2])
    sweep(second, facts[2:])
    cells = "SELECT * FROM trace_cells ORDER BY fact_id, token_index, layer"
    edits = "SELECT * FROM edits ORDER BY fact_id"
    for parts in (grown, ft.Stores([first.path, second.path])):
        assert len(parts.once().query("SELECT DISTINCT run_id FROM runs WHERE kind IN ('trace', 'edit')")) == 2
        for query in (cells, edits):
            found, wanted = (one.once().query(query).to_pandas() for one in (parts, whole))
            for name in wanted:
                expected = wanted[name].tolist()
                if wanted[name].dtype == float:
                    expected = pytest.approx(expected, rel=1e-5, abs=1e-7, nan_ok=True)
                assert found[name].tolist() == expected, name
