"""A plan of edits that is prepared, pickled and computed elsewhere: the same run, and the same edits bit for bit."""

import pytest
import torch
from edit_cases import CONTEXTS, FACTS
from other_crews import Apart, Copies, packed, unpacked
from small_models import small_model

import fasttrace as ft
from fasttrace.cache import cache_root
from fasttrace.editing import prepare_edit
from fasttrace.editing.collect import collected
from fasttrace.editing.edit import needed_moments
from fasttrace.editing.judge import judge_of, judged
from fasttrace.errors import UserError
from fasttrace.settings.edit import EditSettings

QUICK = {"contexts": CONTEXTS, "essence": 0, "steps": 2, "layers": [1, 3], "window_size": 3}
METHODS = [
    {"method": "rome"},
    {"method": "memit", "corpus_tokens": 1300},
    {"method": "emmet"},
    {"method": "pmet"},
    {"method": "alphaedit", "null_threshold": 2.0, "null_unit": "absolute"},
    {"method": "rome", "problem": "tracing-reversal", "sigma": 0.4},
    {"method": "memit", "problem": "fact-forcing", "sigma": 0.4, "seed": 3},
]


@pytest.fixture(autouse=True)
def _cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


def asked_for(given, corpus, **more):
    keywords = {**QUICK, "corpus": corpus, "ridge": 1e-2, "corpus_tokens": 1500, **given, **more}
    own = {name: keywords.pop(name) for name in ("steps", "null_threshold", "null_unit") if name in keywords}
    return EditSettings(**keywords, hyperparameters=own)


def tensors(edits):
    """The numbers of all edits."""
    found = []
    for edit in edits:
        found.append((edit.fact_id, edit.layer, edit.loss, edit.delta_norm, edit.denominator, edit.condition))
        for layer, update in edit.updates.items():
            found += [layer, update.experts, update.matrix().numpy().tobytes()]
    return found


def numbers(plan):
    parts = list(plan.batches())
    tables = [[row for part in parts for row in table(part).to_pylist()] for table in (scores, prompts)]
    return tensors([edit for part in parts for edit in part.edits]), tables


def scores(part):
    return part.scores


def prompts(part):
    return part.prompts


def by(crew, facts, asked):
    """The plan's run, prepared as a driver without a model does it."""
    settings, experts = crew.ask(needed_moments, facts, asked)
    moments = collected(crew, settings, experts, cache_root(None))
    return crew.ask(run_of, facts, asked, moments)


def run_of(model, facts, asked, moments):
    return prepare_edit(model, facts, settings=asked, moments=moments).run


@pytest.mark.parametrize("given", METHODS, ids=lambda given: "-".join(map(str, given.values())))
def test_a_pickled_plan_makes_the_same_edits_with_another_model(given, small_tokenizer, corpus):
    model, other = (small_model("llama", small_tokenizer, torch.float32) for _ in range(2))
    plan = prepare_edit(model, FACTS, settings=asked_for(given, corpus))
    sent = packed(plan)
    wanted = numbers(plan)
    assert wanted[0]
    for one in (sent, packed(plan)):  # before and after the plan has computed factors
        assert sum(map(len, one[1])) + len(one[0]) < 100_000, "expected no matrix in it"
        elsewhere = unpacked(one, other)
        assert elsewhere.model is elsewhere.after.model is other
        assert numbers(elsewhere) == wanted


@pytest.mark.parametrize("given", METHODS, ids=lambda given: "-".join(map(str, given.values())))
def test_a_drivers_run_is_the_one_that_collects_itself(given, small_tokenizer, corpus, tmp_path, monkeypatch):
    asked, models = asked_for(given, corpus), [small_model("llama", small_tokenizer, torch.float32) for _ in range(2)]
    alone = prepare_edit(models[0], FACTS, settings=asked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    run = by(Copies(*models), FACTS, asked)
    assert (run["run_id"], run["settings"]) == (alone.run["run_id"], alone.run["settings"])
    files = [sorted(folder.rglob("layer-*")) for folder in (tmp_path / "cache", tmp_path / "other")]
    assert [file.read_bytes() for file in files[0]] == [file.read_bytes() for file in files[1]]
    assert files[0]


def test_edits_of_experts_need_the_moments_of_those_that_are_chosen(small_tokenizer, corpus, tmp_path, monkeypatch):
    asked, models = (
        asked_for({"method": "rome", "layers": [1]}, corpus),
        [small_model("mixtral", small_tokenizer, torch.float32) for _ in range(2)],
    )
    alone = prepare_edit(models[0], FACTS, settings=asked)
    settings, experts = needed_moments(models[1], FACTS, asked)
    assert (list(settings.layers), experts) == ([1], {1: tuple(alone.moments.experts[1])})
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    assert by(Copies(*models), FACTS, asked)["run_id"] == alone.run["run_id"]
    assert numbers(unpacked(packed(alone), models[1])) == numbers(alone)


def test_a_driver_without_a_model_prepares_edits(small_tokenizer, corpus, tmp_path, monkeypatch):
    asked = EditSettings(method="rome", layers=[1], essence=0, contexts=["{}"], corpus=corpus, ridge=1e-2)
    alone = prepare_edit(small_model("llama", small_tokenizer, torch.float32), FACTS, settings=asked)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "other"))
    with Apart("llama", torch.float32) as crew:
        assert by(crew, FACTS, asked)["run_id"] == alone.run["run_id"]


def test_methods_without_moments_need_none(small_tokenizer):
    model = small_model("llama", small_tokenizer, torch.float32)
    assert needed_moments(model, FACTS, EditSettings(method="ft-1", layers=[1], essence=0)) is None
    with pytest.raises(UserError, match="layers: expected some of 0 to 4, got 7"):
        needed_moments(model, FACTS, EditSettings(layers=[7]))


def test_settings_beside_moments_must_be_theirs(small_tokenizer, corpus):
    model = small_model("llama", small_tokenizer, torch.float32)
    moments = ft.second_moments(model, corpus, tokens=1500, layers=[1], ridge=1e-2)
    given = {"layers": [1], "essence": 0, "contexts": ["{}"], "moments": moments}
    wanted = prepare_edit(model, FACTS, **given).run["run_id"]
    assert prepare_edit(model, FACTS, **given, corpus=corpus, corpus_tokens=1500, ridge=1e-2).run["run_id"] == wanted
    for wrong, sentence in (
        ({"ridge": 0.0}, "edit: ridge: expected 0.01, as the moments have it, or no value, got 0.0"),
        ({"corpus_tokens": 7}, "edit: corpus_tokens: expected 1500, as the moments have it, or no value, got 7"),
        ({"corpus": "other.txt"}, f"edit: corpus: expected {corpus}, as the moments have it, or no value, got other"),
        ({"corpus": None}, f"edit: corpus: expected {corpus}, as the moments have it, or no value, got none"),
    ):
        with pytest.raises(UserError, match=sentence):
            prepare_edit(model, FACTS, **given, **wrong)


def test_a_judge_at_an_address_goes_elsewhere_without_its_key(grader, monkeypatch):
    monkeypatch.setenv("FASTTRACE_JUDGE_KEY", "secret")
    url = f"http://127.0.0.1:{grader.server_port}/v1"
    judge = judge_of(EditSettings(generate=4, judge_url=url, judge_model="m"), None)
    sent = packed(judge)
    assert b"secret" not in sent[0]
    question = ("The capital of France is", ("Paris",), " Paris")
    assert judged(unpacked(sent), [question]) == judged(judge, [question])
