"""Folders and files that are not the model they seem: refused in one sentence, or loaded as they are."""

import contextlib
import io
import json
import os
import re
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from small_models import small_model
from torch import nn

import fasttrace as ft
from fasttrace.errors import ModelError, UserError

DOWN = "model.layers.2.mlp.down_proj"
WEIGHT = f"{DOWN}.weight"


@pytest.fixture(scope="module")
def folders(small_tokenizer, tmp_path_factory):
    """Sound folders: a Llama, a GPT-2, and the GPT-2 in several files."""
    root = tmp_path_factory.mktemp("models")
    for name, family, size in (
        ("llama", "llama", "1GB"),
        ("gpt2", "gpt2", "1GB"),
        ("mistral", "mistral", "1GB"),
        ("shards", "gpt2", "100KB"),
    ):
        model = small_model(family, small_tokenizer, torch.float32)
        model.hf.save_pretrained(root / name, max_shard_size=size)
        small_tokenizer.save_pretrained(root / name)
    return root


def write(name, content):
    return lambda folder: (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def cut(name, share):
    def change(folder):
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[: int(len(content) * share)])

    return change


def without(*names):
    return lambda folder: [(folder / name).unlink() for name in names]


def tensors(change):
    def rewrite(folder):
        found = load_file(folder / "model.safetensors")
        change(found)
        save_file(found, folder / "model.safetensors", metadata={"format": "pt"})

    return rewrite


def put(name, tensor):
    return tensors(lambda found: found.update({name: tensor}))


def recast(dtype):
    return tensors(lambda found: found.update({WEIGHT: found[WEIGHT].to(dtype)}))


def config(**changes):
    def change(folder):
        path = folder / "config.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def first_shard(name):
    def change(folder):
        path = folder / "model.safetensors.index.json"
        content = json.loads(path.read_text())
        content["weight_map"][min(content["weight_map"])] = name
        path.write_text(json.dumps(content))

    return change


def both(*changes):
    return lambda folder: [change(folder) for change in changes]


def gguf(*names):
    return both(without("model.safetensors"), *(write(name, b"GGUF\x03\0\0\0") for name in names))


SAFE = "model.safetensors"
INDEX = "model.safetensors.index.json"
BRACKETS = "[" * 100_000

BAD_FOLDERS = {
    # The weights and the config do not fit each other.
    "missing tensor": ("llama", tensors(lambda t: t.pop(WEIGHT)), rf"got none for '{WEIGHT}'"),
    "more layers": ("llama", config(num_hidden_layers=6), r"got none for 'model\.layers\.5\..* and 6 more"),
    "fewer layers": ("llama", config(num_hidden_layers=4), r"got more in 'model\.layers\.4\..* and 6 more"),
    "fewer layers of gpt2": ("gpt2", config(n_layer=4), r"got more in 'transformer\.h\.4\."),
    "no head": ("llama", config(tie_word_embeddings=False), r"got none for 'lm_head\.weight'"),
    "bias too many": ("llama", put(f"{DOWN}.bias", torch.ones(48)), rf"got more in '{DOWN}\.bias'"),
    "head's bias": ("llama", put("lm_head.bias", torch.ones(8)), r"got more in 'lm_head\.bias'"),
    "wrong shape": (
        "llama",
        put(WEIGHT, torch.ones(80, 48)),
        rf"expected '{WEIGHT}' of shape \(48, 80\), got \(80, 48",
    ),
    "file left out": ("shards", both(lambda f: drop_shard(f)), r"got none for 'transformer"),
    "NaN": ("llama", put(WEIGHT, torch.full((48, 80), torch.nan)), rf"got 3,840 of 3,840 numbers of '{WEIGHT}'"),
    "int8": ("llama", recast(torch.int8), rf"expected weights as float16.*, got I8 in '{WEIGHT}'"),
    "float8": ("llama", recast(torch.float8_e4m3fn), rf"got F8_E4M3 in '{WEIGHT}'"),
    "bool": ("llama", recast(torch.bool), rf"got BOOL in '{WEIGHT}'"),
    # Pickles, and files elsewhere.
    "pickle": (
        "shards",
        both(first_shard("w.bin"), write("w.bin", b"x")),
        r"names of \.safetensors files.* got 'w\.bin'",
    ),
    "pickle outside": ("shards", first_shard("../outside.bin"), r"in its folder, got '\.\./outside\.bin'"),
    "outside": ("shards", first_shard("../llama/model.safetensors"), r"in its folder, got '\.\./llama"),
    "absolute": ("shards", first_shard("/tmp/model.safetensors"), r"in its folder, got '/tmp/"),
    "missing file": ("shards", first_shard("model-9.safetensors"), r"got 6 of 7, without 'model-9\.safetensors'"),
    "no name": ("shards", first_shard(None), r"in its folder, got 'None'"),
    "another file": (
        "llama",
        config(transformers_weights="adapter_model.bin"),
        r"transformers_weights: 'adapter_model",
    ),
    "distributed": ("llama", write("shard-00000-model-00001-of-00001.safetensors", b""), r"a distributed checkpoint"),
    "index null": ("shards", write(INDEX, "null"), r"index\.json': expected a JSON object, got None"),
    "index {}": ("shards", write(INDEX, "{}"), r"expected metadata and a weight_map"),
    "index cut": ("shards", cut(INDEX, 0.5), r"index\.json': expected a JSON object"),
    # Damaged weights.
    "empty weights": ("llama", write(SAFE, b""), r"model\.safetensors': expected a complete safetensors file"),
    "cut weights": ("llama", cut(SAFE, 0.5), r"expected a complete safetensors file, got 210,448 of its 420,896 bytes"),
    "header too long": ("llama", write(SAFE, (2**62).to_bytes(8, "little")), r"expected a complete safetensors file"),
    "no tensors": ("llama", tensors(lambda t: t.clear()), r"safetensors files without tensors"),
    "no weights": ("llama", without(SAFE), r"expected \.safetensors or \.gguf weights, got neither"),
    "two gguf": ("llama", gguf("a.gguf", "b.gguf"), r"expected one \.gguf file, got 2: name one of them"),
    "cut gguf": ("llama", gguf("a.gguf"), r"'a\.gguf' cannot be read as GGUF"),
    "empty gguf": ("llama", both(gguf(), write("a.gguf", b"")), r"'a\.gguf' cannot be read as GGUF"),
    # Configs.
    **{
        f"config {text[:9]}": ("llama", write("config.json", text), r"config\.json': expected a JSON object")
        for text in ("null", "[]", "3", "", "{", BRACKETS, '{"a":' * 100_000)
    },
    "config {}": ("llama", write("config.json", "{}"), r"has no usable config: Unrecognized model"),
    "config missing": ("llama", without("config.json"), r"expected a config\.json, got none"),
    "layers 'x'": ("llama", config(num_hidden_layers="x"), r"'num_hidden_layers' expected int, got str"),
    "layers -1": ("llama", config(num_hidden_layers=-1), r"as many layers as the weights, got -1"),
    "layers 1e9": ("llama", config(num_hidden_layers=10**9), r"as many layers as the weights, got 1000000000"),
    "vocabulary 1e9": ("llama", config(vocab_size=10**9), r"describes its weights \(104,016 numbers\)"),
    "positions 1e11": ("gpt2", config(n_positions=10**11), r"describes its weights"),
    "heads 0": ("llama", config(num_attention_heads=0), r"has no usable config"),
    "head width 0": ("llama", config(head_dim=0), r"could not be loaded: ZeroDivisionError"),
    "epsilon NaN": ("llama", config(rms_norm_eps=float("nan")), r"expected finite logits"),
    "activation": ("llama", config(hidden_act="zzz"), r"could not be loaded: transformers found no 'zzz'"),
    "encoder": ("llama", config(is_encoder_decoder=True), r"has no adapter: it attends to an encoder"),
    **{
        method: (
            "llama",
            config(quantization_config={"quant_method": method, "bits": 4}),
            words,
        )
        for method, words in {
            **{
                method: rf"expected weights that {method} has packed, as config\.json says, got plain ones: remove"
                for method in ("gptq", "awq", "compressed-tensors", "fp8", "mxfp4")
            },
            "hqq": r"weights quantised by bitsandbytes, .*, got 'hqq' in config\.json: save the model dequantised",
        }.items()
    },
    "adapter": (
        "llama",
        both(
            without("config.json", SAFE),
            write("adapter_config.json", "{}"),
            write("adapter_model.safetensors", b""),
        ),
        r"a PEFT adapter \(adapter_config\.json\).*merge_and_unload\(\)",
    ),
    "adapter beside a model": ("llama", write("adapter_config.json", "{}"), r"a PEFT adapter"),
    # Tokenizers.
    **{
        f"tokenizer {text[:9]}": ("llama", write("tokenizer.json", text), r"tokenizer\.json': expected a JSON object")
        for text in ("[]", "null", "", BRACKETS)
    },
    "tokenizer {}": (
        "llama",
        write("tokenizer.json", "{}"),
        r"its tokenizer could not be loaded: transformers found no 'added_tokens'",
    ),
    "tokenizer cut": ("llama", cut("tokenizer.json", 0.5), r"tokenizer\.json': expected a JSON object"),
    "tokenizer missing": ("llama", without("tokenizer.json", "tokenizer_config.json"), r"a tokenizer\.json, got none"),
    "gpt2's missing": ("gpt2", without("tokenizer.json", "tokenizer_config.json"), r"a tokenizer\.json, got none"),
    "tokenizer config": (
        "llama",
        write("tokenizer_config.json", "[]"),
        r"tokenizer_config\.json': expected a JSON obj",
    ),
    "generation config": ("llama", write("generation_config.json", "[]"), r"generation_config\.json': expected a JSON"),
    "another's ids": ("llama", lambda f: move_ids(f), r"expected token ids below 316.*got 1000"),
}


def drop_shard(folder):
    path = folder / INDEX
    content = json.loads(path.read_text())
    gone = sorted(set(content["weight_map"].values()))[1]
    content["weight_map"] = {name: file for name, file in content["weight_map"].items() if file != gone}
    path.write_text(json.dumps(content))


def move_ids(folder):
    path = folder / "tokenizer.json"
    content = json.loads(path.read_text())
    content["model"]["vocab"] = {word: 10**6 + n for word, n in content["model"]["vocab"].items()}
    path.write_text(json.dumps(content))


@pytest.mark.parametrize("name", BAD_FOLDERS)
def test_a_folder_that_cannot_be_the_model_is_refused_in_one_sentence(name, folders, tmp_path, monkeypatch):
    kind, change, words = BAD_FOLDERS[name]
    folder = tmp_path / "model"
    shutil.copytree(folders / kind, folder)
    change(folder)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a file was unpickled"))
    said = io.StringIO()
    with contextlib.redirect_stderr(said), pytest.raises(ModelError, match=words) as error:
        ft.load_model(folder)
    assert "\n" not in str(error.value)
    assert said.getvalue() == ""


def same(folder):
    """What is loaded from a folder, as p of a text."""
    from fasttrace.models.packed import logits, pack

    model = ft.load_model(folder)
    return model.model_hash, logits(model, pack(model, [[5, 9, 2, 7]]))


HARMLESS = {
    "head of another task": put("score.weight", torch.ones(2, 48)),
    "value head": put("v_head.summary.weight", torch.ones(1, 48)),
    "old rotation": put("model.layers.0.self_attn.rotary_emb.inv_freq", torch.ones(4)),
    "old mask": put("transformer.h.0.attn.bias", torch.ones(1, 1, 160, 160, dtype=torch.bool)),
    "old masked bias": put("transformer.h.0.attn.masked_bias", torch.tensor(-1e4)),
    "names without prefix": lambda folder: no_prefix(folder),
    "tied head written": lambda folder: tied_head(folder),
}


def no_prefix(folder):
    found = load_file(folder / SAFE)
    renamed = {name.removeprefix("transformer."): tensor for name, tensor in found.items()}
    save_file(renamed, folder / SAFE, metadata={"format": "pt"})


def tied_head(folder):
    tensors(lambda t: t.update({"lm_head.weight": t["transformer.wte.weight"].clone()}))(folder)


@pytest.mark.parametrize("name", HARMLESS)
def test_tensors_that_change_nothing_are_left_out(name, folders, tmp_path):
    kind = "gpt2" if name.startswith(("old mask", "names", "tied")) else "llama"
    folder = tmp_path / "model"
    shutil.copytree(folders / kind, folder)
    HARMLESS[name](folder)
    (left, ours), (right, theirs) = same(folder), same(folders / kind)
    assert left == right
    assert torch.equal(ours, theirs)


def test_shards_are_read_through_the_links_of_the_hubs_cache(folders, tmp_path):
    blobs, snapshot = tmp_path / "blobs", tmp_path / "snapshots/abc"
    blobs.mkdir()
    snapshot.mkdir(parents=True)
    for number, file in enumerate(sorted((folders / "shards").iterdir())):
        shutil.copy(file, blobs / f"{number:040x}")
        os.symlink(f"../../blobs/{number:040x}", snapshot / file.name)
    (left, ours), (right, theirs) = same(snapshot), same(folders / "gpt2")
    assert left == right
    assert torch.equal(ours, theirs)


def test_an_allocation_that_no_memory_has_is_a_sentence(folders, tmp_path, monkeypatch):
    import transformers

    def too_much(*_, **__):
        return torch.empty(2**60), None

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", too_much)
    with pytest.raises(ModelError, match=r"expected it to fit in memory, got a part of 4,611,686,\S+ GB that does not"):
        ft.load_model(folders / "llama")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory"), KeyboardInterrupt()])
def test_running_out_of_memory_and_interrupts_pass_through(error, folders, monkeypatch):
    import transformers

    def fail(*_, **__):
        raise error

    monkeypatch.setattr(transformers.AutoModelForCausalLM, "from_pretrained", fail)
    with pytest.raises(type(error)):
        ft.load_model(folders / "llama")


def test_loading_says_nothing_and_leaves_transformers_as_it_was(folders):
    from transformers.utils import logging

    before = logging.get_verbosity(), logging.is_progress_bar_enabled()
    said = io.StringIO()
    with contextlib.redirect_stderr(said):
        ft.load_model(folders / "llama")
    assert said.getvalue() == ""
    assert (logging.get_verbosity(), logging.is_progress_bar_enabled()) == before


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"source": ""}, r"model '': expected an existing folder or \.gguf file"),
        ({"source": None}, r"source: expected .*, got None"),
        ({"source": "a\0b"}, r"source: expected .*, got 'a"),
        ({"source": nn.Linear(1, 1)}, r"source: expected .*, got Linear"),
        ({"dtype": "float16"}, r"expected dtype to be one of float32, .*, got 'float16'"),
        ({"dtype": torch.float32}, r"dtype: expected .*, got"),
        ({"dtype": ["float32"]}, r"dtype: expected .*, got"),
        ({"device": "meta"}, r"device 'meta' cannot be used: tensors have no values there"),
        ({"device": {"": "meta"}}, r"device 'meta' cannot be used: tensors have no values there"),
        ({"device": "nonsense"}, r"device 'nonsense' cannot be used"),
        ({"device": ""}, r"device '' cannot be used"),
        ({"device": 0}, r"device: expected .*, got 0"),
        ({"device": "auto", "max_memory": "1GB"}, r"max_memory: expected .*, got '1GB'"),
    ],
    ids=str,
)
def test_arguments_that_cannot_be_used(given, words, folders):
    with pytest.raises(UserError, match=words) as error:
        ft.load_model(**{"source": folders / "llama"} | given)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["missing tensor", "pickle", "cut weights", "config null", "gptq", "tokenizer []"])
def test_the_command_line_prints_the_sentence_and_exits_with_2(name, folders, tmp_path, command):
    kind, change, words = BAD_FOLDERS[name]
    folder = tmp_path / "model"
    shutil.copytree(folders / kind, folder)
    change(folder)
    done = command("trace", "--model", str(folder), "--limit", "1", "--store", str(tmp_path / "s.duckdb"), code=2)
    [line] = [line for line in done.stderr.splitlines() if line.strip()]
    assert re.search(words, line)
    assert line.startswith("fasttrace: ")
    assert not (tmp_path / "s.duckdb").exists()
