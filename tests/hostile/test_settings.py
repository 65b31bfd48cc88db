"""Values out of every bound: refused in a sentence before anything is loaded, traced or written."""

import json
import time

import pytest
import torch
from edit_cases import CONTEXTS, FACTS
from small_models import small_model

import fasttrace as ft
from fasttrace.editing import value
from fasttrace.editing.methods.finetune import FineTuneBatch
from fasttrace.studies.load import load_study

WHOLE = "9" * 20
MODEL = ("--model", "no/model")  # loading it would raise another error


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("trace", "--memory", f"{WHOLE}GB"), "memory: expected a size such as 512MB or 8GB, at most 1024TB"),
        (
            ("trace", "--windows", WHOLE),
            "windows: expected a list in which each item is a whole number from 1 to 10000",
        ),
        (("trace", "--samples", "1e300"), "samples: expected a whole number from 1 to 1000000, got '1e300'"),
        (("trace", "--samples", WHOLE), "samples: expected a whole number from 1 to 1000000"),
        (("trace", "--seed", WHOLE), "seed: expected a whole number from 0 to 9223372036854775807"),
        (("trace", "--verify-top", WHOLE, "--method", "attribution"), "verify_top: expected a whole number"),
        (("edit", "--layers", "99999999999"), "layers: expected a list in which each item is a whole number from 0"),
        (("edit", "--set", "steps=1e300"), "steps: expected a whole number from 1 to 100000, got '1e300'"),
        (("edit", "--set", "steps=100001"), "steps: expected a whole number from 1 to 100000, got '100001'"),
        (("edit", "--set", "lr=1e300"), "lr: expected a number above 0 and at most 1000000, got '1e300'"),
        (("edit", "--set", "kl_factor=1e300"), "kl_factor: expected a number from 0 to 1000000, got '1e300'"),
        (("edit", "--set", "clamp=nan"), "clamp: expected a number above 0 and at most 1000000, got 'nan'"),
        (("edit", "--contexts", "-3"), "contexts: expected a whole number from 0 to 1000000 or a list"),
        (("edit", "--contexts", WHOLE), "contexts: expected a whole number from 0 to 1000000 or a list"),
        (("edit", "--window-size", WHOLE), "window_size: expected a whole number from 1 to 10000"),
        (("edit", "--corpus-tokens", WHOLE), "corpus_tokens: expected a whole number from 1 to 10000000000"),
        (("edit", "--ridge", "1e300"), "ridge: expected a number from 0 to 1000000"),
        (
            ("edit", "--method", "ft-1", "--ridge", "0.1"),
            "ridge: expected a value only with rome, memit, emmet, alphaedit, pmet, got one with f",
        ),
        (
            ("edit", "--method", "ft-5", "--contexts", "3"),
            "contexts: expected a value only with rome, memit,",
        ),
        (("mass", "--layer", WHOLE), "layer: expected a whole number from 0 to 10000"),
        (("mass", "--at-once", WHOLE), "at_once: expected a whole number from 1 to 1000000"),
        (("tune", "--values", "1e300"), "kl_factor: expected a number from 0 to 1000000"),
        (("stats", "--sequence-length", WHOLE), "sequence_length: expected a whole number from 2 to 1000000"),
        (("stats", "--layers", "-1"), "layers: expected a list in which each item is a whole number from 0 to 10000"),
    ],
    ids=lambda part: " ".join(part)[:40] if isinstance(part, tuple) else "",
)
def test_options_out_of_bounds(words, sentence, run, workplace):
    store = () if words[0] == "stats" else ("--store", "none.duckdb")
    begun = time.perf_counter()
    done = run(*words, *MODEL, *store, code=2)
    assert time.perf_counter() - begun < 5
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not done.stdout
    assert not (workplace / "none.duckdb").exists()


STUDY = """
model = "no/model"
[facts]
file = "facts.jsonl"
known = false
[[trace]]
samples = 2
sigma = 0.4
[moments]
corpus = "text.txt"
tokens = 1500
[[edit]]
methods = ["rome", "ft-1"]
layers = [1, 2]
contexts = 2
essence = 0
"""


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        ("tokens = 1500", "ridge = -1", "[moments] ridge: expected a number from 0 to 1000000, got -1"),
        ("tokens = 1500", "ridge = nan", "[moments] ridge: expected a number from 0 to 1000000, got nan"),
        ("tokens = 1500", f"tokens = {WHOLE}", "[moments] tokens: expected a whole number from 1 to"),
        ('"text.txt"', "3", "[moments] corpus: expected a path, got 3"),
        ('"text.txt"', '"a\\u0000b"', "[moments] corpus: expected a path, got 'a\\x00b'"),
        ("layers = [1, 2]", "layers = 99999999999", "[edit] layers: expected a whole number from 0 to 10000 or a list"),
        ("layers = [1, 2]", "layers = 0", "[edit] layers: expected how many, at least 1, or a list such as [0]"),
        ("layers = [1, 2]", "layers = [-1]", "[edit] layers: expected a whole number from 0 to 10000 or a list"),
        ("layers = [1, 2]", "layers = true", "[edit] layers: expected a whole number from 0 to 10000 or a list"),
        ("contexts = 2", "contexts = -3", "[edit] contexts: expected a whole number from 0 to 1000000 or a list"),
        ("contexts = 2", 'contexts = ["{}", "x"]', "[edit] contexts: expected templates with one '{}' each, got 'x'"),
        (
            '["rome", "ft-1"]',
            '["ft-1"]',
            "[edit] contexts: expected a value only with rome, memit, emmet, alphaedit, pmet",
        ),
        ("essence = 0", 'noise = "pink"', "[edit] noise: expected one of philox, released, got 'pink'"),
        ("essence = 0", "set = { steps = 1e300 }", "steps: expected a whole number from 1 to 100000, got 1e+300"),
        ("essence = 0", "set = { lr = inf }", "lr: expected a number above 0 and at most 1000000, got inf"),
        ("essence = 0", "noise_sample = -1", "[edit] noise_sample: expected a whole number from 0"),
        ("[facts]", f'memory = "{WHOLE}GB"\n[facts]', "[study] memory: expected a size such as 512MB or 8GB, at most"),
        ("[facts]", "seed = 1.5\n[facts]", "[study] seed: expected a whole number from 0 to"),
        ("[facts]", f"seed = {WHOLE}\n[facts]", "[study] seed: expected a whole number from 0 to"),
        ("samples = 2", "samples = 0", "[trace] samples: expected a whole number from 1 to 1000000, got 0"),
        ("samples = 2", "windows = 99999999999999999999", "[trace] windows: expected a list"),
        ("samples = 2", f"windows = {'[' * 5000}{']' * 5000}", "its values are nested too deep"),
        ("samples = 2", f"# {'x' * 200_000}", "expected at most 100000 bytes, got 200"),
        ("facts.jsonl", "none.jsonl", "none.jsonl: expected a file of facts, got a path that does not exist"),
    ],
)
def test_values_of_a_study_file(old, new, sentence, run, workplace):
    assert old in STUDY
    (workplace / "bad.toml").write_text(STUDY.replace(old, new, 1))
    done = run("study", "bad.toml", code=2)
    assert sentence in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (workplace / "bad").exists()


@pytest.mark.parametrize(
    ("old", "new", "sentence"),
    [
        (
            "layers = [1, 2]",
            "layers = [5]",
            "[edit] layers: expected some of 0 to 4, as in [4], or how many as a number",
        ),
        (
            "tokens = 1500",
            "tokens = 40",
            "[moments] the second moment C of layer 0 (80 x 80) is singular with 40 tokens",
        ),
        ("tokens = 1500", "sequence_length = 9999", "[moments] second_moments: sequence_length: expected 2 to"),
        ("text.txt", "empty.txt", "[moments] corpus 'empty.txt': expected at least one token, got no text"),
        ("text.txt", "bytes.txt", "[moments] corpus file 'bytes.txt': expected UTF-8 text, got other bytes at byte 0"),
        ("text.txt", "folder", "[moments] corpus folder 'folder': expected at least one .txt file, got none"),
        ("contexts = 2", f'contexts = ["{{}}", "{"the city " * 200}{{}}"]', "expected at most"),
        ("essence = 0", 'problems = ["error-injection"]', "target_false"),
    ],
)
def test_values_that_do_not_fit_the_model_are_refused_before_any_pass(old, new, sentence, run, workplace, monkeypatch):
    (workplace / "empty.txt").write_text("")
    (workplace / "bytes.txt").write_bytes(b"\xff\xfe")
    (workplace / "folder").mkdir(exist_ok=True)
    facts = [json.loads(line) for line in (workplace / "facts.jsonl").read_text().splitlines()]
    del facts[-1]["target_false"]
    (workplace / "true.jsonl").write_text("\n".join(map(json.dumps, facts)))
    monkeypatch.setattr("fasttrace.study.trace_into", lambda *_: pytest.fail("traced before the check"))
    text = STUDY.replace("no/model", "model").replace(old, new, 1)
    (workplace / "late.toml").write_text(
        text.replace("facts.jsonl", "true.jsonl") if sentence == "target_false" else text
    )
    done = run("study", "late.toml", code=2)
    assert sentence in done.stderr
    assert sum(line.startswith("fasttrace: ") for line in done.stderr.splitlines()) == 1


def test_a_deep_parameter(run):
    done = run("sql", "SELECT $a", "--store", "none.duckdb", "--param", f"a={'[' * 5000}{']' * 5000}", code=2)
    assert "expected a list such as" in done.stderr
    assert len(done.stderr) < 500


def test_deep_json_and_long_prompts_are_refused_at_once(run, workplace, tmp_path):
    deep, long = tmp_path / "deep.json", tmp_path / "long.jsonl"
    deep.write_text("[" * 5000 + "]" * 5000)
    fact = {"prompt": "x " * 5_000_000 + "{} is", "subject": "Rome", "target_true": "a", "target_false": "b"}
    long.write_text(json.dumps(fact))
    begun = time.perf_counter()
    assert "deep.json" in run("facts", "--facts", str(deep), code=2).stderr
    refused = run("facts", "--facts", str(long), code=2).stderr
    assert "long.jsonl, line 1, field 'prompt': expected at most 100000 characters, got 10000005" in refused
    assert len(refused) < 1000
    with pytest.raises(ft.FactError, match="expected at most 100000 characters in a text, got 10000005"):
        ft.Fact(**fact)
    assert time.perf_counter() - begun < 5


@pytest.fixture(scope="module")
def model(small_tokenizer):
    return small_model("llama", small_tokenizer, torch.float32)


@pytest.fixture(scope="module")
def moments(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("moments")
    (folder / "text.txt").write_text(" ".join(f"{fact.text} {fact.target_true}" for fact in FACTS * 60))
    return ft.second_moments(model, folder / "text.txt", tokens=600, ridge=0.01, cache_dir=folder, sequence_length=32)


def diverging(monkeypatch, owner, name):
    """Make the loss of a batch's first job infinite."""
    plain = getattr(owner, name)

    def changed(*given):
        found = plain(*given)
        first = found[0] if isinstance(found, tuple) else found
        grown = torch.cat([first[:1] * torch.inf, first[1:]])
        return (grown, *found[1:]) if isinstance(found, tuple) else grown

    monkeypatch.setattr(owner, name, changed)


@pytest.mark.parametrize("method", ["rome", "memit", "ft-1", "ft-5"])
def test_an_edit_that_diverges_is_zero_and_says_so(method, model, moments, monkeypatch):
    diverging(monkeypatch, value._Objective, "losses")
    diverging(monkeypatch, FineTuneBatch, "_nll")
    solved = {"contexts": CONTEXTS, "moments": moments} if method in ("rome", "memit") else {}
    shared = {"method": method, "window_size": 1, "steps": 2, "essence": 0}
    found = {row["fact_id"]: row for row in ft.edit(model, FACTS, layers=1, **shared, **solved).scores.to_pylist()}
    bad, good = (found[fact.fact_id] for fact in FACTS)
    assert "the optimisation diverged" in bad["reason"]
    assert bad["p_after"] == bad["p_before"]
    assert (bad["rewrite"], bad["loss"]) == (0.0, None)
    assert good["reason"] is None
    assert good["p_after"] != good["p_before"]
    rows = ft.mass_edit(model, FACTS, layer=1, **shared, **solved).scores.to_pylist()
    assert any("the optimisation diverged" in (row["reason"] or "") for row in rows)
    assert all(row["rewrite"] is not None for row in rows)


def test_the_command_says_that_an_edit_diverged(run, workplace, monkeypatch):
    diverging(monkeypatch, FineTuneBatch, "_nll")
    done = run("edit", "--model", "model", "--facts", "facts.jsonl", "--store", "diverged.duckdb", "--method", "ft-1",
               "--layers", "1", "--essence", "0", "--set", "steps=2", "--json")  # fmt: skip
    assert "edits have a reason, the first: the optimisation diverged" in done.stderr
    rows = json.loads(done.stdout)
    assert all(row["rewrite"] is not None for row in rows)


def test_a_number_of_layers_and_a_list_of_layers(tmp_path):
    for text, layers in (("8", 8), ("[8]", (8,))):
        path = tmp_path / "own.toml"
        path.write_text(STUDY.replace("layers = [1, 2]", f"layers = {text}"))
        assert load_study(str(path)).edits[0].layers == layers
