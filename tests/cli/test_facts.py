"""The verb facts: where facts are read from and how, a look at their tokens, and their profile."""

import dataclasses
import json
import shutil
import sys

import pytest
from small_models import word_tokenizer

import fasttrace as ft
from fasttrace.facts import encode_fact
from fasttrace.facts.profile import profile
from fasttrace.models.load import load_tokenizer
from fasttrace.store import Store
from fasttrace.studies.load import load_study

RECORDS = [
    {"subject": subject, "src": f"Where is {subject}?", "answers": [answer], "alt": "Rome", "loc": "nq question: who"}
    for subject, answer in (("Big Ben", "London"), ("The Louvre", "Paris"))
]
PROMPTS = {
    None: ["Question: Where is Big Ben? Answer:", "Question: Where is The Louvre? Answer:"],
    "question": ["Question: Where is Big Ben? Answer:", "Question: Where is The Louvre? Answer:"],
    "bare": ["Where is Big Ben?", "Where is The Louvre?"],
}


@pytest.mark.parametrize(("form", "prompts"), PROMPTS.items())
def test_the_form_of_zsre_is_chosen_by_name(form, prompts, run, place):
    (place / "zsre.json").write_text(json.dumps(RECORDS))
    chosen = [] if form is None else ["--zsre", form]
    rows = json.loads(run("facts", "--facts", "zsre.json", *chosen, "--json").stdout)
    assert [row["prompt"] for row in rows] == prompts
    assert [row["target_false"] for row in rows] == (["Rome", "Rome"] if form == "bare" else ["Paris", "London"])
    line = "" if form is None else f'zsre = "{form}"\n'
    (place / "own.toml").write_text(f'[facts]\nfile = "zsre.json"\n{line}')
    assert [fact.text for fact in load_study("own.toml").loaded.facts] == prompts
    assert [fact.fact_id for fact in load_study("own.toml").loaded.facts] == [row["fact_id"] for row in rows]


def test_another_form_is_refused(run, place):
    (place / "zsre.json").write_text(json.dumps(RECORDS))
    said = run("facts", "--facts", "zsre.json", "--zsre", "plain", code=2).stderr
    assert "facts: zsre: expected one of question, bare, got 'plain'" in said


# ---- sources ----------------------------------------------------------------------------------------------

TABLE = """question,entity,answer,note
The Eiffel Tower is in,Eiffel Tower,Paris,first
"Where is Big Ben, in?",Big Ben,London,second
The Louvre is in,Prado,Paris,bad
"""
MAP = ("--map", "prompt=question,subject=entity,target_true=answer")
LOST = "the subject is absent: expected one placeholder '{}' for it, or 'Prado' itself, got none in 'The Louvre is in'"
FACTS = [
    {
        "prompt": "{} is the capital of",
        "subject": "Paris",
        "target_true": "France",
        "target_false": "Italy",
        "relation": "capital",
        "fact_id": "paris",
        "paraphrases": ["Paris lies in"],
        "neighborhood": ["Rome is the capital of"],
        "probes": [
            {"kind": "portability", "prompt": "In Paris they speak", "answers": ["French", "le français"]},
            {"kind": "alias", "prompt": "Lutetia is in", "answers": list("abcde"), "expect": "true", "after": "case"},
        ],
        "case_id": "c1",
        "case_edits": 2,
        "counterfactual_subject": ["Rome", "New York"],
        "counterfactual_answer": "Spain",
    },
    {
        "prompt": "The capital is Rome|x",
        "subject": "Rome",
        "target_true": "a",
        "fact_id": "rome",
        "case_id": "c1",
        "case_edits": 2,
    },
    *({"prompt": "{} is", "subject": f"N{i}", "target_true": "x", "fact_id": f"n{i}"} for i in range(3)),
]


@pytest.fixture
def unloaded(monkeypatch):
    """No weights can be loaded."""
    monkeypatch.setattr(ft, "load_model", None)


@pytest.fixture
def files(place):
    """mine.csv with a bad row, facts.jsonl, and parts, a folder of two files."""
    (place / "mine.csv").write_text(TABLE)
    (place / "facts.jsonl").write_text("\n".join(map(json.dumps, FACTS)))
    (place / "parts").mkdir()
    for i, name in enumerate(("a.jsonl", "b.jsonl")):
        (place / "parts" / name).write_text("\n".join(map(json.dumps, FACTS[2 * i : 2 * i + 2])))
    return place


def ids(done):
    return [row["fact_id"] for row in json.loads(done.stdout)]


def left_out(path):
    return Store(path).query("SELECT source, record, reason, part FROM facts_left_out ORDER BY ALL").to_pylist()


def test_file_is_the_same_as_the_option(files, run):
    every = run("facts", "facts.jsonl", "--json")
    assert ids(every) == ["paris", "rome", "n0", "n1", "n2"]
    assert run("facts", "--facts", "facts.jsonl", "--json").stdout == every.stdout
    assert ids(run("facts", "parts", "--json")) == ["paris", "rome", "n0", "n1"]
    assert ids(run("facts", "parts", "--relation", "capital", "--json")) == ["paris", "rome"], "a case is kept whole"
    said = run("facts", "facts.jsonl", "--facts", "parts", code=2).stderr
    assert said == "fasttrace: expected FILE or --facts FILE, got both: 'facts.jsonl' and 'parts'\n"


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (("nowhere.csv",), "nowhere.csv: expected a file of facts, got a path that does not exist"),
        (("",), "facts: expected the name of a file or folder, got an empty one"),
        (("hub:nobody",), "hub:nobody: expected hub:owner/name"),
        (("mine.csv",), "a map names the columns, such as prompt=question,subject=entity,target_true=answer"),
        (("mine.csv", *MAP), f"mine.csv, line 4, field 'prompt': {LOST}"),
        (("mine.csv", "--map", "prompt"), "facts: map: expected a table such as name=value, got 'prompt'"),
        (("mine.csv", "--map", "promt=question"), "map: a fact has no field 'promt'; did you mean 'prompt'?"),
        (
            ("mine.csv", "--map", "prompt=quest"),
            "mine.csv: map: expected some of the columns question, entity, answer, note, got 'quest'",
        ),
        (("mine.csv", *MAP, "--format", "zsre"), "map: expected format own, whose fields it names, got zsre"),
        (("mine.csv", "--format", "csv"), "facts: format: expected one of auto, "),
        (("mine.csv", "--on-bad", "ignore"), "facts: on_bad: expected one of raise, skip, got 'ignore'"),
        (
            ("bad.csv", *MAP, "--on-bad", "skip"),
            "bad.csv: expected a usable record, got none in 1; the first one: bad.csv, line 2, field 'prompt': the",
        ),
        (
            ("facts.jsonl", "--show", "--profile"),
            "expected one of --show, --profile, --check and --pairs, got --show and",
        ),
        (("facts.jsonl", "--profile", "--pairs", "1"), "--check and --pairs, got --profile and --pairs"),
        (("--show", "facts.jsonl"), "--show: expected a whole number of at least 1, got 'facts.jsonl'"),
        (("facts.jsonl", "--show", "0"), "--show: expected a whole number of at least 1, got '0'"),
        (("facts.jsonl", "--show", "--model", "nowhere/model.gguf"), "nowhere/model.gguf"),
        (("facts.jsonl", "--profile", "--model", "nowhere/model.gguf"), "nowhere/model.gguf"),
    ],
)
def test_what_cannot_be_read_or_shown_is_refused_in_a_sentence(files, run, words, sentence):
    (files / "bad.csv").write_text("\n".join(TABLE.splitlines()[::3]))
    done = run("facts", *words, "--store", "new.duckdb", code=2)
    assert sentence in done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert done.stdout == ""
    assert not (files / "new.duckdb").exists()


def test_bad_records_are_said_and_stored_once_the_work_is_done(files, run):
    words = ("facts", "mine.csv", *MAP, "--on-bad", "skip", "--store", "new.duckdb")
    done = run(*words, "--json")
    assert [row["prompt"] for row in json.loads(done.stdout)] == ["The Eiffel Tower is in", "Where is Big Ben, in?"]
    assert f"mine.csv left out; the first one: mine.csv, line 4, field 'prompt': {LOST}" in done.stderr
    kept = [{"source": "mine.csv", "record": "line 4", "reason": f"field 'prompt': {LOST}", "part": False}]
    assert left_out("new.duckdb") == kept
    (files / "mine.csv").write_text(TABLE.replace("Prado", "Louvre"))
    assert "left out" not in run(*words).stderr
    assert left_out("new.duckdb") == []
    (files / "mine.csv").write_text(TABLE)
    refused = run(*words, "--check", "--model", "nowhere/model.gguf", code=2)
    assert "left out" in refused.stderr
    assert left_out("new.duckdb") == [], "a command that is refused"


@pytest.mark.parametrize("look", ["--show", "--profile"])
def test_a_look_stores_the_facts_and_what_was_left_out(files, run, unloaded, look):
    run("facts", "mine.csv", *MAP, "--on-bad", "skip", look, "--store", "new.duckdb")
    assert Store("new.duckdb").query("SELECT prompt FROM facts").num_rows == 2
    assert [row["record"] for row in left_out("new.duckdb")] == ["line 4"]


def test_a_study_file_reads_as_the_options_do(files, run):
    (files / "own.toml").write_text(
        '[facts]\nfile = "mine.csv"\nmap = { prompt = "question", subject = "entity", target_true = "answer" }\n'
        'on_bad = "skip"\nlimit = 1\npairs = 1\n[[trace]]\ncorruption = "counterfactual"\n'
    )
    study = load_study("own.toml")
    assert [fact.text for fact in study.loaded.facts] == ["The Eiffel Tower is in"]
    assert [fact.text for fact in study.candidates] == ["The Eiffel Tower is in", "Where is Big Ben, in?"]
    listed = run("facts", "mine.csv", *MAP, "--on-bad", "skip", "--json")
    assert ids(listed) == [fact.fact_id for fact in study.candidates]


# ---- a look at facts --------------------------------------------------------------------------------------


def test_show_has_every_token_and_all_that_is_scored(files, run, unloaded):
    tokenizer = load_tokenizer()
    facts = ft.load_facts("facts.jsonl")
    rows = json.loads(run("facts", "facts.jsonl", "--show", "--json").stdout)
    assert [row["fact_id"] for row in rows] == ["paris", "rome", "n0"], "three without a number"
    for row, fact in zip(rows, facts, strict=False):
        encoded = encode_fact(tokenizer, fact)
        assert (row["tokens"], row["token_ids"]) == (list(encoded.tokens), list(encoded.ids))
        assert (row["subject_begin"], row["subject_end"]) == (encoded.subject_begin, encoded.subject_end)
        assert row["targets"][0]["token_ids"] == list(encoded.target_true_ids)
        assert "".join(row["tokens"]) == row["prompt"] == fact.text
        assert row["reason"] is None
    paris, rome, _ = rows
    assert [(one["name"], one["target"], one["joint"], one["text"]) for one in paris["targets"]] == [
        ("target_true", "France", " ", "Paris is the capital of France"),
        ("target_false", "Italy", " ", "Paris is the capital of Italy"),
        ("counterfactual_answer", "Spain", " ", "Paris is the capital of Spain"),
    ]
    assert all("".join(one["tokens"]) == f" {one['target']}" for one in paris["targets"])
    assert paris["counterfactuals"] == ["Rome is the capital of", "New York is the capital of"]
    assert [text.partition(":")[0] for text in paris["misfits"]] == ["counterfactual 'New York is the capital of'"]
    assert (paris["case_id"], paris["case_edits"], rome["subject_found"]) == ("c1", 2, "exact")
    assert [(one["kind"], one["expect"], one["after"], one["answers"]) for one in paris["probes"]] == [
        ("paraphrase", "changed", "edit", []),
        ("neighborhood", "unchanged", "edit", []),
        ("portability", "changed", "edit", ["French", "le français"]),
        ("alias", "true", "case", list("abcde")),
    ]
    assert [one["text"] for probe in paris["probes"][:3] for one in probe["scored"]] == [
        "Paris lies in France",
        "Paris lies in Italy",
        "Rome is the capital of France",
        "Rome is the capital of Italy",
        "In Paris they speak French",
        "In Paris they speak le français",
    ]


def test_show_as_text_marks_the_subject(files, run, unloaded, monkeypatch):
    text = run("facts", "facts.jsonl", "--show", "2").stdout
    lines = [line.rstrip() for line in text.splitlines()]
    assert lines[0] == "paris  capital, case c1 of 2 edits, 5 tokens"
    assert lines[1].split("  ")[-1].strip() == "⟦Paris⟧| is| the| capital| of"
    assert [line.split("  …")[-1] for line in lines[2:5]] == ["| France", "| Italy", "| Spain"]
    assert lines[5] == "  1 of 2 counterfactuals fit"
    assert "rome  no relation, case c1 of 2 edits, subject found: exact, 6 tokens" in lines
    assert any(line.endswith("The| capital| is|⟦ Rome⟧|\\||x") for line in lines), "a bar in a token is escaped"
    rows = [line.split() for line in lines if line.startswith("   alias")]
    assert [row[-1] for row in rows] == ["a", "b", "c", "more"]
    assert rows[0][:5] == ["alias", "true,", "after", "the", "case"]
    assert "\x1b" not in text
    assert text.count("fact_id") == text.count("n0") == 0
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.delenv("NO_COLOR", raising=False)
    assert "\x1b[1;36m Rome\x1b[0m" in run("facts", "facts.jsonl", "--show", "2").stdout


def test_show_goes_on_after_a_fact_that_cannot_be_encoded(files, workplace, run, unloaded):
    shutil.copytree(workplace / "model", files / "words")
    word_tokenizer().save_pretrained(files / "words")
    record = {
        "prompt": "The {} is",
        "subject": "tower",
        "target_true": "Oslo",
        "target_false": "Bonn",
        "fact_id": "odd",
    }
    (files / "odd.jsonl").write_text(
        "\n".join(map(json.dumps, [record, {**record, "target_true": "Rome", "fact_id": "ok"}]))
    )
    words = ("facts", "odd.jsonl", "--show", "--model", "words")
    [odd, plain] = json.loads(run(*words, "--json").stdout)
    wanted = "expected a false target that differs from the true one"
    why = f"fact odd: {wanted}, got 'Bonn' and 'Oslo', which have the same tokens"
    assert (odd["tokens"], odd["subject_begin"], odd["reason"]) == (None, None, why)
    assert [(one["text"], one["tokens"]) for one in odd["targets"]] == [
        ("The tower is Oslo", None),
        ("The tower is Bonn", None),
    ]
    assert (plain["tokens"], plain["reason"]) == (["[UNK]", "The", "tower", "is"], None)
    text = run(*words).stdout
    assert f"  cannot be encoded: {why}\n" in text
    assert "  prompt   [UNK]|The|⟦tower⟧|is\n" in text


def test_the_profile_is_that_of_the_facts(files, run, unloaded):
    found = json.loads(run("facts", "facts.jsonl", "--profile", "--json").stdout)
    wanted = profile(load_tokenizer(), ft.load_facts("facts.jsonl"))
    about = {"source": "facts.jsonl", "format": "own", "left_out": 0}
    assert found == about | json.loads(json.dumps(dataclasses.asdict(wanted)))
    mapped = json.loads(run("facts", "mine.csv", *MAP, "--on-bad", "skip", "--profile", "--json").stdout)
    assert (mapped["facts"], mapped["format"], mapped["left_out"]) == (2, "own", 1)
    assert mapped["subjects_found"] == [{"value": "exact", "facts": 2}]


def test_the_profile_as_text_names_what_to_look_at(files, run, unloaded):
    records = [{**FACTS[2], "relation": f"r{i}", "fact_id": f"f{i:02}"} for i in range(12)]
    (files / "many.jsonl").write_text("\n".join(map(json.dumps, [FACTS[0], FACTS[1], *records])))
    text = run("facts", "many.jsonl", "--profile").stdout
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for line in (
        "many.jsonl, format own",
        "facts 14",
        "cases, whose facts are edited together 1 2 facts each",
        "prompts with the same subject under several ids 1 f00, f01, f02, …",
        "prompt 3 3 6",
        "4 others 4",
        "alias true 1 1",
    ):
        assert line in lines
    assert any(line.startswith("a counterfactual does not fit 1 paris: counterfactual 'New York") for line in lines)
    assert "tokenizer" not in text, "what there is none of is not listed"
