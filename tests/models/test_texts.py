"""`model.generate`: greedy text is transformers', draws depend on seed and place alone, and prompts are checked."""

import pytest
import torch
from small_models import FAMILIES, small_model

import fasttrace as ft
from fasttrace.models import generate as tokens_of_texts
from fasttrace.models.stops import cut

PROMPTS = ["The Eiffel Tower is located in", "of Rome", "Paris is the capital of New York and the city"]
TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<a>{% endif %}"
)


def plain_text(hf, tokenizer, ids, length):
    """The greedy text after `ids` by transformers, without the end-of-text token, which is "!" in small models."""
    with torch.no_grad():
        out = hf.generate(torch.tensor([ids]), max_new_tokens=length, do_sample=False, pad_token_id=0)
    new = [token for token in out[0, len(ids) :].tolist() if token != hf.generation_config.eos_token_id]
    return tokenizer.decode(new)


@pytest.fixture
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float64)


@pytest.mark.parametrize("family", FAMILIES)
def test_greedy_text_is_that_of_transformers(family, small_tokenizer):
    model = small_model(family, small_tokenizer, torch.float64)
    wanted = [plain_text(model.hf, small_tokenizer, small_tokenizer(p).input_ids, 9) for p in PROMPTS]
    assert model.generate(PROMPTS, max_new_tokens=9) == wanted
    assert model.generate(PROMPTS[0], max_new_tokens=9) == wanted[0]


def test_the_real_model(smollm2):
    prompts = ["The capital of France is", "Once upon a time there", "Where is the Eiffel Tower?"]
    wanted = [plain_text(smollm2.hf, smollm2.tokenizer, smollm2.tokenizer(p).input_ids, 20) for p in prompts]
    assert smollm2.generate(prompts, max_new_tokens=20) == wanted
    assert smollm2.generate(prompts[0], max_new_tokens=20, stop="line") == cut(wanted[0], "line")
    message = [{"role": "user", "content": prompts[2]}]
    asked = smollm2.tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=True)["input_ids"]
    answer = smollm2.generate(prompts[2], max_new_tokens=20, chat_template=True)
    assert answer == plain_text(smollm2.hf, smollm2.tokenizer, asked, 20) != wanted[2]


@pytest.mark.parametrize("stop", ["line", "sentence"])
def test_a_stopped_text_is_the_cut_text_and_draws_fewer_tokens(stop, smollm2, monkeypatch):
    steps = []
    logits = tokens_of_texts.row_logits
    monkeypatch.setattr(tokens_of_texts, "row_logits", lambda model, h: steps.append(len(h)) or logits(model, h))
    prompts = ["The capital of France is", "Question: Who wrote Hamlet?\nAnswer:"]
    whole = smollm2.generate(prompts, max_new_tokens=60)
    drawn = len(steps)
    stopped = smollm2.generate(prompts, max_new_tokens=60, stop=stop)
    assert stopped == [cut(text, stop) for text in whole]
    assert stopped != whole
    assert len(steps) - drawn < drawn


def test_texts_do_not_depend_on_how_they_are_divided(model):
    for draws in ({}, {"top_k": None, "seed": 5}, {"top_k": 4}):
        together = model.generate(PROMPTS, max_new_tokens=7, **draws)
        assert model.generate(PROMPTS, max_new_tokens=7, memory=1, **draws) == together


def test_draws_follow_seed_and_number_of_tokens(model):
    def drawn(**draws):
        return model.generate(PROMPTS, max_new_tokens=12, **draws)

    assert drawn(top_k=None) == drawn(top_k=None, seed=0) != drawn(top_k=None, seed=1)
    assert drawn(top_k=None) != drawn()
    ids = [model.tokenizer(p).input_ids for p in PROMPTS]
    rows = tokens_of_texts.continue_tokens(model, ids, 12, seeds=[[3, i] for i in range(3)], per_seed=1, top_k=6)
    assert drawn(top_k=6, seed=3) == [model.tokenizer.decode(row) for row in rows]
    model.hf.generation_config.eos_token_id = sorted({row[4] for row in rows})
    ends = [next(i for i, token in enumerate(row) if token in model.hf.generation_config.eos_token_id) for row in rows]
    wanted = [model.tokenizer.decode(row[:end]) for row, end in zip(rows, ends, strict=True)]
    assert drawn(top_k=6, seed=3) == wanted, "a text ends before the first end-of-text token"


@pytest.mark.parametrize("draws", [{}, {"top_k": None}])
def test_a_text_ends_where_the_positions_do(draws, model):
    assert model.positions == 160
    prompt = "a" * 157
    assert len(model.tokenizer(prompt).input_ids) == 157
    text = model.generate(prompt, **draws)
    assert len(text) <= 4 < len(model.generate("a", **draws))


def test_a_space_at_the_begin_is_kept():
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    words = ["[UNK]", *(f"▁{word}" for word in ("The", "tower", "is", "in", "Paris", "Rome", "New", "York", "and"))]
    raw = Tokenizer(models.WordLevel({word: i for i, word in enumerate(words)}, unk_token="[UNK]"))
    raw.pre_tokenizer, raw.decoder = pre_tokenizers.Metaspace(), decoders.Metaspace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=raw, unk_token="[UNK]")
    assert tokenizer.decode([5]) == "Paris", "alone, it loses its space"
    model = small_model("llama", tokenizer, torch.float64)
    model.hf.generation_config.eos_token_id = None
    found = model.generate("The tower is in", max_new_tokens=3)
    ids = tokenizer("The tower is in").input_ids
    with torch.no_grad():
        whole = model.hf.generate(torch.tensor([ids]), max_new_tokens=3, do_sample=False, pad_token_id=0)
    assert "The tower is in" + found == tokenizer.decode(whole[0])
    assert found.startswith(" ")


def test_the_chat_template_asks_the_prompt(model, monkeypatch):
    with pytest.raises(ft.ModelError, match="chat_template: expected a tokenizer that has one, got that of 'llama'"):
        model.generate("Paris", chat_template=True)
    monkeypatch.setattr(model.tokenizer, "chat_template", TEMPLATE)
    ids = model.tokenizer("<user>Paris<a>").input_ids
    wanted = plain_text(model.hf, model.tokenizer, ids, 8)
    assert model.generate("Paris", chat_template=True, max_new_tokens=8) == wanted
    for bad in ("{{ raise_exception('no users here') }}", "{{ messages.content.x.y }}", "{% if %}", "{{ 1 + 'a' }}"):
        monkeypatch.setattr(model.tokenizer, "chat_template", bad)
        with pytest.raises(ft.ModelError, match=r"chat_template: expected one that takes a message, got .*'llama': .+"):
            model.generate("Paris", chat_template=True)


@pytest.mark.parametrize(
    ("prompts", "sentence"),
    [
        ("", "generate: prompts: expected a text of at least one token, got ''"),
        (["Paris", ""], "generate: prompts: expected a text of at least one token, got ''"),
        ("a" * 161, "a prompt to continue: expected at most 160 tokens for 'llama' to read, got 161"),
        ("a" * 100_001, "generate: prompts: expected at most 100000 characters in a prompt, got 100001"),
        (3, "generate: prompts: expected a text or a list in which each item is a text, got 3"),
        ([], "generate: prompts: expected a text or a list in which each item is a text, got []"),
    ],
)
def test_bad_prompts_are_refused_in_a_sentence(prompts, sentence, model):
    with pytest.raises(ft.UserError) as refused:
        model.generate(prompts)
    assert str(refused.value) == sentence


def test_settings_may_be_an_object(model):
    asked = ft.GenerateSettings(max_new_tokens=5, stop="line")
    assert model.generate(PROMPTS, settings=asked) == model.generate(PROMPTS, max_new_tokens=5, stop="line")
    with pytest.raises(ft.UserError, match="generate: stop: expected one of line, sentence, got 'word'"):
        model.generate(PROMPTS, stop="word")
