"""Tiles: all tiles of a kernel compute the same, and a launch uses the tile recorded for its device."""

import importlib
import json
from types import SimpleNamespace

import pytest
import torch

from fasttrace.benchmarks import OPS, TILED, fastest, record, tune
from fasttrace.benchmarks.load import Draw
from fasttrace.cli import main
from fasttrace.errors import UserError

pytest.importorskip("triton")
from fasttrace.kernels import tiles
from fasttrace.kernels.tiles import each

# Along each axis more than one tile of every set, and never a whole number of tiles.
SIZES = {
    "noised_embed": {"facts": 2, "samples": 2, "tokens": 5, "subject": 2, "vocab": 40, "d": 1100},
    "window_restore": {"rows": 140, "d": 70},
    "prefix_attention": {"facts": 1, "length": 37, "cells": 1, "samples": 2, "heads": 6, "kv_heads": 2, "head_dim": 24},
    "target_logprob": {"rows": 140, "d": 140, "vocab": 4200},
    "rms_norm": {"rows": 30, "d": 1100},
    "rotary_": {"rows": 30, "heads": 3, "head_dim": 70},
    "silu_mul_": {"rows": 9, "m": 1000},
    "gelu_tanh_": {"rows": 9, "m": 1000},
    "adam_linf_": {"items": 2, "d": 40, "m": 270, "rows": 9},
}
SET = each("rows num_warps", (16, 4), (32, 8))


def copies(load):
    return [x.clone() if isinstance(x, torch.Tensor) else x for x in load.args]


def size_of(tile):
    return {name: value for name, value in tile.items() if name not in ("num_warps", "num_stages")}


@pytest.mark.parametrize("op", TILED)
def test_every_tile_computes_the_same(op, triton_device):
    """The interpreter has no bfloat16 products, so it runs the tiles of every dtype on float32. It has no warps and
    stages either, so one of the tiles that differ in these alone is run."""
    kernel = op.removesuffix("_")
    known = importlib.import_module(f"fasttrace.kernels.{kernel}").TILES
    for dtype in (torch.float32,) if triton_device == "cpu" else (torch.float32, torch.bfloat16):
        load = OPS[op].load(Draw.on(dtype, triton_device), **SIZES[op])
        wanted = load.op(*copies(load), impl="reference").double()
        taken = known.values() if triton_device == "cpu" else [tiles.tiles_of(known, dtype)]
        chosen = {
            str(size_of(one)) if triton_device == "cpu" else str(one): one for each_of in taken for one in each_of
        }
        for one in chosen.values():
            with tiles.trying(kernel, one) as asked:
                found = load.op(*copies(load), impl="triton").double()
            assert len(asked) == 1
            gap = (found - wanted).abs().max() / wanted.abs().max()
            assert gap <= 32 * torch.finfo(dtype).eps, (one, gap)


def of(dtype=torch.float32, device="cuda"):
    return SimpleNamespace(dtype=dtype, device=torch.device(device))


@pytest.fixture
def two_records(tmp_path, monkeypatch):
    """Paths in place of the shipped record and the user's own, read as on a card named "NVIDIA H0"."""
    paths = tmp_path / "shipped.json", tmp_path / "cache" / "own.json"
    monkeypatch.setattr(tiles, "records", lambda: paths)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA H0")
    tiles.recorded_on.cache_clear()
    yield paths
    tiles.recorded_on.cache_clear()


def row(tile, seconds, difference=1e-7, key="adam_linf float32"):
    measured = {"seconds": seconds, "relative_difference": difference}
    return {"benchmark": "adam_linf_", "tile": tile, **measured, "keys": [key]}


def test_the_users_record_precedes_the_shipped_one_and_without_any_the_first_tile_is_used(two_records):
    shipped, own = two_records
    assert tiles.tile("adam_linf", {4: SET}, of()) == SET[0]
    record(shipped, row(SET[1], 1.0), "cuda")
    assert json.loads(shipped.read_text()) == {"NVIDIA H0": {"adam_linf float32": SET[1]}}
    assert tiles.tile("adam_linf", {4: SET}, of()) == SET[1]
    assert tiles.tile("adam_linf", {4: SET}, of(torch.bfloat16)) == SET[0]
    assert tiles.tile("noised_embed", {4: SET}, of()) == SET[0]
    assert tiles.tile("adam_linf", {4: SET}, of(device="cpu")) == SET[0]
    record(own, row(SET[0], 1.0), "cuda")
    record(own, row(SET[1], 1.0, key="adam_linf bfloat16 256"), "cuda")
    assert tiles.tile("adam_linf", {4: SET}, of()) == SET[0]
    assert tiles.tile("adam_linf", {4: SET}, of(torch.bfloat16), 256) == SET[1]
    assert tiles.tile("adam_linf", {4: SET}, of(torch.bfloat16), 128) == SET[0]
    with tiles.trying("adam_linf", {"rows": 3, "num_warps": 1}) as asked:
        assert tiles.tile("adam_linf", {4: SET}, of(), 7)["rows"] == 3
    assert asked == {"adam_linf float32 7"}
    assert tiles.tile("adam_linf", {4: SET}, of()) == SET[0]


def test_a_recorded_tile_that_its_set_no_longer_has_is_ignored(two_records):
    record(two_records[0], row({"rows": 64, "num_warps": 4}, 1.0), "cuda")
    assert tiles.tile("adam_linf", {4: SET}, of()) == SET[0]


def test_a_damaged_record_is_ignored_and_written_anew(two_records, caplog):
    two_records[0].write_text('{"NVIDIA H0": ')
    two_records[1].parent.mkdir()
    two_records[1].mkdir()  # cannot be read as a file
    assert tiles.tile("adam_linf", {4: SET}, of()) == SET[0]
    assert "shipped.json' is ignored" in caplog.text
    record(two_records[0], row(SET[1], 1.0), "cuda")
    assert tiles.tile("adam_linf", {4: SET}, of()) == SET[1]
    with pytest.raises(UserError, match=r"own\.json' cannot be written: expected a file, got a folder"):
        record(two_records[1], row(SET[1], 1.0), "cuda")


def test_a_set_is_chosen_by_the_width_of_an_element():
    sets = {2: SET[:1], 4: SET[1:]}
    widths = (torch.bfloat16, torch.float32, torch.float64)
    assert [tiles.tiles_of(sets, dtype)[0] for dtype in widths] == [SET[0], SET[1], SET[1]]
    assert tiles.tiles_of({4: SET}, torch.float16) == SET


def test_the_fastest_tile_is_chosen_among_those_with_right_results():
    rows = [row(SET[0], 3.0), row(SET[1], 1.0, 1e-3), row(SET[1], 2.0), {"error": "out of shared memory"}]
    assert fastest(rows, "float32") is rows[2]
    assert fastest(rows, "bfloat16") is rows[1]
    assert fastest([row(SET[0], 1.0, float("nan"))], "float32") is None
    assert fastest(rows[3:], "float32") is None


def test_tuning_times_every_tile_and_refuses_ops_without_tiles(monkeypatch):
    """A tile for which the device lacks memory gets a row with the error."""

    def timed(op, sizes, **_):
        taken = tiles._tried["window_restore"][0]["elements"]
        if taken > 4096:
            raise RuntimeError("out of resources: shared memory")
        yield {"benchmark": op, "seconds": float(taken), "relative_difference": 0.0}

    monkeypatch.setattr("fasttrace.benchmarks.tuning.bench", timed)
    rows = list(tune("window_restore", {}))
    assert [row.get("seconds") for row in rows] == [2048.0, 1024.0, 4096.0, None]
    assert rows[0]["impl"] == "triton elements=2048 num_warps=4"
    assert rows[3]["error"] == "out of resources: shared memory"
    with pytest.raises(UserError, match="linear has no tiles to choose from; there are noised_embed"):
        next(tune("linear", {}))
    monkeypatch.setattr("fasttrace.benchmarks.tuning.triton_reason", lambda: "Triton cannot be imported here")
    with pytest.raises(UserError, match="window_restore: Triton cannot be imported here, and only Triton's kernels"):
        next(tune("window_restore", {}))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["linear"], "linear has no tiles to choose from"),
        (["window_restore", "--impl", "triton"], "--impl cannot be given with it"),
        (["window_restore"], "device 'cuda' cannot be used"),
        (["window_restore", "--device", "cpu"], "Triton needs CUDA tensors"),
    ],
)
def test_the_verb_refuses_in_a_sentence(arguments, words, monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("tests messages of a machine without a GPU")
    monkeypatch.setattr("sys.argv", ["fasttrace", "bench", "--tune", *arguments])
    with pytest.raises(SystemExit) as stopped:
        main()
    assert stopped.value.code == 2
    assert words in capsys.readouterr().err
