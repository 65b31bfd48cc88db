"""Real samples of data sets, where ../shared/data has them."""

import json
from pathlib import Path

import pytest

from fasttrace.facts import load_facts

SHARED = Path(__file__).parents[2] / ".." / "shared" / "data"


def shared(name: str) -> Path:
    path = SHARED / name
    if not path.exists():
        pytest.skip(f"{name} is not in ../shared/data")
    return path


def test_counterfact_dev() -> None:
    path = shared("counterfact_dev.json")
    facts = load_facts(path)
    raw = json.loads(path.read_text())
    assert len(facts) == len(raw) == 15344
    for fact, record in zip(facts[::97], raw[::97], strict=True):
        rewrite = record["requested_rewrite"]
        assert fact.text == rewrite["prompt"].format(rewrite["subject"])
        assert fact.target_false == rewrite["target_new"]["str"]
        assert list(fact.neighborhood) == record["neighborhood_prompts"]


def test_known_dev() -> None:
    path = shared("known_dev.json")
    facts = load_facts(path)
    assert [f.text for f in facts] == [r["prompt"] for r in json.loads(path.read_text())]
    assert all(f.text[slice(*f.subject_span)] == f.subject for f in facts)


def test_zsre_dev() -> None:
    path = shared("zsre_mend_1k.json")
    facts, bare = load_facts(path), load_facts(path, zsre="bare")
    raw = json.loads(path.read_text())
    assert [f.text for f in bare] == [r["src"] for r in raw]
    assert [f.text for f in facts] == [f"Question: {r['src']} Answer:" for r in raw]
    assert [f.paraphrases for f in facts] == [(f"Question: {r['rephrase']} Answer:",) for r in raw]
    assert [f.neighborhood for f in facts] == [
        (r["loc"].replace("nq question:", "Question:") + "? Answer:",) for r in raw
    ]
    answers = [r["answers"][0] for r in raw]
    assert [f.target_true for f in facts] == [f.target_true for f in bare] == answers
    assert {f.target_false for f in facts} <= {*answers}
    assert len({f.target_false for f in facts}) > 300, "they are spread over the file's answers"
    assert [f.target_false for f in bare] == [
        None if r["alt"] in ("", r["answers"][0]) else r["alt"].strip() for r in raw
    ]
    assert not {f.fact_id for f in facts} & {f.fact_id for f in bare}
    assert ({f.source for f in facts}, {f.source for f in bare}) == ({"zsre"}, {"zsre-bare"})


def test_all_relations_of_the_shared_data() -> None:
    folder = shared("relations")
    files = sorted(folder.glob("*.json"))
    raw = [json.loads(path.read_text()) for path in files]
    facts = load_facts(folder)
    assert len(facts) == sum(len(each["samples"]) for each in raw) == len({fact.fact_id for fact in facts})
    assert [len(load_facts(path)) for path in files] == [len(each["samples"]) for each in raw]
    assert {fact.relation for fact in facts} == {each["name"] for each in raw}
    assert "Brasília" in {fact.target_true for fact in facts}
    assert not any("\\u" in text for fact in facts for text in (fact.subject, fact.target_true))
    assert {fact.target_true for fact in facts if fact.meta.get("decoded")} == {"Brasília", "Bogotá"}
