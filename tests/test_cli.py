"""The command line end to end on a small model in a folder: every verb, its errors, and a kill in the middle."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
from command_line import FACTS

import fasttrace as ft
from fasttrace.analysis.relation import relation
from fasttrace.cli import cli

COMMON = ("--model", "model", "--facts", "facts.jsonl")
TRACE = ("trace", *COMMON, "--keep", "all", "--sigma", "0.4", "--windows", "3,1", "--samples", "3")
CORPUS = ("--corpus", "text.txt", "--corpus-tokens", "1500")
EDIT = ("edit", *COMMON, *CORPUS, "--window-size", "3")


def test_a_study_verb_by_verb(workplace, run):
    store = ("--store", "study.duckdb")
    listed = json.loads(run("facts", *COMMON, "--check", "--json", *store).stdout)
    assert [row["target_true"] for row in listed] == ["Paris", "Rome", "Paris", "Rome"]
    assert all(0 < row["p_true"] < 1 and row["known"] in (True, False) for row in listed)
    traced = json.loads(run(*TRACE, *store, "--json").stdout)
    assert len(traced) == 4
    assert all(row["kept"] for row in traced)
    stats = json.loads(run("stats", "--model", "model", "--corpus", "text.txt", "--json", *store).stdout)
    assert stats[0]["layers"] == 5
    edited = json.loads(run(*EDIT, "--layers", "0,2,3", *store, "--json").stdout)
    assert len(edited) == 12
    counted = run("sql", "SELECT count(*) AS n FROM trace_cells", *store, "--json")
    traces = ft.Store(workplace / "study.duckdb").query("SELECT tokens FROM traces").to_pylist()
    assert json.loads(counted.stdout) == [{"n": sum(len(row["tokens"]) for row in traces) * 5 * 2}]
    tables = json.loads(run("tables", *store, "--json").stdout)
    assert tables["regressions"][0]["n"] + tables["regressions"][0]["n_left_out"] == 12
    assert "R²" in run("tables", *store).stdout
    run("report", *store, "--out", "report.html")
    assert "Does localization inform editing?" in (workplace / "report.html").read_text()
    again = run(*TRACE, *store)
    assert "nothing to compute: all 4 facts are in study.duckdb" in again.stdout
    assert "nothing to compute: all 12 edits are in study.duckdb" in run(*EDIT, "--layers", "0,2,3", *store).stderr
    assert json.loads(counted.stdout) == json.loads(
        run("sql", "SELECT count(*) AS n FROM trace_cells", *store, "--json").stdout
    )


def test_every_way_of_tracing_from_the_command_line(workplace, run):
    store = ("--store", "ways.duckdb")
    plan = json.loads(run(*TRACE, "--dry-run", "--json").stdout)
    assert (plan["facts"], plan["waves"]) == (4, 1)
    assert plan["seconds"] > 0
    assert "expected time" in run(*TRACE, "--dry-run").stdout
    assert not (workplace / "ways.duckdb").exists()
    said = run(*TRACE, *store).stdout
    assert f"{plan['flops'] / 1e12:.2f} TFLOP" in said
    assert "% of the" in said
    run(*TRACE, "--module", "attn", "--method", "noise", "--scored", "first-token", "--keep-samples", *store)
    run(*TRACE, "--method", "zero", *store)
    run(*TRACE, "--method", "attribution", "--verify-top", "3", "--module", "block", *store)
    query = """
        SELECT run.settings ->> '$.method' AS method, count(*) AS cells, bool_or(approximate) AS approximate,
               run.settings ->> '$.tokens' AS asked,
               count(DISTINCT token_index) AS tokens, any_value(run.flops) AS flops,
               (SELECT count(*) FROM trace_samples AS drawn WHERE drawn.run_id = run.run_id) AS samples
        FROM trace_cells JOIN runs AS run USING (run_id) GROUP BY run.run_id, run.settings ORDER BY method
    """
    rows = {row["method"]: row for row in ft.Store(workplace / "ways.duckdb").query(query).to_pylist()}
    assert set(rows) == {"attribution", "denoise", "noise", "zero"}
    assert [rows[name]["approximate"] for name in sorted(rows)] == [True, False, False, False]
    assert rows["denoise"]["cells"] == plan["cells"]
    assert rows["noise"]["samples"] == 3 * rows["noise"]["cells"]
    assert rows["zero"]["cells"] == 4 * 5 * 2
    by_method = {"attribution": "all", "denoise": "all", "noise": "all", "zero": "whole-subject"}
    assert {name: row["asked"] for name, row in rows.items()} == by_method
    assert rows["zero"]["samples"] == 0
    assert all(row["flops"] > 0 for row in rows.values())
    run("report", *store, "--out", "ways.html")


def test_the_first_traced_fact_is_drawn_on_a_terminal_alone(workplace, run, monkeypatch):
    drawn = "mlp · denoise · window 1"
    assert drawn not in run(*TRACE, "--store", "plain.duckdb").stderr
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    several = ("--memory", "300kB")  # waves, of which one is drawn
    done = run(*TRACE, *several, "--store", "drawn.duckdb", "--json")
    assert done.stderr.count(drawn) == 1
    assert drawn not in done.stdout
    assert drawn not in run(*TRACE, *several, "--store", "drawn.duckdb").stderr
    plain, shown = (
        ft.Store(workplace / name).query("SELECT * EXCLUDE run_id FROM trace_cells ORDER BY ALL").num_rows
        for name in ("plain.duckdb", "drawn.duckdb")
    )
    assert plain == shown


def test_a_killed_sweep_resumes(workplace, run):
    whole, cut = ("--store", "whole.duckdb"), ("--store", "cut.duckdb")
    small = ("--memory", "300kB")  # several waves, so that a kill falls between batches
    run(*TRACE, *small, *whole)
    argv = [sys.executable, "-c", "from fasttrace.cli import main; main()", *TRACE, *small, *cut]
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    process = subprocess.Popen(argv, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=workplace, **quiet)
    reader = ft.Store(workplace / "cut.duckdb")
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if reader.path.exists() and len(reader.query("SELECT fact_id FROM traces")):
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert 0 < len(reader.query("SELECT fact_id FROM traces")) < len(FACTS)
    run(*TRACE, *small, *cut)
    columns = "fact_id, window_size, token_index, layer, p_restored, effect"
    order = "ORDER BY fact_id, window_size, token_index, layer"
    one, two = (
        ft.Store(workplace / name).query(f"SELECT {columns} FROM trace_cells {order}").to_pandas()
        for name in ("whole.duckdb", "cut.duckdb")
    )
    assert len(one) == len(two)
    assert (one.drop(columns=["p_restored", "effect"]) == two.drop(columns=["p_restored", "effect"])).all(axis=None)
    assert (one.p_restored - two.p_restored).abs().max() < 1e-7


def test_export_from_the_command_line(workplace, run):
    fact = ft.load_facts(workplace / "facts.jsonl")[0]
    one = (*EDIT, "--layers", "2", "--fact-id", fact.fact_id, "--essence", "0")
    run(*one, "--export", "edited", "--delta", "edit.safetensors")
    assert (workplace / "edited" / "model.safetensors").is_file()
    edited = ft.load_model(workplace / "edited")
    assert "Writing" not in run("export", "--model", "model", "edit.safetensors", "again").stderr, "transformers' bar"
    assert ft.load_model(workplace / "again").weights_hash() == edited.weights_hash()
    assert ft.load_model(workplace / "model").weights_hash() != edited.weights_hash()
    assert "expected a new file" in run(*one, "--delta", "edit.safetensors", code=2).stderr


def test_every_way_of_editing_from_the_command_line(workplace, run):
    store = ("--store", "edits.duckdb")
    few = ("edit", *COMMON, *store, "--window-size", "3", "--layers", "1,2", "--essence", "1", "--sigma", "0.4")
    for method in ("rome", "memit", "ft-1", "ft-5"):
        own = (*CORPUS, "--contexts", "2") if method in ("rome", "memit") else ()
        for problem in ("tracing-reversal", "fact-erasure", "fact-forcing"):
            run(*few, *own, "--method", method, "--problem", problem, "--set", "steps=2")
    query = """
        SELECT method, problem, count(*) AS edits, count(essence) AS essence, count(reason) AS left_out
        FROM edits GROUP BY ALL ORDER BY ALL
    """
    rows = ft.Store(workplace / "edits.duckdb").query(query).to_pylist()
    assert len(rows) == 12
    assert all(row["edits"] == 8 and row["essence"] + row["left_out"] == 8 for row in rows)
    rates = relation(ft.Store(workplace / "edits.duckdb"), "success_rates").to_pylist()
    assert {row["kind"] for row in rates} == {"rewrite", "paraphrase", "neighborhood"}
    assert all(0 <= row["after"] <= 1 for row in rates)
    run("report", *store, "--out", "edits.html")


def test_mass_edits_and_tuning_from_the_command_line(workplace, run):
    corpus = ("--corpus", "text.txt", "--corpus-tokens", "1500", "--contexts", "2")
    store = ("--store", "mass.duckdb")
    mass = ("mass", *COMMON, *corpus, "--layer", "2", "--window-size", "3", "--set", "steps=3", "--json")
    means = json.loads(run(*mass, *store, "--at-once", "2", "--delta", "mass.safetensors").stdout)
    assert [row["n_edits"] for row in means] == [2, 4]
    run("export", "--model", "model", "mass.safetensors", "mass")
    stored = ft.Store(workplace / "mass.duckdb").query("SELECT count(*) AS n FROM mass_edits").to_pylist()
    assert stored == [{"n": 6}]
    assert "rome edits one fact at a time" in run(*mass, *store, "--method", "rome", "--at-once", "2", code=2).stderr
    tune = ("tune", *COMMON, "--method", "ft-1", "--layer", "2", "--values", "0.01,0.001", "--json")
    rows = json.loads(run(*tune, *store).stdout)
    assert [row["value"] for row in rows] == [0.01, 0.001]
    assert [row["chosen"] for row in rows].count(True) == 1
    assert all(row["setting"] == "epsilon" and row["edits"] == 4 for row in rows)
    assert json.loads(run(*tune).stdout) == rows, "the same without a store"
    few = ("tune", *COMMON, "--method", "ft-1", "--values", "0.01,0.001", "--json", "--layer", "1", "--limit", "2")
    assert json.loads(run(*few, *store).stdout) == json.loads(run(*few).stdout), "of this layer and these facts alone"
    quick = (
        "edit",
        *COMMON,
        *store,
        "--method",
        "ft-1",
        "--essence",
        "0",
        "--set",
        "steps=1",
        "--json",
        "--limit",
        "2",
    )
    for layer in (1, 2):
        edited = json.loads(run(*quick, "--layers", str(layer)).stdout)
        assert [row["layer"] for row in edited] == [layer] * 2


def test_too_few_corpus_tokens_need_a_ridge(workplace, run):
    corpus = ("--corpus", "text.txt", "--corpus-tokens", "60")
    quick = (*COMMON, *corpus, "--contexts", "0", "--set", "steps=1", "--store", "ridge.duckdb")
    assert "for example ridge=0.0001 (--ridge 0.0001)" in run("edit", *quick, "--layers", "1", code=2).stderr
    for words in (
        ("stats", "--model", "model", *corpus, "--store", "ridge.duckdb"),
        ("edit", *quick, "--layers", "1", "--essence", "0"),
        ("mass", *quick, "--layer", "1"),
        ("tune", *quick, "--layer", "1", "--values", "0.1"),
    ):
        run(*words, "--ridge", "1e-3")
    sql = "SELECT DISTINCT kind FROM runs WHERE settings ->> 'ridge' = '0.001' ORDER BY kind"
    kinds = ft.Store(workplace / "ridge.duckdb").query(sql)["kind"].to_pylist()
    assert kinds == ["edit", "mass", "moments"]


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("trace", *COMMON), "expected --store FILE"),
        (("trace", "--facts", "missing.jsonl", "--store", "x.duckdb"), "missing.jsonl"),
        (("trace", "--model", "nowhere/model.gguf", "--store", "x.duckdb"), "model.gguf"),
        (
            (*TRACE, "--sigma", "loud", "--store", "x.duckdb"),
            "sigma: expected a number above 0 and at most 1000000 or 3sd, got 'loud'",
        ),
        ((*TRACE, "--windows", "a", "--store", "x.duckdb"), "windows: expected a list in which each item is"),
        ((*TRACE, "--verify-top", "3", "--store", "x.duckdb"), "verify_top: expected method attribution, got"),
        ((*TRACE, "--dtype", "tf32", "--store", "x.duckdb"), "dtype 'tf32': expected a CUDA device, got 'cpu'"),
        (
            (*EDIT, "--method", "mend", "--store", "x.duckdb"),
            "method: expected one of rome, memit, emmet, alphaedit, pmet, ft-1, ft-5, got",
        ),
        ((*EDIT, "--set", "stepz=3", "--store", "x.duckdb"), "has the name 'stepz'; did you mean 'steps'?"),
        ((*EDIT, "--set", "lr=1", "--set", "lr=2", "--store", "x.duckdb"), "--set: expected one value of lr, got"),
        ((*EDIT, "--fact-id", "a", "--limit", "1", "--store", "x.duckdb"), "expected --fact-id or --limit, got both"),
        ((*EDIT, "--set", "epsilon=3", "--store", "x.duckdb"), "rome has no setting 'epsilon'"),
        ((*EDIT, "--problem", "joke", "--store", "x.duckdb"), "edit: problem: expected one of error-injection"),
        (("export", "--model", "model", "facts.jsonl", "new"), "cannot be read"),
        (("export", "--model", "model", "model/model.safetensors", "new"), "expected a delta that"),
        (("mass", *COMMON), "expected --store FILE, --export FOLDER or --delta FILE for the edits"),
        (("trace", "--nothing"), "No such option"),
        ((*EDIT, "--layers", "77", "--store", "x.duckdb"), "layers: expected some of 0 to 4, got 77"),
        (("edit", *COMMON, "--export", "model", "--layers", "2"), "exists"),
        (("report", "--store", "no.duckdb"), "no.duckdb"),
        ((*TRACE, "--store", "a.duckdb", "--store", "x.duckdb"), "expected one store, got 2"),
        (("sql", "SELECT 1 +", "--store", "no.duckdb"), "no.duckdb"),
        (("tables",), "expected --store FILE"),
    ],
)
def test_a_bad_command_gives_one_sentence_and_exit_code_2(workplace, run, words, sentence):
    done = run(*words, code=2)
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
    assert not (workplace / "x.duckdb").exists()


ABSENT = ("--model", "nowhere/model.gguf", "--facts", "facts.jsonl")  # fails when the model is loaded


@pytest.mark.parametrize("verb", ["edit", "mass", "tune"])
@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("--store", "nowhere/x.duckdb"), "the folder nowhere of the store"),
        (("--store", "text.txt"), "is not a DuckDB file"),
        (("--memory", "lots"), "memory: expected a size such as 512MB or 8GB, at most 1024TB, got 'lots'"),
        (("--method", "ft-1", "--set", "epsilon=0"), "epsilon: expected a number above 0 and at most 1000000, got '0'"),
        (("--method", "memit", "--set", "steps=0"), "steps: expected a whole number from 1 to 100000, got '0'"),
        (("--sigma", "-1"), "sigma: expected a number above 0 and at most 1000000 or 3sd, got '-1'"),
        (("--corpus", "missing.txt"), "'missing.txt' does not exist"),
    ],
)
def test_bad_options_of_an_edit_are_refused_before_the_model_is_loaded(workplace, run, verb, words, sentence):
    store = () if "--store" in words else ("--store", "x.duckdb")
    assert sentence in run(verb, *ABSENT, *store, *words, code=2).stderr
    assert not (workplace / "x.duckdb").exists()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("edit", *ABSENT, "--export", "there", "--delta", "./there"), "expected --export and --delta to name two"),
        (("mass", *ABSENT, "--export", "there", "--delta", "./there"), "expected --export and --delta to name two"),
        (("mass", *ABSENT, "--store", "there", "--delta", "there"), "expected --store and --delta to name two"),
        (("tune", *ABSENT, "--setting", "clamp"), "tune: values: expected values to try for clamp, got none"),
        (
            ("tune", *ABSENT, "--method", "ft-1", "--values", "0.1,0"),
            "epsilon: expected a number above 0 and at most 1000000, got 0.0",
        ),
    ],
)
def test_paths_and_values_are_checked_first(run, words, sentence):
    assert sentence in run(*words, code=2).stderr


def test_a_failed_export_leaves_the_edit_in_the_store_and_nothing_else(workplace, run, monkeypatch):
    def full(*_, **__):
        raise OSError(28, "No space left on device", "edited-full")

    few = (*COMMON, "--corpus", "text.txt", "--corpus-tokens", "1500", "--contexts", "2", "--set", "steps=2")
    both = ("--export", "full", "--store", "full.duckdb")
    fact = ft.load_facts(workplace / "facts.jsonl")[0].fact_id
    for words, table in (
        (("edit", *few, "--fact-id", fact, "--layers", "2", "--essence", "0"), "edits"),
        (("mass", *few, "--layer", "2"), "mass_edits"),
    ):
        with monkeypatch.context() as broken:
            broken.setattr("fasttrace.editing.export.replacing", full)
            assert "no space is left" in run(*words, *both, code=2).stderr
        assert not (workplace / "full").exists()
        sql = f"SELECT * FROM {table} ORDER BY ALL"
        kept = ft.Store(workplace / "full.duckdb").query(sql).to_pylist()
        assert kept
        run(*words, *both)
        assert ft.Store(workplace / "full.duckdb").query(sql).to_pylist() == kept
        (workplace / "full").rename(workplace / f"full-{table}")


def test_mass_erasure_counts_the_facts_it_leaves_out(workplace, run):
    facts = [json.loads(line) for line in (workplace / "facts.jsonl").read_text().splitlines()]
    facts.append({"prompt": "{} is the capital of", "subject": "Rome", "target_true": "Fr"})
    (workplace / "erase.jsonl").write_text("\n".join(json.dumps(fact) for fact in facts))
    words = (
        "mass", "--model", "model", "--facts", "erase.jsonl", "--corpus", "text.txt", "--corpus-tokens", "1500",
        "--contexts", "2", "--layer", "2", "--problem", "fact-erasure", "--set", "steps=2", "--store", "erase.duckdb",
    )  # fmt: skip
    assert "4 of 5 facts left out, the first: p(o_true) = " in run(*words).stderr
    rows = ft.Store(workplace / "erase.duckdb").query("SELECT position, reason FROM mass_edits ORDER BY position")
    edited, *left_out = rows.to_pylist()
    assert edited["position"] == 1
    assert edited["reason"].endswith("after layer 4: its δ is zero"), "the window of layer 2 ends at the last layer"
    assert [row["position"] for row in left_out] == [None] * 4
    assert all("is below 0.02, too little to erase" in row["reason"] for row in left_out)


def test_every_verb_has_help_and_none_is_imported_for_the_list(run):
    sections = run("--help").stdout.partition("\nLook:\n")[2].split("\n")
    verbs = [line.split()[0] for line in sections if line.startswith("  ")]
    assert verbs == cli.list_commands(None)
    assert {"facts", "trace", "edit", "mass", "tune", "export", "sql", "tables", "report", "env", "demo"} < set(verbs)
    for verb in verbs:
        assert ("--json" in run(verb, "--help").stdout) is (verb != "completion"), "which prints a script"
    assert run("no-such-verb", code=2).stderr == "fasttrace: No such command 'no-such-verb'.\n"
    for word in ("--help", "--version"):
        program = (
            "import atexit, sys; from fasttrace.cli import main; sys.argv = ['fasttrace', sys.argv[1]]; "
            "atexit.register(lambda: print(*({'torch', 'pyarrow', 'transformers'} & {*sys.modules}), 'imported')); "
            "main()"
        )
        done = subprocess.run([sys.executable, "-c", program, word], capture_output=True, text=True, check=True)
        assert done.stdout.splitlines()[-1] == "imported"
