"""The copy of a GGUF model: it is the same model, it is read instead of the file, and it is never trusted blindly."""

import os
import shutil

import pytest
import torch
from small_gguf import write_gguf

import fasttrace as ft
from fasttrace.models import converted
from fasttrace.models.packed import logits, pack

TEXT = "The Eiffel Tower is located in the city of Paris"


@pytest.fixture(scope="module")
def gguf(small_tokenizer, tmp_path_factory):
    path = tmp_path_factory.mktemp("gguf") / "small.gguf"
    write_gguf(path, small_tokenizer)
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "fasttrace" / "models"


def load_without_gguf(monkeypatch, path):
    """What the copy alone gives."""
    with monkeypatch.context() as patch:
        patch.setattr("gguf.GGUFReader", None)
        return ft.load_model(path)


def test_the_copy_is_the_same_model_and_is_read_instead(gguf, cache, monkeypatch):
    first = ft.load_model(gguf)
    assert [sorted(path.name for path in copy.iterdir()) for copy in cache.iterdir()] == [
        ["config.json", "generation_config.json", "model.safetensors", "sha256.json", "tokenizer.json",
         "tokenizer_config.json"]
    ]  # fmt: skip
    again = load_without_gguf(monkeypatch, gguf)
    assert again.name == first.name == str(gguf)
    assert again.model_hash == first.model_hash
    for (name, one), (other, two) in zip(first.hf.named_parameters(), again.hf.named_parameters(), strict=True):
        assert name == other
        assert torch.equal(one, two)
    ids = first.tokenizer(TEXT).input_ids
    assert again.tokenizer(TEXT).input_ids == ids
    assert torch.equal(logits(first, pack(first, [ids])), logits(again, pack(again, [ids])))


def test_a_copy_is_run_and_compared_once(gguf, monkeypatch):
    """The answer is kept, and asked for again where a package has another version."""
    compared = []
    monkeypatch.setattr("fasttrace.models.load.check_outputs", lambda model: compared.append(model.model_hash))
    hashes = [ft.load_model(gguf).model_hash for _ in range(4)]
    assert compared == hashes[:2], "when the file is read, and at the copy's first load"
    again = ft.load_model(gguf)
    with torch.no_grad():
        again.blocks[0].down[0, 0] += 1
    assert again.model_hash != hashes[0], "weights that change in memory have no kept identity"
    monkeypatch.setattr("fasttrace.recall._version", lambda package: "another")
    assert ft.load_model(gguf).model_hash == hashes[0]
    assert len(compared) == 3
    assert len(set(hashes)) == 1


def test_each_dtype_and_each_file_has_a_copy(gguf, cache, small_tokenizer, tmp_path):
    """The bfloat16 copy has the rounded weights, and a file that changes under its name is read anew."""
    assert ft.load_model(gguf, "bfloat16").model_hash == ft.load_model(gguf, "bfloat16").model_hash
    mine = tmp_path / "mine.gguf"
    shutil.copy(gguf, mine)
    before = ft.load_model(mine).model_hash
    assert len(list(cache.iterdir())) == 2
    write_gguf(mine, small_tokenizer, seed=1)
    assert ft.load_model(mine).model_hash != before
    assert len(list(cache.iterdir())) == 3


def spoil(copy):
    data = bytearray((copy / "model.safetensors").read_bytes())
    data[-1] ^= 1
    (copy / "model.safetensors").write_bytes(data)


DAMAGE = {
    "a weight": spoil,
    "a word of the tokenizer": lambda copy: os.truncate(copy / "tokenizer.json", 20),
    "a file too many": lambda copy: (copy / "adapter_config.json").write_text("{}"),
    "no sums": lambda copy: (copy / "sha256.json").unlink(),
    "sums that are none": lambda copy: (copy / "sha256.json").write_text("[" * 10_000),
}


@pytest.mark.parametrize("damage", DAMAGE.values(), ids=DAMAGE)
def test_a_damaged_copy_is_made_again(damage, gguf, cache, monkeypatch):
    sound = ft.load_model(gguf).model_hash
    [copy] = cache.iterdir()
    damage(copy)
    assert ft.load_model(gguf).model_hash == sound
    assert load_without_gguf(monkeypatch, gguf).model_hash == sound


def test_a_copy_that_would_be_another_model_is_not_kept(gguf, cache, monkeypatch):
    def other(weights, path, **options):
        save({name: weight + 1 for name, weight in weights.items()}, path, **options)

    save = converted.save_file
    monkeypatch.setattr(converted, "save_file", other)
    ft.load_model(gguf)
    assert list(cache.iterdir()) == []


def test_the_copy_of_a_faster_process_is_left_alone(gguf, cache, monkeypatch):
    """It appears between this process's look for it and its own writing."""
    looks = iter([False])
    look = converted.is_whole
    ft.load_model(gguf)
    [copy] = cache.iterdir()
    before = {path: path.stat().st_ctime_ns for path in [copy, *copy.iterdir()]}
    monkeypatch.setattr(converted, "is_whole", lambda folder: next(looks, look(folder)))
    ft.load_model(gguf)
    assert {path: path.stat().st_ctime_ns for path in [copy, *copy.iterdir()]} == before


def test_a_model_that_transformers_cannot_save_is_loaded_all_the_same(gguf, cache, monkeypatch):
    def refuse(*_, **__):
        raise ValueError("The generation config instance is invalid")

    expected = ft.load_model(gguf, "bfloat16").model_hash
    [copy] = cache.iterdir()
    shutil.rmtree(copy)
    monkeypatch.setattr("transformers.GenerationConfig.save_pretrained", refuse)
    assert ft.load_model(gguf, "bfloat16").model_hash == expected
    assert list(cache.iterdir()) == []


def test_without_room_or_a_cache_nothing_is_kept(gguf, cache, monkeypatch, tmp_path):
    full = shutil.disk_usage("/")._replace(free=1000)
    monkeypatch.setattr("shutil.disk_usage", lambda path: full)
    expected = ft.load_model(gguf).model_hash
    assert list(cache.iterdir()) == []
    with pytest.raises(ft.ModelError, match=r"small\.gguf' cannot be read as GGUF"):
        load_without_gguf(monkeypatch, gguf)
    (tmp_path / "file").touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    assert ft.load_model(gguf).model_hash == expected
