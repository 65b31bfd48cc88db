"""Shared fixtures: a small tokenizer and the real model. Small models and oracles are in tests/oracle."""

import pytest
import torch


def _tokenizer():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    text = [
        "The Eiffel Tower is located in the city of Paris",
        "Paris is the capital of France",
        "of Rome and New York",
    ]
    raw = Tokenizer(models.BPE())
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    raw.decoder = decoders.ByteLevel()
    raw.train_from_iterator(
        text * 4,
        trainers.BpeTrainer(
            vocab_size=400, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
        ),
    )
    return PreTrainedTokenizerFast(tokenizer_object=raw)


@pytest.fixture(scope="session")
def small_tokenizer():
    """A byte-level BPE tokenizer of at most 400 tokens, trained here."""
    return _tokenizer()


@pytest.fixture(autouse=True)
def _one_thread_for_small_models(request):
    """Products of 48 x 48 gain nothing from threads and lose much to each other's waiting."""
    if "small_tokenizer" not in request.fixturenames:
        yield
        return
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def smollm2():
    """The real default model, float32."""
    import fasttrace as ft

    return ft.load_model()
