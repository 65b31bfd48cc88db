"""Mixtures of experts as they are published: routers that stay float32, experts one by one in files, and on disk."""

import pytest
import torch
from small_models import small_config, small_model

import fasttrace as ft
from fasttrace.editing.moments import Place, singular
from fasttrace.errors import ModelError, UserError
from fasttrace.models import reading

FACT = ft.Fact(prompt="The {} is located in the city of", subject="Eiffel Tower", target_true="Paris")
TRACE = {"sigma": 0.4, "keep": "all", "samples": 2, "windows": [1]}


@pytest.mark.parametrize("family", ["mixtral", "deepseek-v3"])
def test_a_published_mixture(family, small_tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(small_config(family, len(small_tokenizer))).save_pretrained(tmp_path)
    small_tokenizer.save_pretrained(tmp_path)
    narrow = ft.load_model(tmp_path, dtype="bfloat16")
    kept = {name for name, weight in narrow.hf.named_parameters() if weight.dtype == torch.float32}
    assert {name.rpartition("mlp.")[2] for name in kept} == (set() if family == "mixtral" else {"gate.weight"})
    theirs = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert ft.wrap_model(theirs, small_tokenizer).model_hash == narrow.model_hash
    whole, on_disk = ft.load_model(tmp_path), ft.load_model(tmp_path, device={"": "disk"})
    assert on_disk.blocks[1].layer.mlp.experts.down_proj.is_meta
    assert ft.trace(on_disk, [FACT], **TRACE).cells.equals(ft.trace(whole, [FACT], **TRACE).cells)


def test_the_shared_expert_by_name(small_tokenizer):
    model, dense = (small_model(family, small_tokenizer, torch.float32) for family in ("deepseek-v3", "mixtral"))
    named, numbered = (ft.trace(model, [FACT], module="expert", experts=e, **TRACE) for e in ("shared", [6]))
    assert named.cells.equals(numbered.cells)
    assert named.run["run_id"] == numbered.run["run_id"]
    with pytest.raises(UserError, match="experts: expected a model with a shared expert, got 'mixtral'"):
        ft.trace(dense, [FACT], module="expert", experts="shared", **TRACE)


def test_packed_experts_are_refused_in_a_sentence():
    headers = {"model.layers.0.mlp.experts.0.down_proj.weight_scale_inv": ((1, 1), "F32")}
    with pytest.raises(ModelError, match=r"^model 'w': expected experts with plain weights, got packed ones \(fp8, "):
        reading.prepare(None, "fp8", headers, {}, "cpu", "w")


def test_weights_that_a_package_packs_are_not_put_on_disk():
    headers = {"model.layers.0.mlp.down_proj.weight.quant_state.bitsandbytes__nf4": ((1,), "U8")}
    with pytest.raises(
        ModelError, match=r"^model 'w': expected weights that bitsandbytes has packed to be in memory, "
    ):
        reading.prepare(None, "bitsandbytes", headers, {"device_map": {"": "disk"}}, "cpu", "w")


def test_an_expert_without_tokens_is_not_blamed_on_the_ridge():
    said = str(singular(Place(1, 4), 40, 6000, 1e-3, routed=0))
    assert "none of the corpus's 6000 tokens goes to this expert" in said
    assert "ridge=0.01" in str(singular(Place(1, 4), 40, 6000, 1e-3, routed=9)), "a larger ridge than the one given"
