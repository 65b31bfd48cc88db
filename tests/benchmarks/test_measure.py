"""Benchmarks: every timed way computes the same, and results name their device and go into a store."""

import json

import pytest
import torch

import fasttrace as ft
from fasttrace.benchmarks import OPS, Load, add_op, bench, sizes_of, traffic
from fasttrace.benchmarks.load import Draw
from fasttrace.benchmarks.measure import DTYPES, squares, ways
from fasttrace.cli import main
from fasttrace.errors import UserError

# Small enough to be timed quickly.
SMALL = {
    "rows": 24, "d": 16, "m": 32, "k": 16, "vocab": 50, "facts": 2, "samples": 2, "length": 4, "cells": 2, "tokens": 20,
    "items": 2, "heads": 4, "kv_heads": 2, "head_dim": 8, "prompt": 4, "subject": 2,
}  # fmt: skip
VARIANTS = ("columns", "gradient_too", "by_index", "single")


def small(op):
    return {name: SMALL[name] for name in sizes_of(op) if name in SMALL}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Time each way with as few calls as possible."""
    monkeypatch.setattr("fasttrace.benchmarks.measure.ENOUGH", 0.0)


def loads():
    for op in OPS:
        variants = [name for name in sizes_of(op) if name in VARIANTS]
        for variant in [{}, *({name: 1} for name in variants)]:
            yield pytest.param(op, variant, id=" ".join([op, *variant]))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize(("op", "variant"), list(loads()))
def test_every_way_computes_the_same(op, variant, dtype):
    rows = list(bench(op, {**small(op), **variant}, dtype=dtype, compiled=False))
    assert [row["impl"] for row in rows][:2] == ["auto", "reference"]
    # Sums of products in the dtype may differ by this if they are added in another order.
    limit = 32 * torch.finfo(DTYPES[dtype]).eps
    for row in rows:
        assert row["seconds"] > 0
        assert row["fraction_of_ceiling"] > 0
        assert row["relative_difference"] is None or row["relative_difference"] <= limit, row


def test_a_library_call_that_computes_something_else_is_detected(monkeypatch):
    monkeypatch.setattr("fasttrace.benchmarks.loads.rank_one._addr", lambda W, u, v, alpha: W.addr_(u, v, alpha=-alpha))
    [row] = bench("rank_one_", small("rank_one_"), only=["torch addr_"])
    assert row["relative_difference"] == pytest.approx(2.0, rel=1e-3)


@pytest.mark.parametrize("op", OPS)
def test_the_recorded_shapes_are_loads(op):
    for sizes in OPS[op].SHAPES:
        load = OPS[op].load(Draw.on(torch.float32, "meta"), **sizes)
        assert load.gigabyte or load.gigaflop
        assert set(ways(load)) >= {"auto", "reference"}


def test_an_added_op_is_timed_and_compared_as_the_shipped_ones(monkeypatch):
    monkeypatch.setattr("fasttrace.benchmarks.measure.OPS", dict(OPS))

    def load(draw, rows=4, wrong=0):
        def double(x, impl="auto"):
            return x * 2 + (wrong if impl == "auto" else 0)

        x = draw.normal(rows, 8)
        return Load(double, (x,), None, rivals={"add": lambda x: x + x}, gigabyte=traffic(x, x))

    add_op("double", load)
    assert sizes_of("double") == {"rows": 4, "wrong": 0}
    right, wrong = (list(bench("double", sizes)) for sizes in ({"rows": 3}, {"wrong": 1}))
    assert [(row["impl"], row["relative_difference"]) for row in right] == [
        ("auto", 0), ("reference", 0), ("torch add", 0),
    ]  # fmt: skip
    assert wrong[0]["relative_difference"] > 0.1
    with pytest.raises(UserError, match="name of its own, got 'linear', which fasttrace has"):
        add_op("linear", load)
    with pytest.raises(UserError, match=r"add_op: expected load\(draw, size=1024, …\) .* got sized\(draw, rows\)"):
        add_op("sized", sized)


def sized(draw, rows):
    """A load whose size has no default."""


@pytest.mark.slow
def test_torch_compile_is_one_of_the_ways():
    [row] = bench("window_restore", small("window_restore"), only=["torch.compile"])
    assert row["relative_difference"] == 0


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["rank_two_"], "op: expected one of noised_embed"),
        (["rank_one_", "--size", "rows=3"], "rank_one_ has no size 'rows'; there are d, m, columns"),
        (["rank_one_", "--size", "d=0"], "rank_one_: expected size d to be a positive number, got 0"),
        (["rank_one_", "--size", "d:3"], "--size: expected NAME=NUMBER such as rows=8192, got 'd:3'"),
        (["rank_one_", "--impl", "cublas"], "rank_one_: expected one of auto, reference"),
        (["rank_one_", "--impl", "triton"], "impl='triton' was asked for, but this op has no such implementation"),
        (["rank_one_", "--device", "cuda:77"], "device 'cuda:77' cannot be used"),
    ],
)
def test_bad_requests_are_refused_in_a_sentence(arguments, words, monkeypatch, capsys):
    monkeypatch.setattr("sys.argv", ["fasttrace", "bench", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err


def test_an_unknown_dtype():
    with pytest.raises(UserError, match="dtype: expected one of float32"):
        next(bench("rank_one_", dtype="int8"))


def test_the_ceiling_of_products_takes_no_half_minute_where_the_processor_cannot_multiply_the_dtype(monkeypatch):
    clock = iter(range(1000))
    # Every product takes one second on this clock.
    monkeypatch.setattr("time.perf_counter", lambda: next(clock))
    assert [len(matrix) for matrix in squares(Draw.on(torch.bfloat16, "cpu"), 2048)] == [256, 256]
    monkeypatch.setattr("time.perf_counter", lambda: 0.0)
    a, b = squares(Draw.on(torch.float32, "cpu"), 512)
    assert a.shape == b.shape == (512, 512)


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr("sys.argv", ["fasttrace", "bench", *arguments])
    main()
    return capsys.readouterr()


def test_the_verb(tmp_path, monkeypatch, capsys):
    path = tmp_path / "store.duckdb"
    sizes = ("--size", "d=16", "--size", "m=32")
    told = run(monkeypatch, capsys, "rank_one_", *sizes, "--no-compile", "--json", "--store", str(path)).out
    result = json.loads(told)
    assert result["about"]["device"] == "cpu"
    assert result["about"]["ceilings"]["GB/s"] > 0
    assert [row["impl"] for row in result["rows"]] == ["auto", "reference", "torch addr_"]
    stored = ft.Store(path).query("SELECT impl, metric, value, unit, n FROM benches WHERE metric = 'time'").to_pylist()
    assert {row["impl"]: row["value"] for row in stored} == {
        row["impl"]: pytest.approx(row["seconds"]) for row in result["rows"]
    }
    # An op that has both rates.
    small = ("--size", "m=32", "--size", "tokens=9", "--no-compile", "--store", str(path))
    run(monkeypatch, capsys, "second_moment_", *small)
    rates = ft.Store(path).query(
        "SELECT DISTINCT metric, unit FROM benches WHERE benchmark = 'second_moment_' AND unit LIKE '%/s'"
    )
    assert {tuple(row.values()) for row in rates.to_pylist()} == {("bandwidth", "GB/s"), ("rate", "GFLOP/s")}
    text = run(monkeypatch, capsys, "rank_one_", *sizes, "--no-compile")
    assert "rank_one_: d 16, m 32, columns 0, float32" in text.out
    assert "copies" in text.err
    listing = json.loads(run(monkeypatch, capsys, "--list", "--json").out)
    assert [row["op"] for row in listing] == list(OPS)
