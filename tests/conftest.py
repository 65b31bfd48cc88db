"""Shared fixtures: a small tokenizer and the real model. Small models and oracles are in tests/oracle."""

import pytest
import torch
from small_models import trained_tokenizer


@pytest.fixture(scope="session")
def small_tokenizer():
    """A byte-level BPE tokenizer of at most 400 tokens, trained here."""
    return trained_tokenizer()


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
