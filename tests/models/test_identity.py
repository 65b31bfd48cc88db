"""A model's identity comes from its weights, which are read once, or from words stated in their place."""

import pytest
import torch
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.delta import LowRank
from fasttrace.errors import UserError
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


def one_number(hf):
    hf.lm_head.weight.data[3, 4] *= 2


def behind_torch(hf):
    hf.lm_head.weight.detach().numpy()[3] += 1


def fused_step(hf):
    weight = hf.model.layers[1].mlp.down_proj.weight
    weight.requires_grad_(True)
    weight.grad = torch.ones_like(weight)
    torch.optim.SGD([weight], lr=0.1, fused=True).step()


def exchanged_rows(hf):
    weight = hf.model.layers[1].mlp.down_proj.weight
    weight.data.copy_(weight.data.flip(0))


def under_inference_mode(hf):
    with torch.inference_mode():
        hf.model.norm.weight.mul_(2)


def another_tensor(hf):
    hf.model.norm.load_state_dict({"weight": 2 * hf.model.norm.weight}, assign=True)


CHANGES = (one_number, behind_torch, fused_step, exchanged_rows, under_inference_mode, another_tensor)


@pytest.mark.parametrize("words", [None, "seed 0"])
@pytest.mark.parametrize("change", CHANGES)
def test_whatever_changes_a_weight_changes_the_identity(small_tokenizer, change, words):
    model = ft.wrap_model(small_model("llama", small_tokenizer, torch.float32).hf, small_tokenizer, weights=words)
    weights = {name: weight.clone() for name, weight in model.hf.state_dict().items()}
    before = model.model_hash
    change(model.hf)
    assert model.model_hash == ft.wrap_model(model.hf, small_tokenizer).model_hash != before
    model.hf.load_state_dict(weights)
    assert model.model_hash == before


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_a_change_beside_an_applied_edit_stays_in_the_identity(small_tokenizer, dtype):
    model = small_model("gpt2", small_tokenizer, dtype)
    for part in model.hf.modules():
        vars(part).pop("forward", None)  # float64's, as a model with others is not wrapped
    before, edit = model.model_hash, {1: LowRank(torch.ones(1, model.width), torch.ones(1, model.key_width))}
    with ft.apply_delta(model, edit):
        edited = model.model_hash
        model.final_norm.weight.mul_(1)
        assert model.model_hash == edited, "the same numbers are no change"
        model.final_norm.weight.mul_(2)
        assert model.model_hash not in (edited, before)
    assert model.model_hash == ft.wrap_model(model.hf, small_tokenizer).model_hash != before
    model.final_norm.weight.div_(2)
    assert model.model_hash == before


def test_edits_are_removed_in_reverse_order(small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float32)
    edits = [{1: LowRank(torch.full((1, model.width), size), torch.ones(1, model.key_width))} for size in (1.0, 2.0)]
    before, weight = model.model_hash, model.blocks[1].down.clone()
    first, second = (ft.apply_delta(model, edit) for edit in edits)
    both = model.model_hash
    with pytest.raises(UserError, match="expected the edit that was applied last, got one with 1 later"):
        first.remove()
    assert model.model_hash == both
    second.remove()
    first.remove()
    first.remove()
    assert model.model_hash == before
    assert model.blocks[1].down.equal(weight)
