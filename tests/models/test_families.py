"""Every family's blocks, driven by fasttrace, give transformers' own logits."""

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


@pytest.mark.parametrize("family", [*FAMILIES, "youtu", "youtu-wide"])
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
    # OLMo 3 has parameters of the rotation for each layer type.
    model = small_model("olmo3", small_tokenizer, torch.float32)
    assert model.positions == 160
    model.config.rope_parameters["full_attention"]["rope_type"] = "longrope"
    assert model.positions == 40


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
