"""Several stores read as one: every row is readable, the analysis takes each once, and errors are one sentence."""

import dataclasses
import html
import multiprocessing
import os
import shlex
import time

import duckdb
import other_process
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from click.testing import CliRunner
from made_results import made_edit, made_known, made_trace

import fasttrace
from fasttrace.analysis.commands import opening, store_options
from fasttrace.analysis.exhibits import exhibits
from fasttrace.analysis.regression import regressions
from fasttrace.analysis.relation import CHAIN, query, relation
from fasttrace.analysis.tables import layer_table, r2_table
from fasttrace.cli import cli
from fasttrace.errors import StoreError
from fasttrace.facts.record import Fact
from fasttrace.store import Store, Stores

IDS = [f"f{i}" for i in range(12)]
FACTS = {name: Fact("{} is in", name, "Rome", "Oslo", fact_id=name) for name in IDS}
processes = multiprocessing.get_context("forkserver")


def filled(path, ids, **run):
    store = Store(path, timeout_s=5)
    store.add_facts([FACTS[name] for name in ids])
    store.add(made_trace(ids, no_effect=("f3",), left_out=("f4",), **run))
    store.add(made_edit(ids))
    known = made_known(IDS)  # verdicts depend on a fact's position
    store.add(dataclasses.replace(known, verdicts=known.verdicts.filter(pc.field("fact_id").isin(ids))))
    return store


@pytest.fixture(scope="module")
def parts(tmp_path_factory):
    """(three overlapping stores of the same runs, one with a space in its name; one store with all rows)."""
    folder = tmp_path_factory.mktemp("several")
    a = filled(folder / "a.duckdb", IDS[:7])
    b = filled(folder / "my b.duckdb", IDS[5:])
    filled(folder / "c.duckdb", IDS[2:6]).to_parquet(folder / "c")
    return Stores([a.path, b.path, folder / "c"]), filled(folder / "all.duckdb", IDS)


def test_plain_names_have_every_row_with_its_store(parts):
    stores, _ = parts
    found = stores.query("SELECT store, count(*) AS n FROM traces GROUP BY store ORDER BY store").to_pylist()
    assert found == [{"store": "a", "n": 7}, {"store": "c", "n": 4}, {"store": "my b", "n": 7}]
    table = stores.query("SELECT * FROM edits")
    assert table.column_names[:2] == ["store", "run_id"]
    assert set(table["run_id"].to_pylist()) == {"e0"}
    assert len(stores.query("SELECT * FROM runs WHERE run_id = $run", {"run": "t0"})) == 3
    effects = stores.query("SELECT store, max(effect) AS effect FROM trace_effects GROUP BY store").to_pylist()
    for row in effects:
        alone = Store(stores.paths[row["store"]]).query("SELECT max(effect) AS effect FROM trace_effects").to_pylist()
        assert alone == [{"effect": row["effect"]}]


def test_a_store_is_read_by_its_name(parts):
    stores, _ = parts
    assert stores.query('SELECT count(*) AS n FROM "my b".traces').to_pylist() == [{"n": 7}]
    assert stores.query("SELECT count(DISTINCT fact_id) AS n FROM c.trace_effects").to_pylist() == [{"n": 3}]
    both = "SELECT count(*) AS n FROM a.edits JOIN c.edits USING (run_id, fact_id, problem, method, layer)"
    assert stores.query(both).to_pylist() == [{"n": 4 * 4}]
    listed = stores.relations().to_pylist()
    assert {row["store"] for row in listed} == {"a", "my b", "c"}
    assert [row["n_rows"] for row in listed if row["relation"] == "traces"] == [7, 7, None]


def assert_same(found, wanted):
    """Assert the same rows. Numbers may differ by the order of sums."""
    key = [name for name in wanted.column_names if not str(wanted[name].type).startswith(("double", "list"))]
    found, wanted = (table.to_pandas().sort_values(key, ignore_index=True) for table in (found, wanted))
    assert len(wanted)
    for name in wanted:
        if wanted[name].dtype == float:
            assert found[name].to_numpy() == pytest.approx(wanted[name].to_numpy(), rel=1e-9, abs=1e-12, nan_ok=True)
        else:
            assert found[name].astype(str).to_list() == wanted[name].astype(str).to_list()


# No store has mass edits, moments or two runs whose settings differ.
@pytest.mark.parametrize("name", sorted({*CHAIN} - {"mass_settings", "moments_settings", "run_names"}))
def test_views_of_the_analysis_take_every_row_once(parts, name):
    stores, whole = parts
    assert_same(query(stores, f"SELECT * FROM {name}"), query(whole, f"SELECT * FROM {name}"))


@pytest.mark.parametrize(
    "name", ["left_out", "run_counts", "run_progress", "fact_traces", "peak_layers", "mean_effect", "fact_names"]
)
def test_queries_of_the_analysis_take_every_row_once(parts, name):
    stores, whole = parts
    assert_same(relation(stores, name), relation(whole, name))


def test_tables_over_several_stores(parts):
    stores, whole = parts
    assert_same(r2_table(stores, "rewrite"), r2_table(whole, "rewrite"))
    assert_same(layer_table(stores), layer_table(whole))


def test_figures_and_the_report_over_several_stores(parts, tmp_path, monkeypatch):
    stores, whole = parts
    home = os.path.commonpath([path.resolve().parent for path in stores.files.values()])
    monkeypatch.chdir(home)
    for found, wanted in zip(exhibits(stores), exhibits(whole), strict=True):
        assert found.key == wanted.key
        assert_same(found.data, wanted.data)
    again = eval(opening(stores), {"fasttrace": fasttrace})
    assert home not in opening(stores)
    assert {name: path.resolve() for name, path in again.files.items()} == {
        name: path.resolve() for name, path in stores.files.items()
    }
    words = shlex.split(store_options(stores))
    for verb in (["figures", "6", "--out", str(tmp_path)], ["report", "--out", str(tmp_path / "several.html")]):
        assert CliRunner().invoke(cli, [*verb, *words], catch_exceptions=False).exit_code == 0
    assert (tmp_path / "figure-6.svg").is_file()
    assert opening(stores) in html.unescape((tmp_path / "several.html").read_text())


def test_the_first_store_that_has_a_row_gives_it(tmp_path):
    one, two = Store(tmp_path / "one.duckdb"), Store(tmp_path / "two.duckdb")
    one.add(made_edit(["f0"], layers=(0,), seed=1))
    two.add(made_edit(["f0", "f1"], layers=(0,), seed=2))
    value = "SELECT rewrite FROM edits ORDER BY fact_id"
    for first, second in ((one, two), (two, one)):
        found = Stores([first.path, second.path]).once().query(value).column(0).to_pylist()
        assert found[0] == first.query(value).column(0).to_pylist()[0]
        assert found[1] == two.query(value).column(0).to_pylist()[1]


def test_traces_of_one_store_are_compared_with_edits_of_another(tmp_path):
    traces, edits, whole = (Store(tmp_path / f"{name}.duckdb") for name in ("traces", "edits", "whole"))
    traces.add(made_trace(IDS))
    edits.add(made_edit(IDS))
    whole.add(made_trace(IDS))
    whole.add(made_edit(IDS))
    found = regressions(Stores({"t": traces.path, "e": edits.path}))
    assert found["n"].to_pylist() == [12 * 4]
    assert_same(found, regressions(whole))


def test_cells_with_and_without_heads_count_once(tmp_path):
    """A key with a NULL is the same key in another store."""
    one, two = Store(tmp_path / "one.duckdb"), Store(tmp_path / "two.duckdb")
    heads = {"run_id": "h0", "heads": (0, 1), "asked": {"module": "head", "heads": "all"}}
    for store, ids in ((one, IDS[:3]), (two, IDS[1:4])):
        for result in (made_trace(ids), made_trace(ids, **heads)):
            keys = ["fact_id", "window_size", "token_index", "layer", "head", "p_restored"]
            rows = [row | {"sample": n} for n in range(2) for row in result.cells.select(keys).to_pylist()]
            result.samples = result.samples.from_pylist(rows, schema=result.samples.schema)
            store.add(result)
    counted = "SELECT run_id, count(*) AS n, count(head) AS heads FROM {} GROUP BY run_id ORDER BY run_id"
    for stores in (Stores([one.path, two.path]), Stores([two.path, one.path])):
        for name, times in (("trace_cells", 1), ("trace_samples", 2)):
            found = stores.once().query(counted.format(name)).to_pylist()
            cells = 4 * 3 * 4 * times
            assert found == [
                {"run_id": "h0", "n": 2 * cells, "heads": 2 * cells},
                {"run_id": "t0", "n": cells, "heads": 0},
            ]


def test_a_run_has_the_same_counterfactuals_in_every_store(tmp_path):
    paths = [tmp_path / f"{name}.duckdb" for name in ("one", "same", "other")]
    for path, pairs in zip(paths, (["Bonn", "Kiel"], ["Kiel", "Bonn"], ["Oslo"]), strict=True):
        made = made_trace(["f0"])
        row = made.facts.to_pylist()[0] | {"counterfactuals": pairs}
        Store(path).add(dataclasses.replace(made, facts=pa.Table.from_pylist([row], schema=made.facts.schema)))
    assert Stores(paths[:2]).once().query("FROM traces")["counterfactuals"].to_pylist() == [["Bonn", "Kiel"]]
    assert len(Stores(paths[:2]).once().query("FROM traces")) == 1
    refused(paths, "the stores one and other and same have different counterfactuals in the run 't0': read each alone")


def test_several_stores_are_read_only(parts):
    stores, _ = parts
    before = stores.query("SELECT count(*) FROM edits").to_pylist()
    for name in ("a.edits", '"my b".edits', "edits"):
        with pytest.raises(StoreError, match=r"Can only delete from base table|the store is open read-only"):
            stores.query(f"DELETE FROM {name}")
    assert stores.query("SELECT count(*) FROM edits").to_pylist() == before


def refused(stores, sentence, **options):
    with pytest.raises(StoreError, match=sentence) as caught:
        Stores(stores, **options).query("SELECT 1")
    assert "\n" not in str(caught.value)


def test_stores_that_cannot_be_read_together_are_refused_in_one_sentence(tmp_path):
    good = filled(tmp_path / "good.duckdb", IDS[:2]).path
    refused([], "stores: expected one or more, got none")
    refused([good, tmp_path / "none.duckdb"], "there is no store at .*none.duckdb")
    refused([good, tmp_path / "other" / "good.duckdb"], "two stores are named 'good'")
    refused({"a": good, "A": tmp_path / "b.duckdb"}, "two stores are named 'A'")
    refused({"a": good, "b": good}, "good.duckdb is given twice")
    for name in ("main", "Memory", "once", "temp", "", 'a"b'):
        refused({name: good}, "a store cannot be named")
    (tmp_path / "text.duckdb").write_bytes(b"hello world " * 900)
    refused([good, tmp_path / "text.duckdb"], "text.duckdb is not a DuckDB file")
    duckdb.connect(str(tmp_path / "plain.duckdb")).execute("CREATE TABLE t (a INT)").close()
    refused([good, tmp_path / "plain.duckdb"], "plain.duckdb is a DuckDB file but not a fasttrace store")
    old = filled(tmp_path / "old.duckdb", IDS[:2]).path
    with duckdb.connect(str(old)) as con:
        con.execute("UPDATE store_schema SET version = 1").fetchall()
    refused([good, old], "old.duckdb has schema version 1, made by an older fasttrace")


def test_stores_that_contradict_each_other_are_refused(tmp_path):
    good = filled(tmp_path / "good.duckdb", IDS[:2]).path
    facts, run = Store(tmp_path / "facts.duckdb"), Store(tmp_path / "run.duckdb")
    facts.add_facts([dataclasses.replace(FACTS["f1"], target_true="Bonn")])
    refused([good, facts.path], "the stores facts and good have different facts under the fact_id 'f1'")
    run.add(made_trace(IDS[:2], dtype="bfloat16"))
    refused([good, run.path], "the stores good and run have different runs under the run_id 't0'")


def test_a_locked_store_is_waited_for_without_locking_the_others(tmp_path):
    free, locked = filled(tmp_path / "free.duckdb", IDS[:2]), filled(tmp_path / "locked.duckdb", IDS[:2])
    held, trying = processes.Event(), processes.Event()
    holder = processes.Process(target=other_process.hold, args=(locked.path, held, 3.0))
    holder.start()
    assert held.wait(60)
    ours, theirs = processes.Pipe(duplex=False)
    paths = [free.path, locked.path]
    reader = processes.Process(target=other_process.read_several, args=(paths, trying, theirs))
    reader.start()
    assert trying.wait(60)
    began = time.monotonic()
    free.add(made_trace(["f9"]))
    assert time.monotonic() - began < 1.5, "the waiting reader locked the free store"
    assert ours.poll(60)
    assert ours.recv() == 5
    holder.join()
    reader.join()
    with duckdb.connect(str(locked.path)):
        refused(paths, r"locked.duckdb stayed locked for 0\.1 s", timeout_s=0.1)
