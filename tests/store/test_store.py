"""Store: rows are read as they were added, nothing is added twice, and bad files are refused in one sentence."""

import dataclasses
import json
from datetime import date

import duckdb
import pyarrow as pa
import pytest
from made_results import CELLS, FACTS, SAMPLES, Made, made_edit, made_known, made_run, made_trace

from fasttrace.errors import StoreError
from fasttrace.facts import Fact, Probe
from fasttrace.facts.fields import LeftOut
from fasttrace.store import Store
from fasttrace.store.texts import RELATIONS, schema_sql
from fasttrace.tracing import effects as engine

IDS = [f"f{i}" for i in range(6)]


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "study.duckdb", timeout_s=2)


def counts(store):
    return {row["relation"]: row["n_rows"] for row in store.relations().to_pylist() if row["kind"] == "table"}


def change(result, table, column, values):
    changed = getattr(result, table)
    place = changed.column_names.index(column)
    new = changed.set_column(place, changed.schema.field(place), pa.array(values, changed.schema.field(place).type))
    return dataclasses.replace(result, **{table: new})


def test_rows_are_read_as_they_were_added(store):
    trace, edit, known = made_trace(IDS), made_edit(IDS), made_known(IDS)
    assert (store.add(trace), store.add(edit), store.add(known)) == (6, 24, 6)
    for result, attribute, relation in (
        (trace, "facts", "traces"), (trace, "cells", "trace_cells"), (edit, "scores", "edits"),
        (edit, "prompts", "edit_prompts"), (known, "verdicts", "known"),
    ):  # fmt: skip
        wanted = getattr(result, attribute)
        found = store.query(f"SELECT * FROM {relation}")
        assert set(found["run_id"].to_pylist()) == {result.run["run_id"]}
        assert set(found["protocol"].to_pylist()) == {"paper"}
        order = [(name, "ascending") for name in wanted.column_names if wanted[name].type in (pa.string(), pa.int32())]
        rows = found.select(wanted.column_names).sort_by(order).to_pylist()
        assert rows == wanted.sort_by(order).to_pylist()
    run = store.query("SELECT * FROM runs WHERE run_id = ?", ["t0"]).to_pylist()[0]
    assert run == trace.run | {"created_at": trace.run["created_at"].replace(tzinfo=None)}


def test_adding_again_changes_nothing(store):
    for result in (made_trace(IDS), made_edit(IDS), made_known(IDS)):
        store.add(result)
    before, seconds = counts(store), store.query("SELECT run_id, seconds FROM runs ORDER BY ALL").to_pylist()
    for result in (made_trace(IDS), made_edit(IDS), made_known(IDS)):
        assert store.add(result) == 0
    assert counts(store) == before
    assert store.query("SELECT run_id, seconds FROM runs ORDER BY ALL").to_pylist() == seconds


def test_overlapping_batches_add_only_what_is_new(store):
    store.add(made_trace(IDS[:4]))
    assert store.add(made_trace(IDS[2:])) == 2
    assert store.add(made_edit(IDS[:2], layers=(0, 1))) == 4
    assert store.add(made_edit(IDS[:3], layers=(1, 2))) == 4
    assert store.done("t0") == set(IDS)
    wanted = {(f, layer) for f in IDS[:2] for layer in (0, 1, 2)} | {("f2", 1), ("f2", 2)}
    assert store.done_edits("e0") == wanted
    assert counts(store)["trace_cells"] == 6 * 3 * 4
    assert counts(store)["edit_prompts"] == len(wanted) * 4
    effort = store.query("SELECT seconds, flops FROM runs ORDER BY run_id").to_pylist()
    assert effort == [{"seconds": 3.0, "flops": 4e9}] * 2  # 1.5 and 2e9 for each of two batches


def test_runs_do_not_see_each_other(store):
    store.add(made_trace(IDS[:3]))
    assert store.add(made_trace(IDS[:4], run_id="t1", seed=7)) == 4
    assert store.done("t0") == set(IDS[:3])
    assert store.done("t1") == set(IDS[:4])
    assert store.done("t2") == store.done_edits("t2") == set()


def test_done_before_there_is_a_file(store):
    assert store.done("t0") == store.done_edits("e0") == set()
    assert not store.path.exists()


def test_trace_effects_is_the_maximum_over_tokens(store):
    result = made_trace(IDS, windows=(3, 5), no_effect=("f1",), left_out=("f2",))
    store.add(result)
    rows = store.query("SELECT * FROM trace_effects").to_pylist()
    assert len(rows) == 5 * 2 * 4  # f2 has no cells
    cells = result.cells.to_pylist()
    facts = {row["fact_id"]: row for row in result.facts.to_pylist()}
    for row in rows:
        here = [c for c in cells if all(c[k] == row[k] for k in ("fact_id", "window_size", "layer"))]
        assert row["p_restored_max"] == max(c["p_restored"] for c in here)
        assert (row["p_clean"], row["p_noised"]) == tuple(facts[row["fact_id"]][k] for k in ("p_clean", "p_noised"))
        if row["fact_id"] == "f1":
            assert row["effect"] is row["effect_last_subject"] is row["peak_token_index"] is None
            continue
        peak = max(here, key=lambda c: c["effect"])
        assert (row["effect"], row["peak_token_index"]) == (peak["effect"], peak["token_index"])
        assert row["effect_last_subject"] == next(c["effect"] for c in here if c["token_index"] == 1)
        assert (row["module"], row["method"]) == ("mlp", "denoise")


def test_the_earliest_of_equal_peaks(store):
    result = made_trace(["f0"], layers=1)
    store.add(change(result, "cells", "effect", [0.25, 0.5, 0.5]))
    assert store.query("SELECT peak_token_index FROM trace_effects").column(0).to_pylist() == [1]


def test_nan_is_stored_as_null(store):
    result = made_edit(["f0"], layers=(0, 1))
    store.add(change(result, "scores", "paraphrase", [float("nan"), 0.5]))
    assert store.query("SELECT paraphrase FROM edits ORDER BY layer").column(0).to_pylist() == [None, 0.5]


def test_a_fact_is_added_once_and_another_with_its_id_is_refused(store):
    facts = [Fact("{} is in", f"s{i}", "Rome", "Oslo", paraphrases=("a", "b"), fact_id=f"f{i}") for i in range(3)]
    assert store.add_facts(facts[:2]) == 2
    assert store.add_facts(facts) == 1
    row = store.query("SELECT * FROM facts WHERE fact_id = 'f0'").to_pylist()[0]
    assert row == {name: getattr(facts[0], name) for name in row} | {
        "paraphrases": ["a", "b"],
        "neighborhood": [],
        "probes": [],
        "meta": None,
    }
    with pytest.raises(StoreError, match="fact_id 'f1'"):
        store.add_facts([dataclasses.replace(facts[1], target_true="Bonn")])
    with pytest.raises(StoreError, match="two facts have the fact_id 'f1'"):
        store.add_facts([facts[1], dataclasses.replace(facts[1], subject="other")])
    assert counts(store)["facts"] == 3


def test_probes_tell_facts_apart_and_other_fields_do_not(store):
    alias = Probe("alias", "s is in", ("Oslo", "Christiania"))
    fact = Fact("{} is in", "s", "Rome", "Oslo", fact_id="f0", probes=(alias,), meta={"n": 3, "tags": ["a", None]})
    assert store.add_facts([fact, dataclasses.replace(fact, meta={"n": 4})]) == 1
    assert (
        store.add_facts([dataclasses.replace(fact, meta={"n": 5, "nan": float("nan"), "day": date(2025, 5, 5)})]) == 0
    )
    [row] = store.query(
        "SELECT meta->>'$.n' AS n, meta->>'$.tags' AS tags, meta->>'$.day' AS day FROM facts"
    ).to_pylist()
    assert row == {"n": "5", "tags": '["a",null]', "day": "2025-05-05"}, "the last one's, and others stay"
    assert store.add_facts([dataclasses.replace(fact, meta={})]) == 0
    assert store.query("SELECT meta->>'$.n' AS n FROM facts").to_pylist() == [{"n": "5"}], "none takes nothing away"
    [probe] = store.query("SELECT unnest(probes, recursive := true) FROM facts").to_pylist()
    assert probe == dataclasses.asdict(alias) | {"answers": ["Oslo", "Christiania"]}
    with pytest.raises(StoreError, match="the fact 'f0' with other probes, or in another case"):
        store.add_facts([dataclasses.replace(fact, probes=(dataclasses.replace(alias, expect="true"),))])


def test_what_was_left_out_of_a_source_is_that_of_its_last_reading(store):
    first = [LeftOut("line 3", "prompt", "it is missing"), LeftOut("line 9", None, "the text is not JSON", part=True)]
    assert store.add_left_out("a.jsonl", []) == 0
    assert not store.path.exists(), "nothing to say"
    assert store.add_left_out("a.jsonl", first) == 2
    assert store.add_left_out("b.jsonl", first[:1]) == 1
    select = "SELECT source, record, reason, part FROM facts_left_out ORDER BY ALL"
    assert store.query(select).to_pylist() == [
        {"source": "a.jsonl", "record": "line 3", "reason": "field 'prompt': it is missing", "part": False},
        {"source": "a.jsonl", "record": "line 9", "reason": "the text is not JSON", "part": True},
        {"source": "b.jsonl", "record": "line 3", "reason": "field 'prompt': it is missing", "part": False},
    ]
    assert store.add_left_out("a.jsonl", []) == 0
    assert store.query("SELECT source FROM facts_left_out").to_pylist() == [{"source": "b.jsonl"}]


def test_counterfactuals_are_those_of_a_run_and_not_of_a_fact(store):
    bare = Fact("{} is in", "Rome", "Italy", fact_id="f0")
    one = dataclasses.replace(bare, counterfactual_subject=("Bonn", "Kiel"), counterfactual_answer="Germany")
    other = dataclasses.replace(bare, counterfactual_subject="Oslo", counterfactual_answer="Norway")
    assert store.add_facts([bare, one]) == 1
    assert store.add_facts([other]) == 0
    with pytest.raises(StoreError, match="another fact with the fact_id 'f0'"):
        store.add_facts([dataclasses.replace(bare, target_false="Germany")])


def test_a_run_refuses_other_counterfactuals_of_a_fact(store):
    """A run is named without its facts, so their rows would be taken for those that are there."""
    made = made_trace(["f0"])
    names = made.facts.column_names

    def with_pairs(pairs, false, run_id="t0"):
        row = made.facts.to_pylist()[0] | {"counterfactuals": pairs, "target_false": false}
        result = dataclasses.replace(made, facts=pa.Table.from_pylist([row], schema=made.facts.schema))
        return dataclasses.replace(result, run={**made.run, "run_id": run_id})

    assert store.add(with_pairs(["Bonn is in", "Kiel is in"], "Germany")) == 1
    assert store.add(with_pairs(["Kiel is in", "Bonn is in"], "Germany")) == 0
    assert store.add(with_pairs(["Oslo is in"], "Norway", "t1")) == 1
    for pairs, false, words in (
        (["Oslo is in"], "Germany", "other counterfactuals"),
        (["Bonn is in"], None, "other counterfactuals"),
        (["Bonn is in", "Kiel is in"], None, "another o_false"),
        (["Oslo is in"], None, "other counterfactuals"),
        (["Bonn is in", "Kiel is in"], "Norway", "another o_false"),
    ):
        new = with_pairs(pairs, false)
        with pytest.raises(StoreError, match=f"the run t0 is in the store with {words} of the fact 'f0'"):
            store.add(new)
        with pytest.raises(StoreError, match=f"the run t0 is in the store with {words} of the fact 'f0'"):
            store.check_contrasts("t0", new.facts)
    assert store.add(with_pairs(None, "Rome", "t2")) == 1, "as version 8 stored a fact that was left out"
    assert store.add(with_pairs(["Bonn is in"], "Rome", "t2")) == 0
    assert counts(store)["traces"] == 3
    assert names == made.facts.column_names


def test_made_results_have_the_columns_of_the_engine():
    for made, own in ((FACTS, engine.TRACED_FACTS), (CELLS, engine.CELLS), (SAMPLES, engine.SAMPLES)):
        assert pa.schema(list(made.items())) == own


def test_effects_of_heads_and_of_another_metric(store):
    """The largest over tokens and heads, in the run's metric; effect_absolute stays a difference of probabilities."""
    result = made_trace(IDS, heads=(0, 3, 7), asked={"module": "head", "metric": "logit-difference", "heads": "all"})
    store.add(result)
    rows, cells = store.query("SELECT * FROM trace_effects").to_pylist(), result.cells.to_pylist()
    facts = {row["fact_id"]: row for row in result.facts.to_pylist()}
    assert len(rows) == 6 * 4
    for row in rows:
        here = [c for c in cells if all(c[k] == row[k] for k in ("fact_id", "window_size", "layer"))]
        last = [c for c in here if c["token_index"] == 1]
        assert (len(here), len(last)) == (9, 3)
        peak = max(here, key=lambda c: c["effect"])
        assert (row["effect"], row["peak_token_index"]) == (peak["effect"], peak["token_index"])
        assert row["effect_last_subject"] == max(c["effect"] for c in last)
        restored = max(c["p_restored"] for c in last)
        assert row["effect_absolute"] == pytest.approx(restored - facts[row["fact_id"]]["p_noised"], abs=1e-15)
        assert row["p_restored_max"] == max(c["p_restored"] for c in here)
        assert (row["module"], row["method"]) == ("head", "denoise")


def test_moments_and_benches(store):
    @dataclasses.dataclass
    class Moments:
        run: dict
        corpus_hash: str = "c0"
        n_tokens: int = 1000
        layers: tuple = (0, 4)
        path: str = "/somewhere/x.safetensors"
        corpus: str = "text"

    for _ in range(2):
        store.add(Moments(made_run("m0", "moments", protocol=None, model_hash="m0")))
    row = store.query("SELECT * FROM moments").to_pylist()
    assert [(r["layers"], r["n_tokens"], r["model_hash"]) for r in row] == [([0, 4], 1000, "m0")]
    bench = pa.table(
        {"benchmark": ["sweep"], "case": ["w=5"], "impl": ["auto"], "metric": ["time"], "value": [0.5],
         "low": [0.4], "high": [0.6], "unit": ["s"], "n": [5], "machine": ["2 cores"], "commit": ["abc"]}
    )  # fmt: skip
    run = made_run("b0", "bench", protocol=None, model=None, model_hash=None, dtype=None)
    assert [store.add(Made(run, benches=bench)) for _ in range(2)] == [1, 0]


@pytest.mark.parametrize(
    ("table", "column", "values"),
    [
        ("facts", "p_clean", [1.2]),
        ("facts", "p_noised", [-0.1]),
        ("facts", "kept", [False]),  # without a reason
        ("facts", "sigma", [-1.0]),
        ("cells", "layer", [-1, 0, 0]),
        ("cells", "layer", [0, 0, 0]),  # the token indices become 0 below, so that the key repeats
        ("cells", "p_restored", [0.1, 2.0, 0.1]),
        ("cells", "window_size", [0, 5, 5]),
        ("cells", "token_index", [None, 1, 2]),
        ("cells", "layer", [1, 0, 0]),  # the token indices become 0 and the heads 1 below: a head twice
    ],
)
def test_a_row_that_breaks_a_rule_is_refused_with_its_whole_batch(store, table, column, values):
    good = made_trace(["f0"], layers=1)
    bad = change(made_trace(["f1"], layers=1), table, column, values)
    if values in ([0, 0, 0], [1, 0, 0]):
        bad = change(bad, "cells", "token_index", [0, 0, 0])
    if values == [1, 0, 0]:
        bad = change(bad, "cells", "head", [1, 1, 1])
    store.add(good)
    before = counts(store)
    with pytest.raises(StoreError, match="of the run t0 does not fit the store"):
        store.add(bad)
    assert counts(store) == before
    assert store.done("t0") == {"f0"}


@pytest.mark.parametrize(
    "change_of_run",
    [
        {"seed": 3},
        {"protocol": "released"},
        {"dtype": "bfloat16"},
        {"model_hash": "m1"},
        {"fasttrace_version": "9.9"},
    ],
)
def test_a_run_keeps_its_identity(store, change_of_run):
    store.add(made_trace(IDS[:1]))
    later = made_trace(IDS[1:])
    with pytest.raises(StoreError, match=f"with {next(iter(change_of_run))} "):
        store.add(dataclasses.replace(later, run=later.run | change_of_run))
    assert store.done("t0") == {"f0"}


@pytest.mark.parametrize(
    ("result", "sentence"),
    [
        (Made({}), "kind .*, got None"),
        (Made(made_run("x", "dance")), "kind .*, got 'dance'"),
        (Made(made_run("", "trace")), "lacks run_id"),
        (Made(made_run("x", "trace")), "as its 'cells', got NoneType"),
        (Made(made_run("x", "trace", created_at="soon"), cells=None), "created_at"),
        (dataclasses.replace(made_trace(["f0"]), facts=made_known(["f0"]).verdicts), "lacks prompt, subject"),
        (change(made_trace(["f0"]), "facts", "prompt", [None]), "NOT NULL"),
    ],
)
def test_a_bad_result_gives_one_sentence(store, result, sentence):
    with pytest.raises(StoreError, match=sentence) as caught:
        store.add(result)
    assert "\n" not in str(caught.value)


def test_an_unknown_column_is_named(store):
    result = made_trace(["f0"])
    with pytest.raises(StoreError, match="unknown colour"):
        store.add(dataclasses.replace(result, facts=result.facts.append_column("colour", pa.array(["red"]))))


def test_query_cannot_write(store):
    store.add(made_trace(["f0"]))
    with pytest.raises(StoreError, match="the query writes, but the store is open read-only"):
        store.query("DELETE FROM traces")
    with pytest.raises(StoreError, match="the query failed: Catalog Error"):
        store.query("SELECT * FROM nothing")
    assert store.query("SELECT $a + 1 AS b", {"a": 1}).to_pylist() == [{"b": 2}]
    assert store.done("t0") == {"f0"}


@pytest.mark.parametrize("method", ["add", "query"])
@pytest.mark.parametrize(
    ("made", "sentence"),
    [
        (lambda path: path.write_bytes(b"hello world " * 900), "is not a DuckDB file"),
        (lambda path: path.write_bytes(b""), "is not a DuckDB file"),
        (lambda path: path.mkdir(), "expected a file, got a folder|is not a store in Parquet"),
        (
            lambda path: duckdb.connect(str(path)).execute("CREATE TABLE t (a INT)").close(),
            "not a fasttrace store",
        ),
    ],
)
def test_a_file_that_is_no_store_gives_one_sentence(store, method, made, sentence):
    made(store.path)
    argument = {"add": made_trace(["f0"]), "query": "SELECT 1"}[method]
    with pytest.raises(StoreError, match=sentence) as caught:
        getattr(store, method)(argument)
    assert str(store.path) in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(("version", "age"), [(0, "an older"), (99, "a newer")])
def test_another_schema_version_is_refused(store, version, age):
    store.create()
    con = duckdb.connect(str(store.path))
    con.execute("UPDATE store_schema SET version = ?", [version]).fetchall()
    con.close()
    with pytest.raises(StoreError, match=f"schema version {version}, made by {age} fasttrace"):
        store.done("t0")


def test_an_altered_relation_is_refused(store):
    store.create()
    con = duckdb.connect(str(store.path))
    con.execute("ALTER TABLE benches ADD COLUMN mine INT").fetchall()
    con.close()
    with pytest.raises(StoreError, match="relation benches"):
        store.query("SELECT 1")


def test_additional_tables_are_accepted(store):
    store.add(made_trace(["f0"]))
    con = duckdb.connect(str(store.path))
    con.execute("CREATE TABLE mine (a INT)").fetchall()
    con.close()
    assert store.add(made_trace(["f1"])) == 1


def test_missing_folder_and_missing_store(tmp_path):
    with pytest.raises(StoreError, match=r"the folder .* does not exist"):
        Store(tmp_path / "no" / "x.duckdb").add(made_trace(["f0"]))
    with pytest.raises(StoreError, match="there is no store at"):
        Store(tmp_path / "x.duckdb").query("SELECT 1")
    assert list(tmp_path.iterdir()) == []


def test_a_log_without_its_store_is_refused(tmp_path):
    (tmp_path / "x.duckdb.wal").write_bytes(b"x")
    with pytest.raises(StoreError, match=r"log x\.duckdb\.wal"):
        Store(tmp_path / "x.duckdb").add(made_trace(["f0"]))


def test_creating_leaves_one_file(store, tmp_path):
    store.create()
    store.create()
    assert [path.name for path in tmp_path.iterdir()] == ["study.duckdb"]


@pytest.mark.parametrize("relation", RELATIONS)
def test_every_relation_is_documented(relation):
    header = [line for line in schema_sql(relation).splitlines() if line.startswith("--")]
    assert header[0].startswith(f"-- {relation}: ")
    text = " ".join(header)
    assert all(word in text for word in ("Grain:", "Inputs:", "Units:"))


def test_settings_are_json(store):
    with pytest.raises(StoreError, match="does not fit the store"):
        store.add(made_trace(["f0"], settings="{not json"))
    store.add(made_trace(["f0"], settings=json.dumps({"module": "attn", "method": "zero"})))
    assert store.query("SELECT DISTINCT module, method FROM trace_effects").to_pylist() == [
        {"module": "attn", "method": "zero"}
    ]
