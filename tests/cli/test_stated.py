"""One fact on the command line: --prompt with its subject and target, with a store and without."""

import json

import pytest

import fasttrace as ft
from fasttrace.store import Store

PROMPT = ("--model", "model", "--prompt", "The {} is located in the city of")
WHOLE = (*PROMPT, "--subject", "Eiffel Tower", "--target", "Paris")
TRACE = ("--keep", "all", "--sigma", "0.4", "--samples", "2")


@pytest.fixture
def run(workplace, monkeypatch, command):
    """`command`, run in the folder with the model."""
    monkeypatch.chdir(workplace)
    monkeypatch.setenv("XDG_CACHE_HOME", str(workplace / "cache"))
    return command


def test_a_traced_prompt_is_a_heatmap_without_a_file_and_a_store(workplace, run):
    before = set(workplace.iterdir())
    done = run("trace", *WHOLE, *TRACE, "--windows", "3,1")
    assert set(workplace.iterdir()) == before
    first, second = done.stdout.strip("\n").split("\n\n")
    lines = first.splitlines()
    assert lines[0] == "The Eiffel Tower is located in the city of … Paris"
    assert lines[1].endswith("model · mlp · denoise · window 3")
    assert "window 1" in second
    assert lines[2].startswith("p(Paris) clean 0.")
    assert "\x1b" not in done.stdout, "no colour in a pipe"
    cells = json.loads(run("trace", *WHOLE, *TRACE, "--windows", "3", "--json").stdout)
    digits = [line.split()[1:] for line in lines[3:-2]]
    assert len(cells) == sum(map(len, digits)) == 5 * len(digits)
    highest = max(cells, key=lambda cell: cell["p_restored"])
    assert digits[highest["token_index"]][highest["layer"]] == "9"


def test_with_a_store_it_is_kept_and_drawn_again_from_there(workplace, run):
    store = ("--store", "one.duckdb")
    said = [run("trace", *WHOLE, *TRACE, *store).stdout for _ in range(2)]
    drawn = [text.split("\n\n")[0] for text in said]
    assert drawn[0] == drawn[1]
    assert drawn[0].startswith("The Eiffel Tower is located in the city of … Paris\n")
    assert "nothing to compute" in said[1]
    assert len(Store(workplace / "one.duckdb").query("FROM traces")) == 1


def test_colours_are_for_terminals_that_have_them(workplace, run, monkeypatch):
    for name, value in (("FORCE_COLOR", "1"), ("TERM", "xterm-256color"), ("COLORTERM", "truecolor")):
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("NO_COLOR", raising=False)
    colored = run("trace", *WHOLE, *TRACE, "--windows", "3").stdout
    assert "\x1b[48;2;0;34;78m" in colored, "the lowest value"
    monkeypatch.setenv("NO_COLOR", "1")
    plain = run("trace", *WHOLE, *TRACE, "--windows", "3").stdout
    assert "\x1b[48;" not in plain
    assert " 9" in plain


def test_a_prompt_is_edited_and_checked_by_the_same_words(workplace, run):
    edit = ("edit", *WHOLE, "--new-target", "Rome", "--method", "ft-1", "--set", "steps=2", "--essence", "0")
    rows = json.loads(run(*edit, "--layers", "0,2", "--json").stdout)
    assert [row["layer"] for row in rows] == [0, 2]
    assert all(row["p_after"] != row["p_before"] for row in rows)
    model = ft.load_model("model")
    words = {"subject": "Eiffel Tower", "target": "Paris", "new_target": "Rome"}
    made = ft.edit(model, PROMPT[-1], **words, method="ft-1", steps=2, essence=0, layers=[0, 2])
    assert made.to_pandas()["p_after"].tolist() == pytest.approx([row["p_after"] for row in rows], rel=1e-5)
    both = ft.mass_edit(model, PROMPT[-1], **words, method="ft-1", steps=2, layer=2)
    assert both.to_pandas()["p_after"].tolist() == pytest.approx([rows[1]["p_after"]], rel=1e-5)
    [checked] = json.loads(run("facts", "--check", *WHOLE, "--json").stdout)
    assert (checked["prompt"], checked["known"]) == ("The Eiffel Tower is located in the city of", False)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("trace", *PROMPT), "--prompt: subject: expected the words in the prompt that the fact is about, got none"),
        (("trace", *PROMPT, "--subject", "Tower"), "--prompt: target: expected the true answer to the prompt"),
        (("trace", *WHOLE, "--facts", "facts.jsonl"), "expected --prompt or facts of a file, got both: 'facts.jsonl'"),
        (("facts", "facts.jsonl", *WHOLE), "expected --prompt or FILE, got both: 'facts.jsonl'"),
        (("trace", *WHOLE, "--limit", "2"), "--limit: expected facts of a file, got --prompt, which is one fact"),
        (
            ("trace", *WHOLE, "--corruption", "counterfactual", "--pairs", "2"),
            "--pairs: expected facts of a file, whose subjects are paired, got --prompt, which is one fact",
        ),
        (("trace", "--subject", "Tower"), "--subject: expected --prompt TEXT, whose subject it is, got none"),
        (("trace", "--prompt", "Rome is", *WHOLE[4:]), "--prompt: the subject is absent: expected one placeholder"),
        (("trace", *WHOLE, "--shard", "1/2"), "--shard: expected --store FILE for a share of the work, got no store"),
        (("edit", *WHOLE, "--new-target", "Paris"), "new_target: expected another answer than 'Paris', got 'Paris'"),
        (("edit", *WHOLE), "expected the new_target, which is the target of problem 'error-injection', got none"),
        (("trace", *WHOLE, "--sigma", "0.4"), "the fact is not traced: o_true is not among"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(workplace, run, words, said):
    stderr = run(*words, code=2).stderr
    assert said in stderr
    assert "Traceback" not in stderr
