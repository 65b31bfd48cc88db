"""Every family's blocks, driven by fasttrace, give transformers' own logits."""

import pytest
import torch
from small_models import FAMILIES, small_model

from fasttrace.errors import ModelError
from fasttrace.models import packed, wrap_model


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


def test_unknown_family_says_what_an_adapter_names(small_tokenizer):
    import transformers as tf

    config = tf.MambaConfig(hidden_size=8, num_hidden_layers=1, vocab_size=16)
    with pytest.raises(ModelError, match=r"model type 'mamba' has no adapter .* down-projection"):
        wrap_model(tf.MambaForCausalLM(config), small_tokenizer)
