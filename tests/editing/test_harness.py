"""Tasks of lm-evaluation-harness on an edited model, against plain transformers. The task and its data are local."""

import json

import pytest
import torch
from edit_cases import FACTS
from small_models import small_model

import fasttrace as ft
from fasttrace.editing import prepare_mass_edit
from fasttrace.errors import UserError

pytest.importorskip("lm_eval", reason="lm_eval is not installed (the extra lm-eval)")

FT = {"method": "ft-5", "window_size": 3, "steps": 5, "lr": 5e-2, "epsilon": 0.3, "layer": 1, "score_every": 1}
TASK = """
task: quiz
dataset_path: json
dataset_kwargs:
  data_files:
    test: {data}
test_split: test
output_type: multiple_choice
doc_to_text: "{{{{question}}}}"
doc_to_choice: "{{{{choices}}}}"
doc_to_target: "{{{{label}}}}"
metric_list:
  - metric: acc
"""
CHOICES = ["Paris", "Rome", "New York", "France"]
QUESTIONS = [
    "The city",
    "The capital",
    "The tower",
    "A city in the capital",
    "Rome is the city",
    "Eiffel",
    "Is it",
    "York",
]


@pytest.fixture
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


@pytest.fixture
def items(model, small_tokenizer):
    """Questions whose right choice is the one that the unedited model takes, but for one question."""
    found = [{"question": question, "choices": CHOICES, "label": 0} for question in QUESTIONS]
    for item in found:
        item["label"] = chosen(model.hf, small_tokenizer, item)
    found[1]["label"] = (found[1]["label"] + 1) % len(CHOICES)
    return found


@pytest.fixture
def folder(items, tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", str(tmp_path / "cache"))
    (tmp_path / "tasks").mkdir()
    data = tmp_path / "quiz.jsonl"
    data.write_text("\n".join(map(json.dumps, items)))
    (tmp_path / "tasks" / "quiz.yaml").write_text(TASK.format(data=data))
    return tmp_path / "tasks"


def chosen(hf, tokenizer, item):
    """The number of the likeliest choice, in plain transformers."""
    logp = []
    for choice in item["choices"]:
        ids, whole = tokenizer(item["question"]).input_ids, tokenizer(f"{item['question']} {choice}").input_ids
        with torch.no_grad():
            rows = hf(torch.tensor([whole])).logits[0].log_softmax(-1)
        logp.append(sum(float(rows[at - 1, whole[at]]) for at in range(len(ids), len(whole))))
    return max(range(len(logp)), key=logp.__getitem__)


def accuracy(hf, tokenizer, items):
    """The share of items whose right choice is the likeliest."""
    return sum(chosen(hf, tokenizer, item) == item["label"] for item in items) / len(items)


def test_tasks_are_run_on_the_edited_weights_and_the_edit_is_removed(model, items, folder, small_tokenizer, tmp_path):
    from transformers import AutoModelForCausalLM

    hashed, bits, before = model.model_hash, model.weights_hash(), len(model.tokenizer)
    state = torch.get_rng_state()
    result = ft.mass_edit(model, FACTS, **FT, lm_eval=["quiz"], lm_eval_tasks=folder)
    assert (model.model_hash, model.weights_hash(), len(model.tokenizer)) == (hashed, bits, before)
    assert torch.equal(torch.get_rng_state(), state)
    assert not model.applied
    rows = result.tasks.to_pylist()
    assert [(row["n_edits"], row["task"], row["metric"]) for row in rows] == [(n, "quiz", "acc,none") for n in (1, 2)]
    plain = AutoModelForCausalLM.from_pretrained(result.export(tmp_path / "out"))
    unedited, edited = accuracy(model.hf, small_tokenizer, items), accuracy(plain, small_tokenizer, items)
    assert edited < unedited == 7 / 8, "the unedited model would pass"
    assert rows[-1]["value"] == pytest.approx(edited)
    assert {row["value_unedited"] for row in rows} == {unedited}
    assert {row["samples"] for row in rows} == {len(items)}
    assert 0 < rows[-1]["value_sem"] < 0.3
    store = ft.Store(tmp_path / "study.duckdb")
    store.add(result)
    names = ", ".join(result.tasks.column_names)
    assert store.query(f"SELECT {names} FROM mass_tasks ORDER BY n_edits").to_pylist() == rows


def test_a_limit_runs_the_first_items(model, items, folder, small_tokenizer):
    asked = {"lm_eval": ["quiz"], "lm_eval_tasks": folder, "lm_eval_limit": 3}
    [row] = ft.mass_edit(model, FACTS[:1], **FT, **asked).tasks.to_pylist()
    assert row["samples"] == 3
    assert row["value_unedited"] == pytest.approx(accuracy(model.hf, small_tokenizer, items[:3]))


def test_the_run_is_named_by_the_tasks_and_their_files(model, folder):
    asked = {"lm_eval": ["quiz"], "lm_eval_tasks": folder}
    first = prepare_mass_edit(model, FACTS, **FT, **asked).run
    named = json.loads(first["settings"])
    assert named["lm_eval"] == ["quiz"]
    assert named["lm_eval_version"]
    file = folder / "quiz.yaml"
    file.write_text(file.read_text() + "metadata:\n  version: 2\n")
    assert prepare_mass_edit(model, FACTS, **FT, **asked).run["run_id"] != first["run_id"]


def test_what_cannot_be_run_is_refused_in_a_sentence(model, folder, tmp_path):
    for asked, sentence in (
        ({"lm_eval": ["quizz"], "lm_eval_tasks": folder}, r"mass: lm_eval: expected tasks of .*, got 'quizz'"),
        ({"lm_eval": ["quiz"]}, r"mass: lm_eval: expected tasks of .*, got 'quiz'"),
        (
            {"lm_eval": ["quiz"], "lm_eval_tasks": tmp_path / "no"},
            "mass: lm_eval_tasks: expected a folder of task files",
        ),
    ):
        with pytest.raises(UserError, match=sentence):
            prepare_mass_edit(model, FACTS, **FT, **asked)
    (tmp_path / "quiz.jsonl").unlink()
    with pytest.raises(UserError, match=r"mass: lm_eval: expected tasks that can be run, got .* from quiz: ") as caught:
        ft.mass_edit(model, FACTS, **FT, lm_eval=["quiz"], lm_eval_tasks=folder)
    assert "\n" not in str(caught.value)
