"""Misuse of the Python API: every public function either works or raises a UserError of one line."""

import collections
import inspect
import itertools

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from edit_cases import CONTEXTS, FACTS
from small_models import small_model

import fasttrace as ft
from fasttrace.analysis import figures, regression, report, tables
from fasttrace.editing import prepare_edit, prepare_mass_edit
from fasttrace.tracing import prepare_trace

QUICK = {"samples": 1, "sigma": 0.4, "keep": "all"}
TUNE = {"method": "ft-1", "layers": [1], "steps": 1, "essence": 0}
MASS = {"method": "ft-1", "layer": 1, "steps": 1}
PAIRED = [ft.Fact("the {} is", name, target) for name, target in (("Paris", "Rome"), ("Rome", "Paris"))]


class Odd:
    """An object of no use."""

    def __init__(self, *given):
        pass


# What callers pass by mistake, by name. Each is made anew, since a generator can be read only once.
VALUES = {
    "None": lambda: None,
    "True": lambda: True,
    "a number": lambda: 3,
    "a negative number": lambda: -1,
    "zero": lambda: 0,
    "a huge number": lambda: 10**30,
    "an endless number": lambda: 10**5000,
    "a fraction": lambda: 1.5,
    "nan": lambda: float("nan"),
    "inf": lambda: float("inf"),
    "a complex number": lambda: 1j,
    "a text": lambda: "x",
    "an empty text": lambda: "",
    "a text with NUL": lambda: "a\0b",
    "a long text": lambda: "x" * 200_000,
    "half a character": lambda: "\ud800",
    "bytes": lambda: b"x",
    "an empty list": list,
    "a list of None": lambda: [None],
    "a nested list": lambda: [[1], [2]],
    "a dict": lambda: {"a": 1},
    "an empty dict": dict,
    "a set": lambda: {1, "x"},
    "a generator": lambda: (x for x in ("x", 1)),
    "an endless iterator": itertools.count,
    "a function": lambda: lambda *given: None,
    "a class": lambda: Odd,
    "an object": Odd,
    "a tensor": lambda: torch.ones(3),
    "a bool tensor": lambda: torch.tensor(True),
    "an array": lambda: np.zeros((2, 2)),
    "numpy's True": lambda: np.True_,
    "a frame": lambda: pd.DataFrame({"a": [1]}),
    "pandas' NA": lambda: pd.NA,
    "a table": lambda: pa.table({"a": [1]}),
    "a deque": lambda: collections.deque([1]),
}

# For functions that draw or analyse at every call that works.
FEW = ("None", "a negative number", "a huge number", "a fraction", "nan", "a text", "half a character", "an object")
SLOW = ("write_report", "summary", "paper_figure", "r2_table", "heatmap", "regressions", "layer_correlations")


@pytest.fixture(scope="module")
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("python")


@pytest.fixture(scope="module")
def store(model, place):
    store = ft.Store(place / "a.duckdb")
    store.add_facts(FACTS)
    store.add(ft.trace(model, FACTS, windows=[3], **QUICK))
    store.add(ft.edit(model, FACTS, **TUNE))
    return store


@pytest.fixture(scope="module")
def calls(model, store, place, small_tokenizer):
    """Name → (function, its good arguments by name). A call with them works, and takes no time."""
    text = place / "text.txt"
    text.write_text(" ".join(f"{fact.text} {fact.target_true}" for fact in FACTS * 40))
    moments = {"corpus": text, "tokens": 300, "sequence_length": 16, "layers": [1], "cache_dir": place / "cache"}
    ft.second_moments(model, **moments).export(place / "npz", model)
    result = ft.edit(model, FACTS[:1], **TUNE)
    delta = result.save_delta(place / "edit.safetensors")
    plans = prepare_trace(model, FACTS, **QUICK), prepare_edit(model, FACTS, **TUNE)
    mass = prepare_mass_edit(model, FACTS, **MASS)
    both = {"model": model, "facts": FACTS}
    bundle = {
        "trace": (ft.trace, both | QUICK | {"progress": None, "settings": None}),
        "prepare_trace": (prepare_trace, both | QUICK | {"windows": 3}),
        "edit": (ft.edit, both | TUNE | {"progress": None, "settings": None, "moments": None}),
        "prepare_edit": (prepare_edit, both | TUNE | {"progress": None}),
        "mass_edit": (ft.mass_edit, both | MASS | {"progress": None}),
        "prepare_mass_edit": (prepare_mass_edit, both | MASS),
        "second_moments": (ft.second_moments, {"model": model, "settings": None, "progress": None} | moments),
        "import_moments": (
            ft.import_moments,
            {"model": model, "path": place / "npz", "layers": [1], "ridge": 0.0, "cache_dir": place / "cache"},
        ),
        "pair_facts": (ft.pair_facts, {"model": model, "facts": PAIRED, "count": 1, "among": None}),
        "check_known": (ft.check_known, both | {"protocol": "paper", "batch": 4, "progress": None}),
        "load_facts": (
            ft.load_facts,
            {"source": None, "format": "auto", "relation": None, "limit": 2, "on_bad": "raise", "rejected": None}
            | {"map": None, "zsre": "bare"},
        ),
        "load_model": (ft.load_model, {"source": place / "none", "dtype": "float32", "device": "cpu"}),
        "wrap_model": (ft.wrap_model, {"hf": model.hf, "tokenizer": small_tokenizer, "name": "x", "weights": None}),
        "load_delta": (ft.load_delta, {"path": delta, "model": model}),
        "apply_delta": (lambda **given: ft.apply_delta(**given).remove(), {"model": model, "delta": delta}),
        "generate": (
            ft.generate,
            {"model": model, "prompts": ["the"], "delta": None, "max_new_tokens": 1, "stop": None, "top_k": 1}
            | {"seed": 0, "settings": None, "memory": "1GB", "chat_template": False},
        ),
        "Decoder.generate": (model.generate, {"prompts": "the", "max_new_tokens": 1, "settings": None}),
        "Fact": (ft.Fact, {name: getattr(FACTS[0], name) for name in inspect.signature(ft.Fact).parameters}),
        "Probe": (ft.Probe, {"kind": "alias", "prompt": "x", "answers": ("y",), "expect": None, "after": "edit"}),
        "TraceSettings": (ft.TraceSettings, {"windows": [3], "memory": "1MB"}),
        "EditSettings": (ft.EditSettings, {"contexts": CONTEXTS, "hyperparameters": None}),
        "RomeSettings": (ft.RomeSettings, {"lr": 0.1, "key_mode": "rome"}),
        "Store": (ft.Store, {"path": place / "new.duckdb", "timeout_s": 1, "memory": None}),
        "Stores": (ft.Stores, {"stores": {"a": store.path}, "timeout_s": 1}),
        "Store.add": (store.add, {"result": result}),
        "Store.add_facts": (store.add_facts, {"facts": FACTS}),
        "Store.add_left_out": (store.add_left_out, {"source": "x", "left_out": []}),
        "Store.done": (store.done, {"run_id": "x"}),
        "Store.done_edits": (store.done_edits, {"run_id": "x"}),
        "Store.query": (store.query, {"sql": "SELECT ?", "params": [1]}),
        "Store.add_parquet": (store.add_parquet, {"folder": place / "none"}),
        "Store.to_parquet": (store.to_parquet, {"folder": place / "none" / "none"}),
        "EditResult.export": (
            result.export, {"folder": delta, "fact_id": None, "layer": None, "format": "peft", "rank": 1}
        ),
        "EditResult.applied": (
            lambda **given: result.applied(**given).remove(), {"fact_id": None, "layer": None}
        ),
        "MassResult.export": (mass.compute().export, {"folder": delta, "format": "peft", "rank": 1}),
        "EditResult.save_delta": (result.save_delta, {"path": delta, "fact_id": None, "layer": None}),
        "TracePlan.batches": (
            lambda **given: list(plans[0].batches(**given)),
            {"memory": None, "skip": {fact.fact_id for fact in FACTS}, "progress": None},
        ),
        "EditPlan.batches": (
            lambda **given: list(plans[1].batches(**given)),
            {"memory": None, "skip": {(fact.fact_id, 1) for fact in FACTS}, "progress": None},
        ),
        "MassPlan.compute": (mass.compute, {"memory": None, "progress": None}),
        "ask": (ft.ask, {"store": store, "query": "scores_by_layer", "params": {}}),
        "regress": (ft.regress, {"store": store, "formula": "both", "score": "rewrite", "where": ()}),
        "regress by": (
            ft.regress,
            {"store": store, "formula": "rewrite ~ effect", "cluster": "fact_id", "tracing_window": 3},
        ),
        "regressions": (regression.regressions, {"store": store, "score": "rewrite", "problem": "error-injection"}),
        "layer_means": (regression.layer_means, {"store": store, "score": "rewrite"}),
        "layer_correlations": (regression.layer_correlations, {"store": store, "score": "rewrite"}),
        "r2_table": (tables.r2_table, {"store": store, "score": "rewrite", "resamples": 0}),
        "paper_table": (tables.paper_table, {"store": store, "number": 1, "resamples": 0}),
        "layer_table": (tables.layer_table, {"store": store}),
        "summary": (tables.summary, {"store": store, "score": "rewrite", "width": None}),
        "heatmap": (
            figures.heatmap,
            {"store": store, "fact_id": FACTS[0].fact_id, "window_size": None, "run": None},
        ),
        "paper_figure": (
            figures.paper_figure,
            {"store": store, "number": 2, "fact_id": None, "layer": None, "run": None},
        ),
        "save": (figures.save, {"figure": figures.heatmap(store, FACTS[0].fact_id), "path": place / "a.svg"}),
        "write_report": (report.write_report, {"store": store, "path": place / "a.html", "max_facts": 1}),
    }  # fmt: skip
    return bundle


NAMES = {
    "trace": ["model", "facts", "samples", "sigma", "keep", "progress", "settings", "windows", "seed",
              "memory", "corruption", "metric", "heads", "oops"],
    "prepare_trace": ["model", "facts", "windows", "samples", "module", "verify_top"],
    "edit": ["model", "facts", "method", "layers", "steps", "essence", "progress", "settings", "moments", "contexts"],
    "prepare_edit": ["model", "facts", "problem", "hyperparameters", "window_size", "lr", "epsilon", "bias",
                     "progress"],
    "mass_edit": ["model", "facts", "layer", "at_once", "score_every", "together", "progress"],
    "prepare_mass_edit": ["model", "facts", "layer"],
    "second_moments": ["model", "corpus", "tokens", "layers", "sequence_length", "ridge", "cache_dir", "settings",
                       "progress", "batch_rows", "memory"],
    "import_moments": ["model", "path", "layers", "ridge", "cache_dir", "oops"],
    "pair_facts": ["model", "facts", "count", "among", "oops"],
    "check_known": ["model", "facts", "protocol", "batch", "progress"],
    "load_facts": ["source", "format", "relation", "limit", "on_bad", "rejected", "map", "zsre", "oops"],
    "load_model": ["source", "dtype", "device", "max_memory", "offload_folder", "tokenizer", "trust_remote_code"],
    "wrap_model": ["hf", "tokenizer", "name", "weights"],
    "load_delta": ["path", "model"],
    "apply_delta": ["model", "delta"],
    "generate": ["model", "prompts", "delta", "max_new_tokens", "stop", "top_k", "seed", "settings", "memory",
                 "chat_template", "oops"],
    "Decoder.generate": ["prompts", "max_new_tokens", "settings", "oops"],
    "Fact": ["prompt", "subject", "target_true", "target_false", "relation", "paraphrases", "neighborhood", "fact_id",
             "source", "counterfactual_subject", "counterfactual_prompt", "probes", "case_id", "case_edits",
             "subject_found", "meta", "oops"],
    "Probe": ["kind", "prompt", "answers", "expect", "after", "oops"],
    "TraceSettings": ["windows", "memory", "sigma", "oops"],
    "EditSettings": ["contexts", "hyperparameters", "ridge", "corpus"],
    "RomeSettings": ["lr", "key_mode", "early_stop"],
    "Store": ["path", "timeout_s", "memory", "oops"],
    "Stores": ["stores", "timeout_s"],
    "Store.add": ["result"],
    "Store.add_facts": ["facts"],
    "Store.add_left_out": ["source", "left_out"],
    "Store.done": ["run_id"],
    "Store.done_edits": ["run_id"],
    "Store.query": ["sql", "params"],
    "Store.add_parquet": ["folder"],
    "Store.to_parquet": ["folder"],
    "EditResult.export": ["folder", "fact_id", "layer", "format", "rank"],
    "EditResult.applied": ["fact_id", "layer", "oops"],
    "MassResult.export": ["folder", "format", "rank", "oops"],
    "EditResult.save_delta": ["path", "fact_id", "layer"],
    "TracePlan.batches": ["memory", "skip", "progress"],
    "EditPlan.batches": ["memory", "skip", "progress"],
    "MassPlan.compute": ["memory", "progress"],
    "ask": ["store", "query", "params"],
    "regress": ["store", "formula", "score", "where", "robust", "groups"],
    "regress by": ["formula", "cluster", "tracing_window"],
    "regressions": ["store", "score", "problem", "window_size", "oops"],
    "layer_means": ["store", "score"],
    "layer_correlations": ["store", "score"],
    "r2_table": ["store", "score", "resamples", "method"],
    "paper_table": ["store", "number", "resamples"],
    "layer_table": ["store"],
    "summary": ["store", "score", "width"],
    "heatmap": ["store", "fact_id", "window_size", "run"],
    "paper_figure": ["store", "number", "fact_id", "layer", "run"],
    "save": ["figure", "path"],
    "write_report": ["store", "path", "max_facts", "max_bytes"],
}  # fmt: skip
PAIRS = [(name, argument) for name, arguments in NAMES.items() for argument in arguments]


def test_the_calls_are_all_public_functions_and_work(calls, place):
    functions = {
        name for name in ft.__all__ if callable(getattr(ft, name)) and not name.endswith(("Error", "Settings"))
    }
    assert functions <= NAMES.keys()
    assert calls.keys() == NAMES.keys()
    refused = {"load_model", "Store.add_parquet", "Store.to_parquet", "EditResult.export", "MassResult.export",
            "EditResult.save_delta",
            "paper_table", "regress", "regress by", "regressions", "layer_correlations", "r2_table",
            "summary"}  # fmt: skip
    for name, (function, good) in calls.items():
        outcome(function, good, name) if name in refused else function(**good)


@pytest.mark.parametrize(("name", "argument"), PAIRS, ids=[f"{name}-{argument}" for name, argument in PAIRS])
def test_a_wrong_argument_is_refused_in_a_sentence_or_works(name, argument, calls, model, place, monkeypatch):
    monkeypatch.chdir(place)
    function, good = calls[name]
    for what in FEW if name in SLOW else VALUES:
        outcome(function, {**good, argument: VALUES[what]()}, f"{name}({argument}={what})")


def outcome(function, given, words):
    """Assert that a call works, or raises a UserError whose message is a line."""
    try:
        function(**given)
    except ft.UserError as error:
        message = str(error)
    except Exception as error:
        raise AssertionError(f"{words} raised {type(error).__name__}: {error}") from error
    else:
        return
    assert "\n" not in message, words
    assert len(message) < 5000, words


@pytest.mark.parametrize("name", NAMES)
def test_missing_and_superfluous_arguments(name, calls):
    function, good = calls[name]
    for given in ([] if name == "load_model" else [{}]) + [{**good, "oops": 1}]:  # load_model needs no argument
        outcome(function, given, f"{name}({', '.join(given)})")


def test_a_raw_transformers_model_is_told_of_wrap_model(model):
    for call in (ft.trace, ft.edit, ft.mass_edit, ft.check_known):
        with pytest.raises(ft.UserError, match="model: expected a model, as load_model or wrap_model returns it"):
            call(model.hf, FACTS)
    with pytest.raises(ft.UserError, match="wrap_model"):
        ft.second_moments(model.hf)
    with pytest.raises(ft.UserError, match="facts, as load_facts returns them, or a prompt as text, got LlamaDecoder"):
        ft.trace(model, model)


def test_one_item_where_several_are_meant(model, store):
    usual = prepare_trace(model, FACTS[:1], windows=[3], sigma=0.4)
    fields = {name: getattr(FACTS[0], name) for name in inspect.signature(ft.Fact).parameters}
    for facts in (FACTS[0], (FACTS[0],), iter(FACTS[:1]), (fact for fact in FACTS[:1]), fields, [fields]):
        assert prepare_trace(model, facts, windows=3, sigma=0.4).run["run_id"] == usual.run["run_id"]
    for windows in (3, "3", np.int64(3), np.array([3]), pd.Series([3]), {3}, (w for w in [3]), 3.0):
        run = prepare_trace(model, FACTS[:1], settings={"windows": windows}, sigma=0.4).run
        assert run["run_id"] == usual.run["run_id"]
    one = prepare_edit(model, FACTS, method="ft-1", layers=1, hyperparameters={"steps": 3})
    two = prepare_edit(model, FACTS, method="ft-1", layers=[1], steps=3)
    assert one.run["run_id"] == two.run["run_id"]
    assert store.add_facts(FACTS[0]) == 0
    assert ft.Fact("{} is", "x", "y", paraphrases="x, the y").paraphrases == ("x, the y",)
