"""Loaders of facts: every format on small files, a message for every kind of bad record, the development data."""

import json
from pathlib import Path
from typing import Any

import pytest

from fasttrace.errors import FactError
from fasttrace.facts import Fact, Probe, load_facts


def counterfact(case_id: Any = 7, **changes: Any) -> dict[str, Any]:
    rewrite = {
        "prompt": "The river {} ends in the",
        "relation_id": "R1",
        "subject": "Ob",
        "target_true": {"str": " Kara Sea "},
        "target_new": {"str": "Black Sea"},
    }
    rewrite.update(changes.pop("rewrite", {}))
    record = {
        "case_id": case_id,
        "requested_rewrite": {k: v for k, v in rewrite.items() if v is not None},
        "paraphrase_prompts": ["The mouth of the Ob lies on the"],
        "neighborhood_prompts": ["The river Yenisei ends in the"],
        "generation_prompts": ["Ob"],
    }
    record.update(changes)
    return {k: v for k, v in record.items() if v is not None}


def known(known_id: Any = 3, **changes: Any) -> dict[str, Any]:
    record = {
        "known_id": known_id,
        "subject": "Lisa",
        "attribute": "Florence",
        "template": "{} was painted in",
        "prediction": " the city of Florence.",
        "prompt": "Lisa was painted in the city of",
        "relation_id": "R2",
    }
    record.update(changes)
    return {k: v for k, v in record.items() if v is not None}


def zsre(**changes: Any) -> dict[str, Any]:
    record: dict[str, Any] = {
        "subject": "Ada",
        "src": "Where was Ada born?",
        "rephrase": "In what place was Ada born?",
        "alt": "Rome",
        "answers": ["London", "England"],
        "loc": "nq question: who wrote the first program",
        "loc_ans": "nobody knows",
    }
    record.update(changes)
    return {k: v for k, v in record.items() if v is not None}


def own(**changes: Any) -> dict[str, Any]:
    record = {"prompt": "{} lives in", "subject": "Ada", "target_true": "London"}
    record.update(changes)
    return {k: v for k, v in record.items() if v is not None}


def write_list(tmp_path: Path, *records: Any) -> Path:
    path = tmp_path / "facts.json"
    path.write_text(json.dumps(list(records)), encoding="utf-8")
    return path


def write_lines(tmp_path: Path, *records: Any) -> Path:
    path = tmp_path / "facts.jsonl"
    lines = [r if isinstance(r, bytes) else json.dumps(r, ensure_ascii=False).encode() for r in records]
    path.write_bytes(b"\n".join(lines) + b"\n")
    return path


def sentence(path: Any, **options: Any) -> str:
    """Return the message of the FactError that loading raises. It is one sentence on one line."""
    with pytest.raises(FactError) as caught:
        load_facts(path, **options)
    message = str(caught.value)
    assert "\n" not in message
    assert ". " not in message.replace(str(path), "")
    return message


def test_counterfact(tmp_path: Path) -> None:
    (fact,) = load_facts(write_list(tmp_path, counterfact()))
    assert fact == Fact(
        "The river {} ends in the",
        "Ob",
        "Kara Sea",
        "Black Sea",
        relation="R1",
        paraphrases=("The mouth of the Ob lies on the",),
        neighborhood=("The river Yenisei ends in the",),
        fact_id="counterfact/7",
        source="counterfact",
    )


def test_known_prompt_continues_after_the_template(tmp_path: Path) -> None:
    facts = load_facts(write_list(tmp_path, known(), known(4, prompt="Lisa was painted in"), known(5, prompt=None)))
    assert [f.text for f in facts] == [
        "Lisa was painted in the city of",
        "Lisa was painted in",
        "Lisa was painted in",
    ]
    assert [f.fact_id for f in facts] == ["known/3", "known/4", "known/5"]
    assert facts[0].prompt == "{} was painted in the city of"
    assert (facts[0].target_true, facts[0].target_false, facts[0].relation) == ("Florence", None, "R2")


def test_zsre_asks_as_in_the_papers_experiments(tmp_path: Path) -> None:
    path = write_list(tmp_path, zsre(), zsre(answers=["Paris"]), zsre(answers=["London "]))
    first, second, third = load_facts(path)
    assert first == Fact(
        "Question: Where was {} born? Answer:",
        "Ada",
        "London",
        "Paris",
        paraphrases=("Question: In what place was Ada born? Answer:",),
        neighborhood=("Question: who wrote the first program? Answer:",),
        fact_id="zsre/question/0",
        source="zsre",
        probes=(Probe("locality", "Question: who wrote the first program? Answer:", ("nobody knows",)),),
    )
    assert first.meta == {"alt": "Rome", "answers": ["London", "England"]}
    assert [(fact.target_true, fact.target_false) for fact in (second, third)] == [
        ("Paris", "London"), ("London", "Paris"),
    ]  # fmt: skip


def test_a_false_answer_of_zsre_is_that_of_another_record(tmp_path: Path) -> None:
    path = write_list(tmp_path, *(zsre(answers=[f"a{i % 20}"]) for i in range(400)))
    facts = load_facts(path)
    assert facts == load_facts(path)
    assert facts[:7] == load_facts(path, limit=7), "all of the file's answers are drawn from"
    assert {fact.target_false for fact in facts} == {f"a{i}" for i in range(20)}
    assert all(fact.target_false != fact.target_true for fact in facts)
    [alone] = load_facts(write_list(tmp_path, zsre()))
    assert alone.target_false is None


def test_a_bad_record_of_zsre_gives_no_answer(tmp_path: Path) -> None:
    path = write_list(tmp_path, zsre(), 5, zsre(answers=[7]), zsre(answers=[]), zsre(answers=["Oslo"]))
    first, last = load_facts(path, on_bad="skip", rejected=[])
    assert (first.target_false, last.target_false) == ("Oslo", "London")


def test_zsre_bare(tmp_path: Path) -> None:
    (fact,) = load_facts(write_list(tmp_path, zsre()), zsre="bare")
    assert fact == Fact(
        "Where was {} born?",
        "Ada",
        "London",
        "Rome",
        paraphrases=("In what place was Ada born?",),
        neighborhood=("who wrote the first program",),
        fact_id="zsre/0",
        source="zsre-bare",
        probes=(Probe("locality", "who wrote the first program", ("nobody knows",)),),
    )


@pytest.mark.parametrize("alt", ["", "London"])
def test_zsre_without_an_alternative(tmp_path: Path, alt: str) -> None:
    (fact,) = load_facts(write_list(tmp_path, zsre(alt=alt)), zsre="bare")
    assert fact.target_false is None


def test_zsre_subject_is_a_whole_word_if_possible(tmp_path: Path) -> None:
    (fact,) = load_facts(write_list(tmp_path, zsre(subject="In", src="When was Indra's In made?")))
    assert fact.prompt == "Question: When was Indra's {} made? Answer:"


def test_own_lines_blank_lines_and_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "no_suffix"
    full = {
        "prompt": "{} spricht",
        "subject": "Ærø 東京",
        "target_true": " Deutsch ",
        "target_false": "Dänisch",
        "relation": "language",
        "paraphrases": ["Die Sprache von Ærø 東京 ist"],
        "neighborhood": ["Wien spricht"],
        "fact_id": "a/b",
        "source": "mine",
    }
    text = json.dumps(full, ensure_ascii=False) + "\r\n\n" + json.dumps(own(target_false=None)) + "\n"
    path.write_bytes(b"\xef\xbb\xbf" + text.encode())
    first, second = load_facts(path)
    assert first == Fact(
        "{} spricht",
        "Ærø 東京",
        "Deutsch",
        "Dänisch",
        "language",
        ("Die Sprache von Ærø 東京 ist",),
        ("Wien spricht",),
        "a/b",
        "mine",
    )
    assert second == Fact("{} lives in", "Ada", "London")
    assert len(second.fact_id) == 12


def test_relation_limit_and_named_format(tmp_path: Path) -> None:
    records = [counterfact(i, rewrite={"relation_id": "R1" if i % 2 else "R2"}) for i in range(6)]
    path = write_list(tmp_path, *records)
    assert [f.fact_id for f in load_facts(path, relation="R2")] == [f"counterfact/{i}" for i in (0, 2, 4)]
    assert [f.fact_id for f in load_facts(path, relation="R1", limit=2)] == ["counterfact/1", "counterfact/3"]
    assert len(load_facts(str(path), format="counterfact", limit=50)) == 6


def test_interleaved_facts_are_of_each_relation_in_turn_and_cases_stay_whole() -> None:
    named = lambda s, **more: {"prompt": "{} is", "subject": s, "target_true": "x", "relation": s[0], **more}  # noqa: E731
    records = [named(s) for s in ("a1", "a2", "a3", "b1", "c1")]
    found = load_facts(records, order="interleaved")
    assert [fact.subject for fact in found] == ["a1", "b1", "c1", "a2", "a3"]
    assert [fact.subject for fact in load_facts(records, order="interleaved", limit=2)] == ["a1", "b1"]
    assert [fact.subject for fact in load_facts(records, order="interleaved", relation="a")] == ["a1", "a2", "a3"]
    records += [named(s, case_id="d", case_edits=2) for s in ("d1", "d2")]
    found = load_facts(records, order="interleaved", limit=5)
    assert [fact.subject for fact in found] == ["a1", "b1", "c1", "d1", "d2"]


def test_shuffled_facts_have_one_order_in_every_file() -> None:
    records = [{"prompt": "{} is", "subject": f"s{i}", "target_true": "x"} for i in range(20)]
    given, drawn = ([fact.subject for fact in load_facts(records, order=order)] for order in ("given", "shuffled"))
    assert sorted(drawn) == sorted(given)
    assert drawn != given
    backwards = [fact.subject for fact in load_facts(records[::-1], order="shuffled", limit=5)]
    assert backwards == drawn[:5]
    case = [{**one, "case_id": "c", "case_edits": 2} for one in records[:2]]
    together = [fact.subject for fact in load_facts([*case, *records[2:]], order="shuffled")]
    assert together.index("s1") == together.index("s0") + 1


def test_format_is_detected_past_bad_first_records(tmp_path: Path) -> None:
    rejected: list[str] = []
    facts = load_facts(write_list(tmp_path, 5, {}, known()), on_bad="skip", rejected=rejected)
    assert [f.fact_id for f in facts] == ["known/3"]
    assert len(rejected) == 2
    assert "record 0 " in rejected[0]
    assert "record 1 " in rejected[1]


def test_records_skipped_without_a_list_are_logged(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    assert len(load_facts(write_lines(tmp_path, own(), own(prompt="x")), on_bad="skip")) == 1
    assert "1 record of" in caplog.text
    assert "line 2" in caplog.text


BAD_OWN = {
    "not json": (b'{"prompt": ', None, "not JSON"),
    "not an object": (["a"], None, "a list"),
    "null": (b"null", None, "null"),
    "missing prompt": (own(prompt=None), "prompt", "missing"),
    "missing subject": (own(subject=None), "subject", "missing"),
    "missing target": (own(target_true=None), "target_true", "missing"),
    "number for a string": (own(subject=5), "subject", "a number"),
    "boolean for a string": (own(target_true=True), "target_true", "a boolean"),
    "list for a string": (own(relation=["a"]), "relation", "a list"),
    "string for a list": (own(paraphrases="Ada"), "paraphrases", "a string"),
    "number in a list": (own(neighborhood=["Bob lives in", 5]), "neighborhood[1]", "a number"),
    "empty prompt": (own(prompt=""), "prompt", "empty"),
    "blank subject": (own(subject="  "), "subject", "empty"),
    "empty target": (own(target_true=""), "target_true", "empty"),
    "empty false target": (own(target_false=""), "target_false", "empty"),
    "empty paraphrase": (own(paraphrases=[""]), "paraphrases[0]", "empty"),
    "empty id": (own(fact_id=""), "fact_id", "empty"),
    "no place": (own(prompt="Bob lives in"), "prompt", "absent"),
    "two places": (own(prompt="{} and {} live in"), "prompt", "got 2 in"),
    "a place in a paraphrase": (own(paraphrases=["{} dwells in"]), "paraphrases[0]", "whole prompt"),
    "a probe without a prompt": (own(probes=[{"kind": "alias"}]), "probes[0].prompt", "missing"),
    "a probe of a reserved kind": (
        own(probes=[{"kind": "rewrite", "prompt": "x"}]),
        "probes[0].kind",
        "another kind than rewrite or essence, got 'rewrite'",
    ),
    "a probe that expects something else": (
        own(probes=[{"kind": "alias", "prompt": "x", "expect": "same"}]),
        "probes[0].expect",
        "one of changed, unchanged, true",
    ),
    "a true probe without answers": (
        own(probes=[{"kind": "alias", "prompt": "x", "expect": "true"}]),
        "probes[0].answers",
        "expected the true ones",
    ),
    "a probe of a case that is not there": (
        own(probes=[{"kind": "alias", "prompt": "x", "after": "case"}]),
        "case_id",
        "expected the case that the probe",
    ),
    "edits without a case": (own(case_edits=2), "case_edits", "the number of edits of its case"),
    "both targets the same": (own(target_false=" London"), "target_false", "from the true one"),
    "bad utf-8": (
        b'{"prompt": "{} lives in", "subject": "Ad\xff", "target_true": "London"}',
        "subject",
        "UTF-8",
    ),
    "bad utf-8 in a name": (b'{"prompt":"{} is","subject":"A","target_true":"x","n\xff":1}', "n\\udcff", "UTF-8"),
    "bad utf-8 outside of strings": (b'{"prompt": \xff}', None, "UTF-8"),
    "half a surrogate pair": (
        b'{"prompt":"{} is","subject":"\\ud800","target_true":"x"}',
        "subject",
        "UTF-8",
    ),
    "the same id": (own(), "fact_id", "which line 1 also has"),
}


@pytest.mark.parametrize("kind", BAD_OWN)
def test_bad_own_record(tmp_path: Path, kind: str) -> None:
    record, field, words = BAD_OWN[kind]
    path = write_lines(tmp_path, own(), own(subject="Bob"), record, own(subject="Cy"))
    message = sentence(path)
    assert message.startswith(f"{path}, line 3")
    assert words in message
    assert (f"field '{field}'" in message) if field else ("field '" not in message)
    message.encode()

    rejected: list[str] = []
    facts = load_facts(path, on_bad="skip", rejected=rejected)
    assert [f.subject for f in facts] == ["Ada", "Bob", "Cy"]
    assert rejected == [message]


BAD_LIST: dict[str, tuple[Any, str | None, str]] = {
    "item is no object": ("text", None, "a string"),
    "no rewrite": (counterfact(requested_rewrite=None), "requested_rewrite", "missing"),
    "rewrite is a list": (counterfact(requested_rewrite=[]), "requested_rewrite", "a list"),
    "no case id": (counterfact(None), "case_id", "missing"),
    "case id is a list": (counterfact([1]), "case_id", "a list"),
    "case id is a boolean": (counterfact(True), "case_id", "a boolean"),
    "no prompt": (counterfact(rewrite={"prompt": None}), "requested_rewrite.prompt", "missing"),
    "no place": (counterfact(rewrite={"prompt": "The Ob is"}), "requested_rewrite.prompt", "absent"),
    "two places": (counterfact(rewrite={"prompt": "{} {} is"}), "requested_rewrite.prompt", "got 2 in"),
    "no subject": (counterfact(rewrite={"subject": None}), "requested_rewrite.subject", "missing"),
    "no false target": (counterfact(rewrite={"target_new": None}), "requested_rewrite.target_new", "missing"),
    "plain target": (
        counterfact(rewrite={"target_true": "sea"}),
        "requested_rewrite.target_true",
        "a string",
    ),
    "no str": (counterfact(rewrite={"target_true": {}}), "requested_rewrite.target_true.str", "missing"),
    "empty str": (
        counterfact(rewrite={"target_new": {"str": " "}}),
        "requested_rewrite.target_new.str",
        "empty",
    ),
    "relation is a number": (
        counterfact(rewrite={"relation_id": 5}),
        "requested_rewrite.relation_id",
        "a number",
    ),
    "prompts are a string": (counterfact(neighborhood_prompts="x"), "neighborhood_prompts", "a string"),
    "null prompt in a list": (counterfact(paraphrase_prompts=[None]), "paraphrase_prompts[0]", "null"),
    "the same case": (counterfact(0), "fact_id", "record 0 (counted from 0) also has"),
}


@pytest.mark.parametrize("kind", BAD_LIST)
def test_bad_counterfact_record(tmp_path: Path, kind: str) -> None:
    record, field, words = BAD_LIST[kind]
    path = write_list(tmp_path, counterfact(0), record, counterfact(9))
    message = sentence(path)
    assert message.startswith(f"{path}, record 1 (counted from 0)")
    assert words in message
    assert (f"field '{field}'" in message) if field else ("field '" not in message)
    rejected: list[str] = []
    facts = load_facts(path, on_bad="skip", rejected=rejected)
    assert [f.fact_id for f in facts] == ["counterfact/0", "counterfact/9"]
    assert rejected == [message]


@pytest.mark.parametrize(
    ("record", "field", "words"),
    [
        (known(None), "known_id", "missing"),
        (known(attribute=None), "attribute", "missing"),
        (known(template="Lisa was painted in"), "template", "absent"),
        (known(template="{} {}"), "template", "got 2 in"),
        (known(subject=""), "subject", "empty"),
        (known(prompt="Mona was painted in"), "prompt", "absent"),
        (known(prompt="Where Lisa was painted in"), "prompt", "does not begin"),
        (known(prompt=5), "prompt", "a number"),
        (known(0), "fact_id", "also has"),
    ],
)
def test_bad_known_record(tmp_path: Path, record: dict[str, Any], field: str, words: str) -> None:
    message = sentence(write_list(tmp_path, known(0), record))
    assert f"record 1 (counted from 0), field '{field}'" in message
    assert words in message


@pytest.mark.parametrize(
    ("record", "field", "words"),
    [
        (zsre(src=None), "src", "missing"),
        (zsre(subject="Bob"), "src", "absent"),
        (zsre(src="Where was {} Ada born?"), "src", "a plain question"),
        (zsre(answers=None), "answers", "missing"),
        (zsre(answers=[]), "answers", "an empty list"),
        (zsre(answers="London"), "answers", "a string"),
        (zsre(answers=[1]), "answers[0]", "a number"),
        (zsre(alt=None), "alt", "missing"),
        (zsre(rephrase=""), "rephrase", "empty"),
        (zsre(loc="nq question: "), "loc", "empty"),
    ],
)
def test_bad_zsre_record(tmp_path: Path, record: dict[str, Any], field: str, words: str) -> None:
    message = sentence(write_list(tmp_path, zsre(), record))
    assert f"record 1 (counted from 0), field '{field}'" in message
    assert words in message


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "an empty file"),
        (b" \n\n", "an empty file"),
        (b"\xef\xbb\xbf", "an empty file"),
        (b"[]", "empty list"),
        (b"5", "a number"),
        (b'"text"', "a string"),
        (b'{\n"prompt": "{} is"\n}', "with the fields prompt: the nearest is fasttrace's own format, which also needs"),
        (b'{"case_id": 1, "requested_rewrite": {}}', "line 1, field 'requested_rewrite.prompt': it is missing"),
        (b'[{"a": 1}]', "got records with the fields a"),
        (b"[1, 2]", "got items that are not JSON objects"),
        (b'[\n{"case_id": 1,\n', "not JSON (Expecting property name"),
        (b"hello\n", "line 1: the text is not JSON"),
        (b'[[["a"', "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
    ],
)
def test_bad_file(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "file"
    path.write_bytes(content)
    message = sentence(path)
    assert words in message
    assert str(path) in message


@pytest.mark.parametrize(
    ("good", "bad", "field"),
    [
        (b'"subject": "Ob"', b'"subject": "O\xe9"', "requested_rewrite.subject"),
        (b'"generation_prompts": ["Ob"]', b'"generation_prompts": ["O\xe9"]', "generation_prompts"),
    ],
)
def test_bad_utf8_in_a_list_names_its_record(tmp_path: Path, good: bytes, bad: bytes, field: str) -> None:
    path = tmp_path / "facts.json"
    first, second = (json.dumps(counterfact(i)).encode() for i in range(2))
    path.write_bytes(b"[" + first + b", " + second.replace(good, bad) + b"]")
    message = sentence(path)
    assert f"record 1 (counted from 0), field '{field}'" in message
    assert "UTF-8" in message


def test_missing_file_and_directory(tmp_path: Path) -> None:
    assert "does not exist" in sentence(tmp_path / "none.json")
    assert "a folder with files of facts" in sentence(tmp_path)
    assert "hub:owner/name, got 5" in sentence(5)


def test_files_that_do_not_have_the_named_format(tmp_path: Path) -> None:
    path = write_lines(tmp_path, own(), own(subject="Bob"))
    assert "line 1, field 'case_id': it is missing" in sentence(path, format="counterfact")
    assert "line 1, field 'known_id': it is missing" in sentence(path, format="known")
    assert "record 1 (counted from 0), field 'case_id': it is missing" in sentence(
        write_list(tmp_path, counterfact(), known()), format="counterfact"
    )


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"format": "csv"}, "'csv'"),
        ({"limit": 0}, "at least 1"),
        ({"limit": True}, "at least 1"),
        ({"limit": 1.5}, "at least 1"),
        ({"on_bad": "ignore"}, "'ignore'"),
        ({"relation": "R9"}, "its relations are: R1"),
    ],
)
def test_bad_argument(tmp_path: Path, options: dict[str, Any], words: str) -> None:
    assert words in sentence(write_list(tmp_path, counterfact()), **options)
