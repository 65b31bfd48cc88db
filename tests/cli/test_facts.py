"""The form of zsRE's prompts, from the command line and from a study file."""

import json

import pytest

from fasttrace.study import load_study

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
    assert [fact.text for fact in load_study("own.toml").loaded_facts] == prompts
    assert [fact.fact_id for fact in load_study("own.toml").loaded_facts] == [row["fact_id"] for row in rows]


def test_another_form_is_refused(run, place):
    (place / "zsre.json").write_text(json.dumps(RECORDS))
    said = run("facts", "--facts", "zsre.json", "--zsre", "plain", code=2).stderr
    assert "facts: zsre: expected one of question, bare, got 'plain'" in said
