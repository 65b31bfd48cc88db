"""A model's identity comes from its weights, which are read once, or from words stated in their place."""

import pytest
import torch
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.delta import LowRank
from fasttrace.models.adapter import Decoder

FACT = ft.Fact(prompt="The {} is located in the city of", subject="Eiffel Tower", target_true="Paris")


@pytest.fixture
def reads(monkeypatch):
    """A list that grows with every hash of all the weights."""
    taken, weights_hash = [], Decoder.weights_hash
    monkeypatch.setattr(Decoder, "weights_hash", lambda model: taken.append(model.name) or weights_hash(model))
    return taken


def run_id(model):
    return ft.trace(model, [FACT], sigma=0.4, samples=1, keep="all").run["run_id"]


def test_weights_are_read_once_for_all_runs(small_tokenizer, reads):
    model = small_model("gpt2", small_tokenizer, torch.float32)
    assert run_id(model) == run_id(model)
    assert len(reads) == 1


def test_stated_weights_are_not_read_and_name_the_model(small_tokenizer, reads):
    hf = small_model("gpt2", small_tokenizer, torch.float32).hf
    given = (None, "seed 0", "seed 0", "seed 1")
    plain, *stated = (ft.wrap_model(hf, small_tokenizer, weights=words) for words in given)
    ids = [run_id(model) for model in stated]
    assert reads == []
    assert ids[0] == ids[1] != ids[2]
    assert run_id(plain) not in ids
    # A stated hash is not the same identity as a computed one.
    same = ft.wrap_model(hf, small_tokenizer, weights=plain.weights_hash())
    assert same.model_hash != plain.model_hash


def test_a_change_of_the_weights_also_changes_a_stated_identity(small_tokenizer):
    hf = small_model("gpt2", small_tokenizer, torch.float32).hf
    model = ft.wrap_model(hf, small_tokenizer, weights="seed 0")
    before, really = model.model_hash, model.weights_hash()
    width, key = model.width, model.key_width
    with ft.apply_delta(model, {1: LowRank(torch.ones(1, width), torch.ones(1, key))}):
        assert model.model_hash != before
        assert model.weights_hash() != really, "the stated words never replace the weights' hash"
    assert (model.model_hash, model.weights_hash()) == (before, really)
