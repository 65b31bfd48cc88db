"""Every verb that reads facts says what it left out of them, and its store keeps that once the work is done."""

import json

import pytest
from command_line import FACTS

import fasttrace.store
from fasttrace.store import Store

BAD = {"prompt": "{} is {}", "subject": "Paris", "target_true": "x"}
WHY = "field 'prompt': expected one placeholder '{}' for the subject, got 2 in '{} is {}'"
COMMON = ("--model", "model", "--facts", "bad.jsonl", "--on-bad", "skip")
CORPUS = ("--corpus", "text.txt", "--corpus-tokens", "1500")
QUICK = ("--method", "ft-1", "--set", "steps=1", "--essence", "0")
VERBS = {
    "trace": ("trace", *COMMON, "--windows", "3", "--samples", "2", "--sigma", "0.4", "--keep", "all"),
    "edit": ("edit", *COMMON, *QUICK, "--layers", "2"),
    "mass": ("mass", *COMMON, *CORPUS, "--contexts", "0", "--layer", "2", "--set", "steps=1"),
    "tune": ("tune", *COMMON, "--method", "ft-1", "--layer", "2", "--values", "0.01,0.001"),
    "facts": ("facts", *COMMON, "--check"),
    "pairs": ("facts", *COMMON, "--pairs", "1", "--limit", "3"),
    "study": ("study", "bad.toml", "--out", "bad"),
}
STUDY = """
model = "model"

[facts]
file = "bad.jsonl"
on_bad = "skip"
known = false

[[trace]]
windows = [3]
samples = 2
sigma = 0.4
"""


@pytest.fixture
def command(workplace, monkeypatch, command):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    records = [FACTS[0], BAD, *FACTS[1:]]
    (workplace / "bad.jsonl").write_text("\n".join(map(json.dumps, records)))
    (workplace / "bad.toml").write_text(STUDY)
    return command


def left_out(path):
    return Store(path).query("SELECT record, reason FROM facts_left_out").to_pylist()


@pytest.mark.parametrize("verb", VERBS)
def test_what_was_left_out_is_said_and_stored(command, workplace, verb, monkeypatch):
    words = (*VERBS[verb], "--store", f"{verb}.duckdb")
    for again in (False, True):
        with monkeypatch.context() as unwritten:
            if again:
                unwritten.setattr(fasttrace.store, "write_left_out", None)
            done = command(*words)
        assert f"bad.jsonl left out; the first one: bad.jsonl, line 2, {WHY}" in done.stderr
        assert left_out(f"{verb}.duckdb") == [{"record": "line 2", "reason": WHY}], again
    (workplace / "bad.jsonl").write_text("\n".join(map(json.dumps, FACTS)))
    done = command(*words)
    assert "left out" not in done.stderr
    assert left_out(f"{verb}.duckdb") == []


@pytest.mark.parametrize("verb", ["trace", "edit", "mass", "tune", "facts"])
def test_a_refused_command_stores_nothing_of_it(command, workplace, verb):
    words = (*VERBS[verb], "--store", f"refused-{verb}.duckdb")
    refused = command(*words, "--model", "nowhere/model.gguf", code=2)
    assert "model.gguf" in refused.stderr
    if (workplace / f"refused-{verb}.duckdb").exists():
        assert left_out(f"refused-{verb}.duckdb") == []


@pytest.mark.parametrize("verb", ["trace", "edit", "mass", "tune", "facts"])
def test_a_bad_record_stops_a_verb_by_default(command, workplace, verb):
    words = [word for word in VERBS[verb] if word not in ("--on-bad", "skip")]
    refused = command(*words, "--store", "stopped.duckdb", code=2)
    assert refused.stderr == f"fasttrace: bad.jsonl, line 2, {WHY}\n"
    assert not (workplace / "stopped.duckdb").exists()


def test_a_dry_run_of_a_study_says_it_and_writes_nothing(command, workplace):
    assert WHY in command("study", "bad.toml", "--dry-run", "--out", "dry").stderr
    assert not (workplace / "dry").exists()
