"""Checks of stores: sound stores pass, and each store broken on purpose fails the right checks."""

import json
import shutil

import duckdb
import pytest
from made_results import made_known
from plausible import edit_result, study_facts, trace_result
from real_store import real_store

from fasttrace.analysis.checks import checks, failures
from fasttrace.errors import StoreError
from fasttrace.store import Store

FACTS = study_facts(count=4)


@pytest.fixture(scope="module")
def sound(tmp_path_factory):
    """Both protocols, kept samples, edits of a fact without a trace and of a fact that was not added."""
    store = Store(tmp_path_factory.mktemp("sound") / "sound.duckdb")
    store.add_facts(FACTS[:3])
    for protocol in ("paper", "released"):
        store.add(trace_result(FACTS[:2], windows=(3, 5), run_id=f"trace-{protocol}", protocol=protocol))
        store.add(edit_result(FACTS, run_id=f"edit-{protocol}", protocol=protocol))
    store.add(made_known([fact.fact_id for fact in FACTS], protocol=None))
    kept = trace_result(FACTS[2:3], run_id="trace-kept")
    keys = ["fact_id", "window_size", "token_index", "layer", "p_restored"]
    rows = [row | {"sample": n} for n in range(2) for row in kept.cells.select(keys).to_pylist()]
    kept.samples = kept.samples.from_pylist(rows, schema=kept.samples.schema)
    store.add(kept)
    return store


def broken(store, folder, *changes):
    """Return a copy of the store, changed by raw SQL."""
    path = folder / "broken.duckdb"
    shutil.copy(store.path, path)
    con = duckdb.connect(str(path))
    for change in changes:
        con.execute(change)
    con.close()
    return Store(path)


def test_a_sound_store_passes(sound, study, wide_study):
    for store in (sound, study, wide_study):
        table = failures(store)
        assert table.to_pylist() == []
        assert table.column_names == ["check", "rows", "example"]


def test_a_store_filled_by_the_engines_passes(small_tokenizer, tmp_path):
    assert failures(real_store(tmp_path / "real.duckdb", small_tokenizer)).to_pylist() == []


def test_an_empty_store_passes(tmp_path):
    store = Store(tmp_path / "empty.duckdb")
    store.create()
    assert failures(store).num_rows == 0


CELL = "run_id = 'trace-paper' AND fact_id = 'place-00' AND window_size = 5 AND token_index = 2 AND layer = 3"
EDIT = "run_id = 'edit-paper' AND fact_id = 'place-00' AND layer = 4"
BREAKS = {
    "a run gone": ("DELETE FROM runs WHERE run_id = 'edit-paper'", {"rows_without_their_run": 2}),
    "another kind": ("UPDATE runs SET kind = 'mass' WHERE run_id = 'edit-paper'", {"rows_without_their_run": 2}),
    "another protocol": (
        "UPDATE known SET protocol = 'released' WHERE fact_id = 'place-00'",
        {"rows_without_their_run": 1},
    ),
    "a trace gone": (
        "DELETE FROM traces WHERE run_id = 'trace-released' AND fact_id = 'place-01'",
        {"cells_without_a_trace": 2, "layer_effects_off": 60},
    ),
    "a trace left out": (
        "UPDATE traces SET kept = FALSE, reason = 'no' WHERE run_id = 'trace-kept'",
        {"cells_without_a_trace": 3},
    ),
    "an edit gone": (f"DELETE FROM edits WHERE {EDIT}", {"prompts_without_an_edit": 1}),
    "a cell twice": (
        f"INSERT INTO trace_cells SELECT * FROM trace_cells WHERE {CELL}",
        {"duplicate_cells": 1},
    ),
    "a sample twice": (
        "INSERT INTO trace_samples SELECT * FROM trace_samples WHERE layer = 2 AND token_index = 1 AND sample = 0",
        {"duplicate_samples": 1},
    ),
    "an effect twice": (
        "INSERT INTO trace_effects SELECT * FROM trace_effects WHERE run_id = 'trace-kept' AND layer = 2",
        {"duplicate_effects": 1},
    ),
    "an edit twice": (f"INSERT INTO edits SELECT * FROM edits WHERE {EDIT}", {"duplicate_edits": 1}),
    "a prompt twice": (
        f"INSERT INTO edit_prompts SELECT * FROM edit_prompts WHERE {EDIT}",
        {"duplicate_prompts": 1},
    ),
    "a p above 1": (f"UPDATE edits SET p_after = 1.0005 WHERE {EDIT}", {"no_probability": 1}),
    "a prompt's p above 1": (
        f"UPDATE edit_prompts SET p_true_after = 1.0005 WHERE {EDIT}",
        {"no_probability": 1},
    ),
    "overall another": (f"UPDATE edits SET overall = overall + 1e-6 WHERE {EDIT}", {"overall_is_no_mean": 1}),
    "overall missing": (f"UPDATE edits SET overall = NULL WHERE {EDIT}", {"overall_is_no_mean": 1}),
    "overall of two": (f"UPDATE edits SET paraphrase = NULL WHERE {EDIT}", {"overall_is_no_mean": 1}),
    "an effect another": (
        f"UPDATE trace_cells SET effect = effect - 1e-6 WHERE {CELL}",
        {"effects_off": 1, "layer_effects_off": 1},
    ),
    "an effect missing": (
        f"UPDATE trace_cells SET effect = NULL WHERE {CELL}",
        {"effects_off": 1, "layer_effects_off": 1},
    ),
    "p_restored another": (
        f"UPDATE trace_cells SET p_restored = p_restored / 2 WHERE {CELL.replace('paper', 'kept').replace('00', '02')}",
        {"effects_off": 1, "samples_off": 1},
    ),
    "p_noised another": (
        "UPDATE traces SET p_noised = 0.999 WHERE run_id = 'trace-paper' AND fact_id = 'place-00'",
        {"effects_off": 2 * 9 * 30},
    ),
    "a layer's effect another": (
        "UPDATE trace_effects SET effect_last_subject = 0.5 WHERE run_id = 'trace-kept' AND layer = 3",
        {"layer_effects_off": 1},
    ),
    "a layer's effect gone": (
        "DELETE FROM trace_effects WHERE run_id = 'trace-kept' AND layer = 3",
        {"layer_effects_off": 1},
    ),
}


@pytest.mark.parametrize(("change", "wanted"), BREAKS.values(), ids=BREAKS)
def test_a_broken_store_fails_its_checks(sound, tmp_path, change, wanted):
    table = failures(broken(sound, tmp_path, change)).to_pylist()
    assert {row["check"]: row["rows"] for row in table} == wanted
    for row in table:
        assert json.loads(row["example"]).keys()


def test_an_example_names_the_row(sound, tmp_path):
    store = broken(sound, tmp_path, f"UPDATE edits SET overall = 0.25 WHERE {EDIT}")
    [row] = failures(store).to_pylist()
    example = json.loads(row["example"])
    assert (example["run_id"], example["fact_id"], example["layer"]) == ("edit-paper", "place-00", 4)
    assert (example["relation"], example["overall"]) == ("edits", 0.25)


def test_every_break_has_a_check_and_every_check_a_break():
    assert {name for _, wanted in BREAKS.values() for name in wanted} == set(checks())


@pytest.mark.parametrize("name", checks())
def test_every_check_is_documented(name):
    header = " ".join(line for line in checks()[name].splitlines() if line.startswith("--"))
    assert header.startswith(f"-- {name}: ")
    assert all(word in header for word in ("Grain:", "Inputs:", "Units:"))


def test_a_missing_store_is_refused(tmp_path):
    with pytest.raises(StoreError, match="there is no store at"):
        failures(Store(tmp_path / "x.duckdb"))
