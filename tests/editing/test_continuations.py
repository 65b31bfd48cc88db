"""Scores by generation: continuations under an edit against transformers with the edit in its weights, and matches."""

import json
import re
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest
import torch
from edit_cases import FACTS, contexts_for
from hooked_rome import noised
from small_models import small_model

import fasttrace as ft
from fasttrace.editing.answers import exact_match, prefix_match
from fasttrace.editing.edit import prepare_edit
from fasttrace.editing.judge import judge_of, judged
from fasttrace.editing.problems import PROBLEMS
from fasttrace.errors import UserError
from fasttrace.facts import encode_fact
from fasttrace.models.stops import cut
from fasttrace.ops.noised_embed import fact_key, noised_embed

LENGTH = 8
OPTIONS = {
    # Strong, so that texts change.
    "rome": {"steps": 4, "lr": 5.0, "clamp": 100.0},
    "memit": {"steps": 4, "lr": 5.0, "clamp": 100.0, "covariance_weight": 1e-3, "window_size": 3},
    "ft-5": {"steps": 5, "lr": 5e-2, "epsilon": 0.2, "window_size": 3},
}
PROBED = [
    ft.Fact(
        FACTS[0].prompt, FACTS[0].subject, FACTS[0].target_true, FACTS[0].target_false,
        paraphrases=FACTS[0].paraphrases, neighborhood=FACTS[0].neighborhood,
        probes=(ft.Probe("portability", "The capital of France is", ("Rome", "New")),),
    ),
    FACTS[1],
]  # fmt: skip


@pytest.fixture
def shared(corpus, tmp_path, monkeypatch):
    """A function: family's model, its moments and the keywords of its edits."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))

    def make(model, method):
        about = {"method": method, "essence": 0, **OPTIONS[method], **contexts_for(method)}
        if method.startswith("ft"):
            return about
        return about | {"moments": ft.second_moments(model, corpus, tokens=3000, sequence_length=32, ridge=1e-3)}

    return make


def plain(model, text, length, fact=None, noise=None):
    """Greedy tokens of transformers, one full pass each."""
    ids = list(model.tokenizer(text).input_ids)
    new = []
    while len(new) < length:
        with torch.no_grad(), noised(model.hf, model.tokenizer, text, fact and fact.subject, noise):
            new.append(int(model.hf(torch.tensor([[*ids, *new]])).logits[0, -1].argmax()))
        if new[-1] == model.hf.generation_config.eos_token_id:  # which need not be a special token here
            new.pop()
            break
    return model.tokenizer.decode(new, skip_special_tokens=True)


@pytest.mark.parametrize("method", OPTIONS)
@pytest.mark.parametrize("family", ["llama", "gpt2", "gptj", "gemma2"])
def test_continuations_are_those_of_the_edited_weights(family, method, small_tokenizer, shared):
    model = small_model(family, small_tokenizer, torch.float32)
    before = model.weights_hash()
    result = ft.edit(model, PROBED, layers=[1, 2], generate=LENGTH, stop=None, **shared(model, method))
    assert model.weights_hash() == before
    rows = result.prompts.to_pylist()
    assert {row["kind"] for row in rows} == {"rewrite", "paraphrase", "neighborhood", "portability"}
    seen = set()
    for edit in result.edits:
        mine = [row for row in rows if (row["fact_id"], row["layer"]) == (edit.fact_id, edit.layer)]
        for row in mine:
            assert row["generated_before"] == plain(model, row["prompt"], LENGTH)
        with ft.apply_delta(model, edit):
            for row in mine:
                assert row["generated_after"] == plain(model, row["prompt"], LENGTH)
                seen.add(row["generated_after"] != row["generated_before"])
    assert True in seen, "edits that change no text would not be seen"


def test_a_stop_cuts_every_text_and_nothing_is_generated_unless_asked(small_tokenizer, shared):
    model = small_model("llama", small_tokenizer, torch.float32)
    given = shared(model, "rome")
    whole = ft.edit(model, PROBED, layers=[1], generate=LENGTH, stop=None, **given).prompts.to_pylist()
    for stop in ("line", "sentence"):
        short = ft.edit(model, PROBED, layers=[1], generate=LENGTH, stop=stop, **given)
        for row, full in zip(short.prompts.to_pylist(), whole, strict=True):
            assert row["generated_after"] == cut(full["generated_after"], stop)
    none = ft.edit(model, PROBED, layers=[1], **given)
    assert none.run["run_id"] != short.run["run_id"]
    for row in none.prompts.to_pylist():
        assert {row[name] for name in row if name.startswith(("generated", "exact", "prefix", "judge"))} == {None}


def test_essence_texts_are_not_continued(small_tokenizer, shared):
    model = small_model("llama", small_tokenizer, torch.float32)
    given = {**shared(model, "rome"), "essence": 1}
    rows = ft.edit(model, FACTS, layers=[1], generate=2, **given).prompts.to_pylist()
    assert {row["generated_after"] is None for row in rows if row["kind"] == "essence"} == {True}
    assert all(row["generated_after"] is not None for row in rows if row["kind"] != "essence")


def test_the_subject_is_corrupted_in_the_texts_of_fact_forcing(small_tokenizer, shared):
    model = small_model("llama", small_tokenizer, torch.float32)
    given = {"problem": "fact-forcing", "sigma": 0.7, **shared(model, "memit")}
    result = ft.edit(model, FACTS, layers=[1], generate=4, stop=None, **given)
    assert PROBLEMS["fact-forcing"].corrupted
    rows = {row["fact_id"]: row for row in result.prompts.to_pylist() if row["kind"] == "rewrite"}
    for edit, fact in zip(result.edits, FACTS, strict=True):
        one = encode_fact(model.tokenizer, fact)
        place = torch.arange(one.subject_begin, one.subject_end)
        same, zeros = torch.full_like(place, fact_key(fact.fact_id)), torch.zeros(1, model.width)
        sigma = torch.full(place.shape, 0.7)
        noise = noised_embed(zeros, place * 0, sigma, same, place * 0, place, 0)
        assert rows[fact.fact_id]["generated_before"] == plain(model, fact.text, 4, fact, noise)
        with ft.apply_delta(model, edit):
            assert rows[fact.fact_id]["generated_after"] == plain(model, fact.text, 4, fact, noise)


def test_a_mass_edit_generates_in_the_edited_model_at_every_scoring(small_tokenizer, shared):
    model = small_model("llama", small_tokenizer, torch.float32)
    given = {**shared(model, "memit"), "layer": 1, "at_once": 1, "score_every": 1}
    result = ft.mass_edit(model, PROBED, generate=LENGTH, stop=None, **given)
    first = ft.mass_edit(model, PROBED[:1], generate=LENGTH, stop=None, **given)
    rows = result.prompts.to_pylist()
    for n_edits, updates in ((1, first.updates), (2, result.updates)):
        with ft.apply_delta(model, updates):
            mine = [row for row in rows if row["n_edits"] == n_edits]
            assert len({row["fact_id"] for row in mine}) == n_edits
            for row in mine:
                assert row["generated_after"] == plain(model, row["prompt"], LENGTH)


def test_matches_are_of_the_answers_that_the_prompt_expects(small_tokenizer, shared):
    model = small_model("llama", small_tokenizer, torch.float32)
    tuned = {**shared(model, "ft-5"), "steps": 40, "lr": 2e-2, "epsilon": 0.5}
    rows = ft.edit(model, PROBED, layers=[1], generate=LENGTH, stop=None, **tuned).prompts.to_pylist()
    by_id = {fact.fact_id: fact for fact in PROBED}
    for row in rows:
        fact = by_id[row["fact_id"]]
        answers = [fact.target_true if row["expect"] == "unchanged" else fact.target_false]
        if row["kind"] == "portability":
            answers = ["Rome", "New"]
        for when in ("before", "after"):
            assert row[f"exact_{when}"] == exact_match(row[f"generated_{when}"], answers)
            assert row[f"prefix_{when}"] == prefix_match(row[f"generated_{when}"], answers)
        if row["match_after"]:
            assert any(row["generated_after"].startswith(f" {answer}") for answer in answers)
    assert any(row["match_after"] for row in rows), "nothing that is forced would be seen"


@pytest.mark.parametrize(
    ("text", "answer", "exact", "prefix"),
    [
        (" Rome.", "Rome", True, True),
        (" rome", "Rome", True, True),
        (" the Rome", "Rome", True, True),
        (" São Paulo", "Sao Paulo", True, True),
        (" Rome, Italy", "Rome", False, True),
        (" Romeo", "Rome", False, False),
        (" in Rome", "Rome", False, False),
        ("", "Rome", False, False),
        (" U.S.", "US", True, True),
        (" twenty-one", "twenty one", True, True),
        (" C++", "C", False, False),
        (" ＲＯＭＥ", "rome", True, True),
        (" 東京 です", "東京", False, True),
        (" An apple", "apple", True, True),
        ("バリ", "パリ", False, False),
        (" Май", "Маи", False, False),
        (" Αθήνα.", "Αθηνα", True, True),
        (" 3.5", "35", False, False),
        (" -5", "5", False, False),
        (" 1914-1918", "1914 1918", True, True),
        (" 3,000.", "3,000", True, True),
        (" A.", "A", True, True),
        (" A is right", "A", False, True),
        (" B", "A", False, False),
        (" Á", "a", True, True),
        (" à Rome", "Rome", False, False),
        ("東京は日本の首都", "東京", False, True),
        ("パリにあります", "パリ", False, True),
        ("กรุงเทพเป็น", "กรุงเทพ", False, True),
        ("กา", "ก", False, True),
        ("กิน", "ก", False, False),  # the vowel sign is part of the letter
        (" İstanbul", "Istanbul", True, True),
        (" Oyo", "Ọ̀yọ́", True, True),
        (" Serie B", "Serie A", False, False),
        (" Serie A, the league", "the Serie A", False, True),
        (" Vitamin", "Vitamin A", False, False),
        (" Vitamin A", "Vitamin", False, True),
        (" Rome's", "Rome", False, True),
        (" Rome,Italy", "Rome", False, True),
        (" Rome(Italy)", "Rome", False, True),
        (" 3.5", "3", False, False),
        (" an apple", "the apple", True, True),
    ],
)
def test_texts_are_compared_word_by_word(text, answer, exact, prefix):
    assert (exact_match(text, [answer]), prefix_match(text, [answer])) == (exact, prefix)
    assert exact_match(text, ["no", answer]) == exact
    assert not text or exact_match(text, [text])


def test_an_answer_that_is_all_punctuation_is_no_prefix_of_every_text():
    assert not prefix_match(" Rome", ["..."])
    assert not exact_match("", ["..."])
    assert not exact_match("", ["the"])


def test_a_judge_is_asked_once_a_question_and_its_errors_are_stored(small_tokenizer, shared, tmp_path):
    model = small_model("llama", small_tokenizer, torch.float32)
    asked = []

    def judge(prompt, answers, text):
        asked.append((prompt, tuple(answers), text))
        if "capital" in prompt:
            raise TimeoutError("too slow\nthe trace of it")
        return "city" in prompt

    given = shared(model, "rome")
    result = ft.edit(model, PROBED, layers=[1], generate=LENGTH, judge=judge, **given)
    store = ft.Store(tmp_path / "study.duckdb")
    store.add(result)
    rows = store.query("SELECT * FROM edit_prompts").to_pylist()
    assert len(asked) == len(set(asked))
    for row in rows:
        failed = "capital" in row["prompt"]
        assert row["judge_error"] == ("TimeoutError: too slow" if failed else None)
        assert row["judged_after"] == (None if failed else "city" in row["prompt"])
    assert "judge" in json.loads(result.run["settings"])
    with pytest.raises(UserError, match="expected generate of at least 1 token"):
        prepare_edit(model, FACTS, layers=[1], judge=judge, **given)


def test_a_model_behind_an_address_judges(grader, small_tokenizer, shared, monkeypatch, caplog):
    monkeypatch.setenv("FASTTRACE_JUDGE_KEY", "secret")
    model = small_model("llama", small_tokenizer, torch.float32)
    url = f"http://127.0.0.1:{grader.server_port}/v1"
    given = shared(model, "rome")
    result = ft.edit(model, PROBED, layers=[1], generate=4, judge_url=url, judge_model="m", **given)
    rows = result.prompts.to_pylist()
    by_kind = {row["kind"]: row for row in rows if row["fact_id"] == PROBED[0].fact_id}
    assert by_kind["rewrite"]["judged_after"] is True
    assert by_kind["neighborhood"]["judge_error"].startswith("InternalServerError")
    assert by_kind["portability"]["judge_error"] == "ValueError: expected YES or NO, got 'Not sure'"
    path, key, question = grader.seen[0]
    assert (path, key, question["temperature"]) == ("/v1/chat/completions", "Bearer secret", 0)
    assert re.search(r"\d+ of \d+ judgements failed, the first: ", caplog.text)
    assert "secret" not in result.run["settings"]
    assert json.loads(result.run["settings"])["judge_model"] == "m"
    for bad in ({"judge_url": url}, {"judge_model": "m"}):
        with pytest.raises(UserError, match="judge_url and judge_model belong together"):
            ft.edit(model, FACTS, layers=[1], generate=4, **bad, **given)


def test_a_judgement_takes_no_longer_than_its_time():
    """Against an address that sends a byte now and then, so that no read of it is ever late."""
    pytest.importorskip("openai", reason="needs the extra judge")

    class Slow(BaseHTTPRequestHandler):
        def do_POST(self):
            self.send_response(200)
            self.end_headers()
            while not self.server.stopped.wait(0.05):
                self.wfile.write(b" ")
                self.wfile.flush()

        def log_message(self, *args):
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    server.stopped = threading.Event()
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_port}/v1"
    judge = judge_of(ft.EditSettings(generate=4, judge_url=url, judge_model="m", judge_timeout=0.5), None)
    [said] = judged(judge, [("The capital of France is", ("Paris",), " Paris")]).values()
    server.stopped.set()
    server.shutdown()
    assert said == (None, "TimeoutError: expected an answer within 0.5 s, got none")


@pytest.mark.parametrize("url", ["http://[::1", "localhost:8000/v1", "foo", "", "ftp://x", "http://", "http://x:99999"])
def test_a_judge_needs_an_address(url):
    with pytest.raises(UserError, match="judge_url: expected an address such as http://localhost:8000/v1, got"):
        ft.EditSettings(generate=4, judge_url=url, judge_model="m")


def test_the_gap_of_teacher_forcing_is_a_saved_query_and_a_table(small_tokenizer, shared, tmp_path):
    from fasttrace.analysis.exhibits_scores import generated
    from fasttrace.analysis.relation import relation

    model = small_model("llama", small_tokenizer, torch.float32)
    store = ft.Store(tmp_path / "study.duckdb")
    tuned = {**shared(model, "ft-5"), "steps": 40, "lr": 2e-2, "epsilon": 0.5}
    single = ft.edit(model, PROBED, layers=[1, 2], generate=LENGTH, **tuned)
    mass = ft.mass_edit(model, PROBED, layer=1, generate=LENGTH, **shared(model, "memit"))
    for result in (single, mass, ft.edit(model, PROBED, layers=[1], **shared(model, "rome"))):
        store.add(result)
    found = relation(store, "teacher_forcing_gap").to_pylist()
    assert {row["edit_run_id"] for row in found} == {single.run["run_id"], mass.run["run_id"]}
    for row in found:
        whole = mass if row["n_edits"] else single
        mine = [
            one for one in whole.prompts.to_pylist()
            if (one["kind"], one["expect"]) == (row["kind"], row["expect"])
            and (one.get("n_edits") == row["n_edits"] if row["n_edits"] else one["layer"] == row["layer"])
        ]  # fmt: skip
        assert row["prompts"] == len(mine)
        shares = {name: sum(one[column] for one in mine) / len(mine) for name, column in (
            ("forced", "match_after"), ("exact", "exact_after"), ("prefix", "prefix_after"), ("p_after", "p_after"))
        }  # fmt: skip
        for name, share in shares.items():
            assert row[name] == pytest.approx(share)
        assert row["gap_exact"] == pytest.approx(shares["forced"] - shares["exact"])
        assert row["gap_prefix"] == pytest.approx(shares["forced"] - shares["prefix"])
        assert row["judged"] is None
    assert any(row["forced"] > 0 for row in found), "no answer is forced, so the gap would always be 0"
    shown = generated(store).table
    assert shown.rows == found
    assert not {"edit_run", "edit_run_id"} & {column.key for column in shown.columns}, "the method tells the runs apart"
