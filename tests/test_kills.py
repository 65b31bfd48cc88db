"""A few kills of tests/kills.py, and that a sweep or edits that continue have the values of an undisturbed run."""

import re
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import duckdb
import pyarrow as pa
import pytest
import torch
from fork_server import ForkServer
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.edit import prepare_edit
from fasttrace.store.connect import schema_columns
from fasttrace.tracing import prepare_trace, sweep

spec = spec_from_file_location("kills", Path(__file__).with_name("kills.py"))
kills = module_from_spec(spec)
spec.loader.exec_module(kills)


@pytest.fixture(scope="module")
def matrix(tmp_path_factory):
    with ForkServer() as server:
        yield kills.Matrix(server, tmp_path_factory.mktemp("kills"), seed=1)


@pytest.mark.parametrize("name", ["trace", "edit"])
def test_killed_and_run_again_it_writes_the_same_bits(matrix, name):
    rounds = list(matrix.rounds(name, 2))
    assert sum(here for here, _ in rounds) == 2
    assert [differ for _, differ in rounds if differ] == []


def test_the_comparison_leaves_out_times_and_nothing_else():
    columns = {name for of_relation in schema_columns().values() for name in of_relation}
    assert set(kills.TIMES) == {name for name in columns if re.search("seconds|_at$", name)}


def test_the_comparison_sees_one_bit_and_what_is_left_over(matrix):
    folder = matrix.folder(kills.COMMANDS["trace"])
    matrix.run(kills.COMMANDS["trace"].words, folder)
    before = kills.written(folder)
    with duckdb.connect(str(folder / "s.duckdb")) as con:
        con.execute("UPDATE trace_cells SET p_restored = p_restored * (1 + 2.3e-16) WHERE layer = 0").fetchall()
    (folder / ".draft").mkdir()
    after = kills.written(folder)
    differ = {name for name in {*before, *after} if before.get(name, "") != after.get(name, "")}
    assert differ == {"s.duckdb: trace_cells", ".draft"}


@pytest.fixture(scope="module")
def facts():
    return [ft.Fact(**one) for one in kills.FACTS]


@pytest.mark.parametrize("method", ["denoise", "attribution"])
def test_a_sweep_that_continues_computes_the_same_waves(monkeypatch, small_tokenizer, facts, method):
    monkeypatch.setattr(sweep, "BATCH", 2)  # of facts that are screened together
    model = small_model("llama", small_tokenizer, torch.float32)
    more = {"verify_top": 3} if method == "attribution" else {}
    plan = prepare_trace(model, facts, method=method, windows=[2], samples=2, sigma=0.3, keep="all", **more)
    whole = list(plan.batches(memory="3MB"))
    assert len(whole) > 1
    done = set(whole[0].facts["fact_id"].to_pylist())
    rest = list(plan.batches(memory="3MB", skip=done))
    for name in ("facts", "cells"):
        assert pa.concat_tables(getattr(part, name) for part in rest).equals(
            pa.concat_tables(getattr(part, name) for part in whole[1:])
        )


def test_edits_that_continue_are_in_the_same_groups(small_tokenizer, facts):
    model = small_model("llama", small_tokenizer, torch.float32)
    plan = prepare_edit(model, facts, method="ft-1", layers=[0, 2, 3], essence=0, steps=2)
    whole = list(plan.batches(memory="1MB"))
    assert len(whole) > 1
    done = {(row["fact_id"], row["layer"]) for row in whole[0].scores.to_pylist()}
    rest = list(plan.batches(memory="1MB", skip=done))
    assert [part.scores for part in rest] == [part.scores for part in whole[1:]]
