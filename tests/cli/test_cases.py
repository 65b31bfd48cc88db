"""Cases on the command line: their edits together, their questions after them, and what is refused."""

import json

import pytest
from command_line import FACTS

from fasttrace.store import Store

HOP = {"kind": "multi-hop", "prompt": "Where is it? It is in", "answers": ["Rome", "Paris"], "after": "case"}
CASES = [
    {**FACTS[0], "case_id": "a"},
    {**FACTS[1], "case_id": "a", "probes": [HOP]},
    {**FACTS[2], "case_id": "b", "probes": [HOP]},
]
MASS = ("--method", "ft-1", "--layer", "2", "--set", "steps=1")
EDIT = ("--method", "ft-1", "--layers", "2", "--set", "steps=1", "--essence", "0")


@pytest.fixture
def command(workplace, monkeypatch, command):
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    (workplace / "cases.jsonl").write_text("\n".join(map(json.dumps, CASES)))
    return lambda verb, *words, code=0: command(verb, "--model", "model", "--facts", "cases.jsonl", *words, code=code)


def test_the_edits_of_a_case_are_made_together(command):
    done = command("mass", *MASS, "--together", "case", "--store", "cases.duckdb")
    assert "not asked" not in done.stderr
    kinds = done.stdout[done.stdout.index("By kind of prompt") :]
    assert [line.split()[:4] for line in kinds.splitlines() if "multi-hop" in line] == [
        ["2", "1", "multi-hop", "changed"], ["2", "2", "multi-hop", "changed"],
    ]  # fmt: skip
    asked = Store("cases.duckdb").query("SELECT n_edits, fact_id FROM mass_prompts WHERE kind = 'multi-hop' ORDER BY 1")
    facts = Store("cases.duckdb").query("SELECT fact_id FROM facts WHERE len(probes) > 0")
    assert set(asked["fact_id"].to_pylist()) == set(facts["fact_id"].to_pylist())
    again = command("mass", *MASS, "--together", "case", "--store", "cases.duckdb")
    assert "nothing to compute" in again.stderr
    assert again.stdout == done.stdout


def test_edits_of_several_models_are_not_written_as_one(command, workplace):
    for option, place in (("--delta", "cases.safetensors"), ("--export", "edited")):
        done = command("mass", *MASS, "--together", "case", option, place, code=2)
        assert done.stderr.splitlines()[-1] == (
            f"fasttrace: {option}: expected the edits of one model, got those of 2 cases"
        )
        assert not (workplace / place).exists()


def test_single_edits_say_that_they_do_not_ask_for_cases(command, caplog):
    done = command("edit", *EDIT, "--store", "edits.duckdb")
    assert "1 probe is not asked" in caplog.text
    [hop] = [line.split() for line in done.stdout.splitlines() if "multi-hop" in line]
    assert hop[:4] == ["2", "multi-hop", "changed", "1"], "that of the case with one edit"
