"""Folders, files and hub ids that hold no model to load: each is one sentence that says what is there instead and the
way out, from Python and from the command line."""

import http.server
import json
import re
import shutil
import threading

import pytest
import torch
from safetensors.torch import save_file
from small_models import small_model

import fasttrace as ft
from fasttrace.errors import ModelError
from fasttrace.models.load import load_tokenizer

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:4d7a21\nsize 12345678901\n"
LLAMA = {"model_type": "llama"}
INDEX = {
    "metadata": {},
    "weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"},
}
LORA = {"base_model_name_or_path": "org/base", "peft_type": "LORA", "target_modules": ["q_proj"]}
OWN = LORA | {"target_modules": ["model.layers.3.mlp.down_proj"]}

# Name → (files, what is said). A file's content is text, bytes or JSON; a name that ends in / is a folder.
FOLDERS = {
    "nothing": ({}, r"got an empty folder"),
    "notes": (
        {"notes.txt": "x"},
        r"got neither among its 1 entries \(such as notes\.txt\): name the folder of a model",
    ),
    "several": ({"a/config.json": LLAMA, "b/config.json": LLAMA}, r"2 folders with models: name one of them.*model/b$"),
    "cache": (
        {"blobs/0": b"", "snapshots/abc/config.json": LLAMA},
        r"a folder of the hub's cache: name its snapshot .*/snapshots/abc",
    ),
    # Half-downloaded.
    "incomplete": ({"config.json": LLAMA, "a.incomplete": ""}, r"not finished \(a\.incomplete\): download .* again"),
    "by hf": (
        {"config.json": LLAMA, ".cache/huggingface/download/a.incomplete": ""},
        r"has not finished \(\.cache/huggingface/download/a\.incomplete\)",
    ),
    "index alone": (
        {"config.json": LLAMA, "model.safetensors.index.json": INDEX},
        r"all files that it names, got 0 of 2, without 'model-00001-of-00002\.safetensors': download the folder again",
    ),
    "a shard": (
        {
            "config.json": LLAMA,
            "model.safetensors.index.json": INDEX,
            "model-00001-of-00002.safetensors": b"",
            "x.part": "",
        },
        r"got 1 of 2, without 'model-00002-of-00002\.safetensors', and 'x\.part', which has not finished",
    ),
    "no index": (
        {"config.json": LLAMA, "model-00001-of-00002.safetensors": b""},
        r"got parts such as model-00001-of-00002\.safetensors without the index",
    ),
    "pointer": (
        {"config.json": LLAMA, "model.safetensors": POINTER},
        r"complete safetensors file, got a git-lfs pointer of 78 bytes in its place: run `git lfs pull`",
    ),
    "cut": (
        {"config.json": LLAMA, "model.safetensors": lambda path: cut(path)},
        r"got 100 of its 472 bytes: download it again",
    ),
    "config's pointer": ({"config.json": POINTER, "model.safetensors": b""}, r"config\.json': .*git-lfs pointer"),
    "config of 0 bytes": ({"config.json": "", "model.safetensors": b""}, r"got an empty one \(0 bytes\)"),
    "web page": ({"config.json": "<!DOCTYPE html>", "model.safetensors": b""}, r"got a web page in its place"),
    # Formats that are not read.
    "pickled": (
        {"config.json": LLAMA, "pytorch_model-00001-of-00002.bin": b""},
        r"got pickled weights \(pytorch_model-.*\), which fasttrace never unpickles: if you trust it, convert it",
    ),
    "pt": ({"config.json": LLAMA, "model.pt": b""}, r"got pickled weights \(model\.pt\), which fasttrace never unpick"),
    "Meta": ({"params.json": {}, "consolidated.00.pth": b""}, r"in Meta's own format \(consolidated\.00\.pth\), which"),
    "Meta below": (
        {"config.json": LLAMA, "original/consolidated.00.pth": b""},
        r"got in 'original' .*Meta's own format",
    ),
    "Mistral": (
        {"params.json": {}, "consolidated.safetensors": b""},
        r"config\.json, got a checkpoint in Mistral's own",
    ),
    "Mistral with a config": (
        {"config.json": LLAMA, "consolidated.safetensors": b""},
        r"expected model\.safetensors .* got a checkpoint in Mistral's own format",
    ),
    "split": (
        {"m-00001-of-00003.gguf": b"", "m-00002-of-00003.gguf": b""},
        r"got part 1 of 3: join them with llama\.cpp's `llama-gguf-split --merge m-00001-of-00003\.gguf whole\.gguf`",
    ),
    "ONNX": ({"config.json": LLAMA, "onnx/model.onnx": b""}, r"an ONNX export \(onnx\): take the original weights"),
    "MLX": ({"config.json": LLAMA, "weights.npz": b""}, r"an MLX export \(weights\.npz\): take the original weights"),
    "MLX packed": (
        {"config.json": LLAMA | {"quantization": {"bits": 4}}, "model.safetensors": b""},
        r"weights that MLX quantised \(quantization in config\.json\): take the original",
    ),
    "TensorFlow": ({"config.json": LLAMA, "tf_model.h5": b""}, r"weights of TensorFlow or Flax \(tf_model\.h5\)"),
    "Flax": ({"config.json": LLAMA, "flax_model.msgpack": b""}, r"weights of TensorFlow or Flax \(flax_model"),
    "ExLlama": (
        {"config.json": LLAMA | {"quantization_config": {"quant_method": "exl2"}}, "output.safetensors": b""},
        r"weights in ExLlama's format \(exl2\): take the original",
    ),
    "ExLlama's file": (
        {"config.json": LLAMA, "output.safetensors": b""},
        r"weights in ExLlama's format \(output\.safete",
    ),
    "FSDP": ({"__0_0.distcp": b""}, r"a distributed checkpoint \(__0_0\.distcp\): save the whole model"),
    "DeepSpeed": (
        {"global_step9/a.pt": b""},
        r"a checkpoint of DeepSpeed \(global_step9\): make one file of it with zero",
    ),
    "diffusers": ({"model_index.json": {}}, r"a pipeline of diffusers \(model_index\.json\)"),
    # Adapters and deltas.
    "adapter": (
        {"adapter_config.json": LORA, "adapter_model.safetensors": b""},
        r"a PEFT adapter of 'org/base' \(adapter_config\.json\): merge it .*from_pretrained\(\"org/base\"\), "
        r"\"\S*/model\"\)\.merge_and_unload\(\)\.save_pretrained\(\"merged\"\)$",
    ),
    "pickled adapter": ({"adapter_config.json": LORA, "adapter_model.bin": b""}, r"a PEFT adapter of 'org/base'"),
    "adapter of nothing": ({"adapter_config.json": "[]", "adapter_model.bin": b""}, r"a PEFT adapter \(adapter_config"),
    "exported edit": ({"adapter_config.json": OWN, "adapter_model.safetensors": b""}, r"\(ft\.apply_delta\)$"),
    # Other models.
    "embeddings": (
        {"config.json": LLAMA, "modules.json": "[]", "model.safetensors": b""},
        r"got a model for embeddings \(sentence-transformers\): take the language model",
    ),
    "classifier": (
        {"config.json": LLAMA | {"architectures": ["LlamaForSequenceClassification"]}, "model.safetensors": b""},
        r"got a LlamaForSequenceClassification, whose head scores texts: take the language model",
    ),
    **{
        kind: ({"config.json": {"model_type": kind}, "model.safetensors": b""}, rf"got model type '{kind}', {what}")
        for kind, what in {
            "t5": "an encoder-decoder",
            "bert": "an encoder, which reads tokens in both directions",
            "whisper": "which reads speech",
            "vit": "which continues no text",
        }.items()
    },
    "of a newer transformers": (
        {"config.json": {"model_type": "llama9", "transformers_version": "9.1.0"}, "model.safetensors": b""},
        r"model type 'llama9', which transformers \S+ does not know \(the model was saved with 9\.1\.0\): pip",
    ),
    "remote code": (
        {
            "config.json": {
                "model_type": "own",
                "auto_map": {"AutoConfig": "code.C", "AutoModelForCausalLM": "code.M"},
            },
            "code.py": "raise SystemExit('the code ran')",
            "model.safetensors": b"",
        },
        r"model type 'own', which only code of its repository computes \(code\.py\): read that code, and give "
        r"trust_remote_code=True \(--trust-remote-code\)",
    ),
}


def cut(path):
    save_file({"a": torch.ones(100)}, path)
    path.write_bytes(path.read_bytes()[:100])


def write(folder, files):
    folder.mkdir()
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        if callable(content):
            content(path)
        elif isinstance(content, bytes):
            path.write_bytes(content)
        else:
            path.write_text(content if isinstance(content, str) else json.dumps(content))
    return folder


@pytest.mark.parametrize("name", FOLDERS)
def test_a_folder_without_a_model_says_what_it_has_and_the_way_out(name, tmp_path, monkeypatch, command):
    files, words = FOLDERS[name]
    folder = write(tmp_path / "model", files)
    monkeypatch.setattr(torch, "load", lambda *_, **__: pytest.fail("a file was unpickled"))
    with pytest.raises(ModelError, match=words) as error:
        ft.load_model(folder)
    assert "\n" not in str(error.value)
    # The command line says the same, and writes nothing.
    done = command("trace", "--model", str(folder), "--limit", "1", "--store", str(tmp_path / "s.duckdb"), code=2)
    assert [line for line in done.stderr.splitlines() if line.strip()] == [f"fasttrace: {error.value}"]
    assert [path.name for path in tmp_path.iterdir()] == ["model"]


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("model.safetensors", r"got one of a model's files: name its folder, \S+$"),
        ("pytorch_model.bin", r"got pickled weights, which fasttrace never unpickles: if you trust it, convert"),
        ("m-00002-of-00003.gguf", r"got part 2 of 3: join them .*--merge m-00001-of-00003\.gguf whole\.gguf"),
        ("notes.txt", r"expected a folder or a \.gguf file, got another file"),
    ],
)
def test_a_file_is_not_a_model(name, words, tmp_path):
    (tmp_path / name).write_bytes(b"x")
    with pytest.raises(ModelError, match=words):
        ft.load_model(tmp_path / name)


@pytest.fixture(scope="module")
def llama(small_tokenizer, tmp_path_factory):
    """A small Llama in a folder without a tokenizer."""
    folder = tmp_path_factory.mktemp("models") / "llama"
    small_model("llama", small_tokenizer, torch.float32).hf.save_pretrained(folder)
    return folder


def test_a_delta_is_applied_to_its_model_and_is_not_one(llama, small_tokenizer, tmp_path):
    small_tokenizer.save_pretrained(shutil.copytree(llama, tmp_path / "model"))
    model = ft.load_model(tmp_path / "model")
    from fasttrace.editing.delta import LowRank, save_delta

    (tmp_path / "edits").mkdir()
    update = LowRank(torch.ones(1, model.width), torch.ones(1, model.key_width))
    path = save_delta(tmp_path / "edits" / "one.safetensors", model, {1: update})
    for given in (path, path.parent):
        with pytest.raises(ModelError, match=r"a delta that fasttrace wrote.*ft\.apply_delta\(model, path\)"):
            ft.load_model(given)


def test_a_model_without_its_tokenizer_takes_another_folders(llama, small_tokenizer, tmp_path):
    with pytest.raises(ModelError, match=r"tokenizer\.json, got none: copy the tokenizer's files .*tokenizer=…"):
        ft.load_model(llama)
    small_tokenizer.save_pretrained(tmp_path / "words")
    given = ft.load_model(llama, tokenizer=tmp_path / "words")
    small_tokenizer.save_pretrained(shutil.copytree(llama, tmp_path / "whole"))
    assert given.model_hash == ft.load_model(tmp_path / "whole").model_hash
    assert load_tokenizer(llama, tokenizer=tmp_path / "words")("The tower").input_ids
    with pytest.raises(ModelError, match=r"'\S*/llama': expected a tokenizer\.json, got none"):
        ft.load_model(tmp_path / "whole", tokenizer=llama)
    shutil.copytree(llama, tmp_path / "piece")
    (tmp_path / "piece" / "tokenizer.model").write_bytes(b"no model")
    with pytest.raises(ModelError, match=r"got only tokenizer\.model, which takes sentencepiece"):
        ft.load_model(tmp_path / "piece")


def test_a_tokenizer_of_more_words_than_the_weights_have(llama, tmp_path):
    from small_models import trained_tokenizer

    tokenizer = trained_tokenizer()
    tokenizer.add_tokens([f"word{i}" for i in range(40)] + ["Eiffel", "The"])
    tokenizer.save_pretrained(tmp_path / "more")
    with pytest.raises(ModelError, match=r"expected token ids below 316.*: give the tokenizer that the weights"):
        ft.load_model(llama, tokenizer=tmp_path / "more")


class Hub(http.server.BaseHTTPRequestHandler):
    """A hub whose answer is the status and the error code in the repository's name, as in org/403-GatedRepo."""

    def do_HEAD(self):
        status, _, code = self.path.split("/")[2].partition("-")
        self.send_response(int(status))
        self.send_header("X-Error-Code", code)
        self.end_headers()

    do_GET = do_HEAD

    def log_message(self, *_):
        pass


@pytest.fixture
def hub(monkeypatch, tmp_path):
    """A server of `Hub` in place of the hub, and an empty cache."""
    from huggingface_hub import constants

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    here = f"http://127.0.0.1:{server.server_port}"
    monkeypatch.setattr(constants, "ENDPOINT", here)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", here + "/{repo_id}/resolve/{revision}/{filename}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    yield
    server.shutdown()


@pytest.mark.parametrize(
    ("name", "words"),
    [
        (
            "org/403-GatedRepo",
            r"its repository is gated: ask for access on its page while logged in, then `hf auth",
        ),
        ("org/404-RepoNotFound", r"the hub has no such repository, or a private one: check the spelling"),
        ("org/404-EntryNotFound", r"expected a config\.json, got a repository without one"),
        ("a b", r"expected an existing folder, a \.gguf file or a hub id \(owner/name\), got none of them"),
        ("a/b/c", r"expected an existing folder, a \.gguf file or a hub id \(owner/name\), got none of them"),
    ],
)
def test_a_hub_id_that_cannot_be_read(name, words, hub, command):
    with pytest.raises(ModelError, match=rf"^model '{name}'.*{words}") as error:
        ft.load_model(name)
    assert "\n" not in str(error.value)
    done = command("facts", "--model", name, "--check", "--limit", "1", code=2)
    assert re.search(words, done.stderr)


def test_without_a_network_a_hub_id_says_so_and_the_way_out(monkeypatch, tmp_path, capfd):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    words = r"no folder of this name, HF_HUB_OFFLINE is set, and its cache .* lacks the model: copy the model's folder"
    for load in (ft.load_model, load_tokenizer):
        with pytest.raises(ModelError, match=words):
            load("org/name")
    assert capfd.readouterr().err == ""


def test_the_command_line_takes_another_tokenizer(llama, small_tokenizer, tmp_path, command, monkeypatch):
    facts, store = tmp_path / "facts.jsonl", ("--store", str(tmp_path / "s.duckdb"))
    facts.write_text(json.dumps({"prompt": "The {} is in", "subject": "Eiffel Tower", "target_true": "Paris"}))
    small_tokenizer.save_pretrained(tmp_path / "words")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    given = ("facts", "--model", str(llama), "--facts", str(facts), "--tokenizer", str(tmp_path / "words"))
    assert "⟦" in command(*given, "--show", "1").stdout
    assert "Paris" in command(*given, "--check", *store).stdout
    assert "nothing to test" in command(*given, "--check", *store).stderr
    done = command(*given[:-1], str(tmp_path / "none"), "--check", code=2)
    assert "expected an existing folder or .gguf file, got neither" in done.stderr


def test_code_of_a_repository_runs_only_when_the_command_says_so(llama, command, monkeypatch):
    asked = []

    def load_model(source, **given):
        asked.append(given["trust_remote_code"])
        raise ModelError("not loaded")

    monkeypatch.setattr(ft, "load_model", load_model)
    for more in ((), ("--trust-remote-code",)):
        command("facts", "--model", str(llama), "--check", *more, code=2)
    assert asked == [False, True]
