"""What an edit breaks on the command line: columns of `mass`, the same from the store, and what is refused."""

import json

import pytest

from fasttrace.store import Store

MASS = ("--method", "ft-1", "--layer", "2", "--set", "steps=1", "--set", "lr=0.05", "--set", "epsilon=0.1")
ASKED = ("--score-every", "1", "--held-out", "text.txt", "--held-out-tokens", "200", "--fluency", "2")


@pytest.fixture
def command(workplace, monkeypatch, command):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    facts = ("--model", "model", "--facts", "facts.jsonl", "--limit", "3")
    return lambda *words, code=0: command("mass", *facts, *MASS, *words, code=code)


def test_mass_prints_what_is_measured_and_the_same_from_the_store(command):
    done = command(*ASKED, "--store", "breaks.duckdb", "--json")
    rows = json.loads(done.stdout)
    assert [row["n_edits"] for row in rows] == [1, 2, 3]
    stored = Store("breaks.duckdb").query("FROM mass_measures ORDER BY n_edits").to_pylist()
    for name in ("perplexity", "entropy"):
        assert [row[name] for row in rows] == [row[name] for row in stored]
    norms = Store("breaks.duckdb").query(
        "SELECT change_norm / weight_norm_unedited AS x FROM mass_norms ORDER BY n_edits"
    )
    assert [row["relative_change"] for row in rows] == pytest.approx(norms["x"].to_pylist())
    again = command(*ASKED, "--store", "breaks.duckdb", "--json")
    assert "nothing to compute" in again.stderr
    assert again.stdout == done.stdout
    delta = command(*ASKED, "--delta", "breaks.safetensors", "--json")
    assert json.loads(delta.stdout) == rows
    assert "perplexity" in command(*ASKED, "--store", "breaks.duckdb").stdout
    plain = json.loads(command("--store", "plain.duckdb", "--json").stdout)
    assert "relative_change" in plain[0]
    assert not {"perplexity", "entropy"} & plain[0].keys()


def test_another_held_out_text_under_the_same_name_is_another_run(command, workplace):
    (workplace / "own.txt").write_text("The city of Rome is the capital. " * 5)
    asked = ("--held-out", "own.txt", "--store", "own.duckdb")
    command(*asked)
    (workplace / "own.txt").write_text("New York is a city in the east. " * 5)
    assert "nothing to compute" not in command(*asked).stderr
    values = Store("own.duckdb").query("SELECT DISTINCT perplexity_unedited FROM mass_measures")
    assert len(values) == 2
    (workplace / "copy.txt").write_text((workplace / "own.txt").read_text())
    same = command("--held-out", "copy.txt", "--store", "own.duckdb")
    assert "nothing to compute" in same.stderr
    assert len(Store("own.duckdb").query("FROM runs WHERE kind = 'mass'")) == 2


def test_the_models_own_text_needs_no_file(command):
    [*_, last] = json.loads(command("--held-out", "sampled", "--store", "sampled.duckdb", "--json").stdout)
    assert last["perplexity"] > 1


def test_what_cannot_be_measured_is_one_sentence(command):
    for words, sentence in (
        (("--held-out", "none.txt"), "Invalid value for '--held-out': Path 'none.txt' does not exist."),
        (("--held-out-tokens", "9"), "mass: held_out_tokens: expected a value only with held_out, got one without"),
        (("--fluency", "many"), "mass: fluency: expected a whole number from 0 to 1000000, got 'many'"),
    ):
        done = command(*words, "--store", "no.duckdb", code=2)
        assert done.stderr.splitlines()[-1] == f"fasttrace: {sentence}"
        assert "Traceback" not in done.stderr
