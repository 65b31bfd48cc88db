"""Every family's blocks, driven by fasttrace, give transformers' own logits."""

import copy

import pytest
import torch
from hooked_trace import MODULES, block_modules
from small_models import FAMILIES, small_config, small_model

from fasttrace.errors import ModelError
from fasttrace.models import packed
from fasttrace.models.adapter import adapter_for
from fasttrace.models.flops import linear_flops


def transformers_logits(model, sequences):
    with torch.no_grad():
        return torch.cat([model.hf(torch.tensor([s])).logits[0] for s in sequences])


@pytest.mark.parametrize("family", FAMILIES)
def test_logits_float64(family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    sequences = [[5, 9, 2, 7, 11, 3, 8, 1, 4], [17], [3, 3, 250]]
    ours = packed.logits(model, packed.pack(model, sequences))
    theirs = transformers_logits(model, sequences)
    assert theirs.abs().max() > 0.5
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_rounded_logits_are_as_close_to_float64_as_transformers_own(family, dtype, small_tokenizer):
    model = small_model(family, small_tokenizer, dtype)
    sequences = [[5, 9, 2, 7, 11, 3, 8, 1, 4], [17], [3, 3, 250]]
    ours, theirs = packed.logits(model, packed.pack(model, sequences)), transformers_logits(model, sequences)
    model.hf = copy.deepcopy(model.hf).double()
    exact = transformers_logits(model, sequences)
    assert ours.dtype == dtype
    own = (theirs.double() - exact).abs()
    error = (ours.double() - exact).abs()
    assert float(error.mean()) < 2 * float(own.mean())
    assert float(error.max()) < 3 * float(own.max())


@pytest.mark.parametrize("family", FAMILIES)
def test_parts_are_the_outputs_of_the_modules_hooked_by_the_oracles(family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    seen = {}
    for part, modules in MODULES.items():
        for layer, module in enumerate(modules(model.hf)):

            def keep(module, args, out, place=(part, layer)):
                first = out[0] if isinstance(out, tuple) else out
                # Copied because Falcon adds to its MLP's output in place.
                seen[place] = first.reshape(-1, first.shape[-1]).clone()

            module.register_forward_hook(keep)
    sequence = [5, 9, 2, 7, 11, 3, 8]
    transformers_logits(model, [sequence])
    batch = packed.pack(model, [sequence])
    h, rotary = packed.embed(model, batch.ids, batch.positions), model.rotary(batch.positions)
    for layer, block in enumerate(model.blocks):
        added = packed.attend(block, h, rotary, batch.sequences)
        value = block.mlp_value(block.mlp_key(block.mlp_norm(h if block.parallel else h + added)))
        h = h + added + block.mlp_add(value)
        for part, ours in (("attn", added), ("mlp", value), ("block", h)):
            theirs = seen[part, layer]
            torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12 * float(theirs.abs().max()))


@pytest.mark.parametrize("family", FAMILIES)
def test_reach_is_as_far_as_transformers_gradients_go(family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    ids = torch.tensor([[5, 9, 2, 7, 11, 3, 8, 250, 4, 17, 6, 1]])
    after = []
    handles = [m.register_forward_hook(lambda m, args, out: after.append(_first(out))) for m in block_modules(model.hf)]
    model.hf.requires_grad_(True)
    logits = model.hf(ids).logits[0]
    for handle in handles:
        handle.remove()
    for token in range(ids.shape[1]):
        gradients = torch.autograd.grad(logits[token].square().sum(), after, retain_graph=True)
        for layer, gradient in enumerate(gradients):
            seen = gradient[0].any(-1).tolist()
            assert seen == [model.reach(layer, t) >= token >= t for t in range(ids.shape[1])], (layer, token)


def _first(out):
    return out[0] if isinstance(out, tuple) else out


@pytest.mark.parametrize("family", FAMILIES)
def test_the_plan_counts_the_products_of_a_block(family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float32)
    matrices = sum(w.numel() for w in block_modules(model.hf)[0].parameters() if w.ndim == 2)
    flops = sum(linear_flops(model, model.blocks[0]))
    if family == "falcon-rw":
        # For ALiBi, every head has one dimension more than its projections.
        matrices += 4 * model.width * model.blocks[0].n_heads
    assert flops == 2 * matrices


@pytest.mark.parametrize(
    ("family", "setting", "value", "words"),
    [
        ("opt", "do_layer_norm_before", False, "norms the residual stream itself"),
        ("opt", "_remove_final_layer_norm", True, "or has no final norm"),
        ("opt", "word_embed_proj_dim", 24, r"as wide as the residual stream \(48\), got 24"),
        ("bloom", "apply_residual_connection_post_layernorm", True, "adds its sub-layers to the normed residual"),
        ("falcon", "alibi", True, "expected one key per head with ALiBi"),
        ("gemma3", "use_bidirectional_attention", True, "attention is not causal"),
    ],
)
def test_variants_without_an_adapter_are_refused_in_one_sentence(family, setting, value, words):
    config = small_config(family, 16)
    setattr(config, setting, value)
    with pytest.raises(ModelError, match=rf"^this '{config.model_type}' model has no adapter: [^\n]*{words}[^\n]*$"):
        adapter_for(config)


def test_contexts_that_change_every_rotation_are_refused(small_tokenizer):
    model = small_model("phi3-longrope", small_tokenizer, torch.float32)
    model.check_length(40, "a prompt")
    with pytest.raises(ModelError, match=r"a prompt: expected at most 40 tokens for .* to read, got 41"):
        model.check_length(41, "a prompt")


def test_gemma_2_in_versions_of_transformers_that_scale_after_the_embedding(small_tokenizer):
    model = small_model("gemma2", small_tokenizer, torch.float64)
    ids, place = torch.tensor([3, 1, 4]), torch.arange(3)
    scaled = packed.embed(model, ids, place)
    torch.testing.assert_close(model.embed_ids(ids), scaled, rtol=0, atol=0)
    model.embed_scale = None
    torch.testing.assert_close(model.embed_ids(ids), model.embed_weight[ids], rtol=0, atol=0)
    torch.testing.assert_close(packed.embed(model, ids, place), scaled)


def test_logits_real_model(smollm2):
    sequences = [smollm2.tokenizer("The Eiffel Tower is located in the city of")["input_ids"], [504, 3575]]
    ours = packed.logits(smollm2, packed.pack(smollm2, sequences))
    theirs = transformers_logits(smollm2, sequences)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=2e-4)
    assert torch.equal(ours.argmax(-1), theirs.argmax(-1))


def test_sequence_logprob_is_teacher_forced(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float64)
    prompt, target = [5, 9, 2], [7, 30, 12]
    logp = transformers_logits(model, [[*prompt, *target]]).log_softmax(-1)
    expected = sum(float(logp[2 + i, t]) for i, t in enumerate(target))
    ours = packed.sequence_logprob(model, [prompt, [1]], [target, [2]])
    assert float(ours[0]) == pytest.approx(expected, abs=1e-11)


def test_the_refusal_of_an_unknown_family_lists_what_an_adapter_names():
    import transformers as tf

    config = tf.MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=16)
    with pytest.raises(ModelError, match=r"model type 'mamba' has no adapter .* down-projection"):
        adapter_for(config)
