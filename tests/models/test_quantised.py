"""A quantised model computes what the same model computes with its dequantised weights written as plain floats."""

import importlib
import json
import sys

import packers
import pytest
import torch
from edit_cases import CONTEXTS, FACTS
from edit_oracles import options_of
from safetensors.torch import load_file, save_file
from torch import nn

import fasttrace as ft
from fasttrace.editing.delta import Dense
from fasttrace.editing.export import export_model
from fasttrace.errors import ModelError, PackageError
from fasttrace.models import packed
from fasttrace.models.generate import greedy_tokens
from fasttrace.models.quantised import quantised

SEQUENCES = [[5, 9, 2, 7, 11, 3, 8, 1, 4], [17], [3, 3, 250]]
GPTQ = {"quant_method": "gptq", "bits": 4, "group_size": 32, "desc_act": False, "sym": False}
AWQ = {"quant_method": "awq", "bits": 4, "group_size": 32, "version": "gemm", "zero_point": True}
FP8 = {"quant_method": "fp8", "weight_block_size": [24, 32]}


def compressed_config(form, **weights):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": None}
    return {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}


PACKED = {
    "gptq-int4": (lambda w: packers.gptq(w, 4, 32), GPTQ),
    "gptq-int3": (lambda w: packers.gptq(w, 3, 32, shuffled=True), {**GPTQ, "bits": 3, "desc_act": True}),
    "gptq-int8": (lambda w: packers.gptq(w, 8, 32, version=2), {**GPTQ, "bits": 8, "checkpoint_format": "gptq_v2"}),
    "awq-int4": (lambda w: packers.awq(w, 32), AWQ),
    "compressed-tensors-int4": (
        lambda w: packers.compressed(w, 4, 32),
        compressed_config("pack-quantized", num_bits=4, type="int", symmetric=True, strategy="group", group_size=32),
    ),
    "compressed-tensors-int5": (
        lambda w: packers.compressed(w, 5, w.shape[1], symmetric=False),
        compressed_config("pack-quantized", num_bits=5, type="int", symmetric=False, strategy="channel"),
    ),
    "compressed-tensors-int8": (
        packers.naive, compressed_config("int-quantized", num_bits=8, type="int", symmetric=True, strategy="channel")
    ),
    "compressed-tensors-fp8": (
        lambda w: packers.fp8(w, (w.shape[0], w.shape[1]), "weight_scale"),
        compressed_config("float-quantized", num_bits=8, type="float", symmetric=True, strategy="tensor"),
    ),
    "fp8": (lambda w: packers.fp8(w, (24, 32)), FP8),
}  # fmt: skip


def bitsandbytes(**settings):
    from transformers import BitsAndBytesConfig

    return BitsAndBytesConfig(**settings)


def torchao(name, **settings):
    from transformers import TorchAoConfig

    own = importlib.import_module("torchao.quantization")
    return TorchAoConfig(getattr(own, name)(**settings))


def int4_groups():
    from torchao.quantization import PerGroup

    return torchao("IntxWeightOnlyConfig", weight_dtype=torch.int4, granularity=PerGroup(32))


BACKENDS = {
    "nf4": ("bitsandbytes", lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4")),
    "nf4 twice": (
        "bitsandbytes",
        lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True),
    ),
    "fp4": ("bitsandbytes", lambda: bitsandbytes(load_in_4bit=True, bnb_4bit_quant_type="fp4")),
    "llm.int8": ("bitsandbytes", lambda: bitsandbytes(load_in_8bit=True)),
    "torchao-int8": ("torchao", lambda: torchao("Int8WeightOnlyConfig")),
    "torchao-int4": ("torchao", int4_groups),
}


def loaded(folder, dtype="float64"):
    """The model of a folder, with weights at aligned addresses: MKL rounds a mapped file's products differently."""
    model = ft.load_model(folder, dtype=dtype)
    for weight in model.hf.parameters():
        if type(weight) is nn.Parameter:
            weight.data = weight.data.clone()
    return model


def logits_of(model):
    return packed.logits(model, packed.pack(model, SEQUENCES))


@pytest.fixture(scope="module")
def plain(small_tokenizer, tmp_path_factory):
    """The folder of a small random Llama with biases, whose sizes suit every format. d = 64, m = 128, 3 layers."""
    import transformers as tf

    config = tf.LlamaConfig(
        vocab_size=len(small_tokenizer), hidden_size=64, intermediate_size=128, num_hidden_layers=3,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=160, bos_token_id=0, eos_token_id=0,
        tie_word_embeddings=False, mlp_bias=True,
    )  # fmt: skip
    torch.manual_seed(0)
    hf = tf.AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, weight in hf.named_parameters():
            weight.copy_(torch.randn_like(weight) * (0.25 if weight.ndim > 1 else 0.1) + ("norm" in name))
    folder = tmp_path_factory.mktemp("quantised") / "plain"
    hf.save_pretrained(folder)
    small_tokenizer.save_pretrained(folder)
    return folder


def rewritten(plain, folder, change, ends="_proj.weight", **config):
    """A copy of a model folder whose projections are the tensors of `change` of their weights, and its config."""
    folder.mkdir()
    for file in plain.iterdir():
        if file.suffix == ".json":
            (folder / file.name).write_bytes(file.read_bytes())
    state = {}
    torch.manual_seed(1)
    for name, weight in load_file(plain / "model.safetensors").items():
        if name.endswith(ends):
            stem = name.removesuffix("weight")
            state |= {f"{stem}{part}": tensor.contiguous() for part, tensor in change(weight.double()).items()}
        else:
            state[name] = weight
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | config))
    return folder


def by_package(plain, folder, settings):
    """A model folder quantised by transformers with the package, and the same with plain float32 weights instead."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf = AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings, device_map={"": "cpu"})
    hf.save_pretrained(folder)
    AutoTokenizer.from_pretrained(plain).save_pretrained(folder)
    weights = load_file(plain / "model.safetensors")
    if settings.quant_method == "torchao":
        found = {n: w.dequantize() for n, w in hf.named_parameters() if n.endswith("_proj.weight")}
    else:
        found = {n: w for n, w in hf.dequantize(dtype=torch.float32).named_parameters() if n.endswith("_proj.weight")}
    bare = folder.with_name("bare")
    bare.mkdir()
    for file in plain.iterdir():
        (bare / file.name).write_bytes(file.read_bytes())
    state = weights | {name: weight.detach().float().contiguous() for name, weight in found.items()}
    save_file(state, bare / "model.safetensors", metadata={"format": "pt"})
    return folder, bare


@pytest.fixture(params=[*PACKED, *BACKENDS])
def both(request, plain, tmp_path):
    """(what a run calls it, a quantised model folder, the folder with its weights as plain float32, without it)."""
    if request.param in PACKED:
        pack, config = PACKED[request.param]
        exact = rewritten(plain, tmp_path / "bare", lambda w: {"weight": pack(w)[1].float()})
        folder = rewritten(plain, tmp_path / "packed", lambda w: pack(w)[0], quantization_config=config)
        return request.param, folder, exact
    package, settings = BACKENDS[request.param]
    pytest.importorskip(package, reason=f"{package} is not installed")
    return request.param.partition(" ")[0], *by_package(plain, tmp_path / "packed", settings())


def test_everything_is_computed_with_the_dequantised_weights(both, plain, corpus, tmp_path):
    kind, folder, bare = both
    ours, theirs = loaded(folder), loaded(bare)
    assert (ours.dtype_name, ours.key_width, ours.vocab_size) == (f"float64, {kind}", 128, theirs.vocab_size)
    assert len({ours.model_hash, theirs.model_hash, ft.load_model(plain, dtype="float64").model_hash}) == 3
    assert ft.load_model(folder, dtype="float64").model_hash == ours.model_hash
    a, b = logits_of(ours), logits_of(theirs)
    assert torch.equal(a, b)
    assert float(b.abs().max()) > 0.5
    assert greedy_tokens(ours, SEQUENCES, 5) == greedy_tokens(theirs, SEQUENCES, 5)
    grids = [ft.trace(model, FACTS, sigma=0.4, keep="all", samples=2, windows=[1, 2]) for model in (ours, theirs)]
    assert grids[0].cells.equals(grids[1].cells)
    assert grids[0].run["dtype"] == f"float64, {kind}"
    assert grids[0].run["run_id"] != grids[1].run["run_id"]
    a, b = (ft.second_moments(model, corpus, tokens=300, cache_dir=tmp_path) for model in (ours, theirs))
    assert torch.equal(a.matrix(1), b.matrix(1))
    assert all(how.kind(module) == kind for _, module, how in quantised(ours.hf))
    assert len(list(quantised(ours.hf))) == 21, "every layer is packed again"


# The largest error of a weight, as a part of the largest absolute weight of its block (64 numbers for bitsandbytes' 4
# bits, 32 for torchao's), or of its row. It is half the largest step between two numbers of the format: NF4's first
# step is 1 − 0.696, FP4's 1/3, a symmetric grid of n bits has steps of 1 / (2ⁿ⁻¹ − 1). llm.int8 first rounds to
# float16. The scales of "nf4 twice" are numbers of 8 bits themselves, with an error of at most 1/64 of their largest.
BOUNDS = {
    "nf4": (64, (1 - 0.6961928) / 2),
    "nf4 twice": (64, (1 - 0.6961928) / 2 + 1 / 64),
    "fp4": (64, 1 / 6),
    "llm.int8": (None, 1 / 254 + 2**-11),
    "torchao-int8": (None, 1 / 254),
    "torchao-int4": (32, 1 / 14),
}


@pytest.mark.parametrize("name", BACKENDS)
def test_the_error_is_at_most_half_a_step_and_products_are_the_packages_own(name, plain, tmp_path, small_tokenizer):
    from transformers import AutoModelForCausalLM

    package, settings = BACKENDS[name]
    pytest.importorskip(package, reason=f"{package} is not installed")
    hf = AutoModelForCausalLM.from_pretrained(plain, quantization_config=settings(), device_map={"": "cpu"})
    model = ft.wrap_model(hf, small_tokenizer)
    weights, (block, most) = load_file(plain / "model.safetensors"), BOUNDS[name]
    with torch.no_grad(), model.brought(1):
        for module, layer in hf.model.layers[1].named_modules():
            if not module.endswith("_proj"):
                continue
            before = weights[f"model.layers.1.{module}.weight"]
            found = model.hf.get_submodule(f"model.layers.1.{module}").weight
            size = before.shape[1] if block is None else block
            error = (found - before).unflatten(1, (-1, size)).abs().amax(-1)
            largest = before.unflatten(1, (-1, size)).abs().amax(-1)
            assert float((error / largest).max()) <= most * (1 + 1e-5), module
            x = torch.randn(4, before.shape[1])
            with torch.enable_grad():  # without, bitsandbytes rearranges 4-bit weights on some CPUs
                own = type(layer).forward(layer, x.requires_grad_()).detach()
            ours = nn.functional.linear(x.detach(), found, layer.bias)
            apart = float((ours - own).norm() / own.norm())
            # LLM.int8() also rounds x to 8 bits, so that its products differ by about a hundredth.
            assert 1e-3 < apart < 3e-2 if name == "llm.int8" else apart < 1e-6, module


def test_gpt2_stores_its_weights_the_other_way_round(small_tokenizer, tmp_path):
    import transformers as tf

    torch.manual_seed(0)
    sizes = {"n_embd": 64, "n_layer": 2, "n_head": 4, "n_positions": 160, "n_inner": 128}
    config = tf.GPT2Config(vocab_size=len(small_tokenizer), bos_token_id=0, eos_token_id=0, **sizes)
    tf.GPT2LMHeadModel(config).save_pretrained(tmp_path / "plain")
    small_tokenizer.save_pretrained(tmp_path / "plain")

    inner = ("c_attn.weight", "c_proj.weight", "c_fc.weight")
    given, start = {"quantization_config": GPTQ}, tmp_path / "plain"
    rewritten(start, tmp_path / "packed", lambda w: packers.gptq(w.T, 4, 32)[0], inner, **given)
    rewritten(start, tmp_path / "bare", lambda w: {"weight": packers.gptq(w.T, 4, 32)[1].T.float()}, inner)
    ours, theirs = (loaded(tmp_path / name) for name in ("packed", "bare"))
    a, b = logits_of(ours), logits_of(theirs)
    assert torch.equal(a, b)
    assert ours.key_width == 128
    assert ours.down_name(1) == "transformer.h.1.mlp.c_proj"


def test_layers_on_disk_are_dequantised_when_they_are_brought(plain, tmp_path):
    pack, config = PACKED["gptq-int4"]
    folder = rewritten(plain, tmp_path / "packed", lambda w: pack(w)[0], quantization_config=config)
    places = {"model.embed_tokens": "cpu", "model.norm": "cpu", "model.rotary_emb": "cpu", "lm_head": "cpu"}
    places |= {f"model.layers.{layer}": "cpu" if layer == 1 else "disk" for layer in range(3)}
    whole, spread = ft.load_model(folder), ft.load_model(folder, device=places)
    assert spread.model_hash == whole.model_hash
    assert torch.equal(logits_of(whole), logits_of(spread))


def test_mxfp4_is_dequantised_when_it_is_loaded(small_tokenizer, tmp_path):
    import transformers as tf

    sizes = {"hidden_size": 64, "intermediate_size": 32, "num_local_experts": 2, "num_hidden_layers": 1, "head_dim": 16}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "num_experts_per_tok": 1}
    config = tf.GptOssConfig(vocab_size=len(small_tokenizer), layer_types=["full_attention"], **sizes, **heads)
    torch.manual_seed(0)
    hf = tf.GptOssForCausalLM(config)
    state, exact = {}, {}
    for name, weight in hf.state_dict().items():
        if name.endswith(("gate_up_proj", "down_proj")):  # (experts, in, out)
            blocks, scales, exact[name] = packers.mxfp4(torch.randn(weight.shape, dtype=torch.float64).mT)
            state |= {f"{name}_blocks": blocks, f"{name}_scales": scales}
        else:
            state[name] = weight.contiguous()
    save_file(state, tmp_path / "model.safetensors", metadata={"format": "pt"})
    config.architectures, config.quantization_config = ["GptOssForCausalLM"], {"quant_method": "mxfp4"}
    config.save_pretrained(tmp_path)
    small_tokenizer.save_pretrained(tmp_path)
    model = ft.load_model(tmp_path)
    assert model.dtype_name == "float32", "as with GGUF, the model is plain once it is loaded"
    assert len(exact) == 2
    for name, weight in exact.items():
        assert torch.equal(model.hf.get_parameter(name).double(), weight.mT)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({**GPTQ, "checkpoint_format": "marlin"}, r"a GPTQ checkpoint_format gptq or gptq_v2, got 'marlin'"),
        ({**AWQ, "version": "gemv"}, r"AWQ weights of version gemm, got 'gemv'"),
        ({"quant_method": "compressed-tensors", "format": "nvfp4-pack-quantized"}, r"of the formats dense, .*nvfp4"),
        ({"quant_method": "aqlm"}, r"weights quantised by bitsandbytes, .*, got 'aqlm'.*take the original"),
        (
            {**AWQ, "quant_method": "gptq", "bits": 4},
            r"'model\.layers\.0\.self_attn\.q_proj': expected qweight of shape \(8, 64\)",
        ),
    ],
)
def test_what_cannot_be_read_is_refused_in_one_sentence(settings, words, plain, tmp_path):
    folder = rewritten(plain, tmp_path / "packed", lambda w: packers.awq(w, 32)[0], quantization_config=settings)
    with pytest.raises(ModelError, match=rf"^[^\n]*{words}[^\n]*$"):
        ft.load_model(folder)


@pytest.mark.parametrize(("package", "tensor"), [("bitsandbytes", "weight.SCB"), ("torchao", "_weight_qdata")])
def test_a_package_that_is_missing_is_named(package, tensor, plain, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    about = {"quant_method": package, "load_in_8bit": True}
    folder = rewritten(plain, tmp_path / "packed", lambda w: {tensor: w.half()}, quantization_config=about)
    with pytest.raises(PackageError, match=rf"^a model that {package} has quantised needs {package}, .*pip install"):
        ft.load_model(folder)


def test_what_compressed_tensors_has_loaded_is_refused_with_the_way_out(plain, tmp_path, small_tokenizer):
    from transformers import AutoModelForCausalLM, CompressedTensorsConfig

    pytest.importorskip("compressed_tensors", reason="compressed-tensors is not installed")
    pack, config = PACKED["compressed-tensors-int4"]
    folder = rewritten(plain, tmp_path / "packed", lambda w: pack(w)[0], quantization_config=config)
    hf = AutoModelForCausalLM.from_pretrained(folder, device_map={"": "cpu"})
    with pytest.raises(ModelError, match=r"a quantised layer \(Linear\).*load its folder with fasttrace\.load_model"):
        ft.wrap_model(hf, small_tokenizer)
    # The package rounds its dequantised weights to the dtype of the scales.
    model, whole = ft.load_model(folder), CompressedTensorsConfig(dequantize=True)
    hf = AutoModelForCausalLM.from_pretrained(folder, quantization_config=whole)
    with model.brought(1) as block:
        assert torch.equal(block.down.half().float(), hf.model.layers[1].mlp.down_proj.weight.float())


def test_edits_are_those_of_the_dequantised_weights(both, corpus, tmp_path):
    _, folder, bare = both
    ours, theirs = loaded(folder), loaded(bare)
    before, plain = ours.model_hash, logits_of(ours)
    options = {"layers": [1], "contexts": CONTEXTS, "corpus": str(corpus), "corpus_tokens": 300, "essence": 0}
    results = [ft.edit(model, FACTS[:1], method="rome", **options, **options_of("rome")) for model in (ours, theirs)]
    updates, expected = (result.edits[0].updates for result in results)
    assert torch.equal(updates[1].matrix(), expected[1].matrix())
    assert updates[1].changes()
    assert results[0].scores.equals(results[1].scores)
    updates[1] = Dense(updates[1].matrix().float(), torch.full((ours.width,), 0.1))
    a, b = (ft.generate(model, "Paris is", delta=updates, max_new_tokens=5) for model in (ours, theirs))
    assert a == b
    with ft.apply_delta(ours, updates), ft.apply_delta(theirs, updates):
        edited = logits_of(ours)
        assert torch.equal(edited, logits_of(theirs))
        assert not torch.equal(edited, plain)
        assert ours.model_hash != before
        with torch.no_grad():  # transformers' own forward has the edit, too
            a, b = (model.hf(torch.tensor([SEQUENCES[0]])).logits for model in (ours, theirs))
        assert torch.equal(a, b)
    assert torch.equal(logits_of(ours), plain)
    assert ours.model_hash == before
    written = export_model(ours, updates, tmp_path / "edited")
    assert torch.equal(logits_of(loaded(written)), edited)
    assert torch.equal(logits_of(ours), plain)
