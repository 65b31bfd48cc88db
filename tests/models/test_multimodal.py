"""A text decoder inside a multimodal model: loaded, traced and edited as the text model, written as the whole one."""

import json
import time

import pytest
import torch
from edit_cases import CONTEXTS, FACTS
from hooked_rome import down_projection
from hooked_trace import mlp_modules
from small_models import small_config, small_model
from torch import nn

import fasttrace as ft
from fasttrace.errors import ModelError
from fasttrace.models import packed

IDS = torch.tensor([[5, 9, 2, 7, 11, 250, 3, 17]])


def logits_of(hf):
    with torch.no_grad():
        return hf.eval()(IDS).logits[0].double()


def towers(hf):
    """Every parameter outside the text decoder."""
    text = {id(weight) for part in (hf.get_decoder(), hf.get_output_embeddings()) for weight in part.parameters()}
    return {name: weight for name, weight in hf.named_parameters() if id(weight) not in text}


@pytest.fixture(params=["gemma3-wrapper", "qwen2.5-vl", "llava"])
def folder(request, small_tokenizer, tmp_path):
    model = small_model(request.param, small_tokenizer, torch.float32)
    place = tmp_path / "model"
    model.hf.save_pretrained(place)
    small_tokenizer.save_pretrained(place)
    (place / "preprocessor_config.json").write_text('{"image_processor_type": "GotOcr2ImageProcessor"}')
    return place


def test_an_edit_is_exported_with_the_whole_model(folder, corpus, tmp_path):
    from transformers import AutoModelForImageTextToText

    model = ft.load_model(folder)
    assert model.is_multimodal
    assert model.positions == 160
    assert model.n_layers == 5
    plain = AutoModelForImageTextToText.from_pretrained(folder)
    moments = ft.second_moments(model, corpus, tokens=600, sequence_length=32, cache_dir=tmp_path, ridge=1e-2)
    edit = ft.edit(model, FACTS[:1], layers=[1], moments=moments, contexts=CONTEXTS, essence=0, steps=4, lr=0.5)
    update = edit.edits[0].updates[1].matrix()
    edited = AutoModelForImageTextToText.from_pretrained(edit.export(tmp_path / "edited"))
    with torch.no_grad():
        down_projection(mlp_modules(plain)[1]).weight += update
    before, found, wanted = logits_of(model.hf), logits_of(edited), logits_of(plain)
    assert (wanted - before).abs().max() > 0.05, "an edit that changes nothing would make this test empty"
    assert (found - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert towers(edited)
    assert all(torch.equal(weight, towers(plain)[name]) for name, weight in towers(edited).items())
    assert (tmp_path / "edited" / "preprocessor_config.json").read_bytes() == (
        folder / "preprocessor_config.json"
    ).read_bytes()
    with edit.applied():
        ours = packed.logits(model, packed.pack(model, IDS.tolist())).double()
        assert (ours - wanted).abs().max() < 1e-5 * wanted.abs().max()
    peft = pytest.importorskip("peft", reason="peft is not installed: pip install peft")
    adapter = edit.export(tmp_path / "adapter", format="peft")
    base = AutoModelForImageTextToText.from_pretrained(folder)
    assert (logits_of(peft.PeftModel.from_pretrained(base, adapter)) - wanted).abs().max() < 2e-5 * wanted.abs().max()


def test_a_tower_is_hashed_and_stays_offloaded_while_texts_are_read(folder):
    plain = ft.load_model(folder)
    on_disk = ft.load_model(folder, device={"": "disk"})
    others = [on_disk.hf.get_parameter(name) for name in towers(plain.hf)]
    assert others
    with on_disk.entry():
        assert on_disk.embed_weight.device.type == "cpu"
        assert {weight.device.type for weight in others} == {"meta"}
    a, b = (packed.logits(m, packed.pack(m, IDS.tolist())) for m in (plain, on_disk))
    assert torch.equal(a, b)
    assert on_disk.model_hash == plain.model_hash
    with torch.no_grad():
        next(iter(towers(plain.hf).values())).view(-1)[0] += 1
    assert plain.model_hash != on_disk.model_hash


def test_a_config_with_too_many_layers_in_a_tower_is_refused_at_once(folder):
    config = json.loads((folder / "config.json").read_text())
    for name in ("num_hidden_layers", "depth"):
        if name in config["vision_config"]:
            config["vision_config"][name] = 10**8
    (folder / "config.json").write_text(json.dumps(config))
    start = time.monotonic()
    with pytest.raises(ModelError, match=r"expected a config of as many layers as the weights, got 100000000$"):
        ft.load_model(folder)
    assert time.monotonic() - start < 5


def test_a_changed_decoder_is_refused_by_its_name_in_the_whole_model(small_tokenizer):
    hf = small_model("llava", small_tokenizer, torch.float32).hf
    hf.model.language_model.layers[2].mlp.down_proj.register_forward_hook(lambda module, args, out: 2 * out)
    with pytest.raises(ModelError, match=r"'model.language_model.layers.2.mlp.down_proj' has a forward hook"):
        ft.wrap_model(hf, small_tokenizer)
    hf.model.language_model.layers[2].mlp.down_proj._forward_hooks.clear()
    hf.model.language_model.layers[2].mlp.act_fn = nn.Tanh()
    with pytest.raises(ModelError, match=r"computes layer 2 differently"):
        ft.wrap_model(hf, small_tokenizer)


def test_llama4_whose_own_forward_transformers_cannot_run(small_tokenizer, corpus, tmp_path):
    import transformers as tf

    text = small_config("llama4", len(small_tokenizer)).to_dict()
    vision = {
        "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 128, "image_size": 28,
        "patch_size": 14, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32,
    }  # fmt: skip
    torch.manual_seed(0)
    hf = tf.Llama4ForConditionalGeneration(tf.Llama4Config(text_config=text, vision_config=vision))
    hf.save_pretrained(tmp_path / "model")
    small_tokenizer.save_pretrained(tmp_path / "model")
    model = ft.load_model(tmp_path / "model")
    assert model.is_multimodal
    ours = packed.logits(model, packed.pack(model, IDS.tolist())).double()
    before = logits_of(hf.language_model)
    assert (ours - before).abs().max() < 1e-5 * before.abs().max()
    asked = {"windows": [2], "samples": 2, "sigma": 0.4, "noise": "released", "keep": "all"}
    grids = [ft.trace(model, FACTS[:1], engine=engine, **asked).cells.to_pandas() for engine in ("wavefront", "hooked")]
    fast, slow = (grid.sort_values(["token_index", "layer"]).p_restored.to_numpy() for grid in grids)
    assert abs(fast - slow).max() < 1e-5 * slow.max()
    moments = ft.second_moments(model, corpus, tokens=600, sequence_length=32, cache_dir=tmp_path, ridge=1e-2)
    edit = ft.edit(model, FACTS[:1], layers=[1], moments=moments, contexts=CONTEXTS, essence=0, steps=4, lr=0.5)
    edited = tf.AutoModelForImageTextToText.from_pretrained(edit.export(tmp_path / "edited"))
    after = logits_of(edited.language_model)
    assert (after - before).abs().max() > 1e-3 * before.abs().max()
    with edit.applied():
        ours = packed.logits(model, packed.pack(model, IDS.tolist())).double()
    assert (ours - after).abs().max() < 1e-5 * after.abs().max()
    assert all(torch.equal(weight, towers(hf)[name]) for name, weight in towers(edited).items())
