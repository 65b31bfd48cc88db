"""Where facts come from: tables in memory, CSV, Parquet, folders and the hub, each by a map of its columns."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import fasttrace as ft
from fasttrace.errors import FactError
from fasttrace.facts.formats import own_record
from fasttrace.facts.load import read_facts
from fasttrace.settings.study import FactSettings

datasets, pd, pl = map(pytest.importorskip, ("datasets", "pandas", "polars"))  # a machine with a GPU may lack them
ROWS: list[dict[str, Any]] = [
    {"question": "The capital of France is", "entity": "France", "answer": "Paris", "year": 1998, "tags": ["a", "b"]},
    {"question": "In {subject}, people speak", "entity": "Chile", "answer": "Spanish", "year": 2001, "tags": ["c"]},
]
MAP = {"prompt": "question", "subject": "entity", "target_true": "answer"}
WANTED = [
    ("The capital of France is", "France", "Paris", "exact"),
    ("In Chile, people speak", "Chile", "Spanish", "template"),
]


def read(facts: list[ft.Fact]) -> list[tuple[str, str, str, str]]:
    return [(fact.text, fact.subject, fact.target_true, fact.subject_found) for fact in facts]


OBJECTS: dict[str, Callable[[], Any]] = {
    "dicts": lambda: ROWS,
    "a generator": lambda: iter(ROWS),
    "pandas": lambda: pd.DataFrame(ROWS),
    "polars": lambda: pl.DataFrame(ROWS),
    "pyarrow": lambda: pa.Table.from_pylist(ROWS),
    "a Dataset": lambda: datasets.Dataset.from_list(ROWS),
    "a DatasetDict of one split": lambda: datasets.DatasetDict({"test": datasets.Dataset.from_list(ROWS)}),
}


@pytest.mark.parametrize("kind", OBJECTS)
def test_a_table_in_memory(kind: str) -> None:
    facts = ft.load_facts(OBJECTS[kind](), map=MAP)
    assert read(facts) == WANTED
    assert [fact.meta for fact in facts] == [{"year": 1998, "tags": ["a", "b"]}, {"year": 2001, "tags": ["c"]}]


def write(folder: Path, name: str, content: str | bytes) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


@pytest.mark.parametrize("delimiter", [",", "\t", ";"])
def test_csv_by_its_content(tmp_path: Path, delimiter: str) -> None:
    lines = [
        ["question", "entity", "answer", "note"],
        ['"The capital of France is"', "France", "Paris", '"two\nlines"'],
        ["In <subject> people speak", "Chile", "Spanish", ""],
    ]
    path = write(tmp_path, "table", "\ufeff" + "\r\n".join(delimiter.join(line) for line in lines) + "\r\n\r\n")
    facts = ft.load_facts(path, map=MAP)
    assert [fact.text for fact in facts] == ["The capital of France is", "In Chile people speak"]
    assert [fact.meta for fact in facts] == [{"note": "two\nlines"}, {}], "an empty cell is no value"


def test_a_bad_row_of_csv_has_its_line(tmp_path: Path) -> None:
    text = 'prompt,subject,target_true\n"{} is\nin",Rome,Italy\n{} is in,Oslo\n{} is in,Bonn,Germany\n'
    path = write(tmp_path, "facts.csv", text)
    rejected: list[str] = []
    facts = ft.load_facts(path, on_bad="skip", rejected=rejected)
    assert [fact.subject for fact in facts] == ["Rome", "Bonn"]
    assert rejected == [f"{path}, line 4: expected 3 columns, as the first line has, got 2"]
    with pytest.raises(FactError, match="line 2: the text is not CSV"):
        ft.load_facts(write(tmp_path, "open.csv", 'prompt,subject,target_true\n"{} is in,Rome,Italy\n'))


def test_cells_that_are_lists_and_numbers(tmp_path: Path) -> None:
    """A year in a typed table is a text, and a list is JSON or a text alone."""
    probes = [{"kind": "alias", "prompt": "Rome lies in", "answers": ["Italy"]}]
    rows = [
        {"prompt": "{} was in", "subject": "Rome", "target_true": 1998, "paraphrases": "Rome was in", "probes": None}
    ]
    rows += [rows[0] | {"subject": "Bonn", "paraphrases": '["Bonn was in", "x"]', "probes": json.dumps(probes)}]
    path = tmp_path / "facts.parquet"
    pq.write_table(pa.Table.from_pylist(rows), path)
    first, second = ft.load_facts(path)
    assert (first.target_true, first.paraphrases, second.paraphrases) == (
        "1998",
        ("Rome was in",),
        ("Bonn was in", "x"),
    )
    assert second.probes == (ft.Probe("alias", "Rome lies in", ("Italy",)),)
    with pytest.raises(FactError, match=r"record 0 .*'target_true': expected a string, got a number"):
        ft.load_facts(pd.DataFrame(rows).assign(target_true=[1998.5, 3.0]))
    with pytest.raises(FactError, match="'paraphrases': expected a text or a JSON list"):
        ft.load_facts(pd.DataFrame(rows[:1]).assign(paraphrases="[Rome"))
    damaged = write(tmp_path, "damaged", path.read_bytes()[:-9])
    with pytest.raises(FactError, match="expected a Parquet file, got a damaged one"):
        ft.load_facts(damaged)


def test_columns_inside_columns() -> None:
    record = {"q": "{} is in", "s": {"name": "Rome"}, "answers": [{"text": "Italy"}, {"text": "Europe"}]}
    [fact] = ft.load_facts([record], map={"prompt": "q", "subject": "s.name", "target_true": "answers.0.text"})
    assert (fact.text, fact.target_true) == ("Rome is in", "Italy")
    assert set(fact.meta) == {"s", "answers"}


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"promt": "question"}, "map: a fact has no field 'promt'; did you mean 'prompt'?"),
        ({**MAP, "prompt": "nope"}, "expected some of the columns question, entity, answer, year, tags, got 'nope'"),
        ({"prompt": "question"}, "field 'subject': it is missing"),
    ],
)
def test_a_map_that_does_not_fit(columns: dict[str, str], words: str) -> None:
    with pytest.raises(FactError) as caught:
        ft.load_facts(ROWS, map=columns)
    assert words in str(caught.value)


def test_a_map_is_of_the_own_format() -> None:
    with pytest.raises(FactError, match="map: expected format own, whose fields it names, got known"):
        ft.load_facts(ROWS, map=MAP, format="known")


def test_a_folder_is_its_files_in_order(tmp_path: Path) -> None:
    for name, subject in (("b.jsonl", "Rome"), ("a/x.json", "Oslo"), ("notes.txt", "?"), ("c.csv", "Bonn")):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        record = {"prompt": "{} is in", "subject": subject, "target_true": "it"}
        header = ",".join(record) + "\n" + ",".join(record.values()) + "\n"
        write(tmp_path, name, header if name.endswith("csv") else json.dumps(record) + "\n")
    assert [fact.subject for fact in ft.load_facts(tmp_path)] == ["Oslo", "Rome", "Bonn"]
    write(tmp_path, "d.jsonl", '{"prompt": "{} is in", "subject": "x"}\n')
    with pytest.raises(FactError) as caught:
        ft.load_facts(tmp_path)
    assert str(caught.value) == f"{tmp_path}, d.jsonl, line 1, field 'target_true': it is missing"


def test_the_hub_by_the_datasets_library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The library takes a folder of that name for the hub's repository."""
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "owner" / "name"
    folder.mkdir(parents=True)
    lines = "".join(json.dumps(row) + "\n" for row in ROWS)
    (folder / "train.jsonl").write_text(lines)
    assert read(ft.load_facts("hub:owner/name", map=MAP)) == WANTED
    (folder / "test.jsonl").write_text(lines.splitlines()[0])
    with pytest.raises(FactError, match=r"expected one split, such as hub:owner/name:t\w+, got the splits"):
        ft.load_facts("hub:owner/name", map=MAP)
    assert read(ft.load_facts("hub:owner/name:test", map=MAP)) == WANTED[:1]
    assert read(ft.load_facts("hub:owner/name:default:train", map=MAP)) == WANTED
    with pytest.raises(FactError, match="hub:owner/name:dev: the datasets library could not load it: "):
        ft.load_facts("hub:owner/name:dev", map=MAP)
    with pytest.raises(FactError, match="expected hub:owner/name"):
        ft.load_facts("hub:name")


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ([], "the list: expected at least one record, got none"),
        ([1], "got items that are not JSON objects"),
        ({}, "expected a path, a table, records or hub:owner/name, got {}"),
        (b"x", "expected a path, a table, records or hub:owner/name, got b'x'"),
        (pd.DataFrame({"a": []}), "got a table without rows"),
        (pd.DataFrame({"a": [1, "x"]}), "expected columns of one type each, got others"),
        (
            [{"who": "x", "prompt": "y"}],
            "fasttrace's own format, which also needs 'target_true'; a map names the columns",
        ),
    ],
)
def test_what_is_no_source(source: Any, words: str) -> None:
    with pytest.raises(FactError) as caught:
        ft.load_facts(source)
    assert words in str(caught.value)


def test_nothing_is_left_out_silently() -> None:
    good = {"prompt": "{} is in", "subject": "Rome", "target_true": "Italy", "paraphrase": "x"}
    bad = [{"prompt": "{} is in", "subject": "Rome"}, 7]
    loaded = read_facts([good, *bad], FactSettings(on_bad="skip"))
    assert [fact.meta for fact in loaded.facts] == [{"paraphrase": "x"}]
    assert [(one.record, one.reason, one.part) for one in loaded.left_out] == [
        (
            "record 0 (counted from 0)",
            "field 'paraphrase': no field of a fact has this name, so it is kept in meta: is it 'paraphrases'?",
            True,
        ),
        ("record 1 (counted from 0)", "field 'target_true': it is missing", False),
        ("record 2 (counted from 0)", "expected a JSON object, got a number", False),
    ]
    assert loaded.summary() == (
        "2 records and 1 part of records of the list left out; the first one: the list, record 0 (counted from "
        "0), field 'paraphrase': no field of a fact has this name, so it is kept in meta: is it 'paraphrases'?"
    )


def test_nothing_left_is_an_error() -> None:
    bad = [{"prompt": "{} is in", "subject": "x"}, {"prompt": "x", "subject": "y", "target_true": "z"}]
    with pytest.raises(FactError, match="expected a usable record, got none in 2; the first one: the list, record 0"):
        ft.load_facts(bad, on_bad="skip", rejected=[])


def test_a_case_is_taken_whole_or_not_at_all() -> None:
    case = [
        {"prompt": "{} is in", "subject": f"s{i}", "target_true": "x", "case_id": f"c{i // 2}", "case_edits": 2}
        for i in range(4)
    ]
    alone = {"prompt": "{} is in", "subject": "alone", "target_true": "x"}
    records = [alone, *case]
    assert [len(ft.load_facts(records, limit=n)) for n in (1, 2, 3, 4, 5)] == [1, 1, 3, 3, 5]
    with pytest.raises(FactError, match="expected a limit of at least the edits of its first case, got 1"):
        ft.load_facts(case, limit=1)


def test_the_facts_of_cases_may_alternate_and_a_relation_keeps_a_case() -> None:
    records = [
        {"prompt": "{} is in", "subject": f"s{i}", "target_true": "x", "case_id": i % 2, "relation": f"r{i}"}
        for i in range(4)
    ]
    facts = ft.load_facts(records)
    assert [(fact.subject, fact.case_id, fact.case_edits) for fact in facts] == [
        ("s0", "0", 2), ("s2", "0", 2), ("s1", "1", 2), ("s3", "1", 2),
    ]  # fmt: skip
    assert [fact.subject for fact in ft.load_facts(records, limit=3)] == ["s0", "s2"]
    assert [fact.subject for fact in ft.load_facts(records, relation="r3")] == ["s1", "s3"]


def test_cases_in_a_csv(tmp_path: Path) -> None:
    text = "prompt, subject, target_true, case_id, case_edits\n{} is, a, x, 7, 2\n{} is, b, x, 7, 2\n{} is, c, x,,\n"
    facts = ft.load_facts(write(tmp_path, "cases.csv", text))
    assert [(fact.text, fact.case_id, fact.case_edits) for fact in facts] == [
        ("a is", "7", 2), ("b is", "7", 2), ("c is", None, 1),
    ]  # fmt: skip


EXTRA: list[dict[str, Any]] = [
    {"src": "x", "answers": ["y"]},
    {"attribute": "x", "template": "y"},
    {"edit": "x", "example_type": "y"},
    {"sub_label": "x", "obj_label": "y", "uuid": "z"},
    {"requested_rewrite": 1, "case": 2},
    {"clean": "x", "counterfactual": "y", "choices": 1},
    {"samples": 1, "prompt_templates": 2, "pattern": 3, "lemma": 4},
    {"target_new": "x", "portability": {}, "locality": {}},
    {"meta": "text"},
]


@pytest.mark.parametrize("extra", EXTRA, ids=str)
def test_no_extra_column_refuses_a_record(extra: dict[str, Any]) -> None:
    [fact] = ft.load_facts([{"prompt": "{} is in", "subject": "Rome", "target_true": "Italy", **extra}])
    assert (fact.text, fact.source, fact.meta) == ("Rome is in", "own", extra)


def test_with_a_map_other_columns_are_no_fields() -> None:
    row = {"prompt": "id 1", "q": "{} is in", "subject": "Rome", "target_true": "Italy", "source": "web", "case_id": 3}
    [fact] = ft.load_facts([row], map={"prompt": "q"})
    assert (fact.text, fact.source, fact.case_id) == ("Rome is in", "own", None)
    assert fact.meta == {"prompt": "id 1", "source": "web", "case_id": 3}
    with pytest.raises(FactError, match=r"record 1 .*field 'prompt': it is missing"):
        ft.load_facts([row, {**row, "q": None}], map={"prompt": "q"})


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ("prompt,note,subject,note\nx,a,b,c\n", "expected columns with names of their own, got 'note' twice"),
        ("prompt,subject,target_true\n", "expected at least one record, got a table without rows"),
        ("prompt,subject\n".encode("utf-16"), "expected text in UTF-8, got UTF-16"),
        (
            b'{"prompt":"{} is","subject":"a","target_true":"x","note":"\\ud800"}',
            "'note': it contains bytes that are not",
        ),
    ],
)
def test_bad_tables_and_texts(tmp_path: Path, content: str | bytes, words: str) -> None:
    with pytest.raises(FactError) as caught:
        ft.load_facts(write(tmp_path, "facts", content))
    assert words in str(caught.value)


def test_files_of_a_folder_that_number_alike(tmp_path: Path) -> None:
    record = {"subject": "Ada", "src": "Where was Ada born?", "alt": "Rome", "answers": ["London"]}
    for name in ("a.json", "b.json"):
        write(tmp_path, name, json.dumps([record]))
    assert [fact.fact_id for fact in ft.load_facts(tmp_path, zsre="bare")] == ["zsre/a/0", "zsre/b/0"]
    assert [fact.fact_id for fact in ft.load_facts(tmp_path / "a.json", zsre="bare")] == ["zsre/0"]


def test_facts_of_a_store_are_read_again(tmp_path: Path) -> None:
    """As a table that SQL writes, whose meta is the text of JSON, and as a record of the own format."""
    fact = ft.Fact(
        "{} is in", "Rome", "Italy", "Spain", "r", ("Rome lies in",), case_id="c", meta={"topic": "geo", "n": 3},
        probes=(ft.Probe("alias", "Roma is in", "Italy"),),
    )  # fmt: skip
    store = ft.Store(tmp_path / "s.duckdb")
    store.add_facts([fact])
    pq.write_table(store.query("FROM facts"), tmp_path / "facts.parquet")
    for again in (ft.load_facts(tmp_path / "facts.parquet"), ft.load_facts([own_record(fact)])):
        assert again == [fact]
        assert again[0].meta == fact.meta
    odd = ft.Fact(
        "{} is in", "Rome", "Italy", meta={"day": pd.Timestamp("2025-05-05"), "half": "\ud800", "nan": float("nan")}
    )
    assert json.loads(json.dumps(own_record(odd)))["meta"] == {"day": "2025-05-05 00:00:00", "half": "?", "nan": None}
    assert ft.Store(tmp_path / "odd.duckdb").add_facts([odd]) == 1
