"""Study files: mistakes are reported before anything is computed, and a study that runs again adds nothing twice."""

import json
from importlib.resources import files

import pytest

import fasttrace as ft
from fasttrace.errors import UserError
from fasttrace.studies.load import load_study, shipped

SMALL = """
model = "model"
memory = "4MB"
seed = 3

[facts]
file = "facts.jsonl"
known = false
order = "interleaved"

[[trace]]
windows = [3, 1]
samples = 2
sigma = 0.4

[[trace]]
method = "zero"
windows = [3]

[moments]
corpus = "text.txt"
tokens = 1500

[[edit]]
methods = ["rome", "memit", "rome"]
problems = ["error-injection", "fact-forcing"]
layers = [1, 2]
window_size = 3
contexts = 2
essence = 0
sigma = 0.4
set = { steps = 2 }

[[edit]]
methods = ["ft-1"]
layers = 2
essence = 0
window_size = 3
set = { steps = 2, epsilon = 0.01 }
"""


def test_a_study_runs_resumes_and_reports(run, workplace):
    (workplace / "small.toml").write_text(SMALL)
    plan = json.loads(run("study", "small.toml", "--dry-run", "--json").stdout)
    assert not (workplace / "small").exists(), "a dry run writes nothing"
    totals = {stage["what"]: stage["total"] for stage in plan}
    assert totals["error-injection, rome"] == 8
    assert totals["error-injection, ft-1"] == 8
    assert totals["trace denoise mlp window 3, 1"] == 4
    assert all(stage["seconds"] > 0 for stage in plan)

    (workplace / "small.toml").write_text(SMALL.partition("[moments]")[0])
    first = run("study", "small.toml", "--json")
    assert "overwritten" not in first.stderr, "the command's own status file, which it writes all the time"
    store = ft.Store(workplace / "small" / "study.duckdb")
    traced = store.query("SELECT run_id, seconds FROM runs WHERE kind = 'trace' ORDER BY run_id")
    assert traced.num_rows == 2

    (workplace / "small.toml").write_text(SMALL)
    written = json.loads(run("study", "small.toml", "--json").stdout)["written"]
    assert store.query("SELECT run_id, seconds FROM runs WHERE kind = 'trace' ORDER BY run_id") == traced
    assert any(path.endswith("table-3.csv") for path in written)
    assert any(path.endswith("figure-6.svg") for path in written)
    assert written[-1].endswith("report.html")
    cells = store.query("SELECT problem, method, count(*) AS n FROM edits GROUP BY ALL ORDER BY ALL").to_pylist()
    assert [(row["problem"], row["method"], row["n"]) for row in cells] == [
        ("error-injection", "ft-1", 8), ("error-injection", "memit", 8), ("error-injection", "rome", 8),
        ("fact-forcing", "memit", 8), ("fact-forcing", "rome", 8),
    ]  # fmt: skip
    asked = store.query("SELECT settings FROM runs WHERE kind = 'trace'")["settings"].to_pylist()
    tokens = {run["method"]: run["tokens"] for run in map(json.loads, asked)}
    assert tokens == {"denoise": "all", "zero": "whole-subject"}
    plan = json.loads(run("study", "small.toml", "--dry-run", "--json").stdout)
    assert all(stage["done"] == stage["total"] for stage in plan if stage["unit"] != "tokens")
    (workplace / "small.toml").write_text(SMALL.replace("seed = 3", "seed = 4"))
    plan = json.loads(run("study", "small.toml", "--dry-run", "--json").stdout)
    assert {stage["done"] for stage in plan if stage["unit"] == "edits"} == {0}, "the stored edits have another seed"


def test_a_plan_for_workers(run, workplace):
    (workplace / "planned.toml").write_text(SMALL)
    alone = json.loads(run("study", "planned.toml", "--dry-run", "--json").stdout)
    plan = json.loads(run("study", "planned.toml", "--dry-run", "--json", "--workers", "4").stdout)
    assert [stage["total"] for stage in plan["stages"]] == [stage["total"] for stage in alone]
    assert plan["hours"] == pytest.approx(sum(stage["seconds"] for stage in plan["stages"]) / 4 / 3600)
    assert (plan["workers"], plan["gpu_hours"]) == (4, 0.0)
    weights = sum(file.stat().st_size for file in (workplace / "model").glob("*.safetensors"))
    assert plan["memory_bytes"] > weights
    text = run("study", "planned.toml", "--dry-run", "--workers", "4").stdout
    assert "with 4 workers, each as fast as this machine" in text
    refused = run("study", "planned.toml", "--dry-run", "--workers", "auto", code=2).stderr
    assert "--workers: expected a number with --dry-run, got auto" in refused


def test_the_first_known_facts(run, workplace):
    """known = 2 keeps the first two facts that the model knows. This model knows none, so the study is refused."""
    (workplace / "known.toml").write_text(
        'model = "model"\n[facts]\nfile = "facts.jsonl"\nknown = 2\n[[trace]]\nsamples = 2\nsigma = 0.4\n'
    )
    refused = run("study", "known.toml", code=2)
    assert "of 4 facts none is known to model" in refused.stderr
    assert not ft.Store(workplace / "known" / "study.duckdb").query("SELECT * FROM traces").num_rows


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("samples", "sample", r"\[trace\] has no setting 'sample'; did you mean 'samples'\?"),
        ("samples = 2", 'samples = "two"', r"\[trace\] samples: expected a whole number from 1 to 1000000, got 'two'"),
        ("windows = [3, 1]", "windows = []", r"\[trace\] windows: expected a list .* from 1 to 10000, got \[\]"),
        ("seed = 3", "seed = true", r"\[study\] seed: expected a whole number from 0 to 9223372036854775807, got True"),
        ('"memit"', '"memitt"', r"\[edit\] methods: expected a list in which each item is one of .*, got .*'memitt'"),
        ('"interleaved"', '"random"', r"\[facts\] order: expected one of given, interleaved, shuffled, got 'random'"),
        (
            'order = "interleaved"',
            "pairs = 1",
            r"\[facts\] pairs: expected a \[\[trace\]\] with corruption counterfactual",
        ),
        ("[moments]", "[moment]", r"\[study\] has no setting 'moment'; did you mean 'moments'\?"),
        ("[moments]", "[[moments]]", r"\[moments\]: expected a table, got \["),
        ("[[trace]]", "[trace]", "is not TOML"),
        ("seed = 3", "seed = ", "is not TOML"),
    ],
)
def test_mistakes_in_a_study_file_are_named(tmp_path, old, new, sentence):
    path = tmp_path / "own.toml"
    assert old in SMALL
    path.write_text(SMALL.replace(old, new))
    with pytest.raises(UserError, match=sentence) as caught:
        load_study(str(path))
    assert "\n" not in str(caught.value)


def test_a_setting_of_another_method_is_refused_before_anything_is_computed(run, workplace):
    (workplace / "wrong.toml").write_text(SMALL.replace("set = { steps = 2 }", "set = { epsilon = 2 }"))
    refused = run("study", "wrong.toml", code=2)
    assert "rome has no setting 'epsilon'" in refused.stderr
    assert not (workplace / "wrong").exists()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("layers = [1, 2]", "layers = [99]", "[edit] layers: expected some of 0 to "),
        ("text.txt", "none.txt", "[moments] corpus 'none.txt': expected a text file or a folder"),
    ],
)
def test_bad_inputs_of_edits_are_refused_before_tracing(run, workplace, old, new, sentence):
    (workplace / "late.toml").write_text(SMALL.replace(old, new))
    for more in (("--dry-run",), ()):
        refused = run("study", "late.toml", *more, code=2)
        assert sentence in refused.stderr


def test_unknown_studies():
    with pytest.raises(UserError, match=r"expected a \.toml file or a shipped study \(demo, .*\), got 'gpt-5'"):
        load_study("gpt-5")
    with pytest.raises(UserError, match=r"there is no study file 'nowhere\.toml'"):
        load_study("nowhere.toml")


@pytest.mark.parametrize("name", shipped())
def test_shipped_studies_load_and_can_be_shown(name, run):
    study = load_study(name)
    assert study.edits
    assert study.traces
    assert run("study", name, "--show").stdout == (files("fasttrace.studies") / f"{name}.toml").read_text()


def test_the_papers_studies_have_the_papers_cells():
    for name, cells in (("gpt-j", 20), ("gpt2-xl", 8), ("smollm2-135m", 20)):
        [edits] = load_study(name).edits
        assert len(edits.methods) * len(edits.problems) == cells
    xl = load_study("gpt2-xl")
    assert xl.edits[0].problems == ("error-injection", "fact-forcing")
    assert [trace.windows for trace in xl.traces] == [(10,)]
    assert xl.settings.tracing_window == 10
    assert xl.edits[0].layers == (0, 4, 8, 12, 16, 17, 20, 24, 28, 32, 36, 40, 44, 47)
    j = load_study("gpt-j")
    assert j.edits[0].layers == (0, 4, 5, 8, 12, 16, 20, 24, 27)
    assert [(trace.method, trace.windows) for trace in j.traces] == [("denoise", (10, 5, 3, 1)), ("zero", (5,))]
