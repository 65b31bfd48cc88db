"""Pairs, metrics and heads that cannot be traced: one sentence, exit code 2, and no store."""

import json

import pytest

FACT = {
    "prompt": "The {} is located in the city of",
    "subject": "Eiffel Tower",
    "target_true": "New York",
    "target_false": "New France",
    "counterfactual_subject": "Paris Tower",
}
TEXT = "The Eiffel Tower is located in the city of"
SHORTER = {**FACT, "counterfactual_subject": "Tower"}
PLAIN = {name: value for name, value in FACT.items() if not name.startswith("counterfactual")}
OPEN = {name: value for name, value in FACT.items() if name != "target_false"}
PAIRED = ("--corruption", "counterfactual")
DIFFERENCE = ("--metric", "logit-difference")


@pytest.mark.parametrize(
    ("facts", "words", "sentence"),
    [
        ([SHORTER], PAIRED, "'The Tower is located in the city of': expected 9 tokens as the prompt has, got 8"),
        ([SHORTER, {**SHORTER, "subject": "New York"}], PAIRED, "(and 1 more fact"),
        ([{**FACT, "counterfactual_subject": "Eiffel Tower"}], PAIRED, "expected prompts that differ from"),
        ([{**PLAIN, "counterfactual_prompt": f"{TEXT} "}], PAIRED, "that differ from the prompt's, got the same"),
        ([PLAIN, {**PLAIN, "subject": "New York"}], PAIRED, "or counterfactual_prompt, got neither (and 1 more"),
        ([FACT], ("--pairs",), "--pairs: expected --corruption counterfactual, got noise"),
        ([{**FACT, "counterfactual_subject": 3}], PAIRED, "field 'counterfactual_subject': expected"),
        ([{**FACT, "counterfactual_prompt": ["a", ""]}], PAIRED, "field 'counterfactual_prompt"),
        ([OPEN], DIFFERENCE, "metric logit-difference: expected a target_false, got none"),
        ([{**FACT, "target_false": "New"}], DIFFERENCE, "expected a target_false that differs from the"),
        ([FACT], (*DIFFERENCE, "--scored", "first-token"), "that differs from the target_true at a scored token"),
        ([FACT], ("--module", "head", "--heads", "6"), "heads: expected numbers from 0 to 5 for"),
        ([FACT], ("--module", "head", "--heads", "2,9999999999"), "heads: expected"),
        ([FACT], ("--module", "head", "--heads", "1,x"), "heads: expected"),
        ([FACT], ("--module", "head", "--heads", "-1"), "heads: expected"),
        ([FACT], ("--heads", "1"), "heads: expected module head, got module mlp"),
        ([FACT], ("--metric", "logit"), "metric: expected one of probability, log-probability, "),
        ([FACT], ("--metric", "kl", "--method", "zero"), "metric: expected probability or logit-"),
        ([FACT], (*PAIRED, "--method", "zero"), "corruption: expected noise"),
    ],
    ids=lambda part: " ".join(part)[:50] if isinstance(part, tuple) else "",
)  # fmt: skip
def test_what_cannot_be_traced_is_refused_in_a_sentence(facts, words, sentence, run, workplace):
    (workplace / "pairs.jsonl").write_text("\n".join(map(json.dumps, facts)))
    how = ("trace", "--model", "model", "--facts", "pairs.jsonl", "--keep", "all", "--samples", "2", "--sigma", "0.4")
    for store in (("--store", "none.duckdb"), ("--dry-run",)):
        done = run(*how, *words, *store, code=2)
        assert sentence in done.stderr
        assert done.stderr.count("\n") == 1
        assert not done.stdout
        assert not list(workplace.glob("none.duckdb*"))


def test_facts_are_not_written_over_their_file(run, workplace):
    (workplace / "own.jsonl").write_text(json.dumps(FACT))
    done = run("facts", "--model", "model", "--facts", "own.jsonl", "--pairs", "--out", "own.jsonl", code=2)
    assert "expected --out and --facts to name two paths, got 'own.jsonl' for both" in done.stderr
    assert (workplace / "own.jsonl").read_text() == json.dumps(FACT)


def test_facts_without_a_pair_are_stored_with_the_reason(run, workplace):
    of = {"relation": "in", "prompt": PLAIN["prompt"]}
    facts = [of | {"subject": name, "target_true": f"the {name}"} for name in ("Paris", "Rome", "Eiffel Tower of York")]
    (workplace / "few.jsonl").write_text("\n".join(map(json.dumps, facts)))
    how = ("trace", "--model", "model", "--keep", "all", "--facts", "few.jsonl", "--pairs", "--store", "few.duckdb")
    assert "1 of 3 facts have no pair" in run(*how, *PAIRED).stderr
    asked = "SELECT subject, kept, counterfactuals, reason FROM traces ORDER BY subject"
    left, *kept = json.loads(run("sql", asked, "--store", "few.duckdb", "--json").stdout)
    assert [row["counterfactuals"] for row in kept] == [[TEXT.replace("Eiffel Tower", n)] for n in ("Rome", "Paris")]
    assert (left["subject"], left["kept"]) == ("Eiffel Tower of York", False)
    assert left["reason"].endswith("expected a counterfactual_subject or counterfactual_prompt, got neither")
    assert "nothing to compute" in run(*how, *PAIRED).stdout


def test_a_store_keeps_what_it_has_and_other_facts_are_traced(run, workplace):
    (workplace / "pairs.jsonl").write_text("\n".join(map(json.dumps, [FACT, {**SHORTER, "subject": "Paris York"}])))
    (workplace / "bad.jsonl").write_text(json.dumps(SHORTER))
    how = ("trace", "--model", "model", "--keep", "all", *PAIRED, *DIFFERENCE, "--store", "kept.duckdb")
    run(*how, "--facts", "pairs.jsonl")
    query = ("sql", "SELECT kept, reason, len(counterfactuals) AS n FROM traces ORDER BY kept", "--json")
    before = run(*query, "--store", "kept.duckdb").stdout
    left, kept = json.loads(before)
    assert (left["kept"], left["n"], kept["kept"], kept["n"], kept["reason"]) == (False, 0, True, 1, None)
    assert "expected 9 tokens as the prompt has, got 8" in left["reason"]
    assert "nothing to compute" in run(*how, "--facts", "pairs.jsonl").stdout
    done = run(*how, "--facts", "bad.jsonl", code=2)
    assert done.stderr.count("\n") == 1
    assert run(*query, "--store", "kept.duckdb").stdout == before
