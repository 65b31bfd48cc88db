"""Models in memory that are not what they seem: refused in one sentence, or computed as they are."""

import pytest
import torch
from edit_cases import CONTEXTS, FACTS
from small_models import FAMILIES, small_config, small_model
from torch import nn
from torch.nn.utils import parametrizations, prune

import fasttrace as ft
from fasttrace.editing.delta import LowRank
from fasttrace.errors import ModelError

DOWN = "model.layers.2.mlp.down_proj"
WEIGHT = f"{DOWN}.weight"


def llama(tokenizer, family="llama", dtype=torch.float32):
    """A transformers model that is in training mode and takes gradients, as `from_config` makes it."""
    from transformers import AutoModelForCausalLM

    torch.manual_seed(0)
    return AutoModelForCausalLM.from_config(small_config(family, len(tokenizer))).to(dtype)


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
    assert "\n" not in str(error.value)


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
    with pytest.raises(ModelError, match=r"has a forward from .*test_wrapped_models"):
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


def test_a_forward_of_the_model_itself_is_refused_or_not_compared(small_tokenizer):
    hf = llama(small_tokenizer)
    hf.forward = lambda *args, **named: None
    with pytest.raises(ModelError, match=r"the model has a forward of its own, .*: delete it \(del module.forward\)"):
        ft.wrap_model(hf, small_tokenizer)
    del hf.forward
    hf.__class__ = type("Mine", (type(hf),), {"forward": lambda self, input_ids: None})
    with pytest.raises(ModelError, match=r"cannot be run and compared \(check=False leaves that out\): TypeError"):
        ft.wrap_model(hf, small_tokenizer)
    assert ft.wrap_model(hf, small_tokenizer, check=False).n_layers == 5


def test_weights_made_under_inference_mode_are_refused_by_name(small_tokenizer):
    with torch.inference_mode():
        hf = llama(small_tokenizer)
    with pytest.raises(ModelError, match=r"'model.embed_tokens.weight' was made under torch.inference_mode"):
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


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_a_model_in_any_dtype_is_traced_and_edited_in_it(dtype, small_tokenizer):
    hf = llama(small_tokenizer)
    wanted = ft.trace(ft.wrap_model(hf, small_tokenizer), FACTS, windows=[1], samples=2, keep="all", sigma=0.3)
    model = ft.wrap_model(llama(small_tokenizer, dtype=dtype), small_tokenizer)
    found = ft.trace(model, FACTS, windows=[1], samples=2, keep="all", sigma=0.3)
    tolerance = {torch.float16: 2e-2, torch.bfloat16: 2e-1, torch.float64: 1e-4}[dtype]
    p = [result.cells["p_restored"].to_pylist() for result in (wanted, found)]
    assert p[1] == pytest.approx(p[0], rel=tolerance)
    edited = ft.edit(model, FACTS, layers=[1], essence=0, method="ft-1", steps=2)
    assert all(row["p_after"] != row["p_before"] for row in edited.scores.to_pylist())
