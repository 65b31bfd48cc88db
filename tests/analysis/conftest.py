"""Stores and reports of made-up studies (tests/support/plausible.py)."""

import itertools
from dataclasses import replace

import pytest
from plausible import edit_result, mass_result, study_facts, trace_result
from reports import METHODS, PROBLEMS, written

from fasttrace.store import Store


@pytest.fixture(scope="session")
def study(tmp_path_factory):
    """24 facts, one left out, one without an effect; ROME for error injection at 8 layers, window 5."""
    store = Store(tmp_path_factory.mktemp("study") / "study.duckdb")
    facts = study_facts()
    store.add_facts(facts)
    store.add(trace_result(facts))
    store.add(edit_result([fact for fact in facts if not fact.fact_id.endswith("-21")]))
    return store


@pytest.fixture(scope="session")
def wide_study(tmp_path_factory):
    """Two problems, two methods, two windows, two models."""
    store = Store(tmp_path_factory.mktemp("wide") / "wide.duckdb")
    facts = study_facts(count=12)
    store.add_facts(facts)
    store.add(trace_result(facts, windows=(3, 5)))
    store.add(edit_result(facts))
    store.add(edit_result(facts, problem="fact-forcing"))
    store.add(edit_result(facts, method="memit"))
    other = {"model": "gpt2", "model_hash": "77aa"}
    store.add(trace_result(facts, run_id="trace-gpt2", **other))
    store.add(edit_result(facts, run_id="edit-gpt2", **other))
    return store


@pytest.fixture(scope="session")
def whole(tmp_path_factory):
    """Data for every table and figure: every problem and method, windows 5 and 10, zeroing, zsRE's facts, GPT2-XL."""
    store = Store(tmp_path_factory.mktemp("whole") / "whole.duckdb")
    facts = study_facts(count=14)
    store.add_facts(facts)
    store.add(trace_result(facts[:8], windows=(5, 10)))
    store.add(trace_result(facts[8:], windows=(5, 10), width=1.2))  # a few layers: concentrated
    store.add(trace_result(facts, localization="zero", tokens="whole-subject", run_id="zeroed"))
    for problem, method in itertools.product(PROBLEMS, METHODS):
        store.add(edit_result(facts, problem=problem, method=method, essence=0.9))
    asked = [replace(fact, source="zsre") for fact in study_facts("asked", count=10)]
    store.add_facts(asked)
    store.add(trace_result(asked, run_id="trace-asked"))
    store.add(edit_result(asked, run_id="edit-asked"))
    xl = {"model": "openai-community/gpt2-xl", "model_hash": "77aa"}
    store.add(trace_result(facts, windows=(5, 10), run_id="trace-xl", **xl))
    store.add(edit_result(facts, run_id="edit-xl", **xl))
    return store


@pytest.fixture(scope="session")
def report(study, tmp_path_factory):
    return written(study, tmp_path_factory.mktemp("report") / "sub" / "report.html")


@pytest.fixture(scope="session")
def twenty(tmp_path_factory):
    """Report of the paper's 20 pairs of problem and method, four windows and a mass edit."""
    folder = tmp_path_factory.mktemp("twenty")
    store = Store(folder / "study.duckdb")
    facts = study_facts(count=12)
    store.add_facts(facts)
    store.add(trace_result(facts, windows=(1, 3, 5, 10)))
    for problem, method in itertools.product(PROBLEMS, METHODS):
        store.add(edit_result(facts, problem=problem, method=method))
    store.add(mass_result(facts))
    return written(store, folder / "report.html")


@pytest.fixture(scope="session")
def two_ways(tmp_path_factory):
    """Report of a study traced by denoising and by zeroing."""
    folder = tmp_path_factory.mktemp("ways")
    store = Store(folder / "study.duckdb")
    facts = study_facts(count=6)
    store.add_facts(facts)
    store.add(trace_result(facts))
    store.add(trace_result(facts, localization="zero", tokens="whole-subject", run_id="trace-zero"))
    store.add(edit_result(facts))
    store.add(edit_result(facts, method="memit"))
    return written(store, folder / "report.html")
