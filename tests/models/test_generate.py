"""Greedy text equals transformers' generate, one prompt at a time."""

import pytest
import torch
from small_models import FAMILIES, small_model

from fasttrace.models.generate import greedy_tokens


def generated(model, prompt, length):
    with torch.no_grad():
        out = model.hf.generate(torch.tensor([prompt]), max_new_tokens=length, do_sample=False, pad_token_id=0)
    ends = model.hf.generation_config.eos_token_id
    row = out[0, len(prompt) :].tolist()
    stop = next((i for i, token in enumerate(row) if token in ([ends] if isinstance(ends, int) else ends)), len(row))
    return row[:stop]


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_equals_transformers(family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    prompts = [[5, 9, 2, 7, 11], [17], [3, 3, 250, 4, 4, 8, 12]]
    found = greedy_tokens(model, prompts, 9)
    assert found == [generated(model, prompt, 9) for prompt in prompts]


def test_greedy_equals_transformers_on_the_real_model(smollm2):
    prompts = [smollm2.tokenizer(t)["input_ids"] for t in ("The capital of France is", "Once upon a time there")]
    found = greedy_tokens(smollm2, prompts, 12)
    assert found == [generated(smollm2, prompt, 12) for prompt in prompts]
    assert "Paris" in smollm2.tokenizer.decode(found[0])
