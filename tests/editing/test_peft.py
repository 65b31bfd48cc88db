"""An edit as a LoRA adapter: loaded by PEFT or transformers, it gives the logits of the exported model."""

import json
import warnings

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from small_models import FAMILIES, small_model

import fasttrace as ft
from fasttrace.editing.delta import Dense, LowRank, save_delta
from fasttrace.editing.export import export_edit, export_model
from fasttrace.settings import ExportSettings

PEFT = ExportSettings(format="peft")
IDS = torch.tensor([[5, 9, 2, 7, 11, 250, 3, 17]])


def some_updates(model, bias=True):
    """Outer products, a change of rank 3, and one of full rank that also changes the bias where there is one."""
    torch.manual_seed(0)
    d, m = model.width, model.key_width
    own = None if model.blocks[3].down_bias is None or not bias else torch.randn(d)
    return {
        1: LowRank(torch.randn(2, d) * 0.3, torch.randn(2, m) * 0.3),
        2: Dense((torch.randn(d, 3, dtype=torch.float64) @ torch.randn(3, m, dtype=torch.float64)).float() * 0.1),
        3: Dense(torch.randn(d, m) * 0.1, own),
    }


def logits_of(hf):
    with torch.no_grad():
        return hf.eval()(IDS).logits.double()


def base_of(folder):
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")


def adapted(base, adapter):
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # such as one about an unknown key, or missing weights
        warnings.simplefilter("ignore", FutureWarning)  # of transformers about itself
        return peft.PeftModel.from_pretrained(base_of(base), adapter)


def check_same(found, wanted, plain):
    assert (wanted - plain).abs().max() > 0.1, "an edit that changes nothing would make this test empty"
    assert (found - wanted).abs().max() < 2e-5 * wanted.abs().max()


@pytest.mark.parametrize("family", FAMILIES)
def test_peft_gives_the_logits_of_the_exported_model(family, small_tokenizer, tmp_path):
    model = small_model(family, small_tokenizer, torch.float32)
    base, updates = export_model(model, {}, tmp_path / "base"), some_updates(model)
    wanted = logits_of(base_of(export_model(model, updates, tmp_path / "model")))
    export_edit(model, updates, tmp_path / "adapter", PEFT)
    found = adapted(base, tmp_path / "adapter")
    check_same(logits_of(found), wanted, logits_of(base_of(base)))
    check_same(logits_of(found.merge_and_unload()), wanted, logits_of(base_of(base)))


def test_transformers_loads_the_adapter(small_tokenizer, tmp_path):
    pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    for family in ("llama", "gpt2"):
        model = small_model(family, small_tokenizer, torch.float32)
        base, updates = export_model(model, {}, tmp_path / family / "base"), some_updates(model)
        wanted = logits_of(base_of(export_model(model, updates, tmp_path / family / "model")))
        adapter = export_edit(model, updates, tmp_path / family / "adapter", PEFT).folder
        hf = base_of(base)
        hf.load_adapter(adapter)
        check_same(logits_of(hf), wanted, logits_of(base_of(base)))


def test_the_real_model(smollm2, tmp_path):
    facts = ft.load_facts()[:1]
    result = ft.edit(smollm2, facts, method="ft-1", layers=[6], steps=5, epsilon=0.05, lr=0.02, essence=0)
    base = export_model(smollm2, {}, tmp_path / "base")
    wanted = logits_of(base_of(result.export(tmp_path / "model")))
    adapter = result.export(tmp_path / "adapter", format="peft")
    assert sorted(path.name for path in adapter.iterdir()) == ["adapter_config.json", "adapter_model.safetensors"]
    with torch.no_grad():
        found, plain = logits_of(adapted(base, adapter)), logits_of(base_of(base))
    assert (found - wanted).abs().max() < 1e-3 * (plain - wanted).abs().max()


def test_vllm_can_read_the_adapter(small_tokenizer, tmp_path):
    """vLLM takes one rank and one scale from the config, and knows modules by the last part of their names."""
    model = small_model("llama", small_tokenizer, torch.float32)
    updates = {layer: update for layer, update in some_updates(model).items() if layer < 3}
    made = export_edit(model, updates, tmp_path / "adapter", PEFT)
    config = json.loads((made.folder / "adapter_config.json").read_text())
    assert (config["r"], config["lora_alpha"], config["bias"], made.rank) == (3, 3, "none", 3)
    assert not {"rank_pattern", "alpha_pattern", "modules_to_save", "use_dora", "lora_bias"} & config.keys()
    tensors = load_file(made.folder / "adapter_model.safetensors")
    assert {tuple(tensor.shape) for tensor in tensors.values()} == {(3, 80), (48, 3)}
    assert {name.rsplit(".", 3)[1] for name in tensors} == {"down_proj"}
    first = "base_model.model.model.layers.1.mlp.down_proj"
    a, b = tensors[f"{first}.lora_A.weight"], tensors[f"{first}.lora_B.weight"]
    assert torch.equal(a[:2], updates[1].key), "outer products are taken as they are"
    assert torch.equal(b[:, :2], updates[1].value.T)
    assert not a[2].any()
    assert not b[:, 2].any()


def change_in(folder, layer):
    tensors = load_file(folder / "adapter_model.safetensors")
    stem = f"base_model.model.model.layers.{layer}.mlp.down_proj"
    return tensors[f"{stem}.lora_B.weight"].double() @ tensors[f"{stem}.lora_A.weight"].double()


def test_a_rank_limit_gives_the_best_changes_of_that_rank(small_tokenizer, tmp_path, caplog):
    model = small_model("llama", small_tokenizer, torch.float32)
    updates = some_updates(model)
    errors = []
    made = export_edit(model, updates, tmp_path / "adapter", ExportSettings(format="peft", rank=1))
    for layer, update in updates.items():
        change = update.matrix().numpy()
        u, s, vh = np.linalg.svd(change)
        best = s[0] * np.outer(u[:, 0], vh[0])
        assert np.abs(change_in(made.folder, layer).numpy() - best).max() < 1e-6
        errors.append(np.linalg.norm(change - best) / np.linalg.norm(change))
    assert made.rank == 1
    assert made.relative_error == pytest.approx(max(errors), rel=1e-9)
    assert f"rank 1 leaves out {max(errors):.2g} of the change" in caplog.text
    caplog.clear()
    enough = export_edit(model, updates, tmp_path / "enough", ExportSettings(format="peft", rank=48))
    assert enough.relative_error < 1e-6
    assert caplog.text == ""


@pytest.mark.parametrize(
    "updates", [{}, {1: LowRank(torch.zeros(1, 48), torch.zeros(1, 80))}, {1: Dense(torch.zeros(48, 80))}]
)
def test_an_edit_that_changes_nothing_is_an_adapter_that_changes_nothing(updates, small_tokenizer, tmp_path):
    model = small_model("llama", small_tokenizer, torch.float32)
    made = export_edit(model, updates, tmp_path / "adapter", PEFT)
    assert (made.rank, made.relative_error) == (1, 0.0)
    if updates:
        base = export_model(model, {}, tmp_path / "base")
        assert torch.equal(logits_of(adapted(base, made.folder)), logits_of(base_of(base)))


def test_the_command_line_exports_adapters(run, workplace, tmp_path, caplog):
    model = ft.load_model(workplace / "model")
    delta = str(save_delta(tmp_path / "one.safetensors", model, some_updates(model)))
    words = ("export", "--model", "model", delta)
    said = run(*words, str(tmp_path / "whole"), "--format", "peft")
    assert said.stdout == f"the edit is a LoRA adapter of rank 48 in {tmp_path / 'whole'}\n"
    done = run(*words, str(tmp_path / "small"), "--format", "peft", "--rank", "2", "--json")
    made = json.loads(done.stdout)
    assert (made["folder"], made["rank"]) == (str(tmp_path / "small"), 2)
    assert 0.1 < made["relative_error"] < 1
    assert "rank 2 leaves out" in caplog.text
    check_same(
        logits_of(adapted(workplace / "model", tmp_path / "whole")),
        logits_of(base_of(export_model(model, some_updates(model), tmp_path / "model"))),
        logits_of(base_of(workplace / "model")),
    )
    refused = run(*words, str(tmp_path / "no"), "--rank", "2", code=2)
    said = "fasttrace: export: rank: expected a rank only with format peft, got one with format model"
    assert refused.stderr.splitlines()[-1] == said
    refused = run(*words, str(tmp_path / "whole"), "--format", "peft", code=2)
    assert "which exists and is not an empty folder" in refused.stderr
    assert not (tmp_path / "no").exists()
