"""Export to Parquet and import: the same store again, nothing twice, and bad folders are refused in one sentence."""

import dataclasses
import shutil
from types import SimpleNamespace

import duckdb
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from made_results import made_edit, made_run, made_trace
from real_store import real_store
from stored_rows import every_row

from fasttrace.analysis.relation import relation as view_of
from fasttrace.errors import StoreError, UserError
from fasttrace.facts.fields import LeftOut
from fasttrace.facts.record import Fact
from fasttrace.store import Store
from fasttrace.store.texts import RELATIONS

IDS = [f"f{i}" for i in range(4)]
MOMENTS = pa.table(
    {"model_hash": ["m0"], "corpus_hash": ["c"], "n_tokens": [9], "layers": [[0, 4]], "path": ["/x"], "corpus": ["t"]}
)


@pytest.fixture(scope="module")
def real(tmp_path_factory, small_tokenizer):
    store = real_store(tmp_path_factory.mktemp("real") / "real.duckdb", small_tokenizer)
    store.add(SimpleNamespace(run=made_run("m0", "moments", protocol=None), moments=MOMENTS))
    return store


@pytest.fixture(scope="module")
def exported(real, tmp_path_factory):
    folder = tmp_path_factory.mktemp("out") / "a store's [1]"
    real.to_parquet(folder)
    return folder


@pytest.fixture
def folder(exported, tmp_path):
    """A copy of the export, for a test to damage."""
    return shutil.copytree(exported, tmp_path / "parquet")


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "study.duckdb", timeout_s=2)


def rows(store, relation):
    return store.query(f"SELECT * FROM {relation} ORDER BY ALL").to_pylist()


def changed(folder, relation, change):
    """Apply `change` to the table in a relation's file."""
    file = folder / f"{relation}.parquet"
    pq.write_table(change(pq.read_table(file)), file)


def with_column(name, values):
    def change(table):
        place = table.column_names.index(name)
        kind = table.schema.field(place).type
        return table.set_column(place, name, pa.array([values] * len(table), kind))

    return change


def test_export_and_import_keep_every_row(real, exported, store):
    added = store.add_parquet(exported)
    found, wanted = every_row(store), every_row(real)
    for relation in RELATIONS:
        if relation != "store_schema":
            assert found[relation] == wanted[relation], relation
    # facts traced, edits, verdicts and one set of moments
    counted = "SELECT (SELECT count(*) FROM traces) + (SELECT count(*) FROM edits) + (SELECT count(*) FROM known) + 1"
    assert added == real.query(counted)[0][0].as_py()


def test_importing_again_adds_nothing(exported, store):
    store.add_parquet(exported)
    before = every_row(store)
    assert store.add_parquet(exported) == 0
    assert every_row(store) == before


def test_an_export_is_read_as_its_store_is_and_not_written(real, exported):
    read = Store(exported)
    assert every_row(read) == every_row(real)
    for name in ("scores_by_layer", "mean_effect"):
        assert view_of(read, name).equals(view_of(real, name)), name
    [run] = real.query("SELECT run_id FROM traces LIMIT 1").to_pylist()
    assert read.done(run["run_id"]) == real.done(run["run_id"]) != set()
    before = {path: path.read_bytes() for path in exported.iterdir()}
    for change in (lambda: read.add(made_trace(IDS)), read.create, read.check, lambda: read.merge(real)):
        with pytest.raises(StoreError, match="expected a file, got a folder; one of Parquet files is only read"):
            change()
    assert {path: path.read_bytes() for path in exported.iterdir()} == before


def test_one_file_a_relation_and_nothing_else(exported):
    assert sorted(path.name for path in exported.iterdir()) == sorted(f"{name}.parquet" for name in RELATIONS)
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]
    column = pq.ParquetFile(exported / "trace_cells.parquet").metadata.row_group(0).column(0)
    assert column.compression == "ZSTD"


def test_what_was_left_out_of_a_source_is_exported_and_added(tmp_path):
    one, other = Store(tmp_path / "one.duckdb"), Store(tmp_path / "other.duckdb")
    one.add_left_out("a.csv", [LeftOut("line 3", None, "bad")])
    other.add_left_out("a.csv", [LeftOut("line 4", None, "worse")])
    other.add_left_out("b.csv", [LeftOut("line 5", "x", "missing", part=True)])
    other.to_parquet(tmp_path / "folder")
    one.add_parquet(tmp_path / "folder")
    rows = one.query("SELECT source, record FROM facts_left_out ORDER BY ALL").to_pylist()
    assert [(row["source"], row["record"]) for row in rows] == [("a.csv", "line 3"), ("b.csv", "line 5")]


def test_an_import_adds_what_a_run_lacks(tmp_path, store):
    other = Store(tmp_path / "other.duckdb")
    other.add(made_trace(IDS))
    other.add(made_edit(IDS))
    other.to_parquet(tmp_path / "parquet")
    store.add(made_trace(IDS[:3]))
    store.add(made_edit(IDS[:1], layers=(0, 1)))
    assert store.add_parquet(tmp_path / "parquet") == 1 + 14
    for relation in ("traces", "trace_cells", "trace_effects", "edits", "edit_prompts"):
        assert rows(store, relation) == rows(other, relation)
    seconds = {row["kind"]: row["seconds"] for row in rows(store, "runs")}
    assert seconds == {"trace": 1.5 + 1.5 * 1 / 4, "edit": 1.5 + 1.5 * 14 / 16}  # the new rows' share of the other's


def refused(store, folder, sentence):
    """Assert that the import fails with one sentence and leaves the store as it was."""
    there = store.path.exists() and every_row(store)
    with pytest.raises(StoreError, match=sentence) as caught:
        store.add_parquet(folder)
    assert "\n" not in str(caught.value)
    if there:
        assert every_row(store) == there


@pytest.mark.parametrize(
    ("spoil", "sentence"),
    [
        (shutil.rmtree, "there is no folder"),
        (lambda folder: (folder / "store_schema.parquet").unlink(), "is not a store in Parquet"),
        (lambda folder: (folder / "edits.parquet").unlink(), r"lacks edits\.parquet"),
        (
            lambda folder: (folder / "mine.parquet").write_bytes(b""),
            r"expected only the files of a store, got mine\.parquet",
        ),
        (lambda folder: (folder / "edits.parquet").write_bytes(b"no parquet" * 99), "damaged file: .*No magic bytes"),
        (lambda folder: (folder / "edits.parquet").write_bytes(b""), "damaged file: .*too small"),
        (
            lambda folder: changed(folder, "store_schema", with_column("version", 3)),
            "has schema version 3, made by an older",
        ),
        (
            lambda folder: changed(folder, "edits", lambda table: table.drop(["loss"])),
            "relation edits of the store .* altered",
        ),
        (
            lambda folder: changed(folder, "edits", lambda table: table.append_column("mine", table["loss"])),
            "relation edits of the store .* altered",
        ),
        (
            lambda folder: changed(folder, "edits", lambda t: t.set_column(0, "run_id", pa.array([1] * len(t)))),
            "relation edits of the store .* altered",
        ),
    ],
)
def test_a_folder_that_is_no_store_is_refused_before_a_file_is_made(folder, store, spoil, sentence):
    spoil(folder)
    refused(store, folder, sentence)
    assert not store.path.exists()
    with pytest.raises(StoreError, match="parquet"):
        Store(folder).query("SELECT 1")


def test_half_a_file_is_damaged(folder, store):
    file = folder / "trace_cells.parquet"
    whole = file.read_bytes()
    file.write_bytes(whole[: len(whole) // 2])
    refused(store, folder, "damaged file")
    with pytest.raises(StoreError, match="damaged file"):
        Store(folder).query("SELECT 1")


def test_a_damaged_page_is_found_when_it_is_read(folder, store):
    file = folder / "trace_cells.parquet"
    whole = bytearray(file.read_bytes())
    column = pq.ParquetFile(file).metadata.row_group(0).column(7)  # p_restored
    begin = column.dictionary_page_offset or column.data_page_offset
    whole[begin + 40 : begin + 140] = bytes(100)
    file.write_bytes(whole)
    store.add(made_trace(IDS))
    refused(store, folder, "damaged file")
    with pytest.raises(StoreError, match="damaged file"):
        Store(folder).query("SELECT 1")


@pytest.mark.parametrize(
    ("relation", "change", "sentence"),
    [
        ("runs", lambda table: table.slice(1), "has rows of the run .* but its runs have no such run"),
        ("edits", with_column("protocol", "released"), "has rows of the run"),
        ("edits", with_column("p_after", 1.5), "does not fit the store"),
        ("edits", lambda table: pa.concat_tables([table, table]), "has an edit twice"),
        ("trace_cells", lambda table: pa.concat_tables([table, table]), "has a cell twice"),
        ("traces", lambda table: table.slice(1), "has cells but no row of its own"),
        ("edit_prompts", lambda table: pa.concat_tables([table, table]), "has a prompt twice"),
        ("runs", with_column("settings", "{no json"), "does not fit the store"),
        ("runs", with_column("kind", "dance"), "kind .*, got 'dance'"),
    ],
)
def test_rows_that_break_a_rule_are_refused_with_the_whole_folder(folder, store, relation, change, sentence):
    store.add(made_trace(IDS))
    changed(folder, relation, change)
    refused(store, folder, sentence)


def test_a_run_and_a_fact_keep_their_identity(tmp_path, store):
    other = Store(tmp_path / "other.duckdb")
    fact = Fact("{} is in", "s", "Rome", "Oslo", fact_id="f0")
    other.add_facts([fact])
    other.add(made_trace(IDS))
    other.to_parquet(tmp_path / "parquet")
    store.add(made_trace(IDS[:1], seed=0))
    changed(tmp_path / "parquet", "runs", with_column("seed", 9))
    refused(
        store, tmp_path / "parquet", r"differ in runs \(run_id t0\): seed is '0' in the first and '9' in the second"
    )
    store.add_facts([dataclasses.replace(fact, target_true="Bonn")])
    changed(tmp_path / "parquet", "runs", with_column("seed", 0))
    refused(
        store,
        tmp_path / "parquet",
        r"differ in facts \(fact_id f0\): target_true is 'Bonn' in the first and 'Rome' in the second",
    )


def test_an_existing_folder_is_left_alone(real, tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(StoreError, match="exists already"):
        real.to_parquet(tmp_path / "mine")
    assert list((tmp_path / "mine").iterdir()) == []


def test_a_failed_export_leaves_nothing(tmp_path, real):
    with pytest.raises(UserError, match="folder' cannot be written: No such file"):
        real.to_parquet(tmp_path / "no" / "folder")
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="folder' cannot be written: Not a directory"):
        real.to_parquet(tmp_path / "file" / "folder")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_other_tools_read_the_files(exported):
    table = pq.read_table(exported / "trace_effects.parquet")
    with duckdb.connect() as con:
        found = con.read_parquet(str(exported / "trace_effects.parquet"))
        assert found.shape == table.shape
