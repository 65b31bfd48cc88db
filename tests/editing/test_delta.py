"""Edits as files and in weights: removing is exact, and the view, the weights and the export are the same model."""

import pytest
import torch
from edit_cases import FACTS
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.applied import edited_view
from fasttrace.editing.delta import Dense, LowRank, load_delta, save_delta, summed
from fasttrace.editing.export import export_model
from fasttrace.errors import UserError
from fasttrace.models.packed import logits, pack

TUNE = {"steps": 3, "lr": 5e-3, "epsilon": 1e-2, "essence": 0}


def random_updates(model, seed=0):
    torch.manual_seed(seed)
    d, m = model.width, model.key_width
    low_rank = LowRank(torch.randn(2, d) * 0.3, torch.randn(2, m) * 0.3)
    change, bias = torch.randn(d, m) * 0.1, torch.randn(d) * 0.1
    return {1: low_rank, 3: Dense(change, None if model.blocks[3].down_bias is None else bias)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["float32", "bfloat16"])
@pytest.mark.parametrize("family", ["llama", "gpt2", "opt"])
def test_view_weights_and_export_are_one_model(family, dtype, small_tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    model = small_model(family, small_tokenizer, dtype)
    updates = random_updates(model)
    before = model.weights_hash()
    batch = pack(model, [small_tokenizer(fact.text)["input_ids"] for fact in FACTS])
    plain, view = logits(model, batch), logits(edited_view(model, updates), batch)
    assert model.weights_hash() == before
    assert (plain - view).abs().max() > 0.1, "an edit that changes nothing would make this test empty"
    path = save_delta(tmp_path / "edit.safetensors", model, updates, note="a test")
    applied = ft.apply_delta(model, path)
    with applied as inside_model:
        assert inside_model is model
        assert torch.equal(logits(model, batch), view)
        assert model.weights_hash() != before
        inside = {name: weight.clone() for name, weight in model.hf.named_parameters()}
    applied.remove()
    assert model.weights_hash() == before, "removed bit for bit, once or twice"
    folder = export_model(model, updates, tmp_path / "model")
    exported = AutoModelForCausalLM.from_pretrained(folder, dtype=dtype)
    changed = 0
    for name, weight in exported.named_parameters():
        assert torch.equal(weight, inside[name]), name
        changed += not torch.equal(weight, dict(model.hf.named_parameters())[name])
    assert changed >= 2


def test_an_edited_model_has_another_hash_until_the_edit_is_removed(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    before = model.model_hash
    hashes = []
    for updates in (random_updates(model), random_updates(model, 1), random_updates(model), {}):
        applied = ft.apply_delta(model, updates)
        with applied:
            hashes.append(model.model_hash)
            with ft.apply_delta(model, random_updates(model, 2)):
                assert model.model_hash not in (before, hashes[-1])
            assert model.model_hash == hashes[-1]
        assert model.model_hash == before
        with ft.apply_delta(model, updates):
            applied.remove()  # removed already, so this does not touch the edit that is applied now
            assert model.model_hash == hashes[-1]
    assert hashes[0] == hashes[2] != hashes[1]
    assert before not in hashes


def test_second_moments_of_an_edited_model_are_cached_apart(small_tokenizer, corpus, tmp_path):
    model = small_model("llama", small_tokenizer, torch.float32)
    options = {"tokens": 500, "sequence_length": 32, "cache_dir": tmp_path}
    plain = ft.second_moments(model, corpus, **options)
    with ft.apply_delta(model, random_updates(model)):
        edited = ft.second_moments(model, corpus, **options)
        assert edited.path != plain.path
        assert edited.run["run_id"] != plain.run["run_id"]
        assert not torch.equal(edited.matrix(4), plain.matrix(4))
    assert ft.second_moments(model, corpus, **options).path == plain.path


def test_a_saved_edit_loads_unchanged(small_tokenizer, tmp_path):
    model = small_model("llama", small_tokenizer, torch.float32)
    result = ft.edit(model, FACTS, method="ft-5", window_size=3, layers=[2], **TUNE)
    with pytest.raises(UserError, match=r"save_delta: expected one edit for .*, got 2"):
        result.save_delta(tmp_path / "none.safetensors")
    path = result.save_delta(tmp_path / "one.safetensors", fact_id=FACTS[1].fact_id)
    loaded = load_delta(path, model)
    mine = next(edit for edit in result.edits if edit.fact_id == FACTS[1].fact_id)
    assert sorted(loaded) == sorted(mine.updates) == [1, 2, 3]
    for layer, update in mine.updates.items():
        assert torch.equal(loaded[layer].change, update.change)


def test_files_that_are_not_deltas_of_this_model_are_refused(small_tokenizer, tmp_path):
    model, other = (small_model(f, small_tokenizer, torch.float32) for f in ("llama", "gpt2"))
    path = save_delta(tmp_path / "edit.safetensors", model, random_updates(model))
    with pytest.raises(UserError, match="expected a new file, got"):
        save_delta(path, model, random_updates(model))
    with pytest.raises(UserError, match="was made for the model 'llama'"):
        load_delta(path, other)
    with pytest.raises(UserError, match="cannot be read"):
        load_delta(tmp_path / "absent.safetensors", model)
    model.hf.save_pretrained(tmp_path / "model")
    with pytest.raises(UserError, match=r"model.safetensors': expected a delta that `fasttrace edit --delta` wrote"):
        load_delta(tmp_path / "model" / "model.safetensors", model)
    narrow = small_model("llama", small_tokenizer, torch.bfloat16)
    with pytest.raises(UserError, match=r'in float32: expected .llama. to be loaded with dtype="float32" .*, got bf'):
        load_delta(path, narrow)
    bits = bytearray(path.read_bytes())
    bits[-1] ^= 1
    path.write_bytes(bits)
    with pytest.raises(UserError, match="is damaged"):
        load_delta(path, model)


def test_sums_of_edits_are_sums_of_matrices(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float32)
    one, two = random_updates(model, 1), random_updates(model, 2)
    both = summed([one, two, {1: one[1]}])
    torch.testing.assert_close(both[1].matrix(), 2 * one[1].matrix() + two[1].matrix(), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(both[3].matrix(), one[3].matrix() + two[3].matrix(), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(both[3].bias, one[3].bias + two[3].bias)
