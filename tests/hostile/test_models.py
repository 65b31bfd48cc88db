"""Models that are not what they seem, in memory and in folders: refused in one sentence, or computed as they are."""

import contextlib
import io
import json
import os
import re
import shutil

import pytest
import torch
from edit_cases import CONTEXTS, FACTS
from safetensors.torch import load_file, save_file
from small_models import FAMILIES, small_config, small_model
from torch import nn
from torch.nn.utils import parametrizations, prune

import fasttrace as ft
from fasttrace.editing.delta import LowRank
from fasttrace.errors import ModelError, UserError

DOWN = "model.layers.2.mlp.down_proj"
WEIGHT = f"{DOWN}.weight"


def llama(tokenizer, family="llama", dtype=torch.float32):
    """A transformers model that is in training mode and takes gradients, as `from_config` makes it."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(small_config(family, len(tokenizer))).to(dtype)


def one_sentence(error):
    """The message of an error, which has to be one line without the marks of a traceback."""
    message = str(error)
    assert "\n" not in message
    assert "Traceback" not in message
    return message


# --- models in memory: what they compute is not what their weights say --------------------------------------------


def adapter(hf):
    layer = type("Linear", (nn.Linear,), {"__module__": "peft.tuners.lora.layer"})(80, 48, bias=False)
    layer.base_layer = hf.get_submodule(DOWN)
    hf.model.layers[2].mlp.down_proj = layer


def unknown_adapter(hf):
    hf.get_submodule(DOWN).base_layer = nn.Linear(80, 48)


def hook(hf):
    hf.get_submodule(DOWN).register_forward_hook(lambda module, args, out: 2 * out)


def pre_hook(hf):
    hf.get_submodule(DOWN).register_forward_pre_hook(lambda module, args: None)


def hook_of_the_model(hf):
    hf.register_forward_hook(lambda module, args, out: out)


def hook_of_accelerate(hf):
    from accelerate.hooks import ModelHook, add_hook_to_module

    add_hook_to_module(hf.get_submodule(DOWN), type("Doubling", (ModelHook,), {"__module__": "mine"})())


def replaced(module_name, hf):
    def forward(self, x):
        return nn.Linear.forward(self, x)

    kind = type("QuantLinear", (nn.Linear,), {"__module__": module_name, "forward": forward})
    hf.model.layers[2].mlp.down_proj = kind(80, 48, bias=False)


def quantised_dynamically(hf):
    linear = torch.ao.nn.quantized.dynamic.Linear(80, 48, bias_=False)
    hf.model.layers[2].mlp.down_proj = linear


def whole_numbers(hf):
    hf.get_submodule(DOWN).weight = nn.Parameter(torch.ones(48, 80, dtype=torch.int8), requires_grad=False)


class Packed(torch.Tensor):
    """A tensor subclass, as quantisers and sharded models make them."""


def packed_tensor(hf):
    hf.get_submodule(DOWN).weight = nn.Parameter(torch.zeros(48, 80).as_subclass(Packed), requires_grad=False)


def patched(hf):
    hf.get_submodule(DOWN).forward = lambda x: x[..., :48]


def patched_under_accelerate(hf):
    from accelerate import cpu_offload

    patched(hf)
    cpu_offload(hf, "cpu")


def value(number):
    def put(hf):
        hf.get_submodule(DOWN).weight.data[3, 5] = number

    return put


def two_dtypes(hf):
    hf.get_submodule(DOWN).half()


def fewer_layers_run(hf):
    hf.config.num_hidden_layers = 3


CHANGES = {
    "lora": (adapter, rf"'{DOWN}' has an adapter \(Linear\).*merge_and_unload\(\)"),
    "adapter of another kind": (unknown_adapter, r"has an adapter .*merge_and_unload\(\)"),
    "hook": (hook, rf"'{DOWN}' has a forward hook .*remove it"),
    "pre-hook": (pre_hook, rf"'{DOWN}' has a forward pre-hook .*remove it"),
    "hook of the model": (hook_of_the_model, r"the model has a forward hook"),
    "accelerate hook": (hook_of_accelerate, r"has a hook \(Doubling\).*remove_hook_from_module"),
    "weight norm": (
        lambda hf: parametrizations.weight_norm(hf.get_submodule(DOWN)),
        rf"'{DOWN}' has a parametrization of weight.*remove_parametrizations",
    ),
    "old weight norm": (lambda hf: nn.utils.weight_norm(hf.get_submodule(DOWN)), r"a weight norm.*remove_weight_norm"),
    "spectral norm": (lambda hf: nn.utils.spectral_norm(hf.get_submodule(DOWN)), r"remove_spectral_norm"),
    "pruned": (lambda hf: prune.random_unstructured(hf.get_submodule(DOWN), "weight", 0.5), r"pruning mask.*remove"),
    "bitsandbytes": (lambda hf: replaced("bitsandbytes.nn.modules", hf), r"a quantised layer .*dequantize\(\)"),
    "gptq": (lambda hf: replaced("gptqmodel.nn_modules.qlinear", hf), r"a quantised layer \(QuantLinear\)"),
    "awq": (lambda hf: replaced("awq.modules.linear", hf), r"a quantised layer"),
    "torch.ao": (quantised_dynamically, r"a quantised layer"),
    "own layer": (lambda hf: replaced("mine", hf), r"the class mine\.QuantLinear"),
    "int8": (whole_numbers, rf"the weight '{WEIGHT}' is quantised or packed \(torch\.int8\)"),
    "tensor subclass": (packed_tensor, rf"the weight '{WEIGHT}' is quantised or packed \(Packed\)"),
    "patched": (patched, rf"'{DOWN}' has a forward of its own.*del module\.forward"),
    "patched under accelerate": (patched_under_accelerate, rf"'{DOWN}' has a forward of its own"),
    "NaN": (value(float("nan")), rf"expected finite weights, got 1 of 3,840 numbers of '{WEIGHT}'"),
    "infinite": (value(float("-inf")), rf"expected finite weights, got 1 of 3,840 numbers of '{WEIGHT}'"),
    "two dtypes": (two_dtypes, r"one dtype, got torch\.float32 and, in .* torch\.float16"),
    "meta": (lambda hf: hf.to("meta"), r"has no values \(device 'meta'\)"),
    "fewer layers": (fewer_layers_run, r"expected every layer to run, got 3 of 5"),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_model_that_computes_something_else_is_refused_by_name(name, small_tokenizer):
    change, words = CHANGES[name]
    hf = llama(small_tokenizer)
    change(hf)
    with pytest.raises(ModelError, match=words) as error:
        ft.wrap_model(hf, small_tokenizer)
    one_sentence(error.value)


def test_hooks_on_all_modules_are_refused(small_tokenizer):
    handle = nn.modules.module.register_module_forward_hook(lambda module, args, out: out)
    try:
        with pytest.raises(ModelError, match="expected no hooks on all modules of torch"):
            ft.wrap_model(llama(small_tokenizer), small_tokenizer)
    finally:
        handle.remove()


def test_a_replaced_forward_of_a_class_is_refused(small_tokenizer, monkeypatch):
    hf = llama(small_tokenizer)
    kind = type(hf.model.layers[0].mlp)
    old = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, x: 2 * old(self, x))
    with pytest.raises(ModelError, match=r"has a forward from .*test_models"):
        ft.wrap_model(hf, small_tokenizer)


def test_the_outputs_are_compared_unless_told_not_to(small_tokenizer):
    hf = llama(small_tokenizer)
    hf.model.layers[2].mlp.act_fn = nn.Tanh()
    with pytest.raises(ModelError, match=r"computes layer 2 differently .* at most 3e-05, got 0\.\d+;.*check=False"):
        ft.wrap_model(hf, small_tokenizer)
    assert ft.wrap_model(hf, small_tokenizer, check=False).n_layers == 5


@pytest.mark.parametrize("part", ["embeddings", "last norm", "unembedding"])
def test_the_comparison_covers_what_is_before_and_after_the_layers(part, small_tokenizer):
    model = ft.wrap_model(llama(small_tokenizer, "qwen2"), small_tokenizer)
    from fasttrace.models.check import check_outputs

    if part == "embeddings":
        model.embed_scale = 1.01
        words = "the embeddings"
    elif part == "last norm":
        model.norm_kind = "layer"  # only the fused log p uses it
        words = "log p"
    else:
        model.logit_softcap = 1.0
        words = "the logits"
    with pytest.raises(ModelError, match=f"computes {words} differently"):
        check_outputs(model)


@pytest.mark.parametrize("family", FAMILIES)
def test_sound_models_pass_in_training_mode_and_float16(family, small_tokenizer):
    # `small_model` wraps every family in the other dtypes.
    hf = llama(small_tokenizer, family, torch.float16)
    model = ft.wrap_model(hf, small_tokenizer)
    assert hf.training
    assert not model.hf.training


def test_what_only_records_is_no_hook(small_tokenizer):
    hf = llama(small_tokenizer)
    hf.enable_input_require_grads()
    hf.gradient_checkpointing_enable()
    hf(torch.tensor([[1, 2, 3]]), output_hidden_states=True)  # transformers installs hooks that record
    ft.wrap_model(hf, small_tokenizer)


class Other:
    """Something that is no transformers model."""

    def __init__(self, **parts):
        vars(self).update(parts)


@pytest.mark.parametrize(
    ("given", "words"),
    [
        (lambda hf, model: Other(_orig_mod=hf), r"got Other: give its \._orig_mod"),  # as torch.compile(hf)
        (lambda hf, model: nn.DataParallel(hf), r"got DataParallel: give its \.module"),
        (lambda hf, model: Other(merge_and_unload=None), r"got Other: give what its merge_and_unload\(\) returns"),
        (lambda hf, model: model, r"got LlamaDecoder, which is wrapped already"),
        (lambda hf, model: hf.model, r"expected a causal language model with logits, got LlamaModel"),
        (lambda hf, model: "gpt2", r"expected a transformers model, got str"),
    ],
)
def test_what_is_no_causal_transformers_model_is_refused(given, words, small_tokenizer):
    hf = llama(small_tokenizer)
    with pytest.raises(ModelError, match=words):
        ft.wrap_model(given(hf, ft.wrap_model(hf, small_tokenizer)), small_tokenizer)


def test_a_tokenizer_of_another_model_is_refused(small_tokenizer):
    hf = llama(small_tokenizer)
    with pytest.raises(ModelError, match=r"expected the model's transformers tokenizer, got NoneType"):
        ft.wrap_model(hf, None)
    hf.resize_token_embeddings(20)
    with pytest.raises(ModelError, match=r"expected token ids below 20, the rows of its embeddings, got \d+"):
        ft.wrap_model(hf, small_tokenizer)


# --- wrapping leaves the caller's model as it is ------------------------------------------------------------------


def edits_of(model):
    """Every path that takes gradients: ROME's δ, MEMIT's, fine-tuning, attribution patching."""
    found = []
    for method in ("rome", "memit", "ft-1"):
        own = {} if method == "ft-1" else {"contexts": CONTEXTS, "corpus_tokens": 300}
        result = ft.edit(model, FACTS[:2], method=method, layers=[1], essence=0, steps=3, **own)
        found += [u.matrix() for edit in result.edits for u in edit.updates.values()]
    screened = ft.trace(model, FACTS[:2], sigma=0.4, samples=2, keep="all", method="attribution")
    return found, screened.cells


def test_no_gradient_reaches_the_callers_parameters(small_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    hf = small_model("llama", small_tokenizer, torch.float32).hf
    frozen, cells = edits_of(ft.wrap_model(hf, small_tokenizer))
    hf.train().requires_grad_(True)
    hf.model.norm.weight.requires_grad_(False)
    before = {name: weight.clone() for name, weight in hf.named_parameters()}
    model = ft.wrap_model(hf, small_tokenizer)
    found, again = edits_of(model)
    assert all(torch.equal(a, b) for a, b in zip(frozen, found, strict=True)), "bit for bit"
    assert cells.equals(again)
    assert hf.training
    assert all(part.training for part in hf.modules())
    for name, weight in hf.named_parameters():
        assert weight.grad is None
        assert weight.requires_grad == (name != "model.norm.weight")
        assert torch.equal(weight, before[name])
    assert not any(weight.requires_grad for weight in model.hf.parameters())


def test_the_weights_are_the_callers_own(small_tokenizer):
    hf = llama(small_tokenizer)
    model = ft.wrap_model(hf, small_tokenizer)
    assert model.hf.lm_head.weight is model.hf.model.embed_tokens.weight, "tied"
    theirs = dict(hf.named_parameters())
    assert all(weight.data_ptr() == theirs[name].data_ptr() for name, weight in model.hf.named_parameters())
    with torch.no_grad():
        hf.get_submodule(DOWN).weight[0, 0] = 7.0
    assert model.blocks[2].down[0, 0] == 7.0
    hook(hf)
    assert not model.hf.get_submodule(DOWN)._forward_hooks


def test_a_changed_weight_changes_the_identity(small_tokenizer):
    hf = llama(small_tokenizer)
    model = ft.wrap_model(hf, small_tokenizer)
    before = model.model_hash
    weight = hf.get_submodule(DOWN).weight
    with torch.no_grad():
        weight.mul_(2)
        assert model.model_hash == ft.wrap_model(hf, small_tokenizer).model_hash != before
        weight.div_(2)
    assert model.model_hash == before
    with ft.apply_delta(model, {2: LowRank(torch.ones(1, 48), torch.ones(1, 80))}):
        assert model.model_hash != before
    assert model.model_hash == before


def test_a_subclass_with_the_same_logits_is_wrapped_and_another_one_is_not(small_tokenizer):
    from transformers import LlamaForCausalLM

    def forward(self, *args, **named):
        out = LlamaForCausalLM.forward(self, *args, **named)
        out.logits = self.factor * out.logits
        return out

    hf = llama(small_tokenizer)
    hf.__class__ = type("Mine", (LlamaForCausalLM,), {"forward": forward, "factor": 1.0})
    assert ft.wrap_model(hf, small_tokenizer).n_layers == 5
    type(hf).factor = 2.0
    with pytest.raises(ModelError, match="computes the logits differently"):
        ft.wrap_model(hf, small_tokenizer)


def test_a_model_of_few_positions_is_wrapped(small_tokenizer):
    from transformers import AutoModelForCausalLM

    config = small_config("gpt2", len(small_tokenizer))
    config.n_positions = 8
    assert ft.wrap_model(AutoModelForCausalLM.from_config(config), small_tokenizer).positions == 8


def test_weights_that_became_infinite_are_refused_when_hashed(small_tokenizer):
    hf = llama(small_tokenizer)
    model = ft.wrap_model(hf, small_tokenizer)
    value(float("nan"))(hf)
    with pytest.raises(ModelError, match=f"expected finite weights, got 1 of 3,840 numbers of '{WEIGHT}'"):
        ft.trace(model, FACTS[:1], sigma=0.4, samples=1)


@pytest.mark.parametrize("kind", ["cpu_offload", "disk_offload"])
def test_offloaded_weights_are_checked_when_they_are_hashed(kind, small_tokenizer, tmp_path):
    import accelerate

    hf = small_model("llama", small_tokenizer, torch.float32).hf
    value(float("nan"))(hf)
    hf = accelerate.cpu_offload(hf, "cpu") if kind == "cpu_offload" else accelerate.disk_offload(hf, tmp_path, "cpu")
    with pytest.raises(ModelError, match="expected finite logits"):
        ft.wrap_model(hf, small_tokenizer)
    model = ft.wrap_model(hf, small_tokenizer, check=False)
    with pytest.raises(ModelError, match=f"numbers of '{WEIGHT}' that are NaN or infinite"):
        _ = model.model_hash


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_float16_is_refused_by_name_where_second_moments_are_needed(method, small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float16)
    words = f"{method}: expected 'llama' in float32, bfloat16 or float64, got float16, in which .* hf.float()"
    with pytest.raises(ModelError, match=words):
        ft.edit(model, FACTS[:1], method=method, layers=[1])
    with pytest.raises(ModelError, match="second_moments: expected 'llama' in float32"):
        ft.second_moments(model)


# --- folders ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def folders(small_tokenizer, tmp_path_factory):
    """Sound folders: a Llama, a GPT-2, and the GPT-2 in several files."""
    root = tmp_path_factory.mktemp("models")
    for name, family, size in (("llama", "llama", "1GB"), ("gpt2", "gpt2", "1GB"), ("shards", "gpt2", "100KB")):
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
    "missing file": ("shards", first_shard("model-9.safetensors"), r"got 'model-9\.safetensors', which is missing"),
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
    "cut weights": ("llama", cut(SAFE, 0.5), r"expected a complete safetensors file, got one that is damaged"),
    "header too long": ("llama", write(SAFE, (2**62).to_bytes(8, "little")), r"expected a complete safetensors file"),
    "no tensors": ("llama", tensors(lambda t: t.clear()), r"safetensors files without tensors"),
    "no weights": ("llama", without(SAFE), r"expected \.safetensors or \.gguf weights, got neither"),
    "a pickle alone": (
        "llama",
        lambda f: (f / SAFE).rename(f / "pytorch_model.bin"),
        r"or \.gguf weights, got neither",
    ),
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
    "window 'x'": ("llama", config(sliding_window="x"), r"cannot be run: "),
    "epsilon NaN": ("llama", config(rms_norm_eps=float("nan")), r"expected finite logits"),
    "activation": ("llama", config(hidden_act="zzz"), r"could not be loaded: transformers found no 'zzz'"),
    "encoder": ("llama", config(is_encoder_decoder=True), r"has no adapter: it attends to an encoder"),
    "T5": ("llama", write("config.json", '{"model_type": "t5"}'), r"model type 't5' has no adapter"),
    **{
        method: (
            "llama",
            config(quantization_config={"quant_method": method, "bits": 4}),
            rf"expected plain weights, got quantised ones \('{method}' in config\.json\).*dequantize",
        )
        for method in ("gptq", "awq", "bitsandbytes", "compressed-tensors")
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
    one_sentence(error.value)
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
    one_sentence(error.value)


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
