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
        ([PLAIN, {**FACT, "subject": "New York"}], PAIRED, "expected a counterfactual_subject or"),
        ([{**FACT, "counterfactual_subject": 3}], PAIRED, "field 'counterfactual_subject': expected"),
        ([{**FACT, "counterfactual_prompt": ["a", ""]}], PAIRED, "field 'counterfactual_prompt"),
        ([OPEN], DIFFERENCE, "metric logit-difference: expected a target_false, got none"),
        ([{**FACT, "target_false": "New"}], DIFFERENCE, "expected a target_false that differs from the"),
        ([FACT], (*DIFFERENCE, "--target", "first-token"), "that differs from the target_true at a scored token"),
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


def test_a_store_keeps_what_it_has_and_other_facts_are_traced(run, workplace):
    (workplace / "pairs.jsonl").write_text("\n".join(map(json.dumps, [FACT, {**SHORTER, "subject": "Paris York"}])))
    (workplace / "bad.jsonl").write_text(json.dumps(SHORTER))
    how = ("trace", "--model", "model", "--keep", "all", *PAIRED, *DIFFERENCE, "--store", "kept.duckdb")
    run(*how, "--facts", "pairs.jsonl")
    query = ("sql", "SELECT kept, reason, len(counterfactuals) AS n FROM traces ORDER BY kept", "--json")
    before = run(*query, "--store", "kept.duckdb").stdout
    left, kept = json.loads(before)
    assert (left["kept"], left["n"], kept["kept"], kept["n"], kept["reason"]) == (False, None, True, 1, None)
    assert "expected 9 tokens as the prompt has, got 8" in left["reason"]
    assert "nothing to compute" in run(*how, "--facts", "pairs.jsonl").stdout
    done = run(*how, "--facts", "bad.jsonl", code=2)
    assert done.stderr.count("\n") == 1
    assert run(*query, "--store", "kept.duckdb").stdout == before
