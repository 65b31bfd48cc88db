"""The commands and the code that the report gives: they repeat its runs and print its numbers."""

import contextlib
import csv
import dataclasses
import html
import io
import json
import shlex
import subprocess
import sys

import pyarrow as pa
import pytest
from click.testing import CliRunner
from made_results import made_trace
from plausible import edit_result, mass_result, study_facts, trace_result
from reports import codes, embedded

from fasttrace.analysis.commands import commands, opening
from fasttrace.analysis.exhibits import exhibits
from fasttrace.analysis.relation import query, relation
from fasttrace.analysis.report import write_report
from fasttrace.cli import cli
from fasttrace.facts import Fact, load_facts
from fasttrace.store import Store


def test_the_commands_read_the_facts_of_each_run_from_the_store(study, tmp_path):
    runs = study.query("SELECT * FROM runs").to_pylist()
    counts = {run["run_id"]: {"layers": [0, 4] if run["kind"] == "edit" else None} for run in runs}
    lines = commands(runs, counts, opening(study))
    place = lines.index(next(line for line in lines if line.startswith("fasttrace edit")))
    assert " --layers 0,4 " in lines[place]
    assert lines[place].endswith(" --set steps=20 --facts facts-edit-err.jsonl --store again.duckdb")
    program, *arguments = shlex.split(lines[place - 1])
    assert (program, arguments[0], arguments[2:]) == ("python", "-c", [">", "facts-edit-err.jsonl"])
    here = study.path.parent
    told = subprocess.run([sys.executable, *arguments[:2]], capture_output=True, text=True, check=True, cwd=here)
    (tmp_path / "facts.jsonl").write_text(told.stdout)
    edited = [fact for fact in study_facts() if fact.fact_id != "place-21"]
    assert sorted(load_facts(tmp_path / "facts.jsonl"), key=lambda fact: fact.fact_id) == edited


def test_no_page_figure_or_table_has_a_path_of_the_machine_that_made_it(tmp_path, command, monkeypatch):
    """Neither the store's, nor that of a model, a corpus or a tokenizer; the commands say what stands for them."""
    home = tmp_path / "home"
    facts, store = study_facts(count=4), Store(home / "runs" / "study.duckdb")
    home.joinpath("runs").mkdir(parents=True)
    about = {"model": str(home / "my-model"), "model_hash": "h"}
    made = [trace_result(facts, windows=(5, 10), **about), edit_result(facts, **about), mass_result(facts, **about)]
    made += [edit_result(facts, run_id="other", seed=1), trace_result(facts, run_id="t-other")]  # so that models differ
    made[1].run["settings"] = json.dumps(json.loads(made[1].run["settings"]) | {"corpus": str(home / "texts")})
    for result in made:
        store.add(result)
    monkeypatch.chdir(tmp_path)
    page = write_report(store, tmp_path / "r.html").read_text()
    command("figures", "--store", str(store.path), "--out", "f")
    command("tables", "--store", str(store.path), "--format", "markdown", "--out", "t", "--resamples", "0")
    texts = [page, json.dumps(embedded(page)), *(path.read_text() for path in tmp_path.glob("[ft]/*"))]
    assert len(texts) > 12
    assert not [text for text in texts if str(tmp_path) in text]
    plain = html.unescape(page)
    assert "fasttrace trace --model '…/my-model' --dtype" in plain
    assert "“…/” stands for a folder of the machine" in plain
    assert '"corpus": "…/texts"' in plain
    assert 'fasttrace.Store("study.duckdb")' in plain
    assert "Does localization inform editing? SmolLM2-135M-Instruct (Q4_1), my-model" in plain
    # What is missing is made in this store, wherever it is: below the working directory its path from here.
    said = command("figures", "17", "--store", str(store.path), code=2).stderr
    assert "--store home/runs/study.duckdb" in said.partition("make them with")[2]
    assert str(tmp_path) not in said.partition("make them with")[2]


def test_the_facts_of_a_run_have_the_counterfactuals_of_that_run(tmp_path):
    store = Store(tmp_path / "pairs.duckdb")
    fact = Fact("{} is in", "f0", "Rome", fact_id="f0")
    store.add_facts([fact])
    for run_id, pairs, false in (
        ("t0", ["Bonn is in"], "Germany"),
        ("t1", ["Oslo is in", "Kiel is in"], "Norway"),
        ("t2", None, None),
    ):
        made = made_trace(["f0"], run_id=run_id)
        row = made.facts.to_pylist()[0] | {"counterfactuals": pairs, "target_false": false}
        store.add(dataclasses.replace(made, facts=pa.Table.from_pylist([row], schema=made.facts.schema)))
        lines = [json.dumps(record) for record in relation(store, "facts_of_run", {"run_id": run_id}).to_pylist()]
        (tmp_path / "facts.jsonl").write_text("\n".join(lines))
        wanted = dataclasses.replace(fact, counterfactual_prompt=tuple(pairs or ()), counterfactual_answer=false)
        assert load_facts(tmp_path / "facts.jsonl") == [wanted]


def test_the_command_line_accepts_the_commands(twenty):
    runs = twenty.store.query("SELECT * FROM runs").to_pylist()
    counts = {row["run_id"]: row for row in relation(twenty.store, "run_counts").to_pylist()}
    lines = [line for line in commands(runs, counts, opening(twenty.store)) if line.startswith("fasttrace")]
    assert len(lines) == 1 + 20 + 1 + 1
    for line in lines:
        _, verb, *words = shlex.split(line)
        cli.get_command(None, verb).make_context(verb, words)  # raises if an option or a value is unknown


def same(one: str, other: str) -> bool:
    """Whether two CSVs are equal up to the last digits, since DuckDB's threads add in no fixed order."""
    rows = [list(csv.reader(io.StringIO(text))) for text in (one, other)]
    for a, b in zip(*rows, strict=True):
        for x, y in zip(a, b, strict=True):
            if x != y and float(x) != pytest.approx(float(y), rel=1e-9, abs=1e-12):
                return False
    return True


def test_the_code_beside_every_exhibit_prints_its_numbers(twenty, monkeypatch):
    monkeypatch.chdir(twenty.store.path.parent)
    shown = exhibits(twenty.store)
    assert [exhibit.key for exhibit in shown] == [
        "r2",
        "pairs",
        "layers",
        "curve",
        "peaks",
        "roles",
        "tokens",
        "mass",
        "sequence",
    ]
    pythons = [text for name, text in codes(twenty.text) if name == "Python"]
    queries = [text for name, text in codes(twenty.text) if name == "SQL"]
    kept = embedded(twenty.text)["csv"]
    for exhibit, python, text in zip(shown, pythons, queries, strict=True):
        out = io.StringIO()
        with contextlib.redirect_stdout(out):
            exec(python, {})
        assert same(out.getvalue(), kept[exhibit.key])
        rows = query(twenty.store, text)
        assert rows.num_rows > 0
        assert set(rows.column_names) <= set(kept[exhibit.key].splitlines()[0].split(","))


def test_the_papers_counterparts_can_be_made_by_the_commands_given(twenty, tmp_path, monkeypatch):
    monkeypatch.chdir(twenty.store.path.parent)
    lines = [
        line
        for name, text in codes(twenty.text)
        if name == "Commands for the paper’s version"
        for line in text.splitlines()
    ]
    told = [" ".join(shlex.split(line)[1 : shlex.split(line).index("--store")]) for line in lines]
    assert told == ["tables 1 3", "figures 6", "figures 4 15", "figures 7", "figures 10", "figures 1 11"]
    for line in lines:
        _, *words = shlex.split(line)
        extra = ["--out", str(tmp_path)] if words[0] == "figures" else ["--resamples", "0"]
        assert CliRunner().invoke(cli, [*words, *extra], catch_exceptions=False).exit_code == 0
    assert len(list(tmp_path.glob("figure-*.svg"))) == 7
