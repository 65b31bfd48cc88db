"""A command whose work is in the store says so and loads no model. A changed file of the model is another question."""

import json
import shutil

import pytest

import fasttrace as ft
from fasttrace import recall
from fasttrace.facts import load_facts

COMMON = ("--model", "model", "--facts", "facts.jsonl")
CORPUS = ("--corpus", "text.txt", "--corpus-tokens", "1500", "--contexts", "2", "--set", "steps=1")
TRACE = ("trace", *COMMON, "--keep", "all", "--sigma", "0.4", "--windows", "3", "--samples", "2")
STUDY = """
model = "model"
[facts]
file = "facts.jsonl"
known = false
[[trace]]
windows = [3]
samples = 2
sigma = 0.4
[moments]
corpus = "text.txt"
tokens = 1500
[[edit]]
layers = [2]
window_size = 3
contexts = 2
essence = 0
set = { steps = 1 }
"""
VERBS = {
    "trace": TRACE,
    "facts": ("facts", *COMMON, "--check"),
    "edit": ("edit", *COMMON, *CORPUS, "--layers", "1,2", "--essence", "0"),
    "mass": ("mass", *COMMON, *CORPUS, "--layer", "2"),
    "study": ("study", "s.toml", "--out", "out"),
}
SAID = "nothing to "


@pytest.fixture
def no_model(monkeypatch):
    """A function after which no model can be loaded."""

    def call():
        def refuse(*_, **__):
            raise ft.ModelError("a model was loaded")

        monkeypatch.setattr(ft, "load_model", refuse)

    return call


def rows(path):
    """Every row of a store, by relation."""
    store = ft.Store(path)
    return {
        name: sorted(map(str, store.query(f"SELECT * FROM {name}").to_pylist()))
        for name in (
            "runs",
            "facts",
            "known",
            "traces",
            "trace_cells",
            "edits",
            "edit_prompts",
            "mass_edits",
            "moments",
        )
    }


@pytest.mark.parametrize("verb", VERBS)
def test_a_second_run_loads_no_model_and_prints_the_same(verb, workplace, run, no_model, monkeypatch):
    # A study's tables and figures take a minute, and are no different.
    monkeypatch.setattr("fasttrace.study.write_results", lambda store, out, *_: [out / "report.html"])
    (workplace / "s.toml").write_text(STUDY)
    path = f"{verb}.duckdb"
    as_json = (*VERBS[verb], "--store", path, "--json")
    first = run(*as_json)
    before = rows(path)
    assert SAID not in first.stdout + first.stderr
    no_model()
    second = run(*as_json)
    assert json.loads(second.stdout) == json.loads(first.stdout)
    assert rows(path) == before
    plain = run(*VERBS[verb], "--store", path)
    assert (plain.stdout + plain.stderr).count(SAID) == 1
    assert f"are in {path}" in plain.stdout + plain.stderr


def test_work_that_the_store_lacks_is_computed(workplace, run, no_model):
    run(*TRACE, "--store", "few.duckdb", "--limit", "2")
    assert SAID not in run(*TRACE, "--store", "few.duckdb").stdout, "other facts"
    assert "a model was loaded" not in run(*TRACE, "--store", "few.duckdb", "--limit", "2").stderr
    no_model()
    for words in (("--samples", "3"), ("--seed", "1"), ("--dtype", "float64"), ("--limit", "3")):
        assert "a model was loaded" in run(*TRACE, "--store", "few.duckdb", *words, code=2).stderr
    assert "a model was loaded" in run(*TRACE, "--store", "new.duckdb", code=2).stderr
    ft.Store("few.duckdb").query("SELECT 1")
    assert SAID in run(*TRACE, "--store", "few.duckdb").stdout


def test_changed_files_of_the_model_or_the_facts_are_noticed(workplace, run, tmp_path, monkeypatch, no_model):
    for name in ("facts.jsonl", "text.txt"):
        shutil.copy(workplace / name, tmp_path)
    shutil.copytree(workplace / "model", tmp_path / "model")
    monkeypatch.chdir(tmp_path)
    words = (*TRACE, "--store", "s.duckdb")
    run(*words)
    no_model()
    assert SAID in run(*words).stdout
    weights = tmp_path / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    for name, change in (("model/model.safetensors", bytes([data[-1] ^ 1])), ("facts.jsonl", b" ")):
        path = tmp_path / name
        whole = path.read_bytes()
        with path.open("r+b") as file:  # in place, of the same size
            file.seek(-1, 2)
            file.write(change)
        if name == "facts.jsonl":
            path.write_bytes(whole.replace(b"is in the city of", b"lies in the city of"))
        assert "a model was loaded" in run(*words, code=2).stderr
        path.write_bytes(whole)
        assert SAID in run(*words).stdout


@pytest.mark.parametrize("verb", VERBS)
def test_a_fact_that_changed_under_its_fact_id_is_refused_each_time(verb, workplace, run, monkeypatch):
    monkeypatch.setattr("fasttrace.study.write_results", lambda store, out, *_: [out / "report.html"])
    records = [json.loads(line) for line in (workplace / "facts.jsonl").read_text().splitlines()]
    named = [{**record, "fact_id": f"f{i}"} for i, record in enumerate(records)]
    own, store = workplace / "own.jsonl", f"own-{verb}.duckdb"
    (workplace / "own.toml").write_text(STUDY.replace("facts.jsonl", "own.jsonl"))
    words = [{"facts.jsonl": "own.jsonl", "s.toml": "own.toml"}.get(word, word) for word in VERBS[verb]]
    own.write_text("\n".join(map(json.dumps, named)))
    run(*words, "--store", store)
    named[0]["prompt"] = "Now " + named[0]["prompt"]
    own.write_text("\n".join(map(json.dumps, named)))
    for _ in range(2):
        assert "the store has another fact with the fact_id 'f0'" in run(*words, "--store", store, code=2).stderr
    run(*words, "--store", f"other-{verb}.duckdb")  # after which the answer is known
    assert "the store has another fact with the fact_id 'f0'" in run(*words, "--store", store, code=2).stderr


PAIRED = """
model = "model"
[facts]
file = "open.jsonl"
known = false
limit = 2
pairs = 1
[[trace]]
windows = [3]
samples = 2
sigma = 0.4
[[trace]]
windows = [3]
corruption = "counterfactual"
"""
OTHERS = "is in the store with other counterfactuals of the fact"
SUBJECTS = ("Paris", "Rome", "France", "city")


def open_facts(subjects):
    """Lines of facts without a false target, whose subjects have one token each."""
    record = {"prompt": "the {} is located in", "relation": "in"}
    made = [record | {"subject": name, "target_true": f"the city {name}", "fact_id": name} for name in subjects]
    return "\n".join(map(json.dumps, made))


def test_pairs_are_those_of_the_file_in_every_run(workplace, run, monkeypatch):
    """A fact without a false target has the answer of its pair, in the runs that have the pair."""
    monkeypatch.setattr("fasttrace.study.write_results", lambda store, out, *_: [out / "report.html"])
    (workplace / "open.jsonl").write_text(open_facts(SUBJECTS[:3]))
    (workplace / "paired.toml").write_text(PAIRED)
    words = ("trace", "--model", "model", "--facts", "open.jsonl", "--limit", "2", "--keep", "all", "--windows", "3")
    noise = (*words, "--sigma", "0.4", "--samples", "2", "--store", "p.duckdb")
    pairs = (*words, "--corruption", "counterfactual", "--store", "p.duckdb", "--pairs")
    study = ("study", "paired.toml", "--out", "out", "--store")
    run(*noise)
    run(*pairs, "1")
    run(*study, "s.duckdb")
    asked = "SELECT count(*) AS n, count(logit_diff_clean) AS scored, count(target_false) AS false FROM traces"
    for path in ("p.duckdb", "s.duckdb"):  # the answer plays no part in the run with noise
        assert ft.Store(workplace / path).query(asked).to_pylist() == [{"n": 4, "scored": 2, "false": 2}]
    assert not ft.Store(workplace / "p.duckdb").query("SELECT count(target_false) AS n FROM facts")["n"][0].as_py()
    run(*pairs, "1", "--metric", "kl")  # another run, which may have other pairs
    run(*pairs, "2", "--metric", "log-probability")
    assert OTHERS in run(*pairs, "2", code=2).stderr
    run(*pairs[:-2], "two.duckdb", "--pairs", "2")  # after which its answer is known
    assert OTHERS in run(*pairs, "2", code=2).stderr
    with monkeypatch.context() as unloaded:
        unloaded.setattr(ft, "load_model", None)
        for again in (noise, (*pairs, "1"), (*study, "s.duckdb")):
            done = run(*again)
            assert SAID in done.stdout + done.stderr
    # One fact more is no fact that is studied, but another pair for one that is.
    (workplace / "open.jsonl").write_text(open_facts(SUBJECTS))
    paired = run("facts", "--model", "model", "--facts", "open.jsonl", "--limit", "2", "--pairs", "--json")
    found = [row["counterfactuals"] for row in json.loads(paired.stdout)]
    assert ["city"] in found, "choose subjects of which the fourth is the pair of one before"
    for more in ((), ("--dry-run",)):
        refused = run(*study, "s.duckdb", *more, code=2).stderr
        assert OTHERS in refused
        assert "Tracing" not in refused, "before any trace"
    (workplace / "paired.toml").write_text(PAIRED.replace("pairs = 1", "pairs = 3"))
    (workplace / "open.jsonl").write_text(open_facts(SUBJECTS[:3]))
    run(*study, "three.duckdb")  # after which its answer is known
    (workplace / "paired.toml").write_text(PAIRED.replace("pairs = 1", "pairs = 3").replace("limit = 2", "limit = 1"))
    run(*study, "three.duckdb")
    assert OTHERS in run(*study, "s.duckdb", code=2).stderr


def test_an_answer_is_not_kept_for_files_that_changed_meanwhile(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    file = tmp_path / "weights"
    file.write_bytes(b"old")
    asked = recall.question("what", [file])
    file.write_bytes(b"new")
    asked.keep({"run_id": "of the new weights"})
    file.write_bytes(b"old")
    assert recall.question("what", [file]).answer() is None
    recall.question("what", [file]).keep({"run_id": "a"})
    assert recall.question("what", [file]).answer() == {"run_id": "a"}
    assert recall.question("else", [file]).answer() is None


def test_a_question_without_an_answer_fails_nothing(tmp_path, monkeypatch):
    file = tmp_path / "weights"
    file.write_bytes(b"some")
    assert recall.question("what", [tmp_path / "none"]) is recall.NONE
    monkeypatch.setattr(recall, "MOST_BYTES", 3)
    assert recall.question("what", [file]) is recall.NONE
    monkeypatch.undo()
    monkeypatch.setenv("XDG_CACHE_HOME", str(file))
    asked = recall.question("what", [file])
    asked.keep({})
    assert asked.answer() is None
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    asked = recall.question("what", [file])
    asked.keep({"run_id": "a"})
    for damage in ("", "[]", "{}", '{"key": "", "answer": {}}', asked.path.read_text().replace('"a"', '"b"')):
        asked.path.write_text(damage)
        assert asked.answer() is None


def test_settings_that_were_given_are_told_from_defaults(tmp_path, monkeypatch):
    """A table may have another default than the type of settings says."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    steps = ft.FineTuneSettings().steps
    paths = {
        recall.question("what", settings=ft.EditSettings(method="ft-1", hyperparameters=own)).path
        for own in (None, ft.FineTuneSettings(), ft.FineTuneSettings(steps=steps), ft.FineTuneSettings(steps=steps + 1))
    }
    assert len(paths) == 4
    assert (
        recall.question("what", facts=load_facts(limit=2)).path
        != recall.question("what", facts=load_facts(limit=1)).path
    )
