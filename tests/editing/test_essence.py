"""Essence: texts depend only on their subject, and the score follows from perplexities of plain transformers."""

import numpy as np
import pytest
import torch
from edit_cases import FACTS
from hooked_rome import down_projection
from hooked_trace import mlp_modules
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.essence import essence_texts
from fasttrace.models.adapter import Decoder

TUNE = {"steps": 5, "lr": 2e-2, "epsilon": 5e-2}


def test_texts_depend_only_on_their_subject(small_tokenizer, tmp_path):
    model = small_model("llama", small_tokenizer, torch.float64)
    both = essence_texts(model, ["Paris", "Eiffel Tower"], cache_dir=tmp_path / "a", texts=3, tokens=30)
    alone = essence_texts(model, ["Eiffel Tower"], cache_dir=tmp_path / "b", texts=3, tokens=30)
    assert alone[0] == both[1]
    assert len({*both[0], *both[1]}) == 6, "every text differs"
    for subject, texts in zip(["Paris", "Eiffel Tower"], both, strict=True):
        start = small_tokenizer(f"{subject} is a")["input_ids"]
        assert all(len(text) == 30 and list(text[: len(start)]) == start for text in texts)
    again = essence_texts(model, ["Paris", "Eiffel Tower"], cache_dir=tmp_path / "a", texts=3, tokens=30)
    assert again == both


def test_weights_are_summed_once_for_all_subjects(small_tokenizer, tmp_path, monkeypatch):
    model = small_model("llama", small_tokenizer, torch.float32)
    calls, sums = [], Decoder.bit_sums
    monkeypatch.setattr(Decoder, "bit_sums", lambda self: calls.append(self) or sums(self))
    essence_texts(model, ["Paris", "Eiffel Tower", "Rome"], cache_dir=tmp_path, texts=1, tokens=12)
    assert len(calls) == 1


def test_a_damaged_file_is_named(small_tokenizer, tmp_path):
    model = small_model("llama", small_tokenizer, torch.float32)
    essence_texts(model, ["Paris"], cache_dir=tmp_path, texts=2, tokens=12)
    [path] = (tmp_path / "essence").iterdir()
    path.write_text(path.read_text()[:-9])
    with pytest.raises(ft.UserError, match="is damaged"):
        essence_texts(model, ["Paris"], cache_dir=tmp_path, texts=2, tokens=12)


def test_score_is_the_perplexity_of_the_texts(small_tokenizer, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    model = small_model("llama", small_tokenizer, torch.float32)
    result = ft.edit(model, FACTS[:1], method="ft-1", layers=[1], essence=2, **TUNE)
    [row], [edit] = result.scores.to_pylist(), result.edits
    [texts] = essence_texts(model, [FACTS[0].subject], texts=2)

    def perplexity():
        values = []
        for text in texts:
            with torch.no_grad():
                logp = model.hf(torch.tensor([text])).logits[0, :-1].double().log_softmax(-1)
            values.append(float(torch.exp(-logp.gather(1, torch.tensor(text[1:])[:, None]).mean())))
        return np.mean(values)

    before = perplexity()
    with torch.no_grad():
        down_projection(mlp_modules(model.hf)[1]).weight += edit.updates[1].change
    after = perplexity()
    assert row["ppl_before"] == pytest.approx(before, rel=1e-4)
    assert row["ppl_after"] == pytest.approx(after, rel=1e-4)
    assert abs(after - before) > 1e-3
    assert row["essence"] == pytest.approx(1 - np.clip(after - before, 0, 5) / 5, abs=1e-3)
    kinds = [prompt["kind"] for prompt in result.prompts.to_pylist()]
    assert kinds.count("essence") == 2
