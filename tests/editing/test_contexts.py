"""Contexts: "{}" comes first, and sampled prefixes are stable, well-formed and of the requested lengths."""

import json

import pytest
import torch
from small_models import small_model

from fasttrace.editing import contexts as module
from fasttrace.editing.contexts import drawable, sample_contexts
from fasttrace.editing.edit import prepare_edit
from fasttrace.errors import UserError
from fasttrace.facts import Fact


@pytest.fixture
def model(small_tokenizer):
    return small_model("gpt2", small_tokenizer, torch.float32)


def test_shape_and_stability(model, tmp_path, monkeypatch):
    found = sample_contexts(model, seed=3, cache_dir=tmp_path)
    assert len(found) == 21
    assert found[0] == "{}"
    for context in found[1:]:
        assert context.endswith(". {}")
        assert context.count("{") == context.count("}") == 1
        assert context.format("The fact") == context[:-2] + "The fact"
    assert sample_contexts(model, seed=3, cache_dir=tmp_path / "other") == found
    assert sample_contexts(model, seed=4, cache_dir=tmp_path) != found
    monkeypatch.setattr(module, "sample_tokens", lambda *a, **k: pytest.fail("sampled again"))
    assert sample_contexts(model, seed=3, cache_dir=tmp_path) == found


def test_model_dtype_and_counts_name_the_file(model, small_tokenizer, tmp_path):
    sample_contexts(model, cache_dir=tmp_path)
    sample_contexts(small_model("gpt2", small_tokenizer, torch.bfloat16), cache_dir=tmp_path)
    sample_contexts(small_model("llama", small_tokenizer, torch.float32), cache_dir=tmp_path)
    assert len(sample_contexts(model, short=2, long=0, cache_dir=tmp_path)) == 3
    assert sample_contexts(model, short=0, long=0, cache_dir=tmp_path) == ["{}"]
    assert len(list((tmp_path / "contexts").glob("*.json"))) == 5


def test_braces_and_broken_characters_are_never_drawn(model):
    allowed = drawable(model)
    vocabulary = model.tokenizer
    for token in allowed.nonzero().flatten().tolist():
        text = vocabulary.decode([token])
        assert "{" not in text
        assert "}" not in text
        assert "\ufffd" not in text
    brace = vocabulary("{").input_ids[0]
    assert not allowed[brace]
    assert allowed[vocabulary("P").input_ids[0]]


def test_a_model_that_prefers_braces_draws_other_tokens(model, tmp_path):
    brace = model.tokenizer("{").input_ids[0]
    with torch.no_grad():
        model.hf.transformer.wte.weight[brace] *= 50
    for context in sample_contexts(model, cache_dir=tmp_path)[1:]:
        assert context.count("{") == 1


def test_a_model_with_one_allowed_token_still_gives_every_context(model, tmp_path):
    allowed = torch.zeros(model.vocab_size, dtype=torch.bool)
    allowed[model.tokenizer("P").input_ids[0]] = True
    found = module._prefixes(model, 3, 5, 0, allowed)
    assert found == ["PPPPP"] * 3


def test_real_prefixes_have_the_requested_lengths(smollm2, tmp_path):
    found = sample_contexts(smollm2, cache_dir=tmp_path)
    assert len(set(found)) == 21
    lengths = [len(smollm2.tokenizer(c.removesuffix(". {}")).input_ids) for c in found[1:]]
    assert lengths == [5] * 10 + [10] * 10


def test_memits_prefixes_begin_with_five_words(smollm2, tmp_path):
    found = sample_contexts(smollm2, short=0, long=0, begun=7, cache_dir=tmp_path)
    prefixes = [context.removesuffix(". {}") for context in found[1:]]
    assert found[0] == "{}"
    assert len(set(found)) == 8
    for prefix, word in zip(prefixes, (*module.BEGINNINGS, *module.BEGINNINGS), strict=False):
        assert prefix.startswith(word)
        assert len(smollm2.tokenizer(prefix).input_ids) == 10
    assert module.BEGINNINGS == ("The", "Therefore", "Because", "I", "You")
    assert sample_contexts(smollm2, short=0, long=0, begun=7, seed=1, cache_dir=tmp_path) != found
    # The words do not change the contexts of the other methods.
    assert sample_contexts(smollm2, short=1, long=1, cache_dir=tmp_path)[1:] != found[1:3]


@pytest.mark.parametrize("method", ["rome", "memit"])
def test_each_method_has_its_own_contexts(method, small_tokenizer):
    model = small_model("gpt2", small_tokenizer, torch.float32)
    wanted = {"rome": sample_contexts(model), "memit": sample_contexts(model, short=0, long=0, begun=5)}[method]
    facts = [Fact("{} lies in", "Lyon", "France", "Peru")]
    plan = prepare_edit(model, facts, method=method, layers=[1], window_size=1, corpus_tokens=300, ridge=0.1, essence=0)
    assert plan.contexts == wanted
    assert plan.settings.contexts == len(wanted) - 1


def test_user_errors(model, tmp_path):
    with pytest.raises(UserError, match="short: expected at least 0, got -1"):
        sample_contexts(model, short=-1, cache_dir=tmp_path)
    sample_contexts(model, cache_dir=tmp_path)
    file = next((tmp_path / "contexts").glob("*.json"))
    for text in (
        "{",
        json.dumps({"contexts": ["{}"]}),
        json.dumps([]),
        file.read_text().replace(". {}", ". "),
    ):
        file.write_text(text)
        with pytest.raises(UserError, match="damaged"):
            sample_contexts(model, cache_dir=tmp_path)
