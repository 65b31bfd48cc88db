"""Delta files and updates that do not fit: each is refused in one sentence, on every path that reads one."""

import json

import pytest
import torch
from edit_cases import FACTS
from safetensors.torch import save_file
from small_models import small_model

import fasttrace as ft
from fasttrace.cache import digest
from fasttrace.editing.delta import Dense, LowRank, save_delta
from fasttrace.editing.export import export_model

D, M = 48, 80  # of small_model("llama"), which has five layers


@pytest.fixture(scope="module")
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


def low_rank(layer="1", **changes):
    parts = {"value": torch.ones(1, D), "key": torch.ones(1, M)} | changes
    return {f"{layer}.{name}": part for name, part in parts.items() if part is not None}


def dense(layer="1", change=None, **more):
    change = torch.ones(D, M) if change is None else change
    return {f"{layer}.{name}": part for name, part in {"change": change, **more}.items()}


def with_one(shape, value):
    tensor = torch.zeros(shape)
    tensor.view(-1)[-1] = value
    return tensor


BAD_TENSORS = {
    "no tensor": ({}, "expected the change of at least one layer, got no tensor"),
    "a layer too high": (low_rank("99"), "expected layers from 0 to 4, got 99"),
    "a layer of many digits": (low_rank("9" * 30), "expected tensors such as 5.value and 5.key"),
    "a negative layer": (low_rank("-1"), "expected tensors such as 5.value and 5.key, got '-1.key'"),
    "a layer twice": (low_rank("01") | low_rank("1"), "expected tensors such as 5.value and 5.key, got '01.key'"),
    "no layer": ({"value": torch.ones(1, D)}, "expected tensors such as 5.value and 5.key, got 'value'"),
    "an unknown part": (low_rank() | {"1.scale": torch.ones(1)}, "expected tensors such as 5.value"),
    "three parts of a name": ({"1.value.x": torch.ones(1, D)}, "expected tensors such as 5.value"),
    "half a change": (low_rank(key=None), "expected value and key, or change and perhaps bias of layer 1, got value"),
    "two kinds of change": (low_rank() | dense(), "layer 1, got change and key and value"),
    "a bias alone": ({"1.bias": torch.ones(D)}, "of layer 1, got bias"),
    "a change that would be broadcast": (dense(change=torch.ones(1, 1)), r"(48, 80) torch.float32, got (1, 1)"),
    "a change without dimensions": (dense(change=torch.tensor(1.0)), r"(48, 80) torch.float32, got ()"),
    "a change of one row": (dense(change=torch.ones(1, M)), "got (1, 80)"),
    "a transposed change": (dense(change=torch.ones(M, D)), "got (80, 48)"),
    "a bias that the model lacks": (dense(bias=torch.ones(D)), "expected no bias of layer 1, as 'llama' has none"),
    "a bias of one number": (dense(bias=torch.ones(1)), "expected bias of layer 1 to be (48,)"),
    "another width": (low_rank(key=torch.ones(1, M + 1)), "expected key of layer 1 to be (1, 80)"),
    "two ranks": (low_rank(key=torch.ones(2, M)), "expected key of layer 1 to be (1, 80) torch.float32, got (2, 80)"),
    "vectors": (low_rank(value=torch.ones(D), key=torch.ones(M)), "expected value of layer 1 to be"),
    "integers": (low_rank(value=torch.ones(1, D, dtype=torch.int64)), "torch.float32, got (1, 48) torch.int64"),
    "half precision": (dense(change=torch.ones(D, M).half()), "got (48, 80) torch.float16"),
    "NaN": (dense(change=with_one((D, M), float("nan"))), "expected finite numbers in change of layer 1"),
    "infinity": (low_rank(key=with_one((1, M), float("inf"))), "expected finite numbers in key of layer 1"),
}


def write(path, tensors, about):
    save_file(tensors, path, metadata={"fasttrace": about if isinstance(about, str) else json.dumps(about)})
    return path


def about(model, tensors, changes=()):
    same = {"kind": "delta", "model": model.name, "model_hash": model.model_hash, "dtype": "float32"}
    return same | {"sha256": digest(tensors)} | dict(changes)


def refused(path, model, folder):
    """The sentence with which every path that reads a delta refuses the file."""
    found = set()
    for read in (lambda: ft.load_delta(path, model), lambda: ft.apply_delta(model, path)):
        before = model.model_hash
        with pytest.raises(ft.UserError) as caught:
            read()
        assert model.model_hash == before
        found.add(str(caught.value))
    assert not folder.exists()
    [sentence] = found
    assert "\n" not in sentence
    return sentence


@pytest.mark.parametrize(("tensors", "sentence"), BAD_TENSORS.values(), ids=BAD_TENSORS)
def test_tensors_that_do_not_fit_the_model(tensors, sentence, model, tmp_path):
    path = write(tmp_path / "bad.safetensors", tensors, about(model, tensors))
    assert sentence in refused(path, model, tmp_path / "model")


@pytest.mark.parametrize(
    ("content", "sentence"),
    [
        ("[1]", "expected a delta that `fasttrace edit --delta` wrote"),
        ("3", "expected a delta"),
        ("null", "expected a delta"),
        ("not JSON", "expected a delta"),
        ("[" * 5000, "expected a delta"),
        ({"kind": "moments"}, "expected a delta"),
        ({"kind": ["delta"]}, "expected a delta"),
        ({"kind": "delta"}, "is damaged"),
        ({"model_hash": "0" * 16}, "expected hash 0000000000000000, got 'llama' with hash"),
        ({"model_hash": None, "model": ["x"]}, "was made for the model ['x']"),
        ({"model_hash": "0" * 16, "dtype": "bfloat16"}, 'dtype="bfloat16"'),
        ({"sha256": "0"}, "is damaged"),
    ],
)
def test_metadata_that_is_not_a_deltas(content, sentence, model, tmp_path):
    tensors = low_rank()
    if isinstance(content, dict) and content.get("kind") is None:
        content = about(model, tensors, content)
    path = write(tmp_path / "bad.safetensors", tensors, content)
    assert sentence in refused(path, model, tmp_path / "model")


def test_files_that_are_not_whole_safetensors(model, tmp_path):
    good = save_delta(tmp_path / "good.safetensors", model, {1: LowRank(torch.ones(1, D), torch.ones(1, M))})
    whole, path = good.read_bytes(), tmp_path / "bad.safetensors"
    for content in (b"", whole[:4], whole[:60], whole[:-1], b"PK\x03\x04" + whole, b"{}", b"\xff" * 200):
        path.write_bytes(content)
        assert "cannot be read" in refused(path, model, tmp_path / "model")
    for odd in (tmp_path / "absent.safetensors", tmp_path):
        assert "cannot be read" in refused(odd, model, tmp_path / "model")


@pytest.mark.parametrize(
    ("updates", "sentence"),
    [
        ({99: Dense(torch.ones(D, M))}, "expected layers from 0 to 4, got 99"),
        ({-1: Dense(torch.ones(D, M))}, "expected layers from 0 to 4, got -1"),
        ({"1": Dense(torch.ones(D, M))}, "expected layers from 0 to 4, got '1'"),
        ({True: Dense(torch.ones(D, M))}, "expected layers from 0 to 4, got True"),
        ({1: torch.ones(D, M)}, "expected what ft.load_delta returns, got Tensor at layer 1"),
        ({1: None}, "expected what ft.load_delta returns, got None"),
        ({1: Dense(torch.ones(1, 1))}, "got (1, 1)"),
        ({1: Dense(None)}, "expected change of layer 1"),
        ({1: LowRank(3, 4)}, "expected value of layer 1"),
        ({1: Dense(with_one((D, M), float("nan")))}, "expected finite numbers"),
    ],
)
def test_updates_are_checked_before_they_are_applied_saved_or_exported(updates, sentence, model, tmp_path):
    path = tmp_path / "new"
    for use in (
        lambda: ft.apply_delta(model, updates),
        lambda: save_delta(path, model, updates),
        lambda: export_model(model, updates, path),
    ):
        with pytest.raises(ft.UserError) as caught:
            use()
        assert sentence in str(caught.value)
        assert not path.exists()


@pytest.mark.parametrize("wrong", [3, None, [1], b"x", torch.ones(2), "a\0b"])
def test_what_is_no_delta_is_told_of_load_delta(wrong, model):
    with pytest.raises(ft.UserError) as caught:
        ft.apply_delta(model, wrong)
    assert "load_delta" in str(caught.value)


def test_load_delta_gives_the_weights_of_the_exported_model(model, tmp_path):
    from transformers import AutoModelForCausalLM

    result = ft.edit(model, FACTS[:1], method="ft-5", window_size=3, layers=2, steps=2, epsilon=0.01, essence=0)
    path = result.save_delta(tmp_path / "edit.safetensors")
    exported = AutoModelForCausalLM.from_pretrained(result.export(tmp_path / "model"), dtype=torch.float32)
    for delta in (ft.load_delta(path, model), path, str(path), result, result.edits[0], result.edits[0].updates):
        with ft.apply_delta(model, delta):
            mine = dict(model.hf.named_parameters())
            assert all(torch.equal(weight, mine[name]) for name, weight in exported.named_parameters())
    several = ft.edit(model, FACTS, method="ft-1", layers=2, steps=1, essence=0)
    with pytest.raises(ft.UserError, match=r"expected a result with one edit, got 2: give one of \.edits"):
        ft.apply_delta(model, several)
    with pytest.raises(ft.UserError, match="load_delta: path: expected a path, got"):
        ft.load_delta(model, path)


def test_the_command_refuses_a_bad_delta_before_it_loads_the_model(run, workplace):
    path = workplace / "bad.safetensors"
    for content in (b"", b"\xff" * 100):
        path.write_bytes(content)
        done = run("export", str(path), "new", "--model", "no/model", code=2)
        assert "cannot be read" in done.stderr
    model = ft.load_model(workplace / "model")
    tensors = dense(change=torch.ones(1, 1))
    write(path, tensors, about(model, tensors))
    done = run("export", str(path), "new", "--model", "model", code=2)
    assert "expected change of layer 1 to be (48, 80) torch.float32, got (1, 1)" in done.stderr
    assert not (workplace / "new").exists()
