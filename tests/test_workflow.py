"""The steps between a model and a store."""

import fasttrace as ft
from fasttrace import workflow


def test_enough_known_facts_are_the_first_ones(smollm2, tmp_path, monkeypatch):
    prompt = "The capital of {} is"
    japan, france, italy = (
        ft.Fact(prompt=prompt, subject=subject, target_true=target)
        for subject, target in (("Japan", "Zanzibar"), ("France", "Paris"), ("Italy", "Rome"))
    )
    store = ft.Store(tmp_path / "s.duckdb")
    facts, done = [japan, france, italy], []
    workflow.known_into(store, smollm2, [italy], "paper", done.append)
    monkeypatch.setattr(workflow, "BATCH", 1)
    verdicts = workflow.known_into(store, smollm2, facts, "paper", done.append, enough=1)
    assert next(verdict["fact_id"] for verdict in verdicts if verdict["known"]) == france.fact_id
