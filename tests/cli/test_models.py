"""`fasttrace models`: the model types, and what a model takes, from its config and headers alone."""

import json

import pytest
import torch
from safetensors.torch import save_file
from small_gguf import write_gguf
from small_models import VARIANTS_SLOW, small_config, small_model

import fasttrace as ft
from fasttrace.errors import ModelError
from fasttrace.models.adapter import Decoder
from fasttrace.models.load import outline
from fasttrace.needs import needs
from fasttrace.tracing.plan import bytes_per_row

OF_MODEL = ("width", "key_width", "n_layers", "vocab_size", "positions", "norm_kind", "logit_softcap", "embed_scale")
OF_BLOCK = ("n_heads", "n_kv_heads", "head_dim", "sliding_window", "softcap", "parallel", "mlp_products")


@pytest.mark.parametrize("family", VARIANTS_SLOW)
def test_an_outline_has_the_sizes_of_the_model_and_no_weights(family, small_tokenizer, tmp_path):
    small_config(family, len(small_tokenizer)).save_pretrained(tmp_path)
    made, model = outline(tmp_path), small_model(family, small_tokenizer, torch.float32)
    for name in OF_MODEL:
        assert getattr(made, name) == getattr(model, name)
    for ours, theirs in zip(made.blocks, model.blocks, strict=True):
        assert [getattr(ours, name) for name in OF_BLOCK] == [getattr(theirs, name) for name in OF_BLOCK]
    assert bytes_per_row(made) == bytes_per_row(model)
    own, its = ({name: weight.shape for name, weight in one.hf.named_parameters()} for one in (made, model))
    assert own == its
    assert all(weight.is_meta for weight in made.hf.parameters())


def test_what_a_model_takes_is_what_its_plans_reckon_with(small_tokenizer, tmp_path, monkeypatch):
    model = small_model("llama", small_tokenizer, torch.float32)
    model.hf.save_pretrained(tmp_path)
    monkeypatch.setattr("safetensors.torch.load_file", lambda *_: pytest.fail("weights were read"))
    found = needs(tmp_path)
    numbers = sum(weight.numel() for weight in model.hf.parameters())
    assert found["parameters"] == numbers
    assert [found[f"weights_{name}"] for name in ("float32", "bfloat16", "float64")] == [
        4 * numbers,
        2 * numbers,
        8 * numbers,
    ]
    assert found["moments"] == 5 * found["moments_layer"] == 5 * 4 * model.key_width**2
    # A fact of 10 tokens whose subject is the first three: 10 clean rows, and 10 for each of 10 samples, but for cells
    # from a later token on only the tokens from there.
    assert found["trace_rows"] == 10 + 10 * 10 + 5 * 10 * sum(10 - t for t in range(10))
    assert found["trace"] == found["trace_rows"] * bytes_per_row(model)
    assert found["trace_peak"] >= found["weights_float32"] + found["trace"]
    assert needs(tmp_path, "bfloat16")["row"] * 2 == found["row"]
    assert needs(tmp_path, "bfloat16")["edit"] * 2 == found["edit"]


def test_the_verb_lists_every_type_and_one_models_needs(command, small_tokenizer, tmp_path):
    rows = json.loads(command("models", "--json").stdout)
    assert {row["model_type"] for row in rows if row["family"]} == set(Decoder.registry)
    for row in rows:
        assert [row["about"] is None, row["decoder"] not in Decoder.registry, row["reason"] is None].count(False) == 1
    held = {row["model_type"]: row["decoder"] for row in rows if row["decoder"]}
    assert (held["gemma3"], held["qwen2_5_vl"]) == ("gemma3_text", "qwen2_5_vl_text")
    text = command("models").stdout
    assert f"{len(Decoder.registry)} model types can be traced and edited" in text
    assert all(name in text for name in Decoder.registry)
    assert command("models", "--format", "csv").stdout.startswith("model_type,classes,family,about,decoder,reason\n")
    # A config.json is enough, however large the model would be.
    large = {"model_type": "llama", "hidden_size": 8192, "intermediate_size": 28672, "num_hidden_layers": 80,
             "num_attention_heads": 64, "num_key_value_heads": 8, "vocab_size": 128256}  # fmt: skip
    (tmp_path / "config.json").write_text(json.dumps(large))
    found = {row["name"]: row for row in json.loads(command("models", "--model", str(tmp_path), "--json").stdout)}
    assert [found[name]["value"] for name in ("d", "L", "H", "kv_heads", "m", "V")] == [8192, 80, 64, 8, 28672, 128256]
    assert (found["parameters"]["value"], found["weights_bfloat16"]["unit"]) == (70_553_706_496, "bytes")
    assert "weights_bfloat16          141 GB" in command("models", "--model", str(tmp_path)).stdout
    write_gguf(tmp_path / "small.gguf", small_tokenizer)
    assert "model type llama" in command("models", "--model", str(tmp_path / "small.gguf")).stdout


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"num_hidden_layers": 10**9}, r"as many layers as the weights, got 1000000000"),
        ({"model_type": "t5"}, r"an encoder-decoder"),
        ({"auto_map": {"AutoConfig": "a.B"}, "model_type": "own"}, r"trust_remote_code=True"),
    ],
    ids=str,
)
def test_configs_that_cannot_be_loaded_are_refused_here_too(changes, words, command, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "llama", **changes}))
    with pytest.raises(ModelError, match=words):
        needs(tmp_path)
    assert command("models", "--model", str(tmp_path), code=2).stderr.startswith("fasttrace: model ")


def test_weights_that_do_not_fit_the_config_are_refused(tmp_path, small_tokenizer):
    small_config("llama", len(small_tokenizer)).save_pretrained(tmp_path)
    save_file({"model.layers.0.mlp.down_proj.weight": torch.ones(48, 80)}, tmp_path / "model.safetensors")
    assert needs(tmp_path)["L"] == 5, "a part of the weights says nothing"
    (tmp_path / "model.safetensors").write_text("cut")
    with pytest.raises(ft.ModelError, match="complete safetensors file"):
        needs(tmp_path)
