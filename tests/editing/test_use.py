"""Text from an edited model: applied, as a view and exported, it is the same."""

import copy

import pytest
import torch
from edit_cases import CONTEXTS, FACTS, contexts_for
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.delta import Dense, LowRank
from fasttrace.editing.export import export_model

PROMPTS = [fact.text for fact in FACTS]
TUNE = {"method": "ft-1", "layers": [1, 2], "steps": 3, "lr": 0.1, "epsilon": 0.1, "essence": 0}
MASS = {"method": "ft-1", "layer": 1, "steps": 3, "lr": 0.1, "epsilon": 0.1}


def plain_texts(folder, prompts, length):
    """Greedy texts of plain transformers from an exported folder. Prompts of the same length share a batch."""
    from transformers import AutoModelForCausalLM, AutoTokenizer

    hf, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    ids = [tokenizer(prompt).input_ids for prompt in prompts]
    end, texts = hf.generation_config.eos_token_id, {}
    for n in sorted(set(map(len, ids))):
        mine = [i for i, row in enumerate(ids) if len(row) == n]
        batch = torch.tensor([ids[i] for i in mine])
        options = {"attention_mask": torch.ones_like(batch), "pad_token_id": end}
        with torch.no_grad():
            out = hf.generate(batch, max_new_tokens=length, do_sample=False, **options)
        for i, row in zip(mine, out[:, n:].tolist(), strict=True):
            texts[i] = tokenizer.decode(row[: row.index(end)] if end in row else row)
    return [texts[i] for i in range(len(prompts))]


@pytest.fixture
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


@pytest.mark.parametrize("family", ["llama", "gpt2", "opt", "gptj", "bloom", "gemma2", "falcon"])
def test_edited_text_is_that_of_the_exported_model(family, small_tokenizer, tmp_path):
    model = small_model(family, small_tokenizer, torch.float32)
    torch.manual_seed(1)
    d, m = model.width, model.key_width
    updates = {1: LowRank(torch.randn(2, d), torch.randn(2, m)), 3: Dense(torch.randn(d, m) * 0.3)}
    before, plain = model.weights_hash(), model.generate(PROMPTS, max_new_tokens=10)
    wanted = plain_texts(export_model(model, updates, tmp_path / "model"), PROMPTS, 10)
    assert ft.generate(model, PROMPTS, delta=updates, max_new_tokens=10) == wanted != plain
    assert model.weights_hash() == before
    with ft.apply_delta(model, updates) as edited:
        assert edited.generate(PROMPTS, max_new_tokens=10) == wanted
    assert ft.generate(model, PROMPTS, max_new_tokens=10) == plain


def test_a_delta_is_a_file_or_a_mapping_or_an_edit_or_a_result(model, tmp_path):
    result = ft.edit(model, FACTS[:1], **{**TUNE, "layers": [1]})
    wanted = ft.generate(model, PROMPTS, delta=result)
    assert wanted != ft.generate(model, PROMPTS)
    path = result.save_delta(tmp_path / "one.safetensors")
    for delta in (result.edits[0], result.edits[0].updates, path, str(path), ft.load_delta(path, model)):
        assert ft.generate(model, PROMPTS, delta=delta) == wanted
    many = ft.mass_edit(model, FACTS, **MASS)
    assert ft.generate(model, PROMPTS, delta=many) == ft.generate(model, PROMPTS, delta=many.updates) != wanted


def test_a_result_is_applied_and_removed(model):
    before = model.model_hash
    result = ft.edit(model, FACTS, **TUNE)
    fact_id = FACTS[1].fact_id
    [edit] = [one for one in result.edits if (one.fact_id, one.layer) == (fact_id, 2)]
    wanted = ft.generate(model, PROMPTS, delta=edit)
    with result.applied(fact_id=fact_id, layer=2) as edited:
        assert edited is model
        assert edited.model_hash != before
        assert edited.generate(PROMPTS) == wanted
    assert model.model_hash == before
    with pytest.raises(ft.UserError, match=r"applied: expected one edit for fact_id=None, layer=2, got 2"):
        result.applied(layer=2)
    many = ft.mass_edit(model, FACTS, **MASS)
    handle = many.applied()
    assert model.generate(PROMPTS) != wanted
    copied = {layer: copy.deepcopy(update) for layer, update in many.updates.items()}
    for twice in (many, copied):
        for use in (ft.apply_delta, lambda model, twice: ft.generate(model, PROMPTS, delta=twice)):
            with pytest.raises(
                ft.UserError, match=r": expected an edit that is not applied yet, got one that '.*' has"
            ):
                use(model, twice)
    handle.remove()
    assert model.model_hash == before


def test_edits_of_several_models_are_not_one(model):
    cases = [ft.Fact(f.prompt, f.subject, f.target_true, f.target_false, case_id=f.subject) for f in FACTS]
    many = ft.mass_edit(model, cases, together="case", **MASS)
    assert many.models == 2
    for use in (many.applied, lambda: ft.generate(model, PROMPTS, delta=many), lambda: ft.apply_delta(model, many)):
        with pytest.raises(ft.UserError, match="expected the edits of one model, got those of 2 cases"):
            use()
    two = ft.edit(model, FACTS, **{**TUNE, "layers": [1]})
    with pytest.raises(ft.UserError, match=r"delta: expected a result with one edit, got 2: give one of .edits"):
        ft.generate(model, PROMPTS, delta=two)


def test_greedy_text_of_real_edits_is_that_of_the_exported_model(smollm2, tmp_path):
    facts = ft.load_facts()[:3]
    prompts, fact = [one.text for one in facts], facts[1]
    result = ft.edit(smollm2, facts[:2], method="ft-1", layers=[6], steps=5, essence=0)
    wanted = plain_texts(result.export(tmp_path / fact.subject, fact_id=fact.fact_id), prompts, 16)
    with result.applied(fact_id=fact.fact_id) as edited:
        assert edited.generate(prompts, max_new_tokens=16) == wanted
    assert wanted != smollm2.generate(prompts, max_new_tokens=16)


@pytest.mark.slow
@pytest.mark.timeout(3000)  # on two busy cores, the edit alone took seven minutes
def test_greedy_text_of_50_real_edits_is_that_of_the_exported_model(smollm2, tmp_path):
    facts = ft.load_facts()[:50]
    many = ft.mass_edit(smollm2, facts, layer=6, steps=5, contexts=2, corpus_tokens=6000)
    prompts = [fact.text for fact in facts]
    wanted = plain_texts(many.export(tmp_path / "model"), prompts, 32)
    assert ft.generate(smollm2, prompts, delta=many, max_new_tokens=32) == wanted
    plain = smollm2.generate(prompts, max_new_tokens=32)
    assert sum(a != b for a, b in zip(plain, wanted, strict=True)) > 25, "an edit that changes nothing would pass"


def test_memit_is_used_as_any_edit(model, corpus, tmp_path):
    moments = ft.second_moments(model, corpus, tokens=3000, sequence_length=32, cache_dir=tmp_path)
    result = ft.edit(
        model, FACTS[:1], method="memit", layers=[2], window_size=3, moments=moments, essence=0, steps=4, lr=0.5,
        **contexts_for("memit"),
    )  # fmt: skip
    assert len(CONTEXTS) == 3
    wanted = plain_texts(result.export(tmp_path / "model"), PROMPTS, 8)
    with result.applied() as edited:
        assert edited.generate(PROMPTS, max_new_tokens=8) == wanted
